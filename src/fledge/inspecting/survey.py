"""Everything that is shown of one subject, gathered once for the terminal and for the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from fledge.data.load import load_tokenizer
from fledge.data.prepared import load_prepared
from fledge.data.tokenise import IGNORED

from . import pairs as preference
from . import rows as packed
from .checks import Check, check_pairs, check_rows
from .find import Subject
from .leak import MOST_ROWS, LeakTest, leak_test
from .models import model_of
from .pairs import Pair, PairFigures
from .rows import Document, Figures, Row, even
from .tokens import Reader


STRIPS = 48
"""Rows drawn as strips."""

CANDIDATES = 200
"""Rows among which a conversation of several turns is looked for."""


@dataclass(frozen=True)
class Strip:
    """A row as runs of tokens, for drawing: for each document the runs of (start, stop, carries loss) in the row."""

    documents: list[list[tuple[int, int, bool]]]


@dataclass(frozen=True)
class RowSurvey:
    """Packed rows. `conversation` is None where the rows are plain text."""

    subject: Subject
    split: str
    manifest: dict[str, Any]
    figures: Figures
    rows: list[Row]
    strips: list[Strip]
    conversation: Document | None
    template: str
    checks: list[Check]
    leak: LeakTest | None


@dataclass(frozen=True)
class PairSurvey:
    """Preference pairs."""

    subject: Subject
    split: str
    figures: PairFigures
    pairs: list[Pair]
    checks: list[Check]


Survey = RowSurvey | PairSurvey


def survey(subject: Subject, split: str, row: int | None, count: int, with_leak_test: bool) -> Survey:
    """Gather what is shown of a subject.

    Args:
        split: train or eval.
        row: the one row or pair to show, counted from 1; or None for `count` of them, evenly spaced.

    Raises:
        ValueError: no such row, or a folder that is not whole.
    """
    tokenizer = load_tokenizer(subject.tokenizer, "model_name_or_path" if subject.is_pairs else "tokenizer")
    if subject.is_pairs:
        return _survey_pairs(subject, split, row, count, tokenizer)
    train, heldout, manifest = load_prepared(subject.folder)
    rows = train if split == "train" else heldout
    reader = Reader.of(tokenizer)
    figures = packed.count(rows, reader, manifest, split)
    shown = [row] if row else [index + 1 for index in even(len(rows), count)]
    return RowSurvey(
        subject,
        split,
        manifest,
        figures,
        [packed.row_at(rows, number, reader, manifest, split) for number in shown],
        [_strip(rows[index]) for index in even(len(rows), STRIPS)],
        _conversation(rows, reader, manifest, split),
        tokenizer.chat_template or "",
        check_rows(subject, tokenizer, manifest, figures),
        _leak(subject, rows, tokenizer, manifest["max_length"]) if with_leak_test else None,
    )


def _survey_pairs(
    subject: Subject, split: str, row: int | None, count: int, tokenizer: PreTrainedTokenizerBase
) -> PairSurvey:
    pairs = preference.load(subject.folder, split)
    figures = preference.count(pairs, tokenizer, subject.trainer.values.get("max_length") if subject.trainer else None)
    reader = Reader.of(tokenizer)
    shown = [row] if row else [index + 1 for index in even(len(pairs), count)]
    return PairSurvey(
        subject,
        split,
        figures,
        [preference.pair_at(pairs, number, reader) for number in shown],
        check_pairs(subject, tokenizer, figures),
    )


def _strip(item: dict[str, Any]) -> Strip:
    learnt = (np.asarray(item["labels"]) != IGNORED).tolist()
    starts = np.cumsum([0, *item["seq_lengths"]]).tolist()
    return Strip(
        [
            [(start + a, start + b, loss) for a, b, loss in packed.runs(learnt[start:stop])]
            for start, stop in pairwise(starts)
        ]
    )


def _conversation(
    rows: Sequence[dict[str, Any]], reader: Reader, manifest: dict[str, Any], split: str
) -> Document | None:
    """A short one of two or three turns, if the rows hold any."""
    best: tuple[tuple[int, int], int, int] | None = None
    for index in even(len(rows), CANDIDATES):
        for place, runs in enumerate(_strip(rows[index]).documents):
            if not runs:
                continue
            turns, length = sum(loss for *_, loss in runs), runs[-1][1] - runs[0][0]
            is_conversation = turns > 1 or (turns and runs[0][1] - runs[0][0] > 1)
            rank = (min(turns, 3), -length)
            if is_conversation and (best is None or rank > best[0]):
                best = (rank, index, place)
    if best is None:
        return None
    return packed.row_at(rows, best[1] + 1, reader, manifest, split).documents[best[2]]


def _leak(
    subject: Subject, rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> LeakTest:
    items = (rows[index] for index in even(len(rows), CANDIDATES))
    several = [item for item in items if len(item["seq_lengths"]) > 1]
    spread = [several[index] for index in even(len(several), MOST_ROWS)]
    return leak_test(*model_of(subject, tokenizer), spread, tokenizer, max_length)
