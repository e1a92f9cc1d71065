"""Start one stage, through accelerate launch where it uses the layout's devices, and watch its memory."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from fledge.causes import CAUSE_FILE, EXIT_CODE_FILE
from fledge.layouts import Layout, read_layout
from fledge.preempted import SIGNALS, Preempted
from fledge.recipe import Recipe


WITHOUT_DEVICES = ("corpus", "tokenizer", "prepare", "export")
"""Stages that run outside any process group, whatever the layout: data is made once, not once a device."""

GENERATING = ("pairs", "evaluate")
"""Stages of one process: on a CPU the launcher would only add the seconds it takes to start."""


@dataclass(frozen=True)
class Outcome:
    """How a stage ended, the most memory its processes held at a time in GB, and why each that failed did so."""

    exit_code: int
    peak_memory_gb: float
    causes: list[str]


def launch(recipe: Recipe, layout: Path, overrides: Sequence[str] = ()) -> Outcome:
    """Run `[accelerate launch --config_file LAYOUT] -m fledge STAGE RECIPE [--key value ...]` to its end."""
    command, placed = [sys.executable], read_layout(layout)
    environment = {**os.environ}
    if recipe.stage in GENERATING and placed.use_cpu:
        environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(threads(placed, processes=1))}
    elif recipe.stage not in WITHOUT_DEVICES:
        command += ["-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"]
        # accelerate warns if it has to guess
        command += ["--num_cpu_threads_per_process", str(threads(placed))]
        command += ["--config_file", str(layout)]
    command += ["-m", "fledge", recipe.stage, str(recipe.path), *overrides, *(["--smoke"] if recipe.smoke else [])]
    with tempfile.TemporaryDirectory() as folder:
        code_file, cause_file = Path(folder) / "code", Path(folder) / "causes"
        environment |= {EXIT_CODE_FILE: str(code_file), CAUSE_FILE: str(cause_file)}
        below = _Below()
        # Listening first: a signal within Popen itself would leave a launcher behind that nobody knows of.
        with _passing_on(below) as asked, subprocess.Popen(command, env=environment) as process:
            below.root = psutil.Process(process.pid)
            with _every(0.5, below.look):
                try:
                    code = process.wait()
                except KeyboardInterrupt:
                    # The stage got the same signal and ends by itself; leaving now would orphan it.
                    process.wait()
                    raise
                finally:
                    if asked:  # perhaps the launcher was as well, and has died before its stage
                        below.wait()
        if code_file.is_file():
            code = int(code_file.read_text())
        elif code and asked:  # before the stage could listen
            code = Preempted.exit_code
        causes = cause_file.read_text(encoding="utf-8").splitlines() if cause_file.is_file() else []
    return Outcome(code, below.peak / 1e9, causes)


@contextmanager
def _passing_on(below: "_Below") -> Iterator[list[int]]:
    """Meanwhile a signal that asks this process to make room goes to the stage's own processes, each told once.

    Not to accelerate's, which die of it and leave theirs behind, or give them 30 seconds. A stage that has not begun
    yet is told when it begins. Yields the signals that came.
    """
    asked: list[int] = []
    told: set[int] = set()

    def tell() -> None:
        if asked:
            below.look()
            for process in [process for pid, process in below.stages.items() if pid not in told]:
                told.add(process.pid)
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in SIGNALS}
    try:
        with _every(0.1, tell):
            yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def threads(layout: Layout, processes: int | None = None) -> int:
    """OMP_NUM_THREADS if it is set; on a CPU layout each process's share of the cores, elsewhere 1.

    Args:
        processes: on this machine, if not as many as the layout says.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return int(os.environ["OMP_NUM_THREADS"])
    here = processes or layout.num_processes // layout.num_machines
    return max(1, os.cpu_count() // here) if layout.use_cpu else 1


class _Below:
    """The processes of a stage, and the most resident memory that they and their launcher held at a time, in bytes."""

    def __init__(self) -> None:
        self.root: psutil.Process | None = None
        self.peak = 0
        self.stages: dict[int, psutil.Process] = {}
        """All that were seen, by number: they outlive a launcher that dies."""

    def look(self) -> None:
        if self.root is None:
            return
        with suppress(psutil.NoSuchProcess):
            processes = (self.root, *self.root.children(recursive=True))
            found = {process.pid: process for process in processes if _is_stage(process)}
            self.stages = {**self.stages, **found}  # a new one: other threads may be reading the old
            self.peak = max(self.peak, sum(process.memory_info().rss for process in processes))

    def wait(self) -> None:
        """Until all of the stage's processes have ended."""
        while any(_is_stage(process) for process in self.stages.values()):
            time.sleep(0.1)


def _is_stage(process: psutil.Process) -> bool:
    """Whether it lives and runs `-m fledge STAGE`, and is not accelerate, which has the same words on its line."""
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:  # a zombie counts as one
        return False
    return "fledge" in words[:5] and "accelerate.commands.accelerate_cli" not in words


@contextmanager
def _every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Meanwhile `call` is made this often, by a thread."""
    stopped = threading.Event()

    def repeat() -> None:
        while not stopped.wait(seconds):
            call()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
