"""Shards made in the tasks of datatrove's executors: on this machine, on a Ray cluster, on a Slurm cluster.

Task r of N makes the shards r, r + N, r + 2N ... of every split, so the shards are the same for any N. What is
finished is not made again: datatrove skips finished tasks, and a task skips finished shards. All machines see the same
output_dir.
"""

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledge.arguments import PrepareArguments
from fledge.recipe import Recipe

from .shards import Maker, Shard


try:
    from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
    from datatrove.executor.slurm import launch_slurm_job
except ImportError as error:
    raise ValueError("executor: datatrove is not installed; run: pip install 'fledge-lm[scale]'") from error

logger = logging.getLogger(__name__)


class MakeShards:
    """The one step of the pipeline: makes the shards that fall to a task."""

    def __init__(self, works: Sequence[tuple[Sequence[Shard], Maker]]) -> None:
        self.works = works

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        if world_size > 1:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tasks share the cores already
        for shards, maker in self.works:
            for shard in shards[rank::world_size]:
                maker.finish(shard)


def run_tasks(
    works: Sequence[tuple[Sequence[Shard], Maker]], keys: PrepareArguments, recipe: Recipe, num_proc: int
) -> bool:
    """Make the shards of every split in `keys.tasks` tasks; False if they are not made yet, but Slurm's business now.

    Raises:
        ValueError: what a row has to say, or an executor that is not there, with the command that installs it.
    """
    prints = [shard.fingerprint for shards, _ in works for shard in shards]
    made_of = hashlib.sha256(f"{keys.tasks} {prints}".encode()).hexdigest()
    common = {
        "pipeline": [MakeShards(works)],
        "tasks": keys.tasks,
        "logging_dir": str((recipe.output_dir / "tasks" / made_of[:16]).resolve()),
    }
    if keys.executor == "slurm":
        SlurmTasks(recipe, keys, **common).run()
        return False
    if keys.executor == "ray":
        _ray(common)
    else:
        LocalPipelineExecutor(**common, workers=min(num_proc, keys.tasks)).run()
    missing = sum(not shard.path("json").is_file() for shards, _ in works for shard in shards)
    if missing:  # Ray reports a failed task and goes on; what it failed at is met again here
        logger.warning("%d of %d shards were not made by the tasks; they are made here", missing, len(prints))
    return True


def _ray(common: dict[str, Any]) -> None:
    try:
        import ray
    except ImportError as error:
        raise ValueError("executor: ray is not installed; run: pip install 'fledge-lm[scale]'") from error
    if not ray.is_initialized():
        ray.init()  # the cluster of RAY_ADDRESS, or one on this machine
    RayPipelineExecutor(**common, mem_per_cpu_gb=1).run()


class SlurmTasks(SlurmPipelineExecutor):
    """An array of jobs for the shards, and one job after it that indexes them.

    datatrove would pickle the pipeline for its jobs. Here each job runs the command of the recipe again, which comes
    to `run` with the number of its task in the environment.
    """

    def __init__(self, recipe: Recipe, keys: PrepareArguments, **common: Any) -> None:
        for key, allowed in (("slurm_partition", r"[\w.,-]+"), ("slurm_time", r"[\d:-]+")):
            if not re.fullmatch(allowed, value := getattr(keys, key)):
                raise ValueError(f"{key}: {value!r} is not what sbatch takes; write it as {allowed}")
        name = re.sub(r"\W", "-", f"fledge-{recipe.name}")
        super().__init__(**common, time=keys.slurm_time, partition=keys.slurm_partition, job_name=name, qos="")
        self.recipe = recipe

    def launch_job(self) -> None:
        """Write both scripts and submit them; only the tasks that are not completed get a job.

        Raises:
            ValueError: there is no sbatch here, with what to do.
        """
        ranks = self.get_incomplete_ranks()
        with self.logging_dir.open("ranks_to_run.json", "w") as file:
            json.dump(ranks, file)
        array = self.get_sbatch_args(len(ranks))
        alone = {name: value for name, value in array.items() if name != "array"}
        make = self._script("make_shards", array, f"srun -l -n 1 {self._command()}")
        index = self._script("index", alone, self._command("--executor=null"))
        if shutil.which("sbatch") is None:
            raise ValueError(
                f"executor: no sbatch on this machine; the scripts are written: run sbatch {make}, and after it "
                f"sbatch --dependency=afterok:ITS_ID {index}"
            )
        if ranks:
            self.job_id = launch_slurm_job(make.read_text(), self.job_id_retriever)
        after = [f"--dependency=afterok:{self.job_id}"] if ranks else []
        last = launch_slurm_job(index.read_text(), self.job_id_retriever, *after)
        logger.info("submitted: %d tasks (job %s), then the index (job %s)", len(ranks), self.job_id, last)

    def _script(self, name: str, sbatch_args: dict[str, Any], command: str) -> Path:
        path = Path(self.logging_dir.resolve_paths(f"{name}.slurm"))
        path.write_text(self.get_launch_file_contents(sbatch_args, command))
        return path

    def _command(self, *more: str) -> str:
        """The command line that this process was started with, as far as it matters."""
        words = [sys.executable, "-m", "fledge", "prepare", str(self.recipe.path)]
        for key, source in self.recipe.sources.items():
            if source.endswith("command line") and not any(word.startswith(f"--{key}=") for word in more):
                value = self.recipe.values[key]
                words.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
        return shlex.join([*words, *more])
