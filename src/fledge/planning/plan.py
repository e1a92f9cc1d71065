"""The plan of a recipe folder or file as one mapping, ready for JSON."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledge.layouts import FOLDER, Layout, find_layout, read_layout

from .compute import (
    FORMULA,
    STRICT_FORMULA,
    Prices,
    flops_per_token,
    frozen_saving,
    hours,
    reference_flops_per_token,
    saves,
    strict_flops_per_token,
)
from .fit import CARDS, GIB, accumulation, advice, fits, largest, refusal
from .job import Job, read_jobs
from .memory import PARTS, Place, full_logits, peak


MEASURED = "planned by arithmetic; one H100 took within 5% of it"


def plan(path: Path, overrides: Sequence[str], on: str | None, prices: Prices, card: float) -> dict[str, Any]:
    """Plan every training stage of `path` on one layout, or on all there are.

    The keys of the first stage are also at the top.

    Raises:
        ValueError: no such recipe or layout, or something wrong in one of them.
    """
    layouts = all_layouts()
    chosen = [read_layout(find_layout(on))] if on else layouts
    stages = [stage_plan(job, chosen, layouts, prices, card) for job in read_jobs(path, overrides)]
    assumed = {
        "mfu": prices.mfu,
        "peak_tflops_per_gpu": prices.peak_flops / 1e12,
        "usd_per_gpu_hour": prices.per_gpu_hour,
        "card_gb": card,
    }
    return {"basis": MEASURED, "assumed": assumed, **stages[0], "stages": stages}


def all_layouts() -> list[Layout]:
    """Every layout of accelerate_configs/, the smallest first."""
    folder = find_layout("cpu").parent if not Path(FOLDER).is_dir() else Path(FOLDER)
    layouts = [read_layout(path) for path in sorted(folder.glob("*.yaml"))]
    order = ("single", "ddp", "fsdp2", "hsdp", "zero1", "zero2", "zero3")
    return sorted(layouts, key=lambda one: (not one.use_cpu, one.num_processes, order.index(one.engine)))


def stage_plan(
    job: Job, layouts: Sequence[Layout], known: Sequence[Layout], prices: Prices, card: float
) -> dict[str, Any]:
    """One training stage: what it is, what it takes, and each layout.

    Args:
        layouts: those to plan.
        known: those that advice may name.
    """
    shape, steps = job.shape, job.steps
    tokens = None if steps is None else steps * job.tokens_per_step
    per_token = flops_per_token(shape, job.length) - frozen_saving(job.total - job.trainable)
    strict = strict_flops_per_token(shape, job.length) - frozen_saving(job.total - job.trainable)
    formula, strict_formula = FORMULA, STRICT_FORMULA
    if job.adapters is not None:
        formula, strict_formula = (f"{text}, less 2 for each frozen weight" for text in (formula, strict_formula))
    if job.has_reference:
        per_token += reference_flops_per_token(shape, job.length)
        strict *= 4 / 3
        formula, strict_formula = (f"{text}, and a third for the reference" for text in (formula, strict_formula))
    total = None if tokens is None else tokens * per_token
    return {
        "recipe": str(job.recipe.path),
        "stage": job.recipe.stage,
        "model": {
            "type": shape.model_type,
            "layers": shape.num_layers,
            "hidden_size": shape.hidden_size,
            "heads": shape.num_heads,
            "key_value_heads": shape.num_key_value_heads,
            "vocab_size": shape.vocab_size,
            "tied": shape.tied,
        },
        "parameters": {
            "total": job.total,
            "embedding": shape.embedding,
            "body": shape.body,
            "adapters": job.adapters or 0,
            "trainable": job.trainable,
        },
        "row_length": job.length,
        "rows_per_step": job.rows_per_step,
        "tokens_per_step": job.tokens_per_step,
        "steps": steps,
        "total_tokens": tokens,
        "epochs": job.epochs,
        "sources": _sources(job),
        "flops": {
            "per_token": per_token,
            "total": total,
            "formula": formula,
            "strict_per_token": strict,
            "strict_total": None if tokens is None else tokens * strict,
            "strict_formula": strict_formula,
        },
        "bf16": job.bf16,
        "activation_checkpointing": job.checkpointing,
        "attention": job.attention(on_gpu=not all(layout.use_cpu for layout in layouts)),
        "checkpoints": _checkpoints(job),
        "layouts": [_layout(job, layout, known, (total, per_token), prices, card) for layout in layouts],
        "notes": job.notes,
    }


def _sources(job: Job) -> list[dict[str, Any]]:
    """Tokens and epochs of each source over the whole run, if prepare counted them."""
    if job.epochs is None:
        return []
    return [
        {"name": source["name"], "tokens": source["tokens"], "epochs": source["epochs"] * job.epochs}
        for source in job.sources
    ]


def _checkpoints(job: Job, engine: str = "ddp") -> dict[str, Any]:
    """Sizes in GB of 1e9 bytes: the finished weights, one checkpoint, and all that lies on the disk at a time."""
    weights = 4 * job.trainable / 1e9  # float32; of LoRA the adapters alone
    states = {"zero1": 5, "zero2": 5, "zero3": 4}.get(engine, 3)  # in float32 weights: their copies, and two moments
    one = weights * (1 if job.get("save_only_model") else states)
    strategy = job.recipe.values.get("save_strategy", "no")
    made: int | None = 0
    if strategy != "no":
        made = None if job.steps is None else saves(job.steps, job.get("save_steps"))
        if strategy == "epoch":
            made = None if job.epochs is None else math.ceil(job.epochs)
    limit = job.recipe.values.get("save_total_limit")
    at_once = made if limit is None else limit + 1 if made is None else min(made, limit + 1)
    return {
        "weights_gb": weights,
        "checkpoint_gb": one,
        "saved": made,
        "kept": made if limit is None else limit if made is None else min(made, limit),
        "disk_gb": None if at_once is None else weights + at_once * one,
    }


def _layout(
    job: Job,
    layout: Layout,
    known: Sequence[Layout],
    flops: tuple[float | None, float],
    prices: Prices,
    card: float,
) -> dict[str, Any]:
    """One layout; `flops` are those of the whole stage, if known, and of a token."""
    place, gpus = Place.of(layout), layout.num_processes
    refused = refusal(job, layout)
    steps = accumulation(job, job.micro_batch, gpus)
    found = {flag: peak(job, place, job.micro_batch, steps or 1, flag) for flag in (False, True)}
    held = found[job.checkpointing]
    priced = not layout.use_cpu and not refused
    time = hours(flops[0], gpus, prices) if priced and flops[0] is not None else None
    memory = {part: held[part] / GIB for part in ("peak", *PARTS)} | {
        "moment": held["moment"],
        "peak_without_checkpointing": found[False]["peak"] / GIB,
        "peak_with_checkpointing": found[True]["peak"] / GIB,
        "full_logits_would_take": full_logits(job, job.micro_batch) / GIB,
    }
    possible = [] if refused or layout.use_cpu else CARDS
    exceeds = not refused and not layout.use_cpu and not fits(held["peak"], card)
    return {
        "name": layout.name,
        "engine": layout.engine,
        "machines": layout.num_machines,
        "gpus": 0 if layout.use_cpu else gpus,
        "processes": gpus,
        "micro_batch": job.micro_batch,
        "accumulation": steps,
        "refused": refused,
        "tokens_per_second": 1 / hours(flops[1], gpus, prices) / 3600 if priced else None,
        "hours": time,
        "gpu_hours": None if time is None else time * gpus,
        "cost_usd": None if time is None else time * gpus * prices.per_gpu_hour,
        "memory_gib_per_gpu": memory,
        "fits_gb": {str(size): fits(held["peak"], size) for size in CARDS},
        "largest_micro_batch": {str(size): largest(job, place, size, job.checkpointing) for size in possible},
        "checkpoints": _checkpoints(job, layout.engine),
        "exceeds": exceeds,
        "advice": advice(job, layout, known, card) if exceeds else [],
    }
