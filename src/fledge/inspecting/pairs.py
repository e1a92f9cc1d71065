"""Preference pairs as TRL's DPOTrainer sees them: one prompt, two answers, loss on the answers only."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import datasets
from transformers import PreTrainedTokenizerBase

from fledge.data.pairs import encode, read_pairs
from fledge.data.tokenise import IGNORED

from .rows import Document, even
from .tokens import Reader


MOST_PAIRS = 5_000
"""Pairs that figures are counted over; of a larger set as many, evenly spaced."""

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """Both sides of a pair, each with its prompt. `number` counts from 1."""

    number: int
    chosen: Document
    rejected: Document
    made: str


@dataclass
class PairFigures:
    """Counted over `seen` of `total` pairs. Lengths are those of the answers, in tokens."""

    total: int
    max_length: int | None
    seen: int
    chosen: list[int]
    rejected: list[int]
    made: Counter[str]
    cut: int
    """Sides longer than max_length together with their prompt, which TRL cuts."""

    @property
    def chosen_longer(self) -> float:
        """Share of pairs whose chosen answer is the longer one: far from a half, and length is what is learnt."""
        return sum(a > b for a, b in zip(self.chosen, self.rejected, strict=True)) / self.seen


def load(folder: Path, split: str) -> datasets.Dataset:
    """The pairs of one split; `eval` is the held-out file."""
    return read_pairs(folder / f"{'heldout' if split == 'eval' else split}.parquet")


def pair_at(pairs: datasets.Dataset, number: int, reader: Reader) -> Pair:
    """Pair `number`, counted from 1.

    Raises:
        ValueError: there is no such pair.
    """
    if not 1 <= number <= len(pairs):
        raise ValueError(f"--row {number}: there are pairs 1 to {len(pairs)}")
    values = pairs[number - 1]
    prompt, *answers = encode(reader.tokenizer, values)
    made = str(values.get("made") or "not recorded")
    sides = []
    for side, answer in zip(SIDES, answers, strict=True):
        ids = prompt + answer
        sides.append(Document(ids, [IGNORED] * len(prompt) + answer, reader.pieces(ids), side))
    return Pair(number, *sides, made)


def count(pairs: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> PairFigures:
    """Figures over the pairs."""
    indices = even(len(pairs), MOST_PAIRS)
    figures = PairFigures(len(pairs), max_length, len(indices), [], [], Counter(), 0)
    for index in indices:
        prompt, chosen, rejected = encode(tokenizer, pairs[index])
        figures.chosen.append(len(chosen))
        figures.rejected.append(len(rejected))
        figures.made[str(pairs[index].get("made") or "not recorded")] += 1
        figures.cut += sum(
            max_length is not None and len(prompt) + n > max_length for n in map(len, (chosen, rejected))
        )
    return figures
