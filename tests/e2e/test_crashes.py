"""Killed, or the disk full, at any change that a run makes to its folder: the same command ends with the same bytes.

A run changes its folder hundreds of times: every line of metrics.jsonl, every block of every file of a checkpoint,
every renaming and deletion. The quick tests take a sample of these, the slow ones all (`make reliability`).
"""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fledge.training.checkpoints import fault_of

from .nursery import DISK_FULL, KILL, TERMINATE, Lived, Nursery, nursery
from .workspace import TINY, Workspace, sha256


STAGES = {
    # dropout, four micro-batches a step, an evaluation every third, and an epoch that ends after 15 of the 18 steps
    "pretrain": [
        *("--model_config.attention_dropout", "0.1", "--per_device_train_batch_size", "2"),
        *("--max_steps", "18", "--eval_steps", "3"),
    ],
    "sft": ["--per_device_train_batch_size", "1", "--save_steps", "2"],
    "dpo": ["--per_device_train_batch_size", "1", "--save_strategy", "steps", "--save_steps", "2"],
}
OF_TIME = ("second", "time", "data_wait", "mfu")
FEW = 2
"""Changes that a quick test takes of each stage."""


class Patient:
    """One stage, run again and again in the same place."""

    def __init__(self, workspace: Workspace, nursery: Nursery, stage: str) -> None:
        self.workspace, self.nursery, self.stage = workspace, nursery, stage
        self.output = workspace.run_folder / "patient"
        self.unbroken = self.run()
        assert self.unbroken.code == 0, self.unbroken.text
        self.wanted = self.end()
        shutil.rmtree(self.output)

    def run(self, kind: int = 0, at: int = 0) -> Lived:
        options = [*STAGES[self.stage], "--output_dir", "runs/tiny/patient"]
        command = (self.stage, f"{TINY}/{self.stage}.yaml", *options)
        return self.nursery.run(self.workspace.folder, *command, watched="runs/tiny/patient", kind=kind, at=at)

    def end(self) -> dict[str, Any]:
        """All that has to be the same in the end: metrics but for times, weights, and the last checkpoint's files."""
        lines = [json.loads(line) for line in (self.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        for line in lines:
            for key in [key for key in line if any(word in key for word in OF_TIME)]:
                del line[key]
        last = max(self.output.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
        files = json.loads((last / "COMPLETE.json").read_text(encoding="utf-8"))["files"]
        states = {name: its["sha256"] for name, its in files.items() if Path(name).suffix in (".pt", ".pth")}
        assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {*states}
        return {
            "steps": [line for line in lines if "loss" in line or "eval_loss" in line],
            "weights": sha256(self.output / "model.safetensors"),
            "last": (last.name, states),
        }

    def whole(self) -> list[str]:
        """The committed checkpoints, the newest last."""
        names = (path.parent.name for path in self.output.glob("checkpoint-*/COMPLETE.json"))
        return sorted(names, key=lambda name: int(name.rpartition("-")[2]))

    def recovers(self) -> None:
        """The same command goes on from the newest whole checkpoint, and ends as if nothing had been."""
        whole = self.whole()
        assert [name for name in whole if fault_of(self.output / name)] == []
        again = self.run()
        assert again.code == 0, again.text
        assert not whole or f"resuming from runs/tiny/patient/{whole[-1]}" in again.text
        assert self.end() == self.wanted
        shutil.rmtree(self.output)


@pytest.fixture(scope="module")
def forks(chain: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with nursery(tmp_path_factory.mktemp("nursery"), chain.environment()) as found:
        yield found


@pytest.fixture(scope="module", params=STAGES)
def patient(
    request: pytest.FixtureRequest, forks: Nursery, chain: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> Patient:
    return Patient(chain.copy(tmp_path_factory.mktemp(request.param) / "workspace"), forks, request.param)


def some_and(every: int) -> pytest.MarkDecorator:
    """A quick test takes FEW of a run's changes, a slow one each `every`-th."""
    return pytest.mark.parametrize("every", [None, pytest.param(every, marks=pytest.mark.slow)], ids=["few", "many"])


def changes(patient: Patient, every: int | None) -> list[int]:
    """Which of a run's changes to fail at: one of every stretch, or each `every`-th."""
    total = patient.unbroken.changes
    if every:
        return list(range(1, total + 1, every))
    chance = random.Random(patient.stage)
    return [chance.randint(1 + total * part // FEW, total * (part + 1) // FEW) for part in range(FEW)]


@some_and(every=1)
def test_killed_at_any_change(patient: Patient, every: int | None) -> None:
    for at in changes(patient, every):
        assert patient.run(KILL, at).code == -9, at
        patient.recovers()


@some_and(every=5)
def test_killed_twice(patient: Patient, every: int | None) -> None:
    chance = random.Random(1)
    for at in changes(patient, every):
        assert patient.run(KILL, at).code == -9, at
        assert patient.run(KILL, chance.randint(1, 10)).code == -9, at
        patient.recovers()


@some_and(every=5)
def test_the_disk_full_at_any_change(patient: Patient, every: int | None) -> None:
    for at in changes(patient, every):
        full = patient.run(DISK_FULL, at)
        if at == patient.unbroken.changes:  # summary.json is renamed, which needs no room, and nothing comes after it
            assert full.code == 0, full.text
        else:
            assert full.code == 2, full.text
            assert "Traceback" not in full.text and "the same command goes on" in full.text, full.text
        patient.recovers()


@some_and(every=5)
def test_asked_to_make_room_at_any_change(patient: Patient, every: int | None) -> None:
    for at in changes(patient, every):
        asked = patient.run(TERMINATE, at)
        assert asked.code in (0, 75), asked.text
        assert "Traceback" not in asked.text, asked.text
        patient.recovers()
