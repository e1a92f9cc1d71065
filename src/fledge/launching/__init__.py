"""Run the stages of a recipe folder, each in a process of its own, on one machine or on several."""

import logging
import os


def log_progress() -> None:
    """Show what fledge has to say; of several processes the first says everything, the others only warn."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("fledge: %(message)s"))
    logger = logging.getLogger("fledge")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
