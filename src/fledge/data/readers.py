"""One file of rows: cut into spans that can be read on their own, and read span by span.

Parquet is cut at row groups, JSON lines and text at lines, Arrow (a stream, as `datasets` writes it, or a file) at
rows. A JSON list is one span, read whole: keep such files small, or write JSON lines. A row that cannot be read comes
as `Broken`; a file that cannot be read is a ValueError.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow
import pyarrow.parquet


BATCH = 1000
"""Rows that are turned into Python objects at once."""

MOST_CUTS = 8
"""Spans a single Parquet row group is cut into at most: each decodes the rows of the group that stand before it."""


class Span(NamedTuple):
    """Rows `start` up to and without `stop`, counted from 0; `offset` is the byte where they begin, in files of lines.

    In files of lines a row is a line, blank or not.
    """

    start: int
    stop: int
    offset: int = 0


class Broken(NamedTuple):
    """What stands where a row cannot be read: a fault short enough to be counted by, and what is known of it."""

    fault: str
    detail: str

    def message(self, place: str) -> str:
        """What to tell whoever made the file."""
        return f"{place}: {self.fault}: {self.detail}; correct the line or take it out"


Numbered = Iterator[tuple[int, dict[str, Any] | Broken]]
"""Rows with their place in the file, counted from 1."""


class Reader(NamedTuple):
    """How one kind of file is read."""

    cut: Callable[[str, int], list[Span]]
    """(path, rows of a span) -> the spans of the whole file."""
    read: Callable[[str, Span, Sequence[str] | None], Numbered]
    """(path, span, columns or None for all of them) -> rows."""


# --- Parquet


def _cut_parquet(path: str, rows: int) -> list[Span]:
    with _whole(path, "parquet"), pyarrow.parquet.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    spans, start, stop = [], 0, 0
    for size in sizes:
        if stop > start and stop + size - start > rows:
            spans.append(Span(start, stop))
            start = stop
        if size > rows:
            piece = max(rows, -(-size // MOST_CUTS))
            spans += [Span(at, min(at + piece, start + size)) for at in range(start, start + size, piece)]
            start += size
            stop = start
        else:
            stop += size
    return spans + ([Span(start, stop)] if stop > start else [])


def _read_parquet(path: str, span: Span, columns: Sequence[str] | None) -> Numbered:
    # Without pre_buffer=False a whole row group is fetched at once, which may be the whole file.
    with _whole(path, "parquet"), pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        _check_columns(path, file.schema_arrow.names, columns)
        groups, first, at = [], 0, 0
        for index in range(file.num_row_groups):
            size = file.metadata.row_group(index).num_rows
            if at < span.stop and at + size > span.start:
                first = first if groups else at
                groups.append(index)
            at += size
        yield from _of_batches(file.iter_batches(BATCH, groups, columns), first, span)


# --- Arrow


def _cut_arrow(path: str, rows: int) -> list[Span]:
    with _whole(path, "arrow"), _batches(path) as batches:
        total = sum(batch.num_rows for batch in batches)
    return [Span(start, min(start + rows, total)) for start in range(0, total, rows)]


def _read_arrow(path: str, span: Span, columns: Sequence[str] | None) -> Numbered:
    def small() -> Iterator[pyarrow.RecordBatch]:
        for batch in batches:
            _check_columns(path, batch.schema.names, columns)
            chosen = batch.select(columns) if columns else batch
            _check_offsets(chosen)
            yield from (chosen.slice(at, BATCH) for at in range(0, chosen.num_rows, BATCH))

    with _whole(path, "arrow"), _batches(path) as batches:
        yield from _of_batches(small(), 0, span)


def _check_offsets(batch: pyarrow.RecordBatch) -> None:
    """Raise ArrowInvalid where a damaged file's offsets point out of it, which pyarrow would follow and crash."""
    batch.validate()
    try:
        for column in batch.columns:
            _as_bytes(column).validate(full=True)
    except KeyError as error:
        raise pyarrow.ArrowInvalid(f"a type that pyarrow has no name for: {error}") from error


def _as_bytes(array: pyarrow.Array) -> pyarrow.Array:
    """The same memory with bytes for text: a row whose text is no UTF-8 is told by its own, not by its file."""
    kind, own = array.type, array.buffers()
    if pyarrow.types.is_string(kind):
        return pyarrow.Array.from_buffers(pyarrow.binary(), len(array), own, offset=array.offset)
    if pyarrow.types.is_large_string(kind):
        return pyarrow.Array.from_buffers(pyarrow.large_binary(), len(array), own, offset=array.offset)
    if pyarrow.types.is_list(kind):
        inner = _as_bytes(array.values)
        return pyarrow.Array.from_buffers(
            pyarrow.list_(inner.type), len(array), own[:2], offset=array.offset, children=[inner]
        )
    if pyarrow.types.is_struct(kind):
        inner = [_as_bytes(array.field(index)) for index in range(kind.num_fields)]
        names = pyarrow.struct([(kind.field(index).name, its.type) for index, its in enumerate(inner)])
        return pyarrow.Array.from_buffers(names, len(array), own[:1], offset=array.offset, children=inner)
    return array


@contextmanager
def _batches(path: str) -> Iterator[Iterator[pyarrow.RecordBatch]]:
    """The record batches of a memory-mapped file; skipping one reads its header only."""
    with pyarrow.memory_map(path) as mapped:
        magic = mapped.read(6)
        mapped.seek(0)
        if magic == b"ARROW1":
            file = pyarrow.ipc.open_file(mapped)
            yield (file.get_batch(index) for index in range(file.num_record_batches))
        else:
            yield iter(pyarrow.ipc.open_stream(mapped))


def _of_batches(batches: Iterator[pyarrow.RecordBatch], first: int, span: Span) -> Numbered:
    """The rows of `span` out of batches that begin at row `first`."""
    for batch in batches:
        start, stop = max(span.start - first, 0), min(span.stop - first, batch.num_rows)
        if start < stop:
            yield from enumerate(_values(batch.slice(start, stop - start)), first + start + 1)
        first += batch.num_rows
        if first >= span.stop:
            return


def _values(batch: pyarrow.RecordBatch) -> list[dict[str, Any] | Broken]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [_no_utf8(error)]
    return [value for index in range(batch.num_rows) for value in _values(batch.slice(index, 1))]


def _check_columns(path: str, names: Sequence[str], columns: Sequence[str] | None) -> None:
    for column in columns or ():
        if column not in names:
            raise ValueError(f"{path}: no column {column}, which other files of the source have: {', '.join(names)}")


@contextmanager
def _whole(path: str, kind: str) -> Iterator[None]:
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a whole {kind} file ({error}); make it again") from error


# --- lines


def _cut_lines(path: str, rows: int) -> list[Span]:
    with open(path, "rb") as file:
        offset = _seek(file, 0)
        spans, start, at, number = [], 0, offset, 0
        for number, line in enumerate(file, 1):
            at += len(line)
            if number - start == rows:
                spans.append(Span(start, number, offset))
                start, offset = number, at
    return spans + ([Span(start, number, offset)] if number > start else [])


def _seek(file: BinaryIO, offset: int) -> int:
    """Go to `offset`, or behind the byte order mark that some programs put at the beginning; returns the place."""
    file.seek(offset)
    return file.seek(3 if offset == 0 and file.read(3) == b"\xef\xbb\xbf" else offset)


def _lines(path: str, span: Span) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as file:
        _seek(file, span.offset)
        yield from enumerate(islice(file, span.stop - span.start), span.start + 1)


def _read_json_lines(path: str, span: Span, columns: Sequence[str] | None) -> Numbered:
    decode = json.JSONDecoder().decode
    for number, line in _lines(path, span):
        try:
            values = decode(line.decode())
        except UnicodeDecodeError as error:
            yield number, _no_utf8(error)
        except (ValueError, RecursionError) as error:
            if line.strip():
                yield number, Broken("a broken line of JSON", str(error))
        else:
            yield number, values if isinstance(values, dict) else _no_object(values)


def _read_text(path: str, span: Span, columns: Sequence[str] | None) -> Numbered:
    for number, line in _lines(path, span):
        try:
            yield number, {"text": line.decode().rstrip("\r\n")}
        except UnicodeDecodeError as error:
            yield number, _no_utf8(error)


# --- JSON: one list, or lines


def _is_list(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(1000).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _cut_json(path: str, rows: int) -> list[Span]:
    if not _is_list(path):
        return _cut_lines(path, rows)
    count = len(_list(path))
    return [Span(0, count)] if count else []


def _read_json(path: str, span: Span, columns: Sequence[str] | None) -> Numbered:
    if not _is_list(path):
        yield from _read_json_lines(path, span, columns)
        return
    for number, values in enumerate(_list(path)[span.start : span.stop], span.start + 1):
        yield number, values if isinstance(values, dict) else _no_object(values)


def _list(path: str) -> list[Any]:
    data = Path(path).read_bytes()
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: {': '.join(_no_utf8(error))}; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise ValueError(f"{path}:{line}: a broken list of JSON: {error}; make the file again") from error


def _no_utf8(error: UnicodeDecodeError) -> Broken:
    return Broken("bytes that are no UTF-8", f"0x{error.object[error.start]:02x} at byte {error.start + 1}")


def _no_object(values: Any) -> Broken:
    return Broken("no JSON object", f"a {type(values).__name__} stands in its place")


READERS = {
    ".parquet": Reader(_cut_parquet, _read_parquet),
    ".arrow": Reader(_cut_arrow, _read_arrow),
    ".jsonl": Reader(_cut_lines, _read_json_lines),
    ".json": Reader(_cut_json, _read_json),
    ".txt": Reader(_cut_lines, _read_text),
}
"""By the ending of a file's name."""
