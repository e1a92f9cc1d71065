"""The order in which rows are read: a function of the seed and the epoch, entered anywhere at once.

torch's RandomSampler makes a Python list of all rows (15 GB for the 464 million of TinyLlama, in every process), and
Accelerate skips what a resumed run has read by walking through it. This one keeps the same order, that of
torch.randperm, as a tensor of 4 bytes a row, and begins where it is told.
"""

from collections.abc import Iterator

import accelerate
import torch
import transformers.trainer
from torch.utils.data import BatchSampler, DataLoader, Sampler


BLOCK = 1 << 16


class EpochOrder(Sampler[int]):
    """Row numbers 0 to `rows` - 1, shuffled anew in every epoch.

    Attributes:
        skip: rows that the next epoch to be read leaves out at its beginning.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return self.rows

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        number = torch.int32 if self.rows < 2**31 else torch.int64
        order = torch.randperm(self.rows, generator=generator, dtype=number)
        start, self.skip = self.skip, 0
        for begin in range(start, self.rows, BLOCK):
            yield from order[begin : begin + BLOCK].tolist()


def install() -> None:
    """Have the Trainer skip what a resumed run has read without reading it."""
    transformers.trainer.skip_first_batches = skip_first_batches


def skip_first_batches(loader: DataLoader, batches: int) -> DataLoader:
    """As Accelerate's, and at once where an EpochOrder says which rows come."""
    of_all = getattr(loader.batch_sampler, "batch_sampler", loader.batch_sampler)  # of all processes
    order = getattr(of_all, "sampler", None)
    if not (isinstance(of_all, BatchSampler) and isinstance(order, EpochOrder)):
        return accelerate.skip_first_batches(loader, batches)
    processes = getattr(loader.batch_sampler, "num_processes", 1)
    order.skip = batches * processes * of_all.batch_size
    return loader
