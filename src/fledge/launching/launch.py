"""`fledge launch`: a stage or a folder of them on a layout, by accelerate, by Slurm or by Ray."""

import shlex
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fledge.arguments import LIBRARY, STAGES
from fledge.layouts import Layout, find_layout, read_layout
from fledge.planning.fit import refusal
from fledge.planning.job import read_jobs
from fledge.planning.shape import NotKnown
from fledge.recipe import Recipe, load_recipe

from . import process
from .chain import run, say
from .plan import is_variant, read_folder


PORT = 29500
"""torchrun's own default."""

ONLY = {
    "accelerate": ("main_process_ip", "main_process_port"),
    "slurm": ("partition", "cpu_partition", "account", "time"),
}
"""Options that only one way of launching takes."""


@dataclass(frozen=True)
class Job:
    """A stage, where it runs, and the `--key value` of its command line."""

    recipe: Recipe
    layout: Layout
    overrides: tuple[str, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether all processes of the layout work on it; any other stage is the work of one process."""
        return self.recipe.stage in LIBRARY

    @property
    def stage_words(self) -> list[str]:
        """`fledge STAGE RECIPE [--key value ...]`."""
        return ["fledge", self.recipe.stage, str(self.recipe.path), *self.overrides]

    @property
    def placement_words(self) -> list[str]:
        """What `accelerate launch` is told on every machine alike; its num_processes are those of all machines."""
        layout = self.layout
        words = ["--config_file", str(layout.path)]
        words += ["--num_machines", str(layout.num_machines), "--num_processes", str(layout.num_processes)]
        if layout.engine.startswith("zero"):
            words += ["--deepspeed_multinode_launcher", "standard"]  # its own would want ssh and a host file
        return [*words, "--num_cpu_threads_per_process", str(process.threads(layout))]


def launch(
    target: Path, on: str, via: str, nodes: int | None, overrides: Sequence[str], **options: str | int | None
) -> int:
    """Run, print or submit; returns an exit code.

    Args:
        target: a recipe file, or a folder of them.
        on: the layout, a file or a name.
        via: accelerate (several machines: the commands are printed), slurm or ray.
        nodes: the machines that share the layout's processes; as many as the layout says if None.
        overrides: `--key value` of a single recipe.
        options: those of ONLY, None where not stated.

    Raises:
        ValueError: what is wrong with the recipes or the layout, or what does not fit together, with the numbers.
    """
    for owner, names in ONLY.items():
        stated = [name for name in names if options[name] is not None]
        if stated and owner != via:
            raise ValueError(f"--{stated[0]}: only --via {owner} takes it")
    written = read_layout(find_layout(on))
    layout = placed(written, nodes)
    single = not target.is_dir()
    if overrides and not single:
        raise ValueError(f"{shlex.join(overrides)}: a key belongs to one recipe; name a file of {target}")
    own = one_recipe(target, overrides) if single else None
    check_batches(target, overrides, layout)
    if via == "ray":
        from .ray import train

        if own is None or own.stage not in LIBRARY:
            raise ValueError(
                f"--via ray: {target}: name one recipe of {', '.join(LIBRARY)}; the others run without Ray"
            )
        return train(Job(own, layout))
    if via == "slurm":
        from .slurm import Queue, submit

        recipes = read_folder(target.parent) if single else stages(target)
        queue = Queue(**{name: options[name] for name in ONLY["slurm"]})
        return submit(recipes, own, layout, tuple(overrides), queue)
    if layout.num_machines == 1 < written.num_machines:
        raise ValueError(f"--nodes 1: {on} is a layout of {written.num_machines} machines; take one of a single one")
    if layout.num_machines > 1:
        jobs = [Job(own, layout, tuple(overrides))] if own else [Job(recipe, layout) for recipe in stages(target)]
        host = options["main_process_ip"] or socket.gethostname()
        say("\n".join(commands(jobs, str(host), int(options["main_process_port"] or PORT))))
        return 0
    return process.launch(own, layout.path, overrides).exit_code if own else run(target, str(layout.path), None, None)


def one_recipe(path: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe of a file, whose name begins with its stage."""
    stage = path.stem.partition("_")[0]
    if stage not in STAGES:
        raise ValueError(f"{path}: no recipe; a recipe's name begins with its stage, one of {', '.join(STAGES)}")
    return load_recipe(stage, path, overrides)


def check_batches(target: Path, overrides: Sequence[str], layout: Layout) -> None:
    """Raise ValueError if a step does not divide over the layout: better now than after the wait in a queue."""
    try:
        planned = read_jobs(target, overrides)
    except NotKnown as error:  # nothing trains, or its model is not known before the stage itself downloads it
        print(f"fledge: batches are not checked before the launch: {error}", file=sys.stderr)
        return
    faults = [f"{job.recipe.path}: on {layout.name}: {fault}" for job in planned if (fault := refusal(job, layout))]
    if faults:
        raise ValueError("\n".join(faults))


def stages(folder: Path) -> list[Recipe]:
    """The recipes of a folder in order, without its variants, which run where they are named."""
    return [recipe for recipe in read_folder(folder) if not is_variant(recipe.name)]


def placed(layout: Layout, nodes: int | None) -> Layout:
    """`layout` on `nodes` machines instead of its own number.

    Raises:
        ValueError: they cannot share its processes evenly, with the numbers of machines that can.
    """
    nodes = layout.num_machines if nodes is None else nodes
    if nodes < 1 or layout.num_processes % nodes:
        even = [str(count) for count in range(1, layout.num_processes + 1) if layout.num_processes % count == 0]
        raise ValueError(
            f"--nodes {nodes}: so many machines cannot share the {layout.num_processes} process(es) of {layout.name} "
            f"evenly; take {' or '.join(even)}, or another layout"
        )
    return replace(layout, num_machines=nodes)


def commands(jobs: Sequence[Job], host: str, port: int) -> list[str]:
    """The lines to read and to run: for a training stage one command a machine, for any other stage one in all."""
    layout = jobs[0].layout
    each = layout.num_processes // layout.num_machines
    lines = [
        f"# {layout.name}: {layout.num_machines} machines, {each} process(es) on each, in this folder, shared by all.",
        f"# They meet at {host}:{port}, which all of them have to reach; --main_process_ip and _port say otherwise.",
    ]
    for job in jobs:
        if not job.trains:
            lines += [f"# {job.recipe.name}: on one machine", shlex.join(job.stage_words)]
            continue
        for rank in range(layout.num_machines):
            words = ["accelerate", "launch", *job.placement_words, "--machine_rank", str(rank)]
            words += ["--main_process_ip", host, "--main_process_port", str(port), "-m", *job.stage_words]
            lines += [f"# {job.recipe.name}: on machine {rank}", shlex.join(words)]
    return lines
