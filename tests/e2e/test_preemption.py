"""Asked to make room: one agreed step, a whole checkpoint, exit code 75, and the same weights in the end."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from .workspace import TINY, Workspace, keep_only, kill, losses


RECIPE = f"{TINY}/pretrain.yaml"
WITHIN = 20.0
"""Seconds from the signal to the end, on a machine that runs other tests beside."""


def begin(workspace: Workspace, *command: str, run: str = "pretrain", step: int = 2) -> psutil.Popen:
    """Start a command and wait until its stage has logged a step."""
    process = workspace.start(*command)
    folder = workspace.run_folder / run
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").is_file() or len(losses(folder)) < step:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    return process


def stage_processes(pid: int) -> list[psutil.Process]:
    """The stage's own processes below a command, in the order of their ranks."""
    found = [each for each in psutil.Process(pid).children(recursive=True) if "fledge" in each.cmdline()[:5]]
    found = [each for each in found if "accelerate.commands.accelerate_cli" not in each.cmdline()]
    return sorted(found, key=lambda each: int(each.environ().get("RANK", "0")))


def ended(process: psutil.Popen, began: float) -> tuple[int, str]:
    """Its exit code and what it printed; it has ended by itself, in time, and left no process behind."""
    below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    try:
        out, err = process.communicate(timeout=WITHIN)
    except BaseException:
        kill(process)
        raise
    assert time.monotonic() - began < WITHIN
    assert not [each for each in below if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    return process.returncode, out + err


@pytest.fixture
def long(mine: Workspace) -> Workspace:
    """Pretraining that never ran, slow enough to be met in the midst of a step: the schedule is that of 12 steps."""
    keep_only(mine, "tokenizer", "prepare", "pretrain")
    (mine.run_folder / "pretrain").rename(mine.folder / "unbroken")
    return mine


def saved(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("checkpoint-*/COMPLETE.json"))


@pytest.mark.parametrize(
    ("number", "whom"),
    [
        (signal.SIGTERM, "chain"),
        (signal.SIGUSR1, "chain"),
        (signal.SIGTERM, "its-whole-group"),  # as `timeout` does
        pytest.param(signal.SIGUSR1, "its-whole-group", marks=pytest.mark.slow),
    ],
)
def test_a_chain_makes_room_and_goes_on(long: Workspace, chain: Workspace, number: signal.Signals, whom: str) -> None:
    process = begin(long, "fledge", "run", TINY)
    began = time.monotonic()
    if whom == "chain":
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)
    code, text = ended(process, began)

    assert code == 75, text
    assert "asked to make room: stopped after step" in text and "Traceback" not in text
    folder = long.run_folder / "pretrain"
    assert (saved(folder) and not (folder / "unfinished").exists()) or not list((folder / "unfinished").iterdir())
    assert not (folder / "summary.json").exists()

    again = long.fledge("run", TINY)
    assert "resuming from runs/tiny/pretrain/checkpoint-" in again.text
    page = (long.run_folder / "report.html").read_text(encoding="utf-8")
    assert "asked to make room</th>" in page and "resumed at step" in page
    assert losses(folder) == losses(chain.run_folder / "pretrain")
    assert long.weights()["pretrain"] == chain.weights()["pretrain"]


@pytest.mark.parametrize("told", [(0,), (1,), (0, 1)], ids=["one", "the-other", "staggered"])
def test_two_processes_agree_on_the_step(long: Workspace, told: tuple[int, ...]) -> None:
    options = ["pretrain", RECIPE, "--output_dir", "runs/tiny/two"]
    launcher = ["accelerate", "launch", "--config_file", "accelerate_configs/cpu_2proc.yaml", "-m", "fledge"]
    process = begin(long, *launcher, *options, run="two")
    processes = stage_processes(process.pid)
    assert len(processes) == 2
    began = time.monotonic()
    for rank in told:
        processes[rank].send_signal(signal.SIGTERM)
        time.sleep(0.05)
    code, text = ended(process, began)

    assert code != 0 and "asked to make room: stopped after step" in text
    made = long.json("two", saved(long.run_folder / "two")[-1], "COMPLETE.json")
    assert made["topology"] == {"engine": "ddp", "processes": 2}
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {*made["files"]}
    steps = losses(long.run_folder / "two")
    long.run(*launcher, *options)
    assert losses(long.run_folder / "two")[: len(steps)] == steps
    assert long.results("two")["steps"] == 12


def test_a_chain_asked_before_its_stage_listens_makes_room_too(long: Workspace) -> None:
    process = long.start("fledge", "run", TINY)
    deadline = time.monotonic() + 120
    is_there = False
    while not is_there:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
        with suppress(psutil.NoSuchProcess):  # the stage before it, which is ending
            is_there = any("pretrain" in each.cmdline() for each in psutil.Process(process.pid).children())
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, text = ended(process, began)
    assert code == 75 and "pretrain made room; the same command goes on" in text


def test_a_second_run_is_refused(long: Workspace) -> None:
    process = begin(long, "fledge", "run", TINY)
    try:
        refused = long.fledge("run", TINY, code=2)
    finally:
        kill(process)
    assert "runs/tiny is in use by process" in refused.err and "Traceback" not in refused.err
    long.fledge("run", TINY)  # whoever was killed holds nothing


def test_a_launcher_that_dies_takes_its_stage_along(long: Workspace) -> None:
    process = begin(long, "fledge", "run", TINY)
    (stage,) = stage_processes(process.pid)
    launcher = stage.parent()
    began = time.monotonic()
    os.kill(launcher.pid, signal.SIGKILL)
    code, text = ended(process, began)
    assert code != 0 and "asked to make room" in text
    assert saved(long.run_folder / "pretrain")
