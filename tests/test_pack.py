"""Packing: every token once, rows as full as best-fit decreasing makes them one document at a time, and quickly."""

import time
from itertools import pairwise

import numpy as np
import pytest

from fledge.data.pack import pack


def one_at_a_time(lengths: list[int], max_length: int) -> list[int]:
    """Tokens of each row of best-fit decreasing, written as the literature states it: one document after another."""
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, used in enumerate(rows) if used + length <= max_length]
        if fitting:
            rows[max(fitting, key=lambda index: rows[index])] += length
        else:
            rows.append(length)
    return rows


def lengths_of(pieces: np.ndarray) -> np.ndarray:
    return pieces[:, 2].astype(np.int64) - pieces[:, 1]


def tokens_of_rows(pieces: np.ndarray, rows: np.ndarray) -> list[int]:
    return np.add.reduceat(lengths_of(pieces), rows[:-1]).tolist()


def assert_every_token_once(pieces: np.ndarray, rows: np.ndarray, lengths: np.ndarray) -> None:
    assert rows[0] == 0 and rows[-1] == len(pieces) and np.diff(rows).min() > 0
    ends = np.cumsum(lengths)
    ids = [np.arange(start, stop) + ends[document] - lengths[document] for document, start, stop in pieces.tolist()]
    assert np.array_equal(np.sort(np.concatenate(ids)), np.arange(ends[-1]))


@pytest.mark.parametrize("strategy", ["wrapped", "best-fit", "best-fit-split"])
@pytest.mark.parametrize("seed", range(20))
def test_every_token_is_in_one_row_once(strategy: str, seed: int) -> None:
    chance = np.random.default_rng(seed)
    max_length = int(chance.integers(2, 80))
    longest = max_length if strategy == "best-fit" else 4 * max_length
    lengths = chance.integers(1, longest + 1, size=chance.integers(1, 300))
    pieces, rows = pack(lengths, max_length, strategy)
    assert_every_token_once(pieces, rows, lengths)
    tokens = tokens_of_rows(pieces, rows)
    assert max(tokens) <= max_length
    if strategy == "wrapped":
        assert set(tokens[:-1]) <= {max_length}
    if strategy == "best-fit":
        assert np.array_equal(lengths_of(pieces), lengths[pieces[:, 0]])
        assert sorted(tokens) == sorted(one_at_a_time(lengths.tolist(), max_length))
    again = pack(lengths, max_length, strategy)
    assert np.array_equal(pieces, again[0]) and np.array_equal(rows, again[1])


def test_what_is_left_of_a_long_document_is_packed_like_a_short_one() -> None:
    # 25 = 10 + 10 + 5, 20 = 10 + 10, and 5 + 3 + 2 is a row again.
    pieces, rows = pack(np.array([3, 25, 2, 20]), 10, "best-fit-split")
    assert tokens_of_rows(pieces, rows) == [10, 10, 10, 10, 10]
    assert pieces[rows[4] :].tolist() == [[1, 20, 25], [0, 0, 3], [2, 0, 2]]


def test_the_row_with_the_least_room_is_taken() -> None:
    # 15 and 12 open rows, 7 fits the second only and leaves it 1; the first still has 5, and 1 goes to the second.
    pieces, rows = pack(np.array([1, 15, 12, 7]), 20, "best-fit")
    assert [pieces[a:b, 0].tolist() for a, b in pairwise(rows)] == [[1], [2, 3, 0]]
    with pytest.raises(ValueError, match="document 1 has 11 tokens, a row has 10"):
        pack(np.array([3, 11]), 10, "best-fit")


@pytest.mark.parametrize("strategy", ["wrapped", "best-fit-split"])
def test_a_million_documents_are_packed_in_seconds(strategy: str) -> None:
    lengths = np.maximum(np.random.default_rng(0).lognormal(6, 1.2, 1_000_000).astype(np.int64), 1)
    began = time.process_time()
    pieces, rows = pack(lengths, 2048, strategy)
    assert time.process_time() - began < 20
    assert lengths_of(pieces).sum() == lengths.sum()
    assert lengths.sum() / (2048 * (len(rows) - 1)) > 0.999
