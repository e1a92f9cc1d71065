"""Rows that repeat each other: within a split, and between training rows and held-out or benchmark rows.

Three tests, all on sound rows (fault_of found nothing) and all independent of batches, processes and order of work:

- exact: the same text but for case, white space and Unicode compatibility forms; 128-bit hashes.
- overlap: a training row holds at least `overlap` of the 13-grams of one held-out row (Brown et al. 2020, "Language
  models are few-shot learners", appendix C, look for any single 13-gram: 0 is their rule). Exact search.
- near: two training rows share most of their 13-grams: MinHash (Broder 1997) with 16 bands of 6 hashes, so that rows
  of Jaccard similarity s are found with probability 1 - (1 - s**6) ** 16: 99% at 0.8, 86% at 0.7, 1% at 0.3.

A gram is made of words, or of characters in scripts that write without spaces (see grams.py). A row of fewer than 13
of them has no gram: only exact copies of it, and of its prompt, are found.

    heldout = HeldOut([*rows_of(eval_datasets), *rows_of(benchmarks)], overlap)   # once; small; goes to every process
    for rows in batches_of(sound_rows_of_a_part, 1000):                           # in any process
        batch = Batch([row.values for row in rows])
        for row, copy in zip(rows, heldout.find(batch), strict=True):
            if copy is not None:                     # (COPY, PROMPT or OVERLAP; place of the held-out row)
                if contamination == "fail":
                    raise ValueError(refusal(copy[0], row.place, copy[1], "contamination"))
                tally.add(copy[0], row.place)        # drop: leave the row out; keep: train on it, counted
        keys.append(batch.exact_keys()[kept])        # (rows, 2) uint64, saved with the part, for rows that stay
        bands.append(batch.band_keys()[kept])        # (rows, 16) uint64, only where near repeats are looked for
    of = exact_repeats(np.concatenate(all_keys))     # all parts, in the order of the parts
    of = near_repeats(np.concatenate(all_bands))     # of[i]: index of an earlier row that row i repeats, or -1
    # REPEAT, or NEAR for the second; the first row stays, the later ones are dropped, kept or refused by policy

Memory: 16 bytes a training row for exact and 128 for near repeats (saved by part they can be memory-mapped: one band
is read at a time), some 50 a row while repeats are found, some 60 for each 13-gram of the held-out rows. Gram
hashes have 64 bits: of 10^9 training grams against 10^6 held-out grams a false match is expected once in 18,000 runs.

datatrove's MinHash was looked at: it reads words through spaCy, NLTK or jieba, needs an xxhash below the one that
datasets brings, hashes gram by gram in Python, and passes four stages of files; the arithmetic is thirty lines here.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np

from .grams import digests, grams, length, mixed, multipliers
from .sources import Row


BANDS, HASHES = 16, 6
MIN_PROMPT = 5
"""Words or characters of the shortest prompt that counts as a copy; below it stand greetings."""

REPEAT = "repeats an earlier row"
NEAR = "nearly repeats an earlier row"
COPY = "a copy of a held-out row"
PROMPT = "has the prompt of a held-out row"
OVERLAP = "shares text with a held-out row"

_SPEAKER = {"system": "\x01", "user": "\x02", "assistant": "\x03"}
_FACTOR, _MASK = multipliers(BANDS * HASHES, 3), multipliers(BANDS * HASHES, 4)
_IN_BAND = multipliers(HASHES, 5)[:, None]


def refusal(kind: str, place: str, other: str, key: str) -> str:
    """The message of policy `fail`: the row, what it repeats, the fix."""
    return f"{place}: {kind}: {other}; take one of the two out, or write `{key}: drop` to leave such rows out, counted"


class Batch:
    """Some canonical rows, in which fault_of found nothing, and their hashes."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.texts = [text_of(values) for values in rows]
        self.prompts = [prompt_of(values) for values in rows]

    @cached_property
    def digests(self) -> list[bytes]:
        """The 128-bit hash of each row: who said what, or the text."""
        return digests(self.texts)

    @cached_property
    def grams(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The 13-grams, some rows at a time: 64-bit hashes, and the number of the row of each."""
        return list(grams(self.texts))

    def exact_keys(self) -> np.ndarray:
        """For exact_repeats, (rows, 2) uint64."""
        return np.frombuffer(b"".join(self.digests), "<u8").reshape(-1, 2)

    def band_keys(self) -> np.ndarray:
        """For near_repeats: MinHash keys, (rows, BANDS) uint64; 0 in every band for a row without a 13-gram."""
        keys = np.zeros((len(self.texts), BANDS), np.uint64)
        for hashes, owners in self.grams:
            if not len(hashes):
                continue
            edges = np.flatnonzero(np.diff(owners, prepend=-1))
            least = [np.minimum.reduceat((hashes ^ a) * b, edges) for a, b in zip(_MASK, _FACTOR, strict=True)]
            bands = np.array(least).reshape(BANDS, HASHES, -1) * _IN_BAND
            keys[owners[edges]] = mixed(bands.sum(axis=1)).T
        return keys


def text_of(values: dict[str, Any]) -> str:
    """All text of a canonical row; before each turn a newline and a control character for who speaks."""
    if "chosen" in values:
        sides = (_said(values[side]) for side in ("prompt", "chosen", "rejected"))
        return "\n\x04".join(sides)
    return _said(values["messages"]) if "messages" in values else values["text"]


def _said(messages: list[dict[str, str]]) -> str:
    return "".join(f"\n{_SPEAKER[message['role']]}{message['content']}" for message in messages)


def prompt_of(values: dict[str, Any]) -> str:
    """What the user says before the first answer; a text as a whole."""
    if "chosen" not in values and "messages" not in values:
        return values["text"]
    messages = values["prompt"] if "chosen" in values else values["messages"]
    opening = takewhile(lambda message: message["role"] != "assistant", messages)
    return "\n".join(message["content"] for message in opening if message["role"] == "user")


def exact_repeats(keys: np.ndarray) -> np.ndarray:
    """For each row the index of the first row with the same key, or -1 if it is the first itself; (rows,) int64."""
    return _earlier(_first(keys[:, 0], keys[:, 1]))


def near_repeats(bands: np.ndarray) -> np.ndarray:
    """For each row the index of the earliest row that shares a band with it, or -1; (rows,) int64.

    A row that repeats a repeated row counts as well.
    """
    first = np.arange(len(bands))
    for column in range(bands.shape[1]):
        keys = np.ascontiguousarray(bands[:, column])
        np.minimum(first, _first(keys), where=keys != 0, out=first)
    return _earlier(first)


def _first(*columns: np.ndarray) -> np.ndarray:
    """Index of the first row with the same values."""
    order = np.lexsort(columns)  # stable: equal rows stay in order
    new = np.ones(len(order), bool)
    new[1:] = np.any([column[order[1:]] != column[order[:-1]] for column in columns], axis=0)
    starts = np.flatnonzero(new)
    first = np.empty(len(order), np.int64)
    first[order] = np.repeat(order[starts], np.diff(starts, append=len(order)))
    return first


def _earlier(first: np.ndarray) -> np.ndarray:
    return np.where(first < np.arange(len(first)), first, -1)


class HeldOut:
    """Held-out and benchmark rows, ready to be looked for in training rows."""

    def __init__(self, rows: Iterable[Row], overlap: float = 0.3) -> None:
        """`overlap`: the share of a held-out row's 13-grams in one training row that makes that row a copy."""
        rows = list(rows)
        batch = Batch([row.values for row in rows])
        self.overlap = overlap
        self.places = [row.place for row in rows]
        self.whole: dict[bytes, int] = {}
        self.prompts: dict[bytes, int] = {}
        for index, (whole, prompt) in enumerate(zip(batch.digests, digests(batch.prompts), strict=True)):
            self.whole.setdefault(whole, index)
            self.prompts.setdefault(prompt, index)
        parts = [np.unique(np.stack([hashes, owners.astype(np.uint64)]), axis=1) for hashes, owners in batch.grams]
        hashes, owners = np.concatenate(parts, axis=1) if parts else np.zeros((2, 0), np.uint64)
        order = np.lexsort((owners, hashes))
        self.owners = owners[order].astype(np.int64)
        self.counts = np.bincount(self.owners, minlength=len(rows))
        self.hashes, self.starts = np.unique(hashes[order], return_index=True)
        self.ends = np.append(self.starts[1:], len(order))
        # One look tells most grams apart before the binary search.
        self.sieve = np.zeros(1 << (16 * len(self.hashes)).bit_length(), bool)
        self.sieve[self._slot(self.hashes)] = True

    def find(self, batch: Batch) -> list[tuple[str, str] | None]:
        """For each training row what it has of which held-out row: COPY, PROMPT or OVERLAP with the place, or None."""
        found: list[tuple[str, str] | None] = [None] * len(batch.texts)
        for index, other in self._overlaps(batch):
            found[index] = (OVERLAP, self.places[other])
        for index, (whole, prompt) in enumerate(zip(batch.digests, digests(batch.prompts), strict=True)):
            if whole in self.whole:
                found[index] = (COPY, self.places[self.whole[whole]])
            elif prompt in self.prompts and length(batch.prompts[index]) >= MIN_PROMPT:
                found[index] = (PROMPT, self.places[self.prompts[prompt]])
        return found

    def _slot(self, hashes: np.ndarray) -> np.ndarray:
        return hashes & np.uint64(len(self.sieve) - 1)

    def _overlaps(self, batch: Batch) -> Iterator[tuple[int, int]]:
        """Number of each row that holds enough of a held-out row, and of the row it holds most of."""
        for hashes, owners in batch.grams:
            maybe = self.sieve[self._slot(hashes)]
            hashes, owners = hashes[maybe], owners[maybe]
            at = np.searchsorted(self.hashes, hashes)
            known = at < len(self.hashes)
            known[known] = self.hashes[at[known]] == hashes[known]
            rows, at = np.unique(np.stack([owners[known], at[known]]), axis=1)  # a gram counts once in a row
            lengths = self.ends[at] - self.starts[at]
            within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            others = self.owners[np.repeat(self.starts[at], lengths) + within]
            (row, other), hits = np.unique([np.repeat(rows, lengths), others], axis=1, return_counts=True)
            share = hits / self.counts[other]
            best = np.lexsort((other, -share, row))
            best = best[np.flatnonzero(np.diff(row[best], prepend=-1))]
            best = best[share[best] >= self.overlap]
            yield from zip(row[best].tolist(), other[best].tolist(), strict=True)
