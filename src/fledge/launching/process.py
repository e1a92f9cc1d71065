"""Start one stage, through accelerate launch where it uses the layout's devices, and watch its memory."""

import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil

from fledge.layouts import read_layout
from fledge.recipe import Recipe

from . import EXIT_CODE_FILE


WITHOUT_DEVICES = ("corpus", "tokenizer", "prepare", "export")
"""Stages that run outside any process group, whatever the layout: data is made once, not once a device."""

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
"""glibc gives large blocks back after every use and faults every page in again; keeping them made a training step on
a CPU 17% faster. It has to be set before the process starts."""


@dataclass(frozen=True)
class Outcome:
    """How a stage ended, and the most memory its processes held at a time, in GB."""

    exit_code: int
    peak_memory_gb: float


def launch(recipe: Recipe, layout: Path) -> Outcome:
    """Run `[accelerate launch --config_file LAYOUT] -m fledge STAGE RECIPE [--smoke]` to its end."""
    command = [sys.executable]
    if recipe.stage not in WITHOUT_DEVICES:
        command += ["-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"]
        command += ["--num_cpu_threads_per_process", str(threads(layout))]  # accelerate warns if it has to guess
        command += ["--config_file", str(layout)]
    command += ["-m", "fledge", recipe.stage, str(recipe.path), *(["--smoke"] if recipe.smoke else [])]
    with tempfile.TemporaryDirectory() as folder:
        code_file = Path(folder) / "code"
        environment = {**ALLOCATOR, **os.environ, EXIT_CODE_FILE: str(code_file)}
        with subprocess.Popen(command, env=environment) as process:
            watch = _Memory(process.pid)
            try:
                code = process.wait()
            except KeyboardInterrupt:
                # The stage got the same signal and ends by itself; leaving now would orphan it.
                process.wait()
                raise
            finally:
                watch.stop()
        if code and code_file.is_file():
            code = int(code_file.read_text())
    return Outcome(code, watch.peak / 1e9)


def threads(layout: Path) -> int:
    """OMP_NUM_THREADS if it is set; on a CPU layout each process's share of the cores, elsewhere 1."""
    if "OMP_NUM_THREADS" in os.environ:
        return int(os.environ["OMP_NUM_THREADS"])
    placement = read_layout(layout)
    here = placement.num_processes // placement.num_machines
    return max(1, os.cpu_count() // here) if placement.use_cpu else 1


class _Memory:
    """Samples the resident memory of a process and its children twice a second."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._root = psutil.Process(pid)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(0.5):
            total = 0
            try:
                for process in (self._root, *self._root.children(recursive=True)):
                    total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            self.peak = max(self.peak, total)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
