"""Stages through `accelerate launch`, on one process and on two."""

import pytest

from .workspace import TINY, Workspace, losses


RECIPE = f"{TINY}/pretrain.yaml"
TWO = "accelerate_configs/cpu_2proc.yaml"


@pytest.fixture(scope="module")
def workspace(chain: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished chain; what the launches write goes beside it."""
    return chain.copy(tmp_path_factory.mktemp("launch") / "workspace")


def launch(workspace: Workspace, layout: str, *command: str) -> None:
    workspace.run("accelerate", "launch", "--config_file", layout, "-m", "fledge", *command)


@pytest.fixture(scope="module")
def direct(workspace: Workspace) -> Workspace:
    """Two steps on one process, by hand, with two keys from the command line."""
    options = ["--max_steps", "2", "--output_dir", "runs/tiny/direct", "--report_to", "tensorboard"]
    launch(workspace, "accelerate_configs/cpu.yaml", "pretrain", RECIPE, *options)
    return workspace


@pytest.fixture(scope="module")
def two(workspace: Workspace) -> Workspace:
    """The whole of pretraining on two processes."""
    launch(workspace, TWO, "pretrain", RECIPE, "--output_dir", "runs/tiny/two")
    return workspace


def test_the_command_line_beats_the_recipe(direct: Workspace) -> None:
    recorded = direct.json("direct", "recipe.json")

    assert recorded["max_steps"] == {"value": 2, "from": "command line"}
    assert recorded["seed"]["from"].startswith(f"{RECIPE}:")
    assert direct.results("direct")["steps"] == 2
    # The same data in the same order; only the number of steps, and with it the schedule's end, differ.
    assert losses(direct.run_folder / "direct") == losses(direct.run_folder / "pretrain")[:2]


def test_tensorboard_gets_the_losses(direct: Workspace) -> None:
    events = list((direct.run_folder / "direct").rglob("events.out.tfevents.*"))

    assert len(events) == 1
    assert b"train/loss" in events[0].read_bytes()


def test_two_processes_share_the_step(two: Workspace) -> None:
    assert two.results("two")["processes"] == 2
    assert two.results("pretrain")["processes"] == 1
    # Twice the processes, half the accumulation: tokens_per_step is what it was.
    accumulation = [
        two.json(run, "recipe.json")["gradient_accumulation_steps"]["value"] for run in ("pretrain", "two")
    ]
    assert accumulation == [2, 1]
    assert two.results("two")["tokens"] == two.results("pretrain")["tokens"]
    found = two.results("two")  # the rate is of both, and so is the peak
    assert found["train_seconds"] == pytest.approx(found["tokens"] / found["tokens_per_second"], abs=0.006)
    assert 0 < found["mfu"] == pytest.approx(found["flops_per_second"] / found["peak_flops"], rel=1e-3)


def test_two_processes_walk_the_same_curve(two: Workspace) -> None:
    one = losses(two.run_folder / "pretrain")

    assert len(one) == 12
    # Not asked for to the bit: gloo may add the two gradients up in another order than one process does.
    assert losses(two.run_folder / "two") == pytest.approx(one, abs=1e-4)
    heldout = [losses(two.run_folder / run, "eval_loss") for run in ("pretrain", "two")]
    assert len(heldout[0]) == 1 and heldout[1] == pytest.approx(heldout[0], abs=1e-4)


def test_run_takes_a_layout_and_refuses_one_that_does_not_divide(mine: Workspace) -> None:
    mine.edit(RECIPE, "per_device_train_batch_size: 4", "per_device_train_batch_size: 3")

    wrong = mine.fledge("run", TINY, "--on", TWO, "--only", "pretrain", code=2)

    # 2 processes x 3 rows x 192 tokens are 1,152 at once; each of the two finds it out, one says it, and `run` repeats
    # it below what the launcher had to say.
    message = "process 0: tokens_per_step: 1536 is no multiple of 1152, what 2 process(es) take at once"
    assert f"fledge: {message}" in wrong.err and "process 1: " not in wrong.text
    assert message in wrong.out.splitlines()[-2] and "nearest: 1152 or 2304" in wrong.out.splitlines()[-2]
    assert not (mine.run_folder / "pretrain" / "summary.json").exists()


def test_what_is_done_is_done_on_any_layout(mine: Workspace) -> None:
    assert set(mine.fledge("run", TINY, "--on", "cpu_2proc").steps().values()) == {"unchanged, skipped"}


def test_a_stage_that_does_not_train_runs_in_one_process_of_a_launch(workspace: Workspace) -> None:
    launch(workspace, TWO, "prepare", f"{TINY}/prepare.yaml", "--output_dir", "runs/tiny/shared")

    assert workspace.json("shared", "manifest.json") == workspace.json("prepare", "manifest.json")


def test_the_second_process_of_a_launch_leaves_such_a_stage_alone(workspace: Workspace) -> None:
    options = ["--output_dir", "runs/tiny/second"]
    workspace.fledge("prepare", f"{TINY}/prepare.yaml", *options, RANK="1", LOCAL_RANK="1", WORLD_SIZE="2")

    assert not (workspace.run_folder / "second").exists()
