"""The survey as lines for a terminal: colour where there is one, marks that can be read where there is none."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from unicodedata import east_asian_width

import numpy as np

from fledge.results.numbers import percent

from .checks import Check
from .leak import TOLERANCE, LeakTest
from .rows import Document, Row
from .summary import bins, dropped, mask_words, source_table
from .survey import PairSurvey, RowSurvey, Survey
from .tokens import visible


GUTTER = 6
"""Columns for the position of a line's first token."""

LOSS, STOP, CONTEXT, SPECIAL, HEAD, BAD = "1;31", "7;31", "2", "36", "1", "1;33"
"""ANSI attributes: what carries loss is red, as on the page."""


@dataclass(frozen=True)
class Paper:
    """What lines are written on."""

    width: int
    colour: bool

    def ink(self, text: str, attributes: str) -> str:
        """`text` in a colour, if there are colours."""
        return f"\x1b[{attributes}m{text}\x1b[0m" if self.colour and text else text


def lines(survey: Survey, paper: Paper) -> Iterator[str]:
    """Everything about one subject."""
    yield paper.ink(f"{survey.subject.name} · {survey.split} · {survey.subject.folder}", HEAD)
    if isinstance(survey, PairSurvey):
        yield from _pairs(survey, paper)
    else:
        yield from _rows(survey, paper)
    yield ""
    yield from check_lines(survey.checks, paper)


def legend(paper: Paper) -> str:
    """How to read the marks."""
    if paper.colour:
        shown = (("carries loss", LOSS), ("context", CONTEXT), ("stop token that carries loss", STOP))
        return "  ".join(paper.ink(f" {text} ", attributes) for text, attributes in shown)
    return "[carries loss] context  ■ a stop token that carries loss; ‹n› a character made of n tokens"


def check_lines(checks: list[Check], paper: Paper) -> Iterator[str]:
    """One check a line, with what was found below where it fails."""
    marks = {"ok": ("ok   ", "32"), "note": ("note ", BAD), "fault": ("FAULT", LOSS)}
    for check in checks:
        word, attributes = marks[check.state]
        yield f"  {paper.ink(word, attributes)} {check.rule}" + (f": {check.message}" if check.message else "")


def leak_lines(leak: LeakTest) -> Iterator[str]:
    """The leak test as a table."""
    yield f"  leak test on {leak.rows} rows, {leak.model}: one document changed, its neighbours' logits compared"
    yield f"  {'largest change of a logit':<52}{'neighbours':>12}{'itself':>10}"
    for trial in leak.trials:
        verdict = "LEAKS" if trial.leaks else "sealed"
        if trial.is_control:
            verdict = "leaks, as it must: a control" if trial.leaks else "BLIND: a control that shows nothing"
        yield f"  {trial.name:<52}{trial.neighbours:>12.3g}{trial.itself:>10.3g}  {verdict}"
    yield f"  (a change up to {TOLERANCE:g} counts as none)"


def _rows(survey: RowSurvey, paper: Paper) -> Iterator[str]:
    yield from (f"  {line}" for line in _summary(survey))
    yield ""
    table = source_table(survey.figures)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *cells in table:
        numbers = "".join(f"{cell:>{width + 2}}" for cell, width in zip(cells, widths[1:], strict=True))
        yield f"  {name:<{widths[0]}}{numbers}"
    yield ""
    yield from _histogram("tokens in a document", survey.figures.lengths, paper)
    yield ""
    yield f"  {legend(paper)}"
    for row in survey.rows:
        yield ""
        yield from _row(row, paper)
    if survey.conversation is not None:
        yield ""
        yield paper.ink("  the template beside its mask", HEAD)
        yield from _beside_mask(survey.conversation, paper)
    if survey.leak is not None:
        yield ""
        yield from leak_lines(survey.leak)


def _summary(survey: RowSurvey) -> Iterator[str]:
    figures, recorded = survey.figures, survey.manifest[survey.split]
    documents, tokens = recorded.get("documents"), recorded.get("tokens")
    counts = [f"{figures.rows_total:,} rows of {figures.max_length:,} tokens"]
    counts += [f"{documents:,} documents"] if documents is not None else []
    counts += [f"{tokens:,} tokens"] if tokens is not None else []
    yield ", ".join(counts)
    if figures.rows_seen < figures.rows_total:
        yield f"the figures below are of {figures.rows_seen:,} rows, evenly spaced"
    yield f"packing fill      {_meter(float(np.mean(figures.fills)))}"
    yield f"carrying loss     {_meter(sum(figures.supervised) / max(sum(figures.lengths), 1))}"
    yield f"stop tokens learnt  {figures.stops:,} in {len(figures.lengths):,} documents"
    yield f"dropped or cut    {dropped(survey.manifest, survey.split)}"


def _meter(share: float, width: int = 30) -> str:
    full = round(share * width)
    return f"{'█' * full}{'░' * (width - full)} {percent(share)}"


def _histogram(title: str, values: list[int], paper: Paper) -> Iterator[str]:
    yield f"  {title}"
    counted = bins(values, 12)
    most = max((count for *_, count in counted), default=0)
    width = min(40, paper.width - 30)
    for low, high, count in counted:
        eighths = round(count / most * width * 8)
        bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
        yield f"  {f'{low}–{high}':>11} {bar or ('▏' if count else '')} {count:,}"


def _row(row: Row, paper: Paper) -> Iterator[str]:
    padding = row.max_length - row.tokens
    yield paper.ink(f"  row {row.number:,}", HEAD) + (
        f": {len(row.documents)} document{'s' * (len(row.documents) != 1)}, {row.tokens} of {row.max_length} tokens, "
        f"loss on {row.supervised}"
    )
    yield f"  {_ribbon(row, min(row.max_length, paper.width - 4), paper)}"
    for number, document in enumerate(row.documents, 1):
        length = len(document.input_ids)
        head = f" document {number}, positions 0–{length - 1}, loss on {sum(document.supervised)} of {length}"
        yield paper.ink(f"  ┌{head}{f', {visible(document.source)}' if document.source else ''}", SPECIAL)
        for position, line in _wrapped(document, paper.width - GUTTER - 5, paper):
            yield f"  │{position:>{GUTTER - 1}}  {line}"
    if padding:
        yield paper.ink(f"  └ {padding} tokens of padding, a document of their own, no loss", SPECIAL)


def _ribbon(row: Row, width: int, paper: Paper) -> str:
    """The whole row on one line: █ loss, ░ context, · padding, ┃ where a document begins."""
    learnt = [flag for document in row.documents for flag in document.supervised]
    starts = set(np.cumsum([0, *(len(document.input_ids) for document in row.documents)])[:-1].tolist())
    cells = []
    for column in range(width):
        part = range(column * row.max_length // width, (column + 1) * row.max_length // width)
        if starts.intersection(part):
            cells.append("┃")
        elif part[0] >= row.tokens:
            cells.append(paper.ink("·", CONTEXT))
        else:
            share = [learnt[token] for token in part if token < row.tokens]
            cells.append(paper.ink("█", LOSS) if sum(share) * 2 >= len(share) else paper.ink("░", CONTEXT))
    return "".join(cells)


def _wrapped(
    document: Document, width: int, paper: Paper, first: int = 0, end: int | None = None
) -> Iterator[tuple[int, str]]:
    """Tokens `first` to `end` in lines of at most `width` columns, each with the position of its first token."""
    line, used, position, was_learnt = "", 0, first, False
    supervised = document.supervised
    for piece in document.pieces:
        if piece.start < first or (end is not None and piece.start >= end):
            continue
        learnt = supervised[piece.start]
        is_stop = learnt and piece.is_stop
        text = visible(piece.text) + (f"‹{piece.count}›" if piece.count > 1 and not piece.is_special else "")
        marks = (
            "" if paper.colour else ("[" if learnt and not was_learnt else "]" if was_learnt and not learnt else "")
        )
        if is_stop and not paper.colour:
            text += "■"
        columns = _columns(marks + text)
        if used and used + columns > width:
            yield position, line
            line, used, position = "", 0, piece.start
        line += marks + paper.ink(text, _attributes(learnt, is_stop, piece.is_special))
        used, was_learnt = used + columns, learnt
    yield position, line + ("]" if was_learnt and not paper.colour else "")


def _attributes(learnt: bool, is_stop: bool, is_special: bool) -> str:
    if is_stop:
        return STOP
    return LOSS if learnt else SPECIAL if is_special else CONTEXT


def _columns(text: str) -> int:
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)


def _beside_mask(document: Document, paper: Paper) -> Iterator[str]:
    """Rendered text on the left; on the right how many tokens of it have which mask."""
    width = max(paper.width - 30, 20)
    for start, end, learnt in document.runs:
        mask = mask_words(document, start, end, learnt)
        for index, (_, line) in enumerate(_wrapped(document, width, paper, start, end)):
            padding = " " * (width + 2 - _columns(_plain(line)))
            yield f"  {line}{padding}{paper.ink(mask, LOSS if learnt else CONTEXT) if index == 0 else ''}"


def _plain(line: str) -> str:
    """Without colours."""
    parts = line.split("\x1b[")
    return parts[0] + "".join(part.partition("m")[2] for part in parts[1:])


def _pairs(survey: PairSurvey, paper: Paper) -> Iterator[str]:
    figures = survey.figures
    yield f"  {figures.total:,} pairs; the chosen answer is the longer one in {percent(figures.chosen_longer)}"
    made = ", ".join(f"{name} {count:,}" for name, count in figures.made.most_common())
    yield f"  how the rejected answer was made: {made}"
    yield ""
    yield from _histogram("tokens in a chosen answer", figures.chosen, paper)
    yield from _histogram("tokens in a rejected answer", figures.rejected, paper)
    yield ""
    yield f"  {legend(paper)}"
    width = (paper.width - 6) // 2
    for pair in survey.pairs:
        yield ""
        yield paper.ink(f"  pair {pair.number:,}", HEAD) + f", rejected: {pair.made}"
        heads = (
            f"chosen, loss on {sum(pair.chosen.supervised)}",
            f"rejected, loss on {sum(pair.rejected.supervised)}",
        )
        sides = (pair.chosen, pair.rejected)
        left, right = ([line for _, line in _wrapped(side, width, paper)] for side in sides)
        for one, other in zip_longest((heads[0], *left), (heads[1], *right), fillvalue=""):
            yield f"  {one}{' ' * (width - _columns(_plain(one)))}│ {other}"
