"""Stops a run before an update that would spoil its weights, and knows which rows it has read."""

import hashlib
import math
from typing import Any

import torch
from torch import distributed


class Guard:
    """What one process remembers of the step under way: the loss and the rows of each micro-batch."""

    def __init__(self) -> None:
        self._micro: list[tuple[torch.Tensor, list[int] | None]] = []
        self._read = hashlib.sha256()

    def take(self, loss: torch.Tensor, rows: torch.Tensor | None) -> None:
        """Note a micro-batch: its loss, and the numbers of its rows if they are known."""
        numbers = None if rows is None else rows.tolist()
        self._micro.append((loss.detach(), numbers))
        self._read.update(repr(numbers).encode())

    def rows_digest(self) -> str:
        """Of the numbers of the rows read since the last call, in their order: equal if the same was read."""
        digest, self._read = self._read.hexdigest()[:16], hashlib.sha256()
        return digest

    def check(self, norm: Any, step: int) -> None:
        """Forget the step's micro-batches; raises ValueError if its gradient, of all processes, is not finite."""
        micro, self._micro = self._micro, []
        if math.isfinite(float(norm)):
            return
        mine = [(float(loss), rows) for loss, rows in micro if not math.isfinite(float(loss))]
        of_all: list[Any] = [mine]
        if distributed.is_initialized():
            of_all = [None] * distributed.get_world_size()
            distributed.all_gather_object(of_all, mine)
        found = [
            f"process {rank}: loss {loss}{f' on rows {rows} of the prepared data' if rows is not None else ''}"
            for rank, its in enumerate(of_all)
            for loss, rows in its
        ]
        raise ValueError(
            f"step {step}: {'; '.join(found) or 'every loss is finite'}, and the gradient's norm is {float(norm)}; "
            "stopped before the update, so the newest checkpoint is sound. Look at those rows (fledge inspect RECIPE "
            "--row N), or lower learning_rate or max_grad_norm and go on with --allow-change KEY"
        )
