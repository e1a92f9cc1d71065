"""A training stage under Ray Train: one worker for each process of the layout, wherever the Ray cluster has room.

Prem-1B joined its two machines of 8 GPUs this way. Ray starts the workers and says who is who (RANK, LOCAL_RANK,
WORLD_SIZE, MASTER_ADDR, MASTER_PORT); what else `accelerate launch` would put into their environment comes from it.
All machines see the same folder. A worker that a machine took with it ends the run; a preempted machine does not: Ray
starts the workers again, and they go on from the newest whole checkpoint.
"""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from fledge.layouts import Layout
from fledge.recipe import Recipe
from fledge.training.checkpoints import refuse_other_layout

from . import log_progress
from .launch import Job
from .process import threads


FROM_ACCELERATE = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "OMP_NUM_THREADS")
"""How the variables begin by which accelerate's launcher tells its processes of the layout."""


def train(job: Job) -> int:
    """Run the stage to its end and return 0.

    Raises:
        ValueError: no Ray, a cluster that is too small, or what the stage itself refuses.
        ray.train.TrainingFailedError: a worker failed in another way.
    """
    # Ray's own minute is short for workers that import torch from a network disk; it would start them over and over.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "900")
    try:
        import ray
        from ray.train import RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise ValueError("--via ray: ray is not installed; run: pip install 'fledge-lm[scale]'") from error
    recipe, layout = job.recipe, job.layout
    if not ray.is_initialized():
        ray.init()  # the cluster of RAY_ADDRESS, or one on this machine
    check_room(layout, ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes()))
    # FSDP gathers a whole model on the CPU to save it, and needs a group there too, as accelerate itself sets up.
    backend = "cuda:nccl,cpu:gloo" if layout.engine in ("fsdp2", "hsdp") else None
    trainer = TorchTrainer(
        work,
        train_loop_config={"recipe": recipe, "folder": str(Path.cwd())},
        torch_config=TorchConfig(backend=backend if not layout.use_cpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=layout.num_processes, use_gpu=not layout.use_cpu),
        run_config=RunConfig(
            name=recipe.name,
            storage_path=str((recipe.output_dir.parent / "ray").resolve()),
            worker_runtime_env={"env_vars": environment(layout)},
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failures = getattr(error, "worker_failures", {})
        for _, failure in sorted(failures.items()):
            if isinstance(failure, ValueError):
                raise ValueError(str(failure)) from None
        raise
    finally:
        ray.shutdown()  # so that what Ray still has to log comes before our own last word
    return 0


def check_room(layout: Layout, resources: dict[str, float], machines: int) -> None:
    """Raise ValueError if the cluster is smaller than the layout: Ray would wait for more without an end.

    Args:
        resources: of the whole cluster, such as {"CPU": 2.0, "GPU": 8.0}.
        machines: that are alive.
    """
    unit = "CPU" if layout.use_cpu else "GPU"
    found = int(resources.get(unit, 0))
    if found < layout.num_processes or machines < layout.num_machines:
        raise ValueError(
            f"--via ray: {layout.name} takes {layout.num_processes} {unit}(s) on {layout.num_machines} machine(s), "
            f"and the Ray cluster has {found} on {machines}; let more machines join it (ray start --address=...), set "
            "RAY_ADDRESS if it is another cluster, or take a smaller layout"
        )


def environment(layout: Layout) -> dict[str, str]:
    """What `accelerate launch` tells its processes of the layout; it is asked itself, with `env` as the stage."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(layout.path)]
    command += ["--num_machines", "1", "--num_processes", "1", "--main_process_port", "0"]
    command += ["--num_cpu_threads_per_process", str(threads(layout)), "--no_python", "env", "-0"]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    pairs = dict(line.split("=", 1) for line in text.split("\0") if "=" in line)
    return {name: value for name, value in pairs.items() if name.startswith(FROM_ACCELERATE)}


def work(job: dict[str, Any]) -> None:
    """What each worker does: the stage, as every process of `accelerate launch` does it."""
    os.chdir(job["folder"])
    log_progress()
    recipe: Recipe = job["recipe"]
    refuse_other_layout(recipe.output_dir)
    import_module(f"fledge.stages.{recipe.stage}").main(recipe)
