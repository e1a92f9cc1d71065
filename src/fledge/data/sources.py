"""The entries of a `datasets:` list: opened, split into parts, and read as rows of a few canonical shapes.

Nothing is read that the recipe does not name: a hub id goes through `datasets.load_dataset` (never with code of the
hub) and from there on is the Arrow files of its cache.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fledge.arguments import DatasetEntry
from fledge.schema.check import suggestion

from .formats import UNDERSTOOD, recognise
from .locate import files_of
from .readers import READERS, Broken, Numbered, Span


SAMPLE = 100
"""Rows that a source's columns are taken from."""


WHOLE = Span(0, sys.maxsize)


class Row(NamedTuple):
    """One row of a source: its columns, and where it stands, counted from 1, for messages.

    `fault` is set where the row cannot be read at all; it has no columns then.
    """

    values: dict[str, Any]
    place: str
    fault: str | None = None


@dataclass(frozen=True)
class View:
    """What of a source's rows is read, and as what: columns (new name, name), filters (column, values), format."""

    columns: tuple[tuple[str, str], ...]
    filters: tuple[tuple[str, tuple[Any, ...]], ...]
    read: tuple[str, ...] | None
    """Columns to read of the file; None for all of them."""
    known: tuple[str, ...]
    """Columns after renaming, by which the format was recognised."""
    share: tuple[float, float] | None = None
    """Of the places between 0 and 1 that a hash gives every row, from where to below where; None for all rows."""

    def rename(self, values: dict[str, Any]) -> dict[str, Any]:
        """The chosen columns under their new names."""
        return {new: lookup(values, name) for new, name in self.columns} if self.columns else values

    def keeps(self, values: dict[str, Any]) -> bool:
        """Whether the row passes every filter."""
        return all(lookup(values, name) in allowed for name, allowed in self.filters)


@dataclass(frozen=True)
class Part:
    """Consecutive rows of one file: small, picklable, and the same whoever reads it."""

    path: str
    span: Span
    view: View

    def rows(self, strict: bool = True) -> Iterator[Row]:
        """The rows that pass the filters, in one of the shapes of fledge.data.formats.

        A row that cannot be read raises ValueError with its place; with `strict` off it comes as a Row with a `fault`.
        """
        known = recognise(self.view.known)
        assert known, self.view.known
        convert, rename, keeps = known.convert, self.view.rename, self.view.keeps
        everything, share = not self.view.filters, self.view.share
        for number, values in numbered(self.path, self.span, self.view.read):
            place = f"{self.path}:{number}"
            if isinstance(values, Broken):
                if strict:
                    raise ValueError(values.message(place))
                row = Row({}, place, values.fault)
            elif everything or keeps(values):
                row = Row(convert(rename(values)), place)
            else:
                continue
            if share is None or share[0] <= place_of(row.values) < share[1]:
                yield row


@dataclass(frozen=True)
class Source:
    """One opened entry. `weight` is its share of tokens, `format` what was recognised, `files` what it reads."""

    name: str
    weight: float | None
    format: str
    files: tuple[str, ...]
    view: View

    def split(self, rows_per_part: int = 10_000) -> list[Part]:
        """Parts of about `rows_per_part` rows, in order; the same for the same files.

        A part never holds rows of two files. Parquet row groups are kept whole unless they are larger.

        Raises:
            ValueError: a file that is empty or broken.
        """
        parts = []
        for path in self.files:
            spans = READERS[Path(path).suffix].cut(path, rows_per_part)
            if not spans:
                raise ValueError(f"{path} holds no row; make it again, or leave it out")
            parts += [Part(path, span, self.view) for span in spans]
        return parts


def open_sources(
    entries: Sequence[DatasetEntry], key: str = "datasets", share: tuple[float, float] | None = None
) -> list[Source]:
    """Find the files of every entry, recognise their format and check columns and filters.

    Args:
        share: only the rows whose place_of lies from the first of the two to below the second.

    Raises:
        ValueError: files that are missing, empty or broken, columns that are missing or not understood, a filter that
            no row passes, a hub that cannot be reached, two sources of one name.
    """
    sources = [_open(entry, f"{key}[{index}]: {entry.path}") for index, entry in enumerate(entries)]
    for name, count in Counter(source.name for source in sources).items():
        if count > 1:
            raise ValueError(f"{key}: {count} entries are called {name}; give each a `name` of its own")
    return [replace(source, view=replace(source.view, share=share)) for source in sources]


def read_rows(
    entries: Sequence[DatasetEntry], key: str = "datasets", share: tuple[float, float] | None = None
) -> Iterator[Row]:
    """Every row of every entry, in order; of a `share`, as in open_sources, those that belong to it.

    Raises:
        ValueError: as open_sources, or a row that cannot be read, with its place; a weight, which would mean nothing.
    """
    for source in open_sources(entries, key, share):
        if source.weight is not None:
            raise ValueError(f"{key}: {source.name}: every row is read here, so leave `weight` out")
        for part in source.split():
            yield from part.rows()


def place_of(values: dict[str, Any]) -> float:
    """A number from 0 to below 1 for a row's words, by their BLAKE2b hash: the same words have the same place."""
    words = values["text"] if "text" in values else values.get("messages")
    text = words if isinstance(words, str) else json.dumps(words, sort_keys=True, default=str)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / (1 << 53)


def numbered(path: str, span: Span, columns: Sequence[str] | None = None) -> Numbered:
    """The rows of a span as they stand in the file."""
    return READERS[Path(path).suffix].read(path, span, columns)


def lookup(values: dict[str, Any], name: str) -> Any:
    """The value of a column, or of a dotted path into a struct or a column of JSON; None if there is none."""
    if name in values:
        return values[name]
    column, _, rest = name.partition(".")
    inside = values.get(column) if rest else None
    if isinstance(inside, str):
        try:
            inside = json.loads(inside)
        except (ValueError, RecursionError):
            return None
    return lookup(inside, rest) if isinstance(inside, dict) else None


def _open(entry: DatasetEntry, where: str) -> Source:
    files = files_of(entry, where)
    sample = list(islice(_readable(files), SAMPLE))
    if not sample:
        for number, values in numbered(files[0], WHOLE):
            assert isinstance(values, Broken)
            raise ValueError(values.message(f"{files[0]}:{number}"))
        raise ValueError(f"{where}: {files[0]} holds no row; make it again, or leave it out")
    found = list(dict.fromkeys(column for values in sample for column in values))
    named = [*entry.columns.values(), *entry.filter]
    for name in named:
        if not any(_has(values, name) for values in sample):
            raise ValueError(f"{where}: no column {name}{suggestion(name, found)}; its columns are {', '.join(found)}")
    in_file = {name: name if name in found else name.partition(".")[0] for name in named}
    known = tuple(entry.columns) or tuple(found)
    if not known:
        raise ValueError(f"{where}: {files[0]} has rows without a column; make it again, or leave it out")
    recognised = recognise(known)
    if recognised is None:
        raise ValueError(
            f"{where}: nothing is known to read of the columns {', '.join(known)}; say what they are with `columns`, "
            f"as in {{text: {known[0]}}}. Understood are: {UNDERSTOOD}"
        )
    filters = {name: value if isinstance(value, list) else [value] for name, value in entry.filter.items()}
    for name, allowed in filters.items():
        _check_filter(name, allowed, _readable(files, [in_file[name]]), where)
    view = View(
        tuple(entry.columns.items()),
        tuple((name, tuple(allowed)) for name, allowed in filters.items()),
        tuple(dict.fromkeys(in_file.values())) if entry.columns else None,
        known,
    )
    return Source(entry.name or entry.path, entry.weight, recognised.name, tuple(files), view)


def _readable(files: Sequence[str], columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows that can be read, from the beginning."""
    for path in files:
        for _, values in numbered(path, WHOLE, columns):
            if not isinstance(values, Broken):
                yield values


def _check_filter(name: str, allowed: list[Any], rows: Iterator[dict[str, Any]], where: str) -> None:
    """Read on until every value of a filter was met; raise ValueError with the values there are if one is not."""
    missing, seen = list(allowed), Counter()
    for values in rows:
        value = lookup(values, name)
        seen[json.dumps(value, ensure_ascii=False, default=str)] += 1
        if value in missing:
            missing.remove(value)
            if not missing:
                return
    common = ", ".join(f"{value} ({count} rows)" for value, count in seen.most_common(10))
    rest = f" and {len(seen) - 10} others" if len(seen) > 10 else ""
    wanted = json.dumps(missing[0], ensure_ascii=False)
    raise ValueError(f"{where}: filter: {name}: no row has {wanted}; the values are {common}{rest}")


def _has(values: dict[str, Any], name: str) -> bool:
    return lookup(values, name) is not None or name in values
