"""What every stage leaves beside its result: the resolved recipe, the versions, metrics and a summary.

recipe.json      every key, its value and where it came from
versions.json    of Python, fledge and the libraries
metrics.jsonl    one object a line, appended while the stage runs
events.jsonl     of training stages: when each attempt began and at which step, and what befell it
summary.json     written last; a stage without it did not finish
"""

import json
import platform
import resource
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fledge import __version__
from fledge.arguments import LIBRARY
from fledge.files import hold, write_json, write_text
from fledge.recipe import Recipe, resolved


LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "trl", "peft", "tokenizers", "safetensors", "pyarrow")
SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"
BEGAN, MADE_ROOM, SPIKE = "began", "made room", "loss spike"
"""What events.jsonl tells of."""


class Record:
    """Writes those files into the stage's output_dir.

    Args:
        recipe: the stage's recipe.
        library_values: the fields of the Hugging Face dataclass built from it, for the resolved recipe.
        is_main: whether this process writes; the others keep quiet.
    """

    def __init__(self, recipe: Recipe, library_values: dict[str, Any] | None = None, is_main: bool = True) -> None:
        self.folder = recipe.output_dir
        self.is_main = is_main
        self.stage, self.name = recipe.stage, recipe.name
        self.resolved = resolved(recipe, library_values)
        self.began = time.time()
        if is_main:
            hold(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.was_done = (self.folder / SUMMARY).exists()
            (self.folder / SUMMARY).unlink(missing_ok=True)
            if recipe.stage not in LIBRARY:  # the others begin or go on: see `begin_at`
                (self.folder / METRICS).unlink(missing_ok=True)
            write_json(self.folder / "recipe.json", self.resolved)
            write_json(self.folder / "versions.json", versions())

    @property
    def seconds(self) -> float:
        """That the stage has worked. Of an attempt that was killed, what it logged counts."""
        return time.time() - self.began

    def begin_at(self, step: int, evaluated: bool = True) -> None:
        """Forget what metrics.jsonl says of the steps after this one, which are taken again; 0: of all.

        An event says so: at which step this attempt began, and the last one that an earlier attempt had logged.

        Args:
            evaluated: if not, the evaluation of this very step is made again too.
        """
        if not self.is_main:
            return
        lines, events = list(read_metrics(self.folder)), list(read_lines(self.folder / EVENTS))
        if self.was_done and not step:  # finished before, and all of it once more
            lines, events = [], []
        if lines:
            self.began -= lines[-1].get("seconds", 0)
        reached = max((line["step"] for line in lines), default=0)
        events = [event for event in events if event["event"] != SPIKE or event["step"] <= step]
        write_text(self.folder / EVENTS, as_lines(events))
        self.note(BEGAN, step=step, reached=reached)  # before the lines that tell it go
        kept = [line for line in lines if line["step"] <= step and step]
        kept = [line for line in kept if evaluated or line["step"] < step or "eval_loss" not in line]
        if (self.folder / METRICS).exists():
            write_text(self.folder / METRICS, as_lines(kept))

    def note(self, event: str, **values: Any) -> None:
        """Add to events.jsonl what befell the stage, with the date."""
        if self.is_main:
            path, now = self.folder / EVENTS, datetime.now(UTC).isoformat(timespec="seconds")
            write_text(path, as_lines([*read_lines(path), {"event": event, "date": now, **values}]))

    def log(self, **values: Any) -> None:
        """Append one line to metrics.jsonl, with the seconds that the stage has worked."""
        if self.is_main:
            with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"seconds": round(self.seconds, 2), **values}, ensure_ascii=False) + "\n")

    def finish(self, **results: Any) -> None:
        """Write summary.json, which says that the stage is done. `peak_memory_gb` is that of this process."""
        if self.is_main:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
            summary = {
                "stage": self.stage,
                "name": self.name,
                "seconds": round(self.seconds, 2),
                "peak_memory_gb": round(peak, 3),
                "results": results,
            }
            write_json(self.folder / SUMMARY, summary)


def versions() -> dict[str, str]:
    """Versions of Python, fledge and of the libraries that are installed."""
    found = {"python": platform.python_version(), "fledge": __version__}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of a stage's metrics.jsonl."""
    return read_lines(folder / METRICS)


def as_lines(values: list[dict[str, Any]]) -> str:
    """The text of a file of JSON lines."""
    return "".join(f"{json.dumps(value, ensure_ascii=False)}\n" for value in values)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; a last line cut by a kill is passed over."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
