"""Asked to make room, all processes of a run stop after the same step, with a checkpoint.

A signal only raises a flag. At the end of every step, and between the batches of an evaluation, the processes agree
whether any of them was asked (as Megatron-LM and OLMo-core do): a signal reaches machines at different moments, and
one that saved alone would wait for the others for ever.
"""

import ctypes
import signal
import sys
import threading
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fledge.preempted import SIGNALS


PR_SET_PDEATHSIG = 1


class EvaluationLeft(Exception):
    """Leaves an evaluation that nobody will see the end of."""


class PreemptionCallback(TrainerCallback):
    """Stops training after an agreed step once any process got one of SIGNALS; listens from its making on.

    Attributes:
        agreed: all processes are going to stop.
        left: the evaluation that was due after that step was not made, or not whole: the resumed run makes it.
    """

    def __init__(self) -> None:
        self.asked = self.agreed = self.left = False
        if threading.current_thread() is threading.main_thread():  # Ray calls a stage from another one
            for number in SIGNALS:
                signal.signal(number, self._hear)
        # A launcher that dies asks too, or the stage would go on without it. Not a shell: that is what nohup is for.
        if sys.platform == "linux" and "accelerate" in " ".join(psutil.Process().parent().cmdline()):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    def _hear(self, number: int, frame: Any) -> None:
        self.asked = True

    def _agree(self, args: TrainingArguments) -> bool:
        if args.world_size == 1:
            self.agreed = self.asked
        elif not self.agreed:
            asked = torch.tensor([int(self.asked)], device=args.device)
            torch.distributed.all_reduce(asked)
            self.agreed = bool(asked.item())
        return self.agreed

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self._agree(args) and state.global_step < state.max_steps:
            is_epoch = args.eval_strategy == "epoch" and float(state.epoch).is_integer()
            self.left = control.should_evaluate or is_epoch
            control.should_save, control.should_evaluate, control.should_training_stop = True, False, True
        return control

    def on_prediction_step(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        if self._agree(args):
            self.left = True
            raise EvaluationLeft
