"""What goes wrong: a run that is killed, inputs that are broken, recipes with typos."""

import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .workspace import TINY, Workspace, keep_only, kill


RECIPE = f"{TINY}/pretrain.yaml"


@pytest.fixture(scope="module")
def interrupted(chain: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A chain killed in pretraining, with all it had started, as soon as the second checkpoint was there."""
    workspace = chain.copy(tmp_path_factory.mktemp("interrupted") / "workspace")
    keep_only(workspace, "tokenizer", "prepare", "pretrain")
    # As if it never ran; a change of the recipe would do it too, but then the weights could not be compared.
    (workspace.run_folder / "pretrain").rename(workspace.folder / "uninterrupted")
    second = workspace.run_folder / "pretrain" / "checkpoint-8" / "COMPLETE.json"

    process = workspace.start("fledge", "run", TINY)
    try:
        while not (second.is_file() and second.stat().st_size):
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.005)
    finally:
        kill(process)

    assert not (workspace.run_folder / "pretrain" / "summary.json").exists(), "it was done before it could be killed"
    return workspace


def whole_checkpoints(workspace: Workspace) -> list[str]:
    """Steps 4 and 8, or 8 and 12 if the killer was slow."""
    states = workspace.run_folder.glob("pretrain/checkpoint-*/COMPLETE.json")
    steps = sorted(int(path.parent.name.removeprefix("checkpoint-")) for path in states)
    return [f"runs/tiny/pretrain/checkpoint-{step}" for step in steps]


def test_a_killed_run_continues_to_the_same_weights(interrupted: Workspace, chain: Workspace, tmp_path: Path) -> None:
    workspace = interrupted.copy(tmp_path / "workspace")
    _, newest = whole_checkpoints(workspace)

    again = workspace.fledge("run", TINY)

    skipped = "unchanged, skipped"
    assert again.steps() == {"tokenizer": skipped, "prepare": skipped, "pretrain": RECIPE}
    assert f"resuming from {newest}" in again.text
    page = (workspace.run_folder / "report.html").read_text(encoding="utf-8")
    assert f"resumed at step {newest.rpartition('-')[2]}" in page
    assert workspace.results("pretrain")["steps"] == 12
    assert workspace.weights()["pretrain"] == chain.weights()["pretrain"]


def test_an_incomplete_checkpoint_is_passed_over(interrupted: Workspace, chain: Workspace, tmp_path: Path) -> None:
    workspace = interrupted.copy(tmp_path / "workspace")
    older, newest = whole_checkpoints(workspace)
    (workspace.folder / newest / "optimizer.pt").unlink()

    again = workspace.fledge("run", TINY)

    aside = f"damaged-{Path(newest).name}"
    assert f"{newest}: optimizer.pt is missing; it is now {aside} and is passed over" in again.text
    assert (workspace.run_folder / "pretrain" / aside).is_dir()
    assert f"resuming from {older}" in again.text
    assert workspace.weights()["pretrain"] == chain.weights()["pretrain"]


def test_another_recipe_does_not_go_on_unless_it_is_meant(interrupted: Workspace, tmp_path: Path) -> None:
    workspace = interrupted.copy(tmp_path / "workspace")
    wrong = workspace.fledge("pretrain", RECIPE, "--seed", "5", code=2)
    assert "was made of something else: seed was 1 and is 5" in wrong.err and "Traceback" not in wrong.err
    meant = workspace.fledge("pretrain", RECIPE, "--seed", "5", "--allow-change", "seed")
    assert "resuming from runs/tiny/pretrain/checkpoint-" in meant.text


def test_a_truncated_file_stops_the_chain_with_one_message(mine: Workspace) -> None:
    corpus = mine.run_folder / "corpus" / "poems" / "heldout.parquet"
    whole = corpus.read_bytes()
    corpus.write_bytes(whole[: len(whole) // 2])
    keep_only(mine, "tokenizer", "prepare")

    wrong = mine.fledge("run", TINY, code=2)

    assert wrong.text.count("runs/tiny/corpus/poems/heldout.parquet: not a whole parquet file") == 1
    assert "Traceback" not in wrong.text
    assert wrong.out.splitlines()[-1].startswith("prepare failed with exit code 2")

    # With the file whole again the same command goes on.
    corpus.write_bytes(whole)
    assert mine.fledge("run", TINY).steps() == {"tokenizer": "unchanged, skipped", "prepare": f"{TINY}/prepare.yaml"}


@pytest.fixture
def typos(fresh: Workspace, tmp_path: Path) -> Workspace:
    """Two recipes with a misspelt key each, on the lines they are read at below."""
    workspace = fresh.copy(tmp_path / "workspace")
    workspace.edit(RECIPE, "\nlearning_rate:", "\nlearning_rte:")
    workspace.edit(f"{TINY}/sft.yaml", "\npacking:", "\npackin:")
    return workspace


@pytest.fixture
def unharmed(typos: Workspace) -> Iterator[None]:
    """The test leaves every file as it was, and its commands take less than 2 s of processor time."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    files, began = typos.files(), spent()
    yield
    assert spent() - began < 2
    assert typos.files() == files


def line_of(workspace: Workspace, file: str, key: str) -> int:
    lines = (workspace.folder / file).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.startswith(f"{key}:"))


@pytest.mark.usefixtures("unharmed")
def test_typos_in_two_recipes_are_reported_together_before_anything_runs(typos: Workspace) -> None:
    wrong = typos.fledge("run", TINY, code=2)

    for file, key, meant in ((RECIPE, "learning_rte", "learning_rate"), (f"{TINY}/sft.yaml", "packin", "packing")):
        message = next(
            line for line in wrong.err.splitlines() if f"{file}:{line_of(typos, file, key)}: {key}:" in line
        )
        assert meant in message
    assert "Traceback" not in wrong.err and wrong.out == ""


@pytest.mark.usefixtures("unharmed")
def test_a_typo_stops_a_stage_before_anything_heavy(typos: Workspace) -> None:
    wrong = typos.fledge("pretrain", RECIPE, "--max_stebs", "3", code=2)

    assert f"{RECIPE}:{line_of(typos, RECIPE, 'learning_rte')}: learning_rte:" in wrong.err
    assert "learning_rate" in wrong.err
    assert "command line: --max_stebs:" in wrong.err and "max_steps" in wrong.err
    assert "Traceback" not in wrong.err
