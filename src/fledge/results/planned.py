"""What a training stage was to take, by `fledge plan`'s arithmetic on its records, against what was measured."""

from pathlib import Path
from typing import Any

from fledge.files import read_json
from fledge.planning.compute import Prices, flops_per_token, frozen_saving, hours, reference_flops_per_token
from fledge.planning.fit import GIB
from fledge.planning.job import Job
from fledge.planning.memory import Place, peak
from fledge.planning.shape import read_shape
from fledge.recipe import Recipe
from fledge.results.blocks import Bars, Block, Table, Text
from fledge.results.gather import Run, Stage
from fledge.results.numbers import ABSENT, duration, percent, plain, short


PRICES = Prices()
SAID = f"""\
The plan is that of fledge plan for the recipe, the shape and the rows in the records. Tokens are planned with padding,
those of a pair as the most it may have, and counted without. Time is planned for GPUs alone, at {PRICES.mfu:.0%} of \
{PRICES.peak_flops / 1e12:.0f} TFLOP/s each. Memory is planned for tensors, in the fullest process; measured is what
tensors took of a GPU, which compares, or on a CPU the whole first process, with the libraries in it."""


def planned(run: Run) -> dict[str, dict[str, Any]]:
    """Of each training stage, `planned` and `measured`: steps, tokens, seconds, gib. None where nobody knows."""
    return {stage.name: {"planned": _plan(run, stage), "measured": _measured(stage)} for stage in run.training}


def plan_blocks(run: Run) -> list[Block]:
    """Plan and measurement side by side, and how long every stage took."""
    written = {"steps": plain, "tokens": plain, "seconds": duration, "gib": _gib}
    names = {"steps": "steps", "tokens": "tokens", "seconds": "time", "gib": "memory"}
    rows = [
        [f"{stage}: {names[key]}", write(its["planned"][key]), write(its["measured"][key]), _ratio(its, key)]
        for stage, its in planned(run).items()
        for key, write in written.items()
    ]
    blocks: list[Block] = [Text(SAID), Table(["", "planned", "measured", "of the plan"], rows)] if rows else []
    times = [
        (s.name, s.summary["seconds"], f"{duration(s.summary['seconds'])}, {s.summary['peak_memory_gb']:.2f} GB")
        for s in run.finished
    ]
    rates = [(s.name, s.results["tokens_per_second"]) for s in run.finished if s.results.get("tokens_per_second")]
    blocks += [Bars("Seconds and peak memory of every stage", times)] if times else []
    return blocks + ([Bars("Tokens per second", [(name, rate, short(rate)) for name, rate in rates])] if rates else [])


def _plan(run: Run, stage: Stage) -> dict[str, float | None]:
    job = _job(run, stage)
    if job is None or job.steps is None:
        return dict.fromkeys(("steps", "tokens", "seconds", "gib"))
    tokens, processes = job.steps * job.tokens_per_step, stage.results.get("processes")
    on_gpu = "peak_gpu_gib" in stage.results
    each = flops_per_token(job.shape, job.length) - frozen_saving(job.total - job.trainable)
    each += reference_flops_per_token(job.shape, job.length) if job.has_reference else 0
    seconds = hours(tokens * each, processes, PRICES) * 3600 if on_gpu and processes else None
    return {"steps": job.steps, "tokens": tokens, "seconds": seconds, "gib": _memory(job, stage, on_gpu)}


def _memory(job: Job, stage: Stage, on_gpu: bool) -> float | None:
    """GiB of the fullest process; None of an engine whose shards the records do not tell."""
    engine, processes = stage.results.get("engine"), stage.results.get("processes")
    if engine not in ("single", "ddp", "fsdp2", "zero1", "zero2", "zero3"):
        return None
    place = Place(engine, processes, 1 if engine in ("single", "ddp") else processes, on_gpu)
    turns = stage.told.get("gradient_accumulation_steps", 1)
    return peak(job, place, job.micro_batch, turns, job.checkpointing)["peak"] / GIB


def _measured(stage: Stage) -> dict[str, float | None]:
    its, memory = stage.results, stage.summary.get("peak_memory_gb")
    gib = its.get("peak_gpu_gib", None if memory is None else memory * 1e9 / GIB)
    seconds = its.get("train_seconds")
    return {"steps": its.get("steps"), "tokens": its.get("tokens"), "seconds": seconds, "gib": gib}


def _job(run: Run, stage: Stage) -> Job | None:
    """The stage as a job to plan, out of what it was told; None if its records do not say enough."""
    told, shape = stage.told, _config(stage)
    prepared = next((s.manifest for s in run.stages if s.name == Path(str(told.get("prepared"))).name), {})
    length = told.get("max_length") if stage.kind == "dpo" else prepared.get("max_length")
    step = told.get("pairs_per_step") if stage.kind == "dpo" else told.get("tokens_per_step")
    if not (length and step and shape):
        return None
    try:
        known = read_shape(shape, str(stage.folder / "config.json"))
    except ValueError:  # an architecture that the plan does not know
        return None
    recipe = Recipe(stage.kind, stage.name, stage.folder / "recipe.json", told, {})
    rows = stage.results.get("pairs") if stage.kind == "dpo" else prepared["train"]["rows"]
    adapters = stage.results.get("trained_parameters") if told.get("use_peft") else None
    per_step = step if stage.kind == "dpo" else step // length
    return Job(recipe, known, length, per_step, rows, [], adapters, [])


def _config(stage: Stage) -> dict[str, Any]:
    """The model's configuration, beside the result or in a checkpoint of a stage under way."""
    found = [stage.folder / "config.json", *sorted(stage.folder.glob("checkpoint-*/config.json"))]
    return next((read_json(path) for path in found if path.is_file()), {})


def _ratio(its: dict[str, dict[str, float | None]], key: str) -> str:
    wanted, got = its["planned"][key], its["measured"][key]
    compares = key != "gib" or its["planned"]["seconds"] is not None  # of a CPU the whole process was measured
    return percent(got / wanted) if wanted and got is not None and compares else ABSENT


def _gib(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f} GiB"
