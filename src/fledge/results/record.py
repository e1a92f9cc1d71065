"""What every stage leaves beside its result: the resolved recipe, the versions, metrics and a summary.

recipe.json      every key, its value and where it came from
versions.json    of Python, fledge and the libraries
metrics.jsonl    one object a line, appended while the stage runs
summary.json     written last; a stage without it did not finish
"""

import json
import platform
import resource
import time
from collections.abc import Iterator
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


class Record:
    """Writes those four files into the stage's output_dir.

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
            (self.folder / SUMMARY).unlink(missing_ok=True)
            if recipe.stage not in LIBRARY:  # the others begin or go on: see `begin_at`
                (self.folder / METRICS).unlink(missing_ok=True)
            write_json(self.folder / "recipe.json", self.resolved)
            write_json(self.folder / "versions.json", versions())

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return time.time() - self.began

    def begin_at(self, step: int, evaluated: bool = True) -> None:
        """Forget what metrics.jsonl says of the steps after this one, which are taken again; 0: of all.

        Args:
            evaluated: if not, the evaluation of this very step is made again too.
        """
        if self.is_main and (path := self.folder / METRICS).exists():
            lines = (line for line in read_metrics(self.folder) if line["step"] <= step and step)
            kept = (line for line in lines if evaluated or line["step"] < step or "eval_loss" not in line)
            write_text(path, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in kept))

    def log(self, **values: Any) -> None:
        """Append one line to metrics.jsonl, with the seconds since the stage began."""
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
    """The lines of a stage's metrics.jsonl; a last line cut by a kill is passed over."""
    path = folder / METRICS
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
