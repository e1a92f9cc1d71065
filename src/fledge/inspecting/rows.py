"""One split of a prepared folder: rows to show, figures over many of them, and what is wrong with any."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from tqdm import tqdm

from fledge.data.tokenise import IGNORED

from .tokens import Piece, Reader


MOST_ROWS = 20_000
"""Rows that figures are counted over; of a larger split as many, evenly spaced."""


def runs(supervised: Sequence[bool]) -> list[tuple[int, int, bool]]:
    """Start, stop and value of every run of equal values."""
    edges = [i for i in range(1, len(supervised)) if supervised[i] != supervised[i - 1]]
    return [(a, b, bool(supervised[a])) for a, b in pairwise([0, *edges, len(supervised)]) if a < b]


@dataclass(frozen=True)
class Document:
    """One document of a packed row, with its text in pieces. `labels` has IGNORED where no loss is.

    `source` is empty where there is only one.
    """

    input_ids: list[int]
    labels: list[int]
    pieces: list[Piece]
    source: str

    @property
    def supervised(self) -> list[bool]:
        """For each token whether it carries loss."""
        return [label != IGNORED for label in self.labels]

    @property
    def runs(self) -> list[tuple[int, int, bool]]:
        """Start, stop and whether they carry loss, of every run of tokens that are alike in it."""
        return runs(self.supervised)

    @property
    def turns(self) -> int:
        """The answers of a conversation."""
        return sum(learnt for _, _, learnt in self.runs)

    @property
    def is_conversation(self) -> bool:
        """Whether more than its first token is context."""
        return not all(self.supervised[1:])


@dataclass(frozen=True)
class Row:
    """A packed row. `number` counts from 1; `max_length` is what it is padded to."""

    number: int
    documents: list[Document]
    max_length: int

    @property
    def tokens(self) -> int:
        """Without padding."""
        return sum(len(document.input_ids) for document in self.documents)

    @property
    def supervised(self) -> int:
        """Tokens that carry loss."""
        return sum(sum(document.supervised) for document in self.documents)


@dataclass
class Figures:
    """Counted over `rows_seen` of `rows_total` rows. Lengths are in tokens."""

    rows_total: int
    max_length: int
    rows_seen: int = 0
    lengths: list[int] = field(default_factory=list)
    supervised: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    fills: list[float] = field(default_factory=list)
    stops: int = 0
    """Stop tokens that carry loss."""
    breaches: Counter[str] = field(default_factory=Counter)
    """How often each rule of checks.RULES is broken."""
    places: dict[str, int] = field(default_factory=dict)
    """The first row that breaks it, counted from 1."""

    def by_source(self) -> dict[str, tuple[int, int, int]]:
        """Documents, tokens and tokens that carry loss of every source."""
        found: dict[str, tuple[int, int, int]] = {}
        for source, length, supervised in zip(self.sources, self.lengths, self.supervised, strict=True):
            documents, tokens, learnt = found.get(source, (0, 0, 0))
            found[source] = (documents + 1, tokens + length, learnt + supervised)
        return found


def source_names(manifest: dict[str, Any], split: str) -> list[str]:
    """What the manifest calls its sources, in the order that rows refer to."""
    listed = manifest.get("sources") or manifest[split].get("sources") or []
    return [entry.get("name", "?") if isinstance(entry, dict) else str(entry) for entry in listed]


def even(total: int, count: int) -> list[int]:
    """`count` indices of `total`, evenly spaced from the first to the last; all if there are fewer."""
    return [round(x) for x in np.linspace(0, total - 1, min(total, count))] if total else []


def row_at(
    rows: Sequence[dict[str, Any]],
    number: int,
    reader: Reader,
    manifest: dict[str, Any],
    split: str,
) -> Row:
    """Row `number`, counted from 1, cut into its documents.

    Raises:
        ValueError: there is no such row.
    """
    if not 1 <= number <= len(rows):
        raise ValueError(f"--row {number}: {split} has rows 1 to {len(rows)}")
    item = rows[number - 1]
    ids, labels = _plain(item["input_ids"]), _plain(item["labels"])
    listed = source_names(manifest, split)
    names = _sources_of(item, listed) if len(listed) > 1 else [""] * len(item["seq_lengths"])
    documents, start = [], 0
    for length, name in zip(_plain(item["seq_lengths"]), names, strict=True):
        part = slice(start, start + length)
        documents.append(Document(ids[part], labels[part], reader.pieces(ids[part]), name))
        start += length
    return Row(number, documents, manifest["max_length"])


def count(rows: Sequence[dict[str, Any]], reader: Reader, manifest: dict[str, Any], split: str) -> Figures:
    """Figures over the split, and how often its rows break a rule."""
    figures = Figures(len(rows), manifest["max_length"])
    names, stops = source_names(manifest, split), list(reader.stops)
    for index in tqdm(even(len(rows), MOST_ROWS), desc=f"inspect: {split}", unit=" rows", disable=None, leave=False):
        item = rows[index]
        ids, labels = np.asarray(item["input_ids"]), np.asarray(item["labels"])
        lengths = _plain(item["seq_lengths"])
        learnt = labels != IGNORED
        figures.rows_seen += 1
        figures.fills.append(len(ids) / figures.max_length)
        figures.lengths += lengths
        figures.sources += _sources_of(item, names)
        figures.stops += int((learnt & np.isin(ids, stops)).sum())
        starts = np.cumsum([0, *lengths])
        figures.supervised += [int(learnt[a:b].sum()) for a, b in pairwise(starts)]
        for rule, times in _breaches(ids, labels, starts, reader, figures).items():
            if times:
                figures.breaches[rule] += times
                figures.places.setdefault(rule, index + 1)
    return figures


def _breaches(
    ids: np.ndarray, labels: np.ndarray, starts: np.ndarray, reader: Reader, figures: Figures
) -> dict[str, int]:
    learnt = labels != IGNORED
    if len(ids) != len(labels) or starts[-1] != len(ids) or len(ids) > figures.max_length:
        return {"lengths": 1}
    parts = [slice(a, b) for a, b in pairwise(starts)]
    return {
        "labels": int((learnt & (labels != ids)).sum()),
        "first": int(learnt[starts[:-1]].sum()),
        "learnt": sum(not learnt[part].any() for part in parts),
        "known": int((ids >= len(reader.tokenizer)).sum() + (ids < 0).sum()),
        "padding": int((ids == reader.tokenizer.pad_token_id).sum()),
        "stop": sum(int(ids[part][-1]) not in reader.stops for part in parts),
    }


def _sources_of(item: dict[str, Any], names: list[str]) -> list[str]:
    """The source of each document of a row."""
    if item.get("sources") is not None:
        return [names[index] if index < len(names) else f"source {index}" for index in _plain(item["sources"])]
    return [names[0] if len(names) == 1 else "not recorded"] * len(item["seq_lengths"])


def _plain(values: Any) -> list[int]:
    """A list or an array as a list of int."""
    return np.asarray(values).tolist()
