"""Run the stages of a recipe folder, each in a process of its own, on one machine or on several."""

import logging
import os
import signal
from typing import Any, NoReturn


EXIT_CODE_FILE = "FLEDGE_EXIT_CODE_FILE"
"""Environment variable: where a stage leaves its exit code, which accelerate's launcher turns into 1."""


SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What asks a run to make room: to save and end, and be started again."""


class Preempted(SystemExit):
    """The run was asked to make room; nothing is wrong, and the same command goes on."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h."""


def listen() -> None:
    """Let SIGNALS raise Preempted, so that partial files are cleared away and the exit code tells."""

    def leave(number: int, frame: Any) -> NoReturn:
        raise Preempted(f"stopped by {signal.Signals(number).name}; the same command goes on from what is done")

    for number in SIGNALS:
        signal.signal(number, leave)


def log_progress() -> None:
    """Show what fledge has to say; of several processes the first says everything, the others only warn."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("fledge: %(message)s"))
    logger = logging.getLogger("fledge")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
