"""Recipe -> the Hugging Face dataclass of a training stage, with what the machine and the layout decide filled in."""

from dataclasses import fields
from importlib.util import find_spec
from typing import Any, TypeVar

from transformers import TrainingArguments

from fledge.machine import choose_bf16, on_cpu, world_size
from fledge.recipe import Recipe


Arguments = TypeVar("Arguments", bound=TrainingArguments)

DEFAULTS: dict[str, Any] = {
    "bf16": "auto",
    "report_to": "none",
    "logging_first_step": True,
    "logging_nan_inf_filter": False,  # the Trainer's default hides a NaN loss behind the last finite one
    "remove_unused_columns": False,  # our collator needs seq_lengths, which no forward takes
    "save_strategy": "no",
    "disable_tqdm": False,
}
"""Where fledge's defaults differ from the library's."""


def library_arguments(
    recipe: Recipe, cls: type[Arguments], per_step: int, per_row: int, unit: str
) -> tuple[Arguments, bool | str]:
    """The stage's TrainingArguments, and what the recipe says of torch_compile (fledge compiles by itself).

    Args:
        per_step: what an optimizer step is made of, over all processes, in `unit`.
        per_row: what one row of a micro-batch holds, in `unit`.
        unit: "tokens" or "pairs"; the recipe key is `<unit>_per_step`.
    """
    values = {**DEFAULTS, **recipe.library()}
    check_trackers(values["report_to"])
    torch_compile = values.pop("torch_compile", "auto")
    values["bf16"] = choose_bf16(values["bf16"])
    values["use_cpu"] = on_cpu()
    micro_batch = values.setdefault("per_device_train_batch_size", 8)
    values["gradient_accumulation_steps"] = accumulation(per_step, per_row, micro_batch, unit)
    return cls(**values), torch_compile


def check_trackers(report_to: str | list[str]) -> None:
    """Raise ValueError for a tracker that is not installed, with the command that installs it."""
    for tracker in [report_to] if isinstance(report_to, str) else report_to:
        if tracker not in ("none", "all") and find_spec(tracker) is None:
            raise ValueError(
                f"report_to: {tracker} is not installed; run: pip install 'fledge-lm[track]', or {tracker}"
            )


def accumulation(per_step: int, per_row: int, micro_batch: int, unit: str) -> int:
    """Micro-batches in a step, so that `per_step` is the same on any number of processes.

    Raises:
        ValueError: it does not divide, with the nearest values that do.
    """
    at_once = per_row * micro_batch * world_size()
    if per_step % at_once:
        below = per_step // at_once * at_once
        near = " or ".join(f"{value}" for value in (below, below + at_once) if value)
        raise ValueError(
            f"{unit}_per_step: {per_step} is no multiple of {at_once}, what {world_size()} process(es) take at once "
            f"(per_device_train_batch_size {micro_batch} x {per_row} {unit} a row); nearest: {near}"
        )
    return per_step // at_once


def values_of(args: TrainingArguments) -> dict[str, Any]:
    """The fields of built arguments, for the resolved recipe."""
    return {field.name: getattr(args, field.name) for field in fields(args) if hasattr(args, field.name)}
