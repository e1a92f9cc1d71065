"""A step whose loss lies far above those before it: told, left out, or the end of the run, as the recipe says.

Far is as in OLMo-core's SkipStepOptimizer: more than six standard deviations above the mean of the last 128 losses.
"""

import logging
import math
import statistics
from collections import deque
from collections.abc import Sequence


WINDOW, LEAST = 128, 32
"""Losses that are looked back upon, and how many there have to be for a judgement."""
DEVIATIONS = 6.0

logger = logging.getLogger(__name__)


class Spikes:
    """The last losses of a run, and what to do about one that stands out.

    Args:
        policy: log, skip or stop.
        losses: those of the run so far, which a checkpoint keeps.

    Attributes:
        found: step -> loss of those that stood out.
    """

    def __init__(self, policy: str, losses: Sequence[float] = ()) -> None:
        self.policy = policy
        self.losses = deque(losses, maxlen=WINDOW)
        self.found: dict[int, float] = {}

    def met(self, loss: float, step: int, rows: str) -> bool:
        """Take a step's loss, the same on every process; whether its update is to be left out.

        The loss counts from then on, so that a level that stays is no spike for long.

        Args:
            rows: for the message, which rows this process read.

        Raises:
            ValueError: it stands out, and the policy is stop; or it is no number, which only ZeRO lets come so far.
        """
        if not math.isfinite(loss):
            raise ValueError(
                f"step {step}: loss {loss}{rows}; nothing of it was saved, the newest checkpoint is sound"
            )
        before = list(self.losses)
        self.losses.append(loss)
        if len(before) < LEAST:
            return False
        mean, deviation = statistics.fmean(before), statistics.pstdev(before)
        if loss <= mean + DEVIATIONS * deviation:
            return False
        what = (
            f"step {step}: loss {loss:.4f}{rows}, and the {len(before)} before it were {mean:.4f} +- {deviation:.4f}"
        )
        if self.policy == "stop":
            raise ValueError(
                f"{what}; nothing of it was saved. Look at those rows (fledge inspect RECIPE --row N), or go on with "
                "--loss_spike skip"
            )
        self.found[step] = loss
        logger.warning("%s%s", what, "; its update is left out" if self.policy == "skip" else "")
        return self.policy == "skip"
