"""Recipe -> the Hugging Face dataclass of a training stage, with what the machine and the layout decide filled in."""

import os
from dataclasses import fields
from importlib.util import find_spec
from typing import Any, TypeVar

from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from fledge.layouts import FAMILIES, launched_engine
from fledge.machine import choose_bf16, on_cpu, world_size
from fledge.recipe import Recipe

from .engine import in_bf16, set_up
from .hub import check_hub


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
    refuse_muon(recipe)
    values = {**DEFAULTS, **recipe.library()}
    set_up_trackers(recipe, values)
    check_hub(recipe, values)
    torch_compile = values.pop("torch_compile", "auto")
    bf16 = choose_bf16(values["bf16"])
    values["bf16"] = bf16 and FAMILIES[launched_engine()] != "zero"
    values["use_cpu"] = on_cpu()
    micro_batch = values.setdefault("per_device_train_batch_size", 8)
    values["gradient_accumulation_steps"] = accumulation(per_step, per_row, micro_batch, unit)
    args = cls(**values)
    set_up(args, bf16)
    return args, torch_compile


def refuse_muon(recipe: Recipe) -> None:
    """Raise ValueError if the recipe asks for Muon on a layout that shards the matrices Muon needs whole."""
    engine = launched_engine()
    if recipe.values.get("muon_learning_rate") is not None and FAMILIES[engine] != "plain":
        raise ValueError(
            f"muon_learning_rate: Muon needs whole matrices, and {engine} shards them; use a DDP layout, or leave "
            "the key out (--muon_learning_rate null)"
        )


def set_up_trackers(recipe: Recipe, values: dict[str, Any]) -> None:
    """Name the project and the run of `report_to` after the run's folder and the recipe; keep W&B on this machine.

    Whoever wants W&B to send what it is told says so: WANDB_MODE=online.

    Raises:
        ValueError: a tracker that nobody knows, that is not installed, or all of them at once.
    """
    stated = values["report_to"]
    trackers = [name for name in ([stated] if isinstance(stated, str) else stated) if name != "none"]
    for name in trackers:
        if name == "all":
            raise ValueError("report_to: all is whatever happens to be installed; name the trackers")
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(f"report_to: {name} is no tracker; they are {', '.join(INTEGRATION_TO_CALLBACK)}")
        if find_spec(name) is None:
            raise ValueError(f"report_to: {name} is not installed; run: pip install 'fledge-lm[track]', or {name}")
    home = recipe.output_dir.absolute().parent
    if trackers:
        values.setdefault("project", home.name)
        values.setdefault("run_name", recipe.name)
    if "wandb" in trackers:
        own = {"MODE": "offline", "ERROR_REPORTING": "false", "DIR": str(home), "PROJECT": values["project"]}
        for key, value in own.items():
            os.environ.setdefault(f"WANDB_{key}", value)


def accumulation(per_step: int, per_row: int, micro_batch: int, unit: str) -> int:
    """Micro-batches in a step, so that `per_step` is the same on any number of processes.

    Raises:
        ValueError: it does not divide, with the nearest values and micro-batches that do.
    """
    at_once = per_row * micro_batch * world_size()
    if per_step % at_once:
        below = per_step // at_once * at_once
        near = f"nearest: {_either([value for value in (below, below + at_once) if value])}"
        rows, rest = divmod(per_step, per_row * world_size())
        if not rest:
            divisors = [size for size in range(1, rows + 1) if rows % size == 0]
            smaller, larger = (
                [size for size in divisors if size < micro_batch],
                [size for size in divisors if size > micro_batch],
            )
            near += f"; or keep it and write per_device_train_batch_size: {_either(smaller[-1:] + larger[:1])}"
        raise ValueError(
            f"{unit}_per_step: {per_step} is no multiple of {at_once}, what {world_size()} process(es) take at once "
            f"(per_device_train_batch_size {micro_batch} x {per_row} {unit} a row); {near}"
        )
    return per_step // at_once


def _either(values: list[int]) -> str:
    return " or ".join(str(value) for value in values)


def values_of(args: TrainingArguments) -> dict[str, Any]:
    """The fields of built arguments, for the resolved recipe."""
    values = {field.name: getattr(args, field.name) for field in fields(args) if hasattr(args, field.name)}
    return values | {"bf16": in_bf16(args)}
