"""The survey as one HTML page that asks nothing of anyone: no request, no font, one script that reads the page."""

import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from typing import Any

import numpy as np

from fledge.results.blocks import Facts, Table, Text, Tile, Tiles
from fledge.results.numbers import percent, plain, short
from fledge.results.page import block, document, marked
from fledge.results.style import CSS as HOUSE

from .checks import Check
from .drawings import fabric, histogram, ribbon, sight
from .leak import TOLERANCE, LeakTest
from .look import CSS, SCRIPT
from .pairs import SIDES, Pair
from .rows import Document, Row
from .summary import (
    NOT_RECORDED,
    counts_of,
    dropped,
    first_place,
    mask_words,
    recorded_sources,
    source_table,
)
from .survey import PairSurvey, RowSurvey, Survey
from .tokens import Piece, visible


GENERATION = re.compile(r"({%-?\s*generation\s*-?%})(.*?)({%-?\s*endgeneration\s*-?%})", re.DOTALL)
HAN = re.compile(r"[\u3400-\u9fff]")


def page(title: str, surveys: Sequence[Survey], missing: Sequence[str]) -> str:
    """All subjects under each other. `missing` are sentences about those that are not made yet."""
    # Nothing but this style and this very script may act, whatever the data says.
    digest = b64encode(sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{HOUSE}{CSS}</style>'
    links = "".join(f'<a href="#set{i}">{_text(survey.subject.name)}</a>' for i, survey in enumerate(surveys))
    lead = (
        "What a training step is really given: documents packed into rows, which tokens carry loss, where positions "
        "restart, and who sees whom. Point at any token, or tap it."
    )
    parts = [f"<section><p>{lead}</p>", *(block(Text(visible(text), True)) for text in missing)]
    parts += [f"<nav>{links}</nav>" if len(surveys) > 1 else "", _key(), "</section>"]
    for index, survey in enumerate(surveys):
        body = _pairs(survey) if isinstance(survey, PairSurvey) else _rows(survey)
        head_line = f"{_text(survey.subject.name)} <small>{_text(f'{survey.split} · {survey.subject.folder}')}</small>"
        parts.append(f'<section id="set{index}">\n<h2>{head_line}</h2>\n{body}\n</section>')
    return document(title, head, "\n".join(parts) + f'\n<div id="card" hidden></div>\n<script>{SCRIPT}</script>')


def _key() -> str:
    chips = (
        ("l", "词", "carries loss"),
        ("", "词", "context only"),
        ("x l s", "stop", "stop token that carries loss"),
        ("x", "role", "special token, context"),
    )
    shown = "".join(f'<span><span class="tokens"><i class="{c}">{t}</i></span>{words}</span>' for c, t, words in chips)
    shown += '<span><span class="tokens"><u><i>字</i><i>·</i></u></span>one character, two tokens</span>'
    return f'<div class="key">{shown.replace("<i", "<em").replace("</i", "</em")}</div>'


def _rows(survey: RowSurvey) -> str:
    figures = survey.figures
    seen = figures.rows_seen == figures.rows_total
    parts = [block(_tiles(survey))]
    if not seen:
        parts.append(block(Text(f"Figures are of {figures.rows_seen:,} rows, evenly spaced over the split.")))
    parts.append(f"<h3>{len(survey.strips)} rows at a glance</h3>")
    parts.append(
        f'<div class="panel">{fabric(survey.strips, figures.max_length)}</div><p><small>A line a row, '
        f"{figures.max_length:,} tokens wide, evenly spaced over the split. Red carries loss, grey is context, a dark "
        "edge begins a document, and what is empty at the right is padding.</small></p>"
    )
    parts.append("<h3>Token by token</h3>")
    parts += [_row(row) for row in survey.rows]
    parts.append(_template(survey))
    parts.append("<h3>Sources</h3>" + _table(source_table(figures)))
    if recorded := recorded_sources(survey.manifest, survey.split):
        parts.append(_table(recorded))
    fills = [round(100 * fill) for fill in figures.fills]
    shares = [round(100 * n / length) for n, length in zip(figures.supervised, figures.lengths, strict=True) if length]
    charts = (
        histogram("Tokens in a document", "tokens", {"documents": figures.lengths}),
        histogram("Row filled with documents", "percent", {"rows": fills}),
        histogram("Of a document carrying loss", "percent", {"documents": shares}),
    )
    parts.append(f'<h3>Lengths, fill and loss</h3><div class="charts only">{"".join(charts)}</div>')
    parts.append("<h3>Dropped and cut</h3>" + _counts(survey))
    parts.append("<h3>Checks</h3>" + _checks(survey.checks))
    if survey.leak is not None:
        parts.append("<h3>Leak test</h3>" + _leak(survey.leak))
    parts.append(f"<details><summary>From the manifest</summary>{block(Facts(_facts(survey)))}</details>")
    return "\n".join(parts)


def _tiles(survey: RowSurvey) -> Tiles:
    figures, recorded = survey.figures, survey.manifest[survey.split]

    def number(key: str) -> str:
        return short(recorded[key]) if key in recorded else NOT_RECORDED

    learnt = sum(figures.supervised) / max(sum(figures.lengths), 1)
    return Tiles(
        [
            Tile(short(figures.rows_total), "rows", f"of {figures.max_length:,} tokens"),
            Tile(number("documents"), "documents", f"{len(figures.lengths) / max(figures.rows_seen, 1):.2f} a row"),
            Tile(number("tokens"), "tokens", "without padding"),
            Tile(percent(float(np.mean(figures.fills))), "filled", "the rest is padding"),
            Tile(percent(learnt), "carry loss", "of all tokens"),
            Tile(short(figures.stops), "stop tokens learnt", f"in {len(figures.lengths):,} documents"),
        ]
    )


def _row(row: Row) -> str:
    padding = row.max_length - row.tokens
    documents = "".join(_document(item, f"document {number}") for number, item in enumerate(row.documents, 1))
    rest = (
        f'<div class="padding">{padding} tokens of padding: a document of their own, no loss</div>' if padding else ""
    )
    count = f"{len(row.documents)} document{'s' * (len(row.documents) != 1)}"
    return (
        f'<div class="row"><h4>Row {row.number:,}<small>{count} · {row.tokens:,} of {row.max_length:,} tokens · '
        f"loss on {row.supervised:,}</small></h4>"
        f'<div class="maps">{ribbon(row)}{sight(row)}<small>position ids, and which tokens carry loss</small>'
        f'<small>who sees whom</small></div><div class="docs">{documents}</div>{rest}</div>'
    )


def _document(item: Document, name: str) -> str:
    length, learnt = len(item.input_ids), sum(item.supervised)
    kind = item.source if item.source in SIDES else ""
    source = f" · {_text(item.source)}" if item.source and not kind else ""
    return (
        f'<div class="doc {kind}"><small><b>{_text(name)}</b> · positions 0–{length - 1} · '
        f"loss on {learnt} of {length}{source}</small>{_tokens(item, name, first=0)}</div>"
    )


def _tokens(item: Document, name: str, first: int, end: int | None = None) -> str:
    """Tokens `first` to `end` of a document, an <i> each."""
    supervised = item.supervised
    shown = [p for p in item.pieces if p.start >= first and (end is None or p.start < end)]
    text = "".join(_piece(piece, item, supervised) for piece in shown)
    language = ' lang="zh-Hans"' if HAN.search("".join(piece.text for piece in shown)) else ""
    return f'<p class="tokens" tabindex="0" data-of="{_text(name)}" data-first="{first}"{language}>{text}</p>'


def _piece(piece: Piece, item: Document, supervised: list[bool]) -> str:
    drawn = []
    for place in range(piece.start, piece.start + piece.count):
        learnt = supervised[place]
        is_stop = learnt and piece.is_stop
        kinds = "l" * learnt + " x" * piece.is_special + " s" * is_stop
        label = item.labels[place]
        other = f' data-l="{label}"' if learnt and label != item.input_ids[place] else ""
        text = _shown(piece.text) if place == piece.start else "·"
        named = f' class="{kinds.strip()}"' if kinds else ""
        drawn.append(f'<i{named} data-i="{item.input_ids[place]}"{other}>{text}</i>')
    end = "\n" if piece.text.endswith("\n") else ""
    if piece.count == 1:
        return drawn[0] + end
    return f'<u data-t="{escape(visible(piece.text))}">{"".join(drawn)}</u>{end}'


def _shown(text: str) -> str:
    """Escaped; a line break is drawn and breaks the line if more follows; what cannot be seen is spelt out."""
    lines = [escape(visible(line)) for line in text.split("\n")]
    return '<span class="breaks">↵</span>\n'.join(lines).removesuffix("\n")


def _template(survey: RowSurvey) -> str:
    item = survey.conversation
    if item is None:
        return "<h3>No chat template</h3><p>Plain text: every token but a document's first carries loss.</p>"
    cells = ['<b class="head">rendered</b><b class="head">mask</b>']
    for start, end, learnt in item.runs:
        words = mask_words(item, start, end, learnt)
        cells.append(f"<div>{_tokens(item, 'the conversation', start, end)}</div>")
        cells.append(f"<b{' class=learnt' if learnt else ''}>{words}</b>")
    source = escape(survey.template)
    source = GENERATION.sub(r"<mark>\g<0></mark>", source)
    return (
        f'<h3>The template beside its mask</h3><div class="panel"><div class="mask">{"".join(cells)}</div></div>'
        f"<details><summary>The template itself; what stands between its generation markers carries loss</summary>"
        f"<pre>{source}</pre></details>"
    )


def _counts(survey: RowSurvey) -> str:
    counts = counts_of(survey.manifest, survey.split)
    if counts is None:
        return f"<p>{NOT_RECORDED.capitalize()} in the manifest.</p>"
    if not any(value for name, value in counts.items() if name != "rows"):
        return f"<p>{_text(dropped(survey.manifest, survey.split).capitalize())}.</p>"
    read = counts.get("rows", 0)
    rows = [
        [
            name,
            plain(value),
            percent(value / read) if read else "",
            first_place(survey.manifest, survey.split, name),
        ]
        for name, value in counts.items()
    ]
    return block(Table(["counted by prepare", "", "of rows read", "first in"], rows))


def _checks(checks: Sequence[Check]) -> str:
    items = (
        f'<li class="{check.state}"><b>{check.state}</b><span>{_text(check.rule)}'
        f"<small>{_text(check.message)}</small></span></li>"
        for check in checks
    )
    return f'<ul class="checks">{"".join(items)}</ul>'


def _leak(leak: LeakTest) -> str:
    rows = []
    for trial in leak.trials:
        verdict = "leaks" if trial.leaks else "sealed"
        if trial.is_control:
            verdict = "leaks, as it must" if trial.leaks else "blind: it must leak"
        name = f"{trial.name} (control)" if trial.is_control else trial.name
        rows.append([name, f"{trial.neighbours:.3g}", f"{trial.itself:.3g}", verdict])
    said = (
        f"On {leak.rows} of these rows, one document was changed and every logit of its neighbours compared "
        f"({leak.model}). A change up to {TOLERANCE:g} counts as none. The controls do what training never does, to "
        "show that the test sees a leak."
    )
    fault = leak.fault()
    return (
        block(Text(said))
        + block(Table(["largest change of a logit", "neighbours", "itself", ""], rows))
        + (block(Text(fault, True)) if fault else "")
    )


def _pairs(survey: PairSurvey) -> str:
    figures = survey.figures
    tiles = [
        Tile(short(figures.total), "pairs", "one prompt, two answers"),
        Tile(percent(figures.chosen_longer), "chosen is longer", "far from a half teaches length"),
        Tile(f"{np.mean(figures.chosen):.1f}", "tokens", "in a chosen answer"),
        Tile(f"{np.mean(figures.rejected):.1f}", "tokens", "in a rejected answer"),
        Tile(short(figures.cut), "answers cut", f"at max_length {plain(figures.max_length)}"),
    ]
    lengths = {"chosen": figures.chosen, "rejected": figures.rejected}
    made = [[name, f"{count:,}", percent(count / figures.seen)] for name, count in figures.made.most_common()]
    chart = f'<div class="charts swapped">{histogram("Tokens in an answer", "tokens", lengths)}</div>'
    return "\n".join(
        [
            block(Tiles(tiles)),
            "<h3>Side by side</h3>",
            "<p>Loss is on the answers only: the chosen one is made likelier, the rejected one less likely.</p>",
            *(_pair(pair) for pair in survey.pairs),
            "<h3>Lengths</h3>" + chart,
            "<h3>Where the rejected answers come from</h3>" + block(Table(["made", "pairs", "share"], made)),
            "<h3>Checks</h3>" + _checks(survey.checks),
        ]
    )


def _pair(pair: Pair) -> str:
    sides = "".join(_document(side, side.source) for side in (pair.chosen, pair.rejected))
    return (
        f'<div class="row"><h4>Pair {pair.number:,}<small>rejected: {_text(pair.made)}</small></h4>'
        f'<div class="sides">{sides}</div></div>'
    )


def _facts(survey: RowSurvey) -> dict[str, dict[str, Any]]:
    """What the manifest says beside its long lists, such as those of shards."""
    about = {key: value for key, value in survey.manifest.items() if not isinstance(value, dict | list)}
    split = {key: value for key, value in survey.manifest[survey.split].items() if not isinstance(value, dict | list)}
    return {"manifest.json": about, survey.split: split}


def _table(table: list[list[str]]) -> str:
    """A table whose first line is its head."""
    return block(Table(table[0], [list(map(visible, row)) for row in table[1:]]))


def _text(text: str) -> str:
    """Text from anywhere, on one line, escaped, its Chinese marked as such."""
    return marked(visible(text))
