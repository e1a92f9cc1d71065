"""Slurm: a script for each stage, a submit.sh that queues them in order, and sbatch if this machine has it.

A training stage gets whole machines, with one task on each that starts the processes there through accelerate. Every
other stage is a job of one task. A stage waits for those it reads from. The scripts hold paths and keys, no secrets:
sbatch hands on the environment it is called in. All machines see the same folders.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fledge.causes import EXIT_CODE_FILE, NotPushed
from fledge.layouts import Layout
from fledge.preempted import Preempted
from fledge.recipe import Recipe
from fledge.results.record import SUMMARY

from .chain import say
from .launch import Job
from .plan import inputs
from .process import WITHOUT_DEVICES


CORES = 16
"""Of a job that does not train, unless its recipe says num_proc."""

WARNING_SECONDS, SAVING_SECONDS = 300, 240
"""How long before the time limit training is asked to make room, and how long its last checkpoint may take; Slurm may
be a minute early."""

TRAINING = """\
set -euo pipefail
cd {folder}

# NCCL chooses its transports well by itself; this only makes it say why it cannot connect.
export NCCL_DEBUG=WARN
# Where machines have several networks and it takes the wrong one, name the right one here:
# export NCCL_SOCKET_IFNAME=
# A log is no terminal: one line of a progress bar every half minute.
export TQDM_MININTERVAL=30

# The machines meet on the first one, at a port of this job's own below those that the system hands out.
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export FIRST_HOST="${{hosts[0]}}" FIRST_PORT="$((20000 + SLURM_JOB_ID % 10000))"
# A log for each machine there, and below node-N one for each process.
export LOGS={logs}/{name}-"$SLURM_JOB_ID"
mkdir -p "$LOGS"
export {file}="$LOGS/exit-code"
rm -f "${file}"
{requeue}
# One lost process ends the step on all machines instead of leaving the others to wait for it. A task is not bound to a
# core, which all processes it starts would share.
srun --kill-on-bad-exit=1 --cpu-bind=none --open-mode=append --output="$LOGS/node-%n.log" bash -c {command} &
step=$!
code=0
wait "$step" || code=$?
# A signal ends `wait`, not the step, whose code bash keeps until it is asked for, and afterwards.
if [ "$code" -gt 128 ]; then code=0; wait "$step" || code=$?; fi
{again}# {unpushed}: trained, and not all of it is on the hub. fledge publish sends the rest; the next stage can begin.
if [ "$(cat "${file}" 2> /dev/null)" = {unpushed} ]; then code=0; fi
exit "$code"
"""

REQUEUE = """
# Slurm signals this shell {seconds} s before the time limit. Then all processes of the step are asked to make room:
# after one agreed step they save and end, and the job goes back into the queue. With --requeue Slurm's own preemption
# does the same.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={saving}
asked=
trap 'echo "fledge: close to the time limit"; asked=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
"""

AGAIN = """\
# 75: training was asked to make room, by whomever, and saved.
if [ "$code" != 0 ] && {{ [ -n "$asked" ] || [ "$(cat "${file}" 2> /dev/null)" = {preempted} ]; }}; then
    echo "fledge: made room, requeued"
    scontrol requeue "$SLURM_JOB_ID" || true
fi
"""

NO_REQUEUE = """
# save_strategy keeps no checkpoints: at the time limit the job ends, since it would only begin anew.
"""

ALONE = """\
set -euo pipefail
cd {folder}
exec {command}
"""


@dataclass(frozen=True)
class Queue:
    """What sbatch is told; None leaves it to the cluster."""

    partition: str | None = None
    cpu_partition: str | None = None
    account: str | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        patterns = {"partition": r"[\w.,-]+", "cpu_partition": r"[\w.,-]+", "account": r"[\w.,-]+", "time": r"[\d:-]+"}
        for key, pattern in patterns.items():
            value = getattr(self, key)
            if value is not None and not re.fullmatch(pattern, value):
                raise ValueError(f"--{key}: {value!r} is not what sbatch takes; write it as {pattern}")


def submit(recipes: list[Recipe], own: Recipe | None, layout: Layout, overrides: tuple[str, ...], queue: Queue) -> int:
    """Write the scripts and run submit.sh if there is sbatch; returns its exit code, or 0.

    Args:
        recipes: of the folder, each after those it reads from. Those with a summary.json are finished and left out.
        own: the one to run, with what it needs of the data stages; all of them if None.

    Raises:
        ValueError: a stage that has to come first, with what to do.
    """
    if own is None:
        wanted = [recipe for recipe in recipes if not is_finished(recipe)]
    else:
        recipes = [own if recipe.path == own.path else recipe for recipe in recipes]
        wanted = [recipe for recipe in recipes if recipe in needed(own, recipes)]
    for recipe in recipes:
        if recipe not in wanted and own is None:
            say(f"{recipe.name}: finished, left out")
    if not wanted:
        return 0
    lines = ["#!/bin/bash", "# Queues every stage after those it reads from.", "set -euo pipefail"]
    lines.append(f"cd {shlex.quote(str(Path.cwd()))}")
    texts = {}
    for recipe in wanted:
        path = scripts(recipe) / f"{recipe.name}.sh"
        texts[path] = script(Job(recipe, layout, overrides if recipe is own else ()), queue)
        above = [variable(other) for other in inputs(recipe, recipes) if other in wanted]
        lines += submission(recipe, path, above)
    path = scripts(wanted[-1]) / "submit.sh"
    texts[path] = "\n".join(lines) + "\n"
    for target, text in texts.items():
        (target.parent / "logs").mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    if shutil.which("sbatch") is None:
        say(f"written; there is no sbatch on this machine, so run where there is: bash {shlex.quote(str(path))}")
        return 0
    return subprocess.run(["bash", str(path)]).returncode


def is_finished(recipe: Recipe) -> bool:
    """Whether the stage wrote its summary, which comes last."""
    return (recipe.output_dir / SUMMARY).is_file()


def makes_data(recipe: Recipe) -> bool:
    """Whether the stage has no use for a GPU: `pairs` has none where its entries hold both answers already."""
    return recipe.stage in WITHOUT_DEVICES or (recipe.stage == "pairs" and "model_name_or_path" not in recipe.values)


def needed(recipe: Recipe, recipes: Sequence[Recipe]) -> list[Recipe]:
    """`recipe` and the unfinished data stages that it reads from, and those they read from.

    Raises:
        ValueError: one of them is no data stage, and so nothing to queue without a word.
    """
    found = [recipe]
    for other in inputs(recipe, list(recipes)):
        if is_finished(other):
            continue
        if not makes_data(other):
            raise ValueError(
                f"{recipe.path} reads {other.output_dir}, which {other.path} has not finished; launch that first, or "
                f"all of {recipe.path.parent}"
            )
        found += needed(other, recipes)
    return found


def script(job: Job, queue: Queue) -> str:
    """The text of a job's script."""
    recipe, layout = job.recipe, job.layout
    if recipe.values.get("executor") == "slurm":
        raise ValueError(
            f"{recipe.path}: executor: slurm queues jobs of its own, which nothing here can wait for; run "
            f"fledge prepare {recipe.path} first"
        )
    name, logs = re.sub(r"[^\w-]", "-", f"fledge-{recipe.name}"), scripts(recipe) / "logs"
    on_cpu = layout.use_cpu or makes_data(recipe)
    options = {
        "job-name": name,
        "partition": (queue.cpu_partition if on_cpu else None) or queue.partition,
        "account": queue.account,
        "time": queue.time,
        "output": shlex.quote(f"{logs}/{recipe.name}-%j.log"),
    }
    stated = [f"#SBATCH --{key}={value}" for key, value in options.items() if value]
    stated += ["#SBATCH --open-mode=append", "#SBATCH --requeue"]  # a requeued job has the same log
    folder = shlex.quote(str(Path.cwd()))
    if not job.trains:
        words = shlex.join([sys.executable, "-m", *job.stage_words])
        stated += ["#SBATCH --ntasks=1", f"#SBATCH --cpus-per-task={recipe.values.get('num_proc') or CORES}"]
        stated += [] if on_cpu else ["#SBATCH --gpus=1"]
        return "\n".join(["#!/bin/bash", *stated, ALONE.format(folder=folder, command=words)])

    each = layout.num_processes // layout.num_machines
    stated += [f"#SBATCH --nodes={layout.num_machines}", "#SBATCH --ntasks-per-node=1"]
    # Whole machines: every process waits for the slowest, so a neighbour would slow all of them.
    stated += ["#SBATCH --exclusive", "#SBATCH --mem=0"]
    stated += [] if layout.use_cpu else [f"#SBATCH --gpus-per-node={each}"]
    keeps = recipe.values.get("save_strategy", "no") != "no"
    stated += [f"#SBATCH --signal=B:USR1@{WARNING_SECONDS}"] if keeps else []
    words = {"seconds": WARNING_SECONDS, "saving": SAVING_SECONDS, "file": EXIT_CODE_FILE}
    words |= {"preempted": Preempted.exit_code, "unpushed": NotPushed.exit_code}
    body = TRAINING.format(
        folder=folder,
        logs=shlex.quote(str(logs)),
        name=shlex.quote(recipe.name),
        requeue=REQUEUE.format(**words) if keeps else NO_REQUEUE,
        again=AGAIN.format(**words) if keeps else "",
        file=words["file"],
        unpushed=words["unpushed"],
        command=shlex.quote(task(job)),
    )
    return "\n".join(["#!/bin/bash", f"# {recipe.name} on {layout.name}", *stated, body])


def task(job: Job) -> str:
    """What the one task on every machine runs."""
    start = shlex.join([sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"])
    parts = [
        f"exec {start}",
        shlex.join(job.placement_words),
        '--machine_rank "$SLURM_NODEID" --main_process_ip "$FIRST_HOST" --main_process_port "$FIRST_PORT"',
        '--tee 3 --log_dir "$LOGS/node-$SLURM_NODEID"',
        f"-m {shlex.join(job.stage_words)}",
    ]
    return " \\\n    ".join(parts)


def submission(recipe: Recipe, path: Path, above: Sequence[str]) -> list[str]:
    """The lines of submit.sh that queue a job after those whose numbers are in the variables `above`."""
    words = "sbatch --parsable"
    if above:  # one that cannot start any more must not wait for ever
        words += " --kill-on-invalid-dep=yes --dependency=afterok"
        words += "".join(f':"${{{name}%%;*}}"' for name in above)  # NUMBER;CLUSTER where there are several
    own = variable(recipe)
    said = f'echo "{own.removeprefix("job_")}: job ${own}, {path.name}"'
    return [f"{own}=$({words} {shlex.quote(str(path))})", said]


def variable(recipe: Recipe) -> str:
    """The shell variable that holds the number of a recipe's job."""
    return "job_" + re.sub(r"\W", "_", recipe.name, flags=re.ASCII)


def scripts(recipe: Recipe) -> Path:
    """The folder of a run's scripts and logs, beside the folders of its stages."""
    return recipe.output_dir.parent / "slurm"
