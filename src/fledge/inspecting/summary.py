"""Figures in words and tables, the same for the terminal and for the page."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from fledge.results.numbers import percent, plain

from .rows import Document, Figures


NOT_RECORDED = "not recorded"


def source_table(figures: Figures) -> list[list[str]]:
    """A head and a row for each source: how much of the mixture it is, and how much of it carries loss."""
    total = sum(figures.lengths) or 1
    table = [["source", "documents", "tokens", "share", "carries loss", "mean length"]]
    for name, (documents, tokens, learnt) in sorted(figures.by_source().items(), key=lambda item: -item[1][1]):
        shares = [percent(tokens / total), percent(learnt / max(tokens, 1))]
        table.append([name, f"{documents:,}", f"{tokens:,}", *shares, f"{tokens / documents:.1f}"])
    return table


def recorded_sources(manifest: dict[str, Any], split: str) -> list[list[str]] | None:
    """A head and a row for each source with what prepare recorded of it; None if that is no more than its name."""
    listed = [entry for entry in manifest[split].get("sources") or [] if isinstance(entry, dict)]
    names = list(dict.fromkeys(name for entry in listed for name in entry if name != "name"))
    if not names:
        return None
    rows = [[str(entry.get("name", "?")), *(plain(entry.get(name)) for name in names)] for entry in listed]
    return [["recorded by prepare", *(name.replace("_", " ") for name in names)], *rows]


def first_place(manifest: dict[str, Any], split: str, name: str) -> str:
    """The file and row where prepare first met what it counted under `name`, if it says so."""
    found = (manifest[split].get("places") or {}).get(name)
    return str(found[0]) if isinstance(found, list) and found else ""


def counts_of(manifest: dict[str, Any], split: str) -> dict[str, float] | None:
    """What prepare counted, flat; None if the manifest does not say."""
    counts = manifest[split].get("counts")
    return dict(_flat(counts)) if isinstance(counts, dict) else None


def _flat(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        name = f"{above}: {key}" if above else str(key)
        if isinstance(value, dict):
            yield from _flat(value, name)
        elif isinstance(value, int | float):
            yield name, value


def dropped(manifest: dict[str, Any], split: str) -> str:
    """What was left out or cut, in one line."""
    counts = counts_of(manifest, split)
    if counts is None:
        return NOT_RECORDED
    found = [f"{name} {plain(value)}" for name, value in counts.items() if name != "rows" and value]
    read = f", of {plain(counts['rows'])} rows read" if "rows" in counts else ""
    return f"{', '.join(found) or 'nothing'}{read}"


def bins(values: Sequence[int], most: int) -> list[tuple[int, int, int]]:
    """(lowest, highest, how many) of at most `most` bins of whole numbers, 1, 2 or 5 times a power of 10 wide."""
    if not values:
        return []
    low, high = min(values), max(values)
    widths = (factor * 10**power for power in count() for factor in (1, 2, 5))
    width = next(width for width in widths if high // width - low // width < most)
    counts = Counter(value // width for value in values)
    return [(i * width, (i + 1) * width - 1, counts[i]) for i in range(low // width, high // width + 1)]


def mask_words(document: Document, start: int, end: int, learnt: bool) -> str:
    """The mask of a run of tokens: `0 × 19`, or `1 × 26, stop token last`."""
    words = f"{int(learnt)} × {end - start}"
    ends = any(piece.is_stop and piece.start == end - 1 for piece in document.pieces)
    return f"{words}, stop token last" if learnt and ends else words
