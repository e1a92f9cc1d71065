"""A folder like a user's checkout of the recipes, and the commands run in it."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[2]
TINY = "recipes/tiny"
STAGES = ["tokenizer", "prepare", "prepare_sft", "pretrain", "sft", "pairs", "dpo", "evaluate", "export"]
"""Of the tiny recipe, in the order in which `fledge run` takes them."""

OF_A_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH")
TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Finished:
    """A command that ended: its exit code and what it printed, progress bars as lines of their own."""

    command: list[str]
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err

    @property
    def tail(self) -> str:
        """For a failing assert: the last 150 lines of everything; a launcher's own words are the last 50 of them."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return "\n".join([f"{' '.join(self.command)} ended with {self.code}", *lines[-150:]])

    def steps(self) -> dict[str, str]:
        """What `fledge run` said of each stage: `unchanged, skipped`, `left out`, or the path of the recipe it ran."""
        return dict(re.findall(r"^\[\d+/\d+\] (\w+): (.*)$", self.out, re.MULTILINE))


class Workspace:
    """Commands run in `folder`: one thread a process, no model hub, a Hugging Face home of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_folder = folder / "runs" / "tiny"

    def copy(self, target: Path) -> "Workspace":
        """A copy to change and to run further."""
        shutil.copytree(self.folder, target)
        return Workspace(target)

    def environment(self, **more: str) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if key not in OF_A_LAUNCH}
        home = {"HF_HOME": str(self.folder / "hf"), "HF_HUB_OFFLINE": "1"}
        return {**inherited, **home, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **more}

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """A command in a process group of its own; `fledge`, `accelerate` and `python` are those of this Python."""
        program = Path(sys.executable).with_name(command[0]) if "/" not in command[0] else command[0]
        return subprocess.Popen(
            [str(program), *command[1:]],
            cwd=self.folder,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, *command: str, code: int | None = 0, timeout: float = TIMEOUT_SECONDS, **environment: str
    ) -> Finished:
        """Run a command to its end; a test fails if it ends with another exit code than `code`."""
        process = self.start(*command, **environment)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            out, err = kill(process)
        except BaseException:  # the test session itself is interrupted
            kill(process)
            raise
        done = Finished(list(command), process.returncode, out.replace("\r", "\n"), err.replace("\r", "\n"))
        assert code is None or done.code == code, done.tail
        return done

    def fledge(
        self, *arguments: str, code: int | None = 0, timeout: float = TIMEOUT_SECONDS, **environment: str
    ) -> Finished:
        return self.run("fledge", *arguments, code=code, timeout=timeout, **environment)

    def json(self, *path: str) -> Any:
        """A JSON file below runs/tiny."""
        return json.loads(self.run_folder.joinpath(*path).read_text(encoding="utf-8"))

    def results(self, stage: str) -> dict[str, Any]:
        return self.json(stage, "summary.json")["results"]

    def weights(self) -> dict[str, str]:
        """SHA-256 of the weights of every model that is in place."""
        found = sorted(self.run_folder.glob("*/model.safetensors"))
        return {path.parent.name: sha256(path) for path in found if path.parent.suffix != ".previous"}

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace a text that stands in a file once."""
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file} holds {old!r} {text.count(old)} times"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def files(self) -> dict[str, int]:
        """Every file and when it was last written."""
        return {str(path): path.stat().st_mtime_ns for path in self.folder.rglob("*") if path.is_file()}


def keep_only(workspace: Workspace, *stages: str) -> None:
    """Leave only these recipes in the folder."""
    for path in (workspace.folder / TINY).glob("*.yaml"):
        if path.stem not in stages:
            path.unlink()


def kill(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Kill a command and all it started, as an out-of-memory killer would; what it had printed."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()


def losses(folder: Path, key: str = "loss") -> list[Any]:
    """One of a stage's metrics, step by step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line[key] for line in lines if key in line]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
