"""Which checkpoint a stage resumes from: the newest whole one."""

import logging
import re
from pathlib import Path
from typing import Any

from fledge.files import read_json


NEEDED = ("trainer_state.json", "scheduler.pt", "config.json")
"""Without its scheduler or optimizer the Trainer would start anew without a word; trainer_state.json comes last."""

logger = logging.getLogger(__name__)


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The newest whole checkpoint under `output_dir`; incomplete ones are named in a warning and left alone."""
    found = []
    for folder in output_dir.glob("checkpoint-*"):
        step = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        missing = [name for name in NEEDED if not (folder / name).is_file()]
        missing += [] if list(folder.glob("*.safetensors")) else ["model.safetensors"]
        # DeepSpeed keeps its optimizer in a folder of its own.
        missing += [] if (folder / "optimizer.pt").is_file() or list(folder.glob("global_step*")) else ["optimizer.pt"]
        if not missing and not _is_json(folder / "trainer_state.json"):
            missing = ["the end of trainer_state.json"]
        if step and missing:
            logger.warning("%s is incomplete (%s missing) and is passed over", folder, ", ".join(missing))
        elif step:
            found.append((int(step[1]), folder))
    return max(found)[1] if found else None


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
