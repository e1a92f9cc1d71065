"""Run the stages of a recipe folder, each in a process of its own, on one machine or on several."""

import logging
import os


EXIT_CODE_FILE = "FLEDGE_EXIT_CODE_FILE"
"""Environment variable: where a stage leaves its exit code, which accelerate's launcher turns into 1."""


def log_progress() -> None:
    """Show what fledge has to say; of several processes the first says everything, the others only warn."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("fledge: %(message)s"))
    logger = logging.getLogger("fledge")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
