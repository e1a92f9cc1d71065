"""Which micro-batch fits which card, and what to change where the recipe's does not."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fledge.layouts import Layout

from .job import Job
from .memory import Place, peak


GIB = 2**30

CARDS = (40, 80, 94, 141)
"""GiB of GPU memory: A100-40G, A100 and H100, H100 NVL, H200."""

USABLE = 0.92
"""Share of a card that a plan fills; the rest is for the CUDA context, NCCL and the allocator's gaps (assumed)."""

SYNC_EACH = {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}


def accumulation(job: Job, micro_batch: int, processes: int) -> int | None:
    """Micro-batches in a step; None if they cannot make up the step."""
    steps, rest = divmod(job.rows_per_step, micro_batch * processes)
    return None if rest else steps


def refusal(job: Job, layout: Layout) -> str | None:
    """Why this layout cannot train with the recipe's batch, and the nearest that can; None if it can."""
    if job.recipe.values.get("muon_learning_rate") is not None and layout.engine not in ("single", "ddp"):
        return f"muon_learning_rate: Muon needs whole matrices, and {layout.engine} shards them; use a DDP layout"
    if accumulation(job, job.micro_batch, layout.num_processes):
        return None
    unit = "pairs" if job.sides == 2 else "rows"
    each, rest = divmod(job.rows_per_step, layout.num_processes)
    if rest:
        possible = [size for size in range(1, layout.num_processes) if job.rows_per_step % size == 0]
        return (
            f"{job.rows_per_step} {unit} a step do not divide by {layout.num_processes} processes; {possible[-1]} do"
        )
    near = _either(_nearest(micro_batches(job, layout.num_processes), job.micro_batch))
    return (
        f"{each} {unit} a step and process are no multiple of per_device_train_batch_size {job.micro_batch}; "
        f"nearest: {near}"
    )


def micro_batches(job: Job, processes: int) -> list[int]:
    """Every micro-batch that makes up the step on this many processes, the smallest first."""
    return [size for size in range(1, job.rows_per_step // processes + 1) if accumulation(job, size, processes)]


def peak_bytes(job: Job, place: Place, micro_batch: int, checkpointing: bool) -> float:
    """The fullest moment with this micro-batch."""
    steps = accumulation(job, micro_batch, place.processes) or 1
    return peak(job, place, micro_batch, steps, checkpointing)["peak"]


def largest(job: Job, place: Place, card: float, checkpointing: bool) -> int:
    """The largest micro-batch that makes up the step and fits a card of so many GiB; 0 if none does."""
    fitting = 0
    for size in micro_batches(job, place.processes):
        if not fits(peak_bytes(job, place, size, checkpointing), card):
            break
        fitting = size
    return fitting


def fits(peak: float, card: float) -> bool:
    """Whether so many bytes leave room on a card of so many GiB."""
    return peak <= USABLE * card * GIB


def advice(job: Job, layout: Layout, layouts: Sequence[Layout], card: float) -> list[str]:
    """What would make a plan fit that does not: each line by itself, the cheapest change first."""
    place, found = Place.of(layout), []
    if size := largest(job, place, card, job.checkpointing):
        found.append(f"per_device_train_batch_size: {size}, with the same tokens a step")
    if not job.checkpointing and (size := largest(job, place, card, True)):
        found.append(
            f"activation_checkpointing: true, with per_device_train_batch_size {min(size, job.micro_batch)}: the "
            "forward pass is computed twice, about a third more work"
        )
    if place.is_fsdp and fits(_peak(_changed(job, **SYNC_EACH), place), card):
        found.append(
            "accelerator_config: {gradient_accumulation_kwargs: {sync_each_batch: true}}: gradients are reduced after "
            "every micro-batch instead of held whole until the last"
        )
    if job.has_reference and largest(_changed(job, precompute_ref_log_probs=True), place, card, job.checkpointing):
        found.append("precompute_ref_log_probs: true: the reference is read once, before training")
    others = [
        other.name
        for other in layouts
        if other.num_processes == layout.num_processes
        and other.name != layout.name
        and refusal(job, other) is None
        and fits(_peak(job, Place.of(other)), card)
    ]
    if others:
        found.append(f"another layout: {', '.join(others)}")
    cards = [size for size in CARDS if size > card and largest(job, place, size, job.checkpointing)]
    if cards:
        found.append(f"cards of {cards[0]} GB")
    return found or ["nothing of this alone: shard over more GPUs, or shorten the rows"]


def _peak(job: Job, place: Place) -> float:
    return peak_bytes(job, place, job.micro_batch, job.checkpointing)


def _changed(job: Job, **values: Any) -> Job:
    return replace(job, recipe=replace(job.recipe, values=job.recipe.values | values))


def _nearest(sizes: list[int], wanted: int) -> list[int]:
    below, above = [size for size in sizes if size < wanted], [size for size in sizes if size > wanted]
    return below[-1:] + above[:1]


def _either(values: list[int]) -> str:
    return " or ".join(map(str, values))
