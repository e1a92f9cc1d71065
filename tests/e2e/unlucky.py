"""`python -m unlucky FAULT STEP fledge's arguments`: process 1 of a launch meets FAULT in the midst of that step."""

import os
import signal
import sys
import time
from typing import Any

from fledge.cli import main
from fledge.training.trainer import StageTrainer


def meet(fault: str) -> None:
    if fault == "raise":
        raise RuntimeError("the tape is torn")
    if fault == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "leave":
        os._exit(0)
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:  # hang
        time.sleep(1)


fault, step, *arguments = sys.argv[1:]
if os.environ["RANK"] == "1":
    compute_loss = StageTrainer.compute_loss

    def interrupted(trainer: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step + 1 == int(step):
            meet(fault)
        return compute_loss(trainer, *args, **kwargs)

    StageTrainer.compute_loss = interrupted

sys.exit(main(arguments))
