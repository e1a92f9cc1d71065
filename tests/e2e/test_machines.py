"""Training past one machine; two launchers with a machine rank each stand for two machines."""

import json
import re
import socket
from typing import Any

import pytest
from fake_slurm import install

from .workspace import TINY, Workspace, losses


RECIPE = f"{TINY}/pretrain.yaml"
ON_TWO = ("--on", "cpu_2proc", "--nodes", "2")


@pytest.fixture(scope="module")
def workspace(chain: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished chain; its pretraining on one process, with twice the accumulation, is what the others must equal."""
    return chain.copy(tmp_path_factory.mktemp("machines") / "workspace")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def assert_same_curve(workspace: Workspace, run: str) -> None:
    """Two processes took every step of the one-process run: the same tokens, and the same losses but for rounding."""
    assert workspace.results(run)["processes"] == 2
    assert workspace.results("pretrain")["processes"] == 1
    accumulation = [
        workspace.json(name, "recipe.json")["gradient_accumulation_steps"]["value"] for name in ("pretrain", run)
    ]
    assert accumulation == [2, 1]
    one = losses(workspace.run_folder / "pretrain")
    assert len(one) == 12
    # gloo adds the two gradients up in another order than one process does; a rounding in float32 is about 1e-7 of
    # the loss, and 12 steps at these learning rates carry it to less than this.
    assert losses(workspace.run_folder / run) == pytest.approx(one, abs=1e-4)


def test_the_printed_commands_are_two_machines_that_train_as_one(workspace: Workspace) -> None:
    where = ("--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port()))
    printed = workspace.fledge("launch", RECIPE, *ON_TWO, *where, "--output_dir", "runs/tiny/printed")
    lines = [line.split() for line in printed.out.splitlines() if not line.startswith("#")]
    assert [line[line.index("--machine_rank") + 1] for line in lines] == ["0", "1"]

    machines = [workspace.start(*line) for line in lines]

    for machine in machines:
        _, said = machine.communicate(timeout=300)
        assert machine.returncode == 0, said
    assert_same_curve(workspace, "printed")


@pytest.fixture(scope="module")
def slurm(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `--via slurm` queued where prepare had not run yet, and the fake Slurm then did; job by job."""
    summary = workspace.run_folder / "prepare" / "summary.json"
    summary.unlink()
    folder = tmp_path_factory.mktemp("slurm") / "bin"
    environment = install(folder, 1000 + free_port() % 8000)
    options = ("--cpu_partition", "cpu", "--partition", "gpu", "--account", "birds", "--time", "1:00:00")
    options += ("--output_dir", "runs/tiny/queued")
    workspace.fledge("launch", RECIPE, *ON_TWO, "--via", "slurm", *options, **environment)
    assert summary.exists()
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def test_slurm_prepares_and_then_trains_on_two_machines(workspace: Workspace, slurm: list[dict[str, Any]]) -> None:
    prepare, pretrain = slurm

    assert [job["code"] for job in slurm] == [0, 0]
    assert (prepare["after"], "nodes" in prepare["options"]) == (None, False)
    assert re.fullmatch(r"afterok:\d+", pretrain["after"])
    assert pretrain["options"]["nodes"] == "2"
    assert_same_curve(workspace, "queued")


def test_slurm_leaves_a_log_for_each_machine_and_process(workspace: Workspace, slurm: list[dict[str, Any]]) -> None:
    [logs] = workspace.run_folder.glob("slurm/logs/pretrain-*/")
    assert (workspace.run_folder / "slurm" / "logs").glob("prepare-*.log")
    for machine in (0, 1):
        assert (logs / f"node-{machine}.log").is_file()
        [process] = logs.glob(f"node-{machine}/*/attempt_0/0")
        said = (process / "stdout.log").read_text() + (process / "stderr.log").read_text()
        # Only the first process of all has losses to tell.
        assert ("'loss': " in said) == (machine == 0)


@pytest.mark.slow
def test_ray_workers_train_as_two_processes_of_accelerate(workspace: Workspace) -> None:
    workspace.fledge("launch", RECIPE, "--on", "cpu_2proc", "--output_dir", "runs/tiny/accelerated")

    workspace.fledge("launch", RECIPE, "--on", "cpu_2proc", "--via", "ray", "--output_dir", "runs/tiny/rayed")

    assert_same_curve(workspace, "rayed")
    both = [losses(workspace.run_folder / run) for run in ("accelerated", "rayed")]
    assert both[0] == pytest.approx(both[1], abs=1e-6)


@pytest.mark.slow
def test_ray_says_what_a_stage_refuses(workspace: Workspace) -> None:
    options = ("--prepared", "runs/tiny/nowhere", "--output_dir", "runs/tiny/refused")
    wrong = workspace.fledge("launch", RECIPE, "--on", "cpu_2proc", "--via", "ray", *options, code=2)

    message = "fledge: prepared: runs/tiny/nowhere holds no manifest.json; run the prepare stage that writes it"
    assert wrong.err.splitlines().count(message) == 1
