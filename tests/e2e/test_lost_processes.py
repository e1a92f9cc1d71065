"""One of two processes fails in the midst of a step: both end, soon, and the last lines say what happened first."""

import time
from pathlib import Path

import psutil
import pytest

from .workspace import TINY, Workspace, keep_only


OPTIONS = ["--output_dir", "runs/tiny/two", "--hang_timeout", "10"]
WORDS = {
    "raise": "process 1: RuntimeError: the tape is torn",
    "die": "Signal 9 (SIGKILL)",
    "leave": "process 0: RuntimeError: ",
    "stop": "process 0: no progress for 10 s (hang_timeout) after step 5",
    "hang": "process 1: no progress for 10 s (hang_timeout) after step 5, in meet (",
}
WITHIN = {"raise": 90, "die": 90, "leave": 90, "stop": 140, "hang": 120}
"""Seconds of the whole run, its start included; a stopped process is given 30 by torchrun before it is killed."""
QUICK = ("raise", "hang")
FAULTS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WORDS]


@pytest.mark.parametrize("fault", FAULTS)
def test_all_processes_end_and_the_first_cause_is_told(mine: Workspace, fault: str) -> None:
    keep_only(mine, "tokenizer", "prepare", "pretrain")
    launcher = ["accelerate", "launch", "--config_file", "accelerate_configs/cpu_2proc.yaml"]
    began = time.monotonic()
    module = ["-m", "unlucky", fault, "6", "pretrain", f"{TINY}/pretrain.yaml", *OPTIONS]
    process = mine.start(*launcher, *module, PYTHONPATH=str(Path(__file__).parent))
    out, err = process.communicate(timeout=200)
    assert process.returncode != 0
    assert time.monotonic() - began < WITHIN[fault]
    last = [line for line in (out + err).splitlines() if line.strip()][-20:]
    assert any(WORDS[fault] in line for line in last), "\n".join(last)
    assert not [each for each in psutil.process_iter(["cmdline"]) if "unlucky" in (each.info["cmdline"] or [])]

    # Whatever it was, the newest whole checkpoint is sound.
    assert (mine.run_folder / "two/checkpoint-4/COMPLETE.json").is_file()
