"""The signals that ask a run to make room, and how it says that it did."""

import signal
from typing import Any, NoReturn


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
