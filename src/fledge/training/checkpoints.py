"""Which checkpoint a stage resumes from: the newest whole one."""

import logging
import re
from pathlib import Path


NEEDED = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "config.json")
"""Without optimizer or scheduler the Trainer would start both anew without a word; trainer_state.json comes last."""

logger = logging.getLogger(__name__)


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The newest whole checkpoint under `output_dir`; incomplete ones are named in a warning and left alone."""
    found = []
    for folder in output_dir.glob("checkpoint-*"):
        step = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        missing = [name for name in NEEDED if not (folder / name).is_file()]
        missing += [] if list(folder.glob("*.safetensors")) else ["model.safetensors"]
        if step and missing:
            logger.warning("%s is incomplete (%s missing) and is passed over", folder, ", ".join(missing))
        elif step:
            found.append((int(step[1]), folder))
    return max(found)[1] if found else None
