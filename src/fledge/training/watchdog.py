"""A run that no longer moves ends, with the line of code that each process is in, instead of holding its GPUs.

One process that hangs lets all others wait for it in their next collective: each sees by itself that it makes no step,
and the one whose line is no collective is where to look. A process that was stopped cannot look; the launcher ends it.
"""

import os
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from fledge.causes import tell_cause


HUNG = 70
"""Exit code: EX_SOFTWARE of sysexits.h."""


class Watchdog(TrainerCallback):
    """While entered, ends this process once it has not finished a batch, a save or a held-out batch for a while.

    Args:
        seconds: how long that may take; compiling and the slowest save have to fit.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._step = 0
        self._left = threading.Event()

    def __enter__(self) -> "Watchdog":
        self._moved, self._watched = time.monotonic(), threading.get_ident()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._left.set()

    def _moves(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self._moved, self._step = time.monotonic(), state.global_step

    on_step_begin = on_substep_end = on_step_end = on_prediction_step = on_evaluate = on_save = on_log = _moves

    def _watch(self) -> None:
        while not self._left.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._moved > self.seconds:
                self._end(sys._current_frames()[self._watched])

    def _end(self, frame: FrameType) -> None:
        stack = traceback.extract_stack(frame)
        own = [line for line in stack if "fledge" in line.filename] or stack
        places = dict.fromkeys(f"{line.name} ({line.filename}:{line.lineno})" for line in (stack[-1], own[-1]))
        tell_cause(
            f"no progress for {self.seconds:.0f} s (hang_timeout) after step {self._step}, in "
            f"{', called by '.join(places)}; the same command goes on from the newest whole checkpoint"
        )
        os._exit(HUNG)
