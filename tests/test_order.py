"""The order of rows: torch's own, on any number of processes, and a resumed run enters it without reading it."""

import time
from itertools import chain, islice

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from fledge.training.order import BLOCK, EpochOrder, skip_first_batches


ROWS, SEED = BLOCK + 1000, 7


@pytest.mark.parametrize("epoch", [0, 3])
def test_it_is_the_order_that_accelerate_would_have_made(epoch: int) -> None:
    order, theirs = EpochOrder(ROWS, SEED), SeedableRandomSampler(range(ROWS), data_seed=SEED)
    for each in (order, theirs):
        each.set_epoch(epoch)
    rows = list(order)
    assert rows == list(theirs)
    assert sorted(rows) == list(range(ROWS)) and rows == list(order)  # every row once, and the same again


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_skipped_is_what_was_read(processes: int) -> None:
    def loader(rank: int) -> DataLoader:
        batches = BatchSampler(EpochOrder(ROWS, SEED), 4, drop_last=False)
        own = BatchSamplerShard(batches, processes, rank) if processes > 1 else batches
        return DataLoader(range(ROWS), batch_sampler=own)

    whole = [[batch.tolist() for batch in loader(rank)] for rank in range(processes)]
    resumed = [[batch.tolist() for batch in skip_first_batches(loader(rank), 300)] for rank in range(processes)]
    assert resumed == [batches[300:] for batches in whole]
    # Dealt out in turns: the first rows of the order are the first step's, whatever the number of processes.
    dealt = chain.from_iterable(chain.from_iterable(zip(*whole, strict=True)))
    assert list(islice(dealt, 64)) == list(islice(EpochOrder(ROWS, SEED), 64))


def test_only_the_resumed_epoch_is_entered_in_its_midst() -> None:
    loader = skip_first_batches(DataLoader(range(10), batch_size=2, sampler=EpochOrder(10, SEED)), 4)
    assert [len(list(loader)) for _ in range(2)] == [1, 5]


def test_millions_are_skipped_at_once() -> None:
    rows = 8_000_000
    loader = DataLoader(range(rows), batch_size=8, sampler=EpochOrder(rows, SEED))
    torch.randperm(1000)
    first = iter(EpochOrder(rows, SEED))
    began = time.monotonic()
    next(first)
    fresh = time.monotonic() - began
    began = time.monotonic()
    next(iter(skip_first_batches(loader, rows // 8 - 1)))
    assert time.monotonic() - began < 2 * fresh + 1  # the shuffling is all; walking there takes ten times as long


def test_another_sampler_is_left_to_accelerate() -> None:
    loader = skip_first_batches(DataLoader(range(10), batch_size=2, sampler=SequentialSampler(range(10))), 3)
    assert [batch.tolist() for batch in loader] == [[6, 7], [8, 9]]
