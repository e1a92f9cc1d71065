"""What a checkpoint is committed from, what may be resumed, and what stops a step."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fledge.training import checkpoints
from fledge.training.checkpoints import COMPLETE, commit, fault_of, newest_checkpoint, refuse_full_disk, rotate, staged
from fledge.training.guard import Guard
from fledge.training.origin import origin, refuse_changed


FILES = ("trainer_state.json", "scheduler.pt", "config.json", "model.safetensors", "optimizer.pt", "rng_state.pth")


def save(folder: Path, step: int, without: str = "") -> str:
    unfinished = staged(folder) / f"checkpoint-{step}"
    unfinished.mkdir(parents=True)
    for name in FILES:
        if name != without:
            (unfinished / name).write_bytes(f"{name} {step}".encode() * 100)
    return unfinished.name


@pytest.mark.parametrize("name", FILES)
def test_a_save_that_left_something_out_is_not_committed(tmp_path: Path, name: str) -> None:
    commit(tmp_path, save(tmp_path, 4), {"step": 4})
    said = "\\*.safetensors" if name == "model.safetensors" else name
    with pytest.raises(ValueError, match=f"the save left out {said}; nothing was committed"):
        commit(tmp_path, save(tmp_path, 8, without=name), {"step": 8})
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_weights_alone_are_committed_and_not_resumed_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    commit(tmp_path, save(tmp_path, 4), {"step": 4})
    commit(tmp_path, save(tmp_path, 8, without="optimizer.pt"), {"step": 8}, weights_only=True)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert "checkpoint-8 holds weights alone (save_only_model) and is passed over" in caplog.text
    assert (tmp_path / "checkpoint-8").is_dir()


@pytest.mark.parametrize("moment", ["_digests", "_sync", "write_json"])
def test_a_commit_cut_short_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    commit(tmp_path, save(tmp_path, 4), {"step": 4})

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, moment, die)
        with pytest.raises(KeyboardInterrupt):
            commit(tmp_path, save(tmp_path, 8), {"step": 8})
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert (tmp_path / "damaged-checkpoint-8").is_dir()


def test_rotation_spares_the_newest_the_best_and_what_is_not_whole(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8, 10):
        commit(tmp_path, save(tmp_path, step), {"step": step})
    (tmp_path / "checkpoint-2" / COMPLETE).unlink()
    rotate(tmp_path, 2, str(tmp_path / "checkpoint-4"))
    left = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert left == ["checkpoint-10", "checkpoint-2", "checkpoint-4", "checkpoint-8"]
    rotate(tmp_path, None, None)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == left


def test_a_disk_too_full_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tmp_path, save(tmp_path, 4), {"step": 4})
    size = sum(
        its["bytes"] for its in json.loads((tmp_path / "checkpoint-4" / COMPLETE).read_text())["files"].values()
    )
    for free, refused in ((size, True), (2 * size, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        if refused:
            with pytest.raises(ValueError, match=r"the next checkpoint takes .* free; make room, .* goes on from it"):
                refuse_full_disk(tmp_path, 0)
        else:
            refuse_full_disk(tmp_path, 0)


@pytest.fixture
def stage(tmp_path: Path) -> tuple[Any, dict[str, Any], Callable[[], dict[str, Any]]]:
    """A recipe whose inputs exist, what is resolved of it, and what a checkpoint of it would say."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "manifest.json").write_text("{}")
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "chat_template.jinja").write_text("template")
    recipe = SimpleNamespace(values={"prepared": str(tmp_path / "rows"), "tokenizer": str(tmp_path / "tok")})
    now = {key: {"value": value, "from": "x"} for key, value in {"seed": 1, "max_steps": 8, "save_steps": 4}.items()}
    return recipe, now, lambda: origin(recipe, now)


def test_what_may_change_before_a_resumption(stage: Any, tmp_path: Path) -> None:
    _, now, made = stage
    before = json.loads(json.dumps(made()))
    now["save_steps"] = {"value": 2, "from": "x"}  # moves no weight
    refuse_changed(tmp_path, before, made(), ())

    now["seed"] = {"value": 2, "from": "x"}
    (tmp_path / "rows" / "manifest.json").write_text('{"other": "rows"}')
    (tmp_path / "tok" / "chat_template.jinja").write_text("another")
    with pytest.raises(ValueError, match="seed was 1 and is 2") as raised:
        refuse_changed(tmp_path, before, made(), ())
    assert "prepared: manifest.json has changed" in str(raised.value)
    assert "tokenizer: chat_template.jinja has changed" in str(raised.value)
    assert "--allow-change KEY" in str(raised.value)
    refuse_changed(tmp_path, before, made(), ("seed", "prepared", "tokenizer"))
    with pytest.raises(ValueError, match=r"prepared: manifest\.json has changed"):
        refuse_changed(tmp_path, before, made(), ("seed", "tokenizer"))


def test_a_step_that_is_not_finite_is_named() -> None:
    guard = Guard()
    for loss, rows in ((1.0, [3, 4]), (float("nan"), [5, 6])):
        guard.take(torch.tensor(loss), torch.tensor(rows))
    with pytest.raises(ValueError, match=r"step 7: process 0: loss nan on the prepared rows 6, 7, .* nothing of it"):
        guard.check(torch.tensor(float("nan")), 7)
    guard.take(torch.tensor(1.0), None)
    with pytest.raises(ValueError, match="every loss is finite, and the gradient's norm is inf"):
        guard.check(float("inf"), 8)
    guard.check(1.5, 9)


def test_the_digest_of_rows_tells_their_order_and_nothing_where_they_are_unknown() -> None:
    guard, found = Guard(), []
    for rows in ([1, 2], [2, 1], [1, 2]):
        guard.take(torch.tensor(1.0), torch.tensor(rows))
        guard.check(None, 1)  # an engine that tells no norm
        found.append(guard.rows_digest())
    assert found[0] == found[2] != found[1]
    guard.take(torch.tensor(1.0), None)
    guard.check(1.0, 2)
    assert guard.rows_digest() is None


def test_a_whole_checkpoint_has_no_fault(tmp_path: Path) -> None:
    assert fault_of(commit(tmp_path, save(tmp_path, 4), {"step": 4})) is None
