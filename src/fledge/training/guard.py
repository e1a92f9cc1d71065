"""Stops a run before an update that would spoil its weights, and knows which rows it has read."""

import hashlib
import math
from typing import Any

import torch
from torch import distributed


MANY = 64
"""Rows that a message names."""


class Guard:
    """What one process remembers of the step under way: the loss and the rows of each micro-batch."""

    def __init__(self) -> None:
        self._micro: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._read: list[list[int]] = []

    def take(self, loss: torch.Tensor, rows: torch.Tensor | None) -> None:
        """Note a micro-batch: its loss, and the numbers of its rows if they are known; waits for no GPU."""
        self._micro.append((loss.detach(), rows))

    def rows_digest(self) -> str | None:
        """Of the rows that all processes have read since the last call; None if they are not known.

        In the order in which they were dealt out, so that it is the same on any number of processes. Every process
        has to call it.
        """
        read, self._read = self._read, []
        rows = [row for turn in zip(*_of_all(read), strict=True) for batch in turn for row in batch]
        return hashlib.sha256(repr(rows).encode()).hexdigest()[:16] if rows else None

    def check(self, norm: Any, step: int) -> tuple[float, str]:
        """End the step; raises ValueError if its gradient's norm, that of all processes, is not finite.

        Args:
            norm: None where the engine tells none: nothing is checked then.

        Returns:
            This process's loss of the step, and the rows it read, in words.
        """
        micro = [(loss, None if rows is None else rows.tolist()) for loss, rows in self._micro]
        self._micro = []
        of_step = [row for _, rows in micro for row in rows or ()]
        self._read += [rows or [] for _, rows in micro]
        if norm is None or math.isfinite(float(norm)):
            return sum(float(loss) for loss, _ in micro), _counted(of_step or None)
        mine = [(float(loss), rows) for loss, rows in micro if not math.isfinite(float(loss))]
        found = [
            f"process {rank}: loss {loss}{_counted(rows)}"
            for rank, its in enumerate(_of_all(mine))
            for loss, rows in its
        ]
        raise ValueError(
            f"step {step}: {'; '.join(found) or 'every loss is finite'}, and the gradient's norm is {float(norm)}; "
            "nothing of it was saved, so the newest checkpoint is sound. Look at those rows (fledge inspect RECIPE "
            "--row N), or lower learning_rate or max_grad_norm and go on with --allow-change KEY"
        )


def _of_all(own: list[Any]) -> list[list[Any]]:
    """What every process has, by rank."""
    if not distributed.is_initialized():
        return [own]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, own)
    return found


def _counted(rows: list[int] | None) -> str:
    """The rows as `fledge inspect` counts them, from 1; of many the first."""
    if rows is None:
        return ""
    named = ", ".join(str(row + 1) for row in rows[:MANY])
    return f" on the prepared rows {named}" + (f" and {len(rows) - MANY} more" if len(rows) > MANY else "")
