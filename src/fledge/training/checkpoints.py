"""Which checkpoint a stage resumes from: the newest whole one."""

import logging
import os
import re
from pathlib import Path
from typing import Any

from fledge.files import read_json, write_json
from fledge.layouts import FAMILIES, launched_engine


NEEDED = ("trainer_state.json", "scheduler.pt", "config.json")
"""Without its scheduler or optimizer the Trainer would start anew without a word; trainer_state.json comes last."""

OPTIMIZER = {"plain": "optimizer.pt", "fsdp": "optimizer.bin", "zero": "global_step*"}
"""Where each family of engines keeps the optimizer's state."""

TOPOLOGY = "layout.json"
"""In a checkpoint: the engine and the processes that wrote it."""

logger = logging.getLogger(__name__)


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The newest whole checkpoint under `output_dir`; incomplete ones are named in a warning and left alone."""
    for folder, missing in _checkpoints(output_dir):
        if missing:
            logger.warning("%s is incomplete (%s missing) and is passed over", folder, ", ".join(missing))
    return _newest(output_dir)


def _newest(output_dir: Path) -> Path | None:
    return next((folder for folder, missing in _checkpoints(output_dir) if not missing), None)


def _checkpoints(output_dir: Path) -> list[tuple[Path, list[str]]]:
    """The checkpoints under `output_dir`, the newest first, each with what it lacks."""
    steps = {folder: re.fullmatch(r"checkpoint-(\d+)", folder.name) for folder in output_dir.glob("checkpoint-*")}
    newest_first = sorted((folder for folder in steps if steps[folder]), key=lambda folder: -int(steps[folder][1]))
    return [(folder, _missing(folder)) for folder in newest_first]


def _missing(folder: Path) -> list[str]:
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    missing += [] if list(folder.glob("*.safetensors")) else ["model.safetensors"]
    missing += [] if any(list(folder.glob(name)) for name in OPTIMIZER.values()) else ["optimizer.pt"]
    if not missing and not _is_json(folder / "trainer_state.json"):
        missing = ["the end of trainer_state.json"]
    return missing


def write_topology(checkpoint: Path) -> None:
    """Note beside a checkpoint's weights which engine on how many processes is about to complete it."""
    write_json(checkpoint / TOPOLOGY, _topology())


def refuse_other_layout(output_dir: Path) -> None:
    """Raise ValueError if this launch cannot go on from the newest whole checkpoint.

    One process and DDP read each other's, at any number of processes; so do FSDP2 and HSDP. ZeRO's optimizer state is
    cut for its stage and its number of processes. To be called before anything heavy is imported.
    """
    checkpoint = _newest(output_dir)
    if checkpoint is None or not (checkpoint / TOPOLOGY).is_file():
        return
    wrote, now = read_json(checkpoint / TOPOLOGY), _topology()
    family = FAMILIES[wrote["engine"]]
    if wrote == now or (family == FAMILIES[now["engine"]] and family != "zero"):
        return
    raise ValueError(
        f"{checkpoint} was written by {wrote['engine']} on {wrote['processes']} process(es), and its optimizer state "
        f"cannot be read by {now['engine']} on {now['processes']}; either continue on {_readers(wrote)}, or keep the "
        f"weights alone: begin anew in another output_dir (sft, dpo: with model_name_or_path: {checkpoint})"
    )


def _topology() -> dict[str, Any]:
    return {"engine": launched_engine(), "processes": int(os.environ.get("WORLD_SIZE", "1"))}


def _readers(wrote: dict[str, Any]) -> str:
    family = FAMILIES[wrote["engine"]]
    if family == "zero":
        return f"a {wrote['engine']} layout of {wrote['processes']} process(es)"
    engines = [engine for engine, its in FAMILIES.items() if its == family]
    return f"a layout of {' or '.join(engines)}, of any number of processes"


def _is_json(path: Path) -> bool:
    try:
        read_json(path)
    except ValueError:
        return False
    return True


UNIMPORTANT = re.compile(
    r"(logging|save|eval|hub|dataloader|report|push|per_device|disable|include|log|torch_compile|auto_find)(_|$).*"
    r"|output_dir|run_name|use_cpu|gradient_accumulation_steps|project|trackio.*"
)
"""Keys that may change between a checkpoint and its resumption: they move no weight."""


def refuse_changed(output_dir: Path, now: dict[str, Any]) -> None:
    """Raise ValueError if `output_dir` holds checkpoints of a recipe that trains something else.

    Args:
        now: the resolved recipe, key -> {"value", "from"}; compared with the recipe.json beside the checkpoints.
    """
    recorded = output_dir / "recipe.json"
    if not recorded.is_file() or not list(output_dir.glob("checkpoint-*")):
        return
    before = read_json(recorded)
    changed = [
        f"{key} was {before.get(key, {}).get('value')!r} and is {now.get(key, {}).get('value')!r}"
        for key in sorted({*before, *now})
        if not UNIMPORTANT.fullmatch(key) and before.get(key, {}).get("value") != now.get(key, {}).get("value")
    ]
    if changed:
        raise ValueError(
            f"{output_dir} holds checkpoints of another recipe: {'; '.join(changed)}; "
            "take another output_dir, or move this one away"
        )
