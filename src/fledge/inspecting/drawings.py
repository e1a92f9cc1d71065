"""What a packed row looks like, as inline SVG: strips, position ids, who sees whom, histograms."""

from collections.abc import Sequence
from html import escape

from fledge.results.numbers import short

from .rows import Row
from .summary import bins
from .survey import Strip


WIDTH = 960
"""Of a strip, in units of its viewBox; the browser stretches it to the page."""

ROW, GAP = 8, 2
"""Height of a strip among others, and the space below it."""

POSITIONS, THICK = 92, 34
"""Height of the position ids' saw above a single strip, and of that strip."""

SIDE = 132
"""Of the square that shows who sees whom."""


def fabric(strips: Sequence[Strip], max_length: int) -> str:
    """Rows under each other, a strip each."""
    height = len(strips) * (ROW + GAP)
    drawn = "".join(_strip(strip, max_length, index * (ROW + GAP), ROW) for index, strip in enumerate(strips))
    label = f"{len(strips)} packed rows; coloured where tokens carry loss"
    return (
        f'<svg class="strips" viewBox="0 0 {WIDTH} {height}" preserveAspectRatio="none" '
        f'style="height:{height}px" role="img" aria-label="{label}">{drawn}</svg>'
    )


def ribbon(row: Row) -> str:
    """One row: its position ids, which rise through a document and restart at the next, above its strip."""
    unit, height = WIDTH / row.max_length, POSITIONS + 6 + THICK
    longest = max(len(document.input_ids) for document in row.documents)
    documents, saw, start = [], [], 0
    for document in row.documents:
        length = len(document.input_ids)
        documents.append([(start + a, start + b, learnt) for a, b, learnt in document.runs])
        top = POSITIONS - (POSITIONS - 4) * length / longest
        saw.append(f"M{start * unit:.1f} {POSITIONS}L{(start + length) * unit:.1f} {top:.1f}V{POSITIONS}")
        start += length
    return (
        f'<svg class="strips" viewBox="0 0 {WIDTH} {height}" preserveAspectRatio="none" '
        f'style="height:{height}px" role="img" aria-label="position ids and loss of row {row.number}">'
        f'<path class="saw" d="{"".join(saw)}"/>'
        f"{_strip(Strip(documents), row.max_length, POSITIONS + 6, THICK)}</svg>"
    )


def _strip(strip: Strip, max_length: int, y: float, height: float) -> str:
    unit = WIDTH / max_length
    parts = [f'<rect class="pad" x="0" y="{y}" width="{WIDTH}" height="{height}"/>']
    for runs in strip.documents:
        for start, stop, learnt in runs:
            kind, x, width = "loss" if learnt else "context", start * unit, (stop - start) * unit
            parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}"/>')
        if runs:
            # A document begins with a line: the first token is context, and one token can be too thin to see.
            parts.append(f'<rect class="edge" x="{runs[0][0] * unit:.1f}" y="{y}" width="3" height="{height}"/>')
    return "".join(parts)


def sight(row: Row) -> str:
    """The attention mask of a row: a triangle a document, nothing outside."""
    unit = SIDE / row.max_length
    parts, start = [], 0.0
    for document in row.documents:
        end = start + len(document.input_ids) * unit
        parts.append(f'<path d="M{start:.1f} {start:.1f}V{end:.1f}H{end:.1f}Z"/>')
        start = end
    if start < SIDE - 0.05:
        parts.append(f'<path class="pad" d="M{start:.1f} {start:.1f}V{SIDE}H{SIDE}Z"/>')
    return (
        f'<svg class="sight" viewBox="-1 -1 {SIDE + 2} {SIDE + 2}" role="img" '
        f'aria-label="attention of row {row.number}: every document sees itself only">'
        f'<rect class="frame" width="{SIDE}" height="{SIDE}"/>{"".join(parts)}</svg>'
    )


def histogram(title: str, unit: str, series: dict[str, Sequence[int]]) -> str:
    """Bars over bins of equal width, the series beside each other; a <figure>. Percent goes from 0 to 100."""
    width, height, left, bottom, top = 360, 190, 40, 30, 10
    counted = _common_bins(series, unit == "percent")
    lows = [low for low, _, _ in counted]
    most = max((max(counts) for *_, counts in counted), default=1) or 1
    slot = (width - left - 8) / max(len(counted), 1)
    parts = []
    for share in (0, 0.5, 1):
        y = height - bottom - share * (height - top - bottom)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{width - 8}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{short(round(share * most))}</text>')
    for index, (low, high, counts) in enumerate(counted):
        for place, count in enumerate(counts):
            tall = count / most * (height - top - bottom)
            x = left + index * slot + 1 + place * (slot - 2) / len(counts)
            parts.append(
                f'<rect class="bar s{place}" x="{x:.1f}" y="{height - bottom - tall:.1f}" '
                f'width="{max((slot - 2) / len(counts), 0.5):.1f}" height="{tall:.1f}">'
                f"<title>{low}–{high} {escape(unit)}: {count:,}</title></rect>"
            )
        if index % -(-len(counted) // 6) == 0:
            x = left + index * slot
            parts.append(f'<text x="{x:.1f}" y="{height - bottom + 15}">{short(lows[index])}</text>')
    parts.append(f'<text x="{width - 8}" y="{height - 2}" text-anchor="end">{escape(unit)}</text>')
    named = "".join(f'<span class="s{i}">{escape(name)}</span>' for i, name in enumerate(series) if len(series) > 1)
    return (
        f"<figure><figcaption><span>{escape(title)}</span>{named}</figcaption>"
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def _common_bins(series: dict[str, Sequence[int]], are_shares: bool) -> list[tuple[int, int, list[int]]]:
    """(lowest, highest, how many of each series)."""
    together = [value for values in series.values() for value in values]
    edges = [(low, low + 4) for low in range(0, 101, 5)] if are_shares else [bin[:2] for bin in bins(together, 24)]
    return [
        (low, high, [sum(low <= value <= high for value in values) for values in series.values()])
        for low, high in edges
    ]
