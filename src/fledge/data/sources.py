"""Read the files of a `datasets:` list, one row at a time, with the file and row each came from."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from fledge.arguments import DatasetEntry


@dataclass(frozen=True)
class Row:
    """One row of a source: its columns, and where it stands, counted from 1, for messages."""

    values: dict[str, Any]
    place: str


def read_rows(entries: Sequence[DatasetEntry]) -> Iterator[Row]:
    """Every row of every entry, in order.

    Raises:
        ValueError: a file that is missing, empty, of another kind, or broken, with its name and line.
    """
    for entry in entries:
        path = Path(entry.path)
        if not path.is_file():
            raise ValueError(f"datasets: no such file: {path}; run the stage that makes it, or correct the path")
        reader = {".parquet": _parquet, ".jsonl": _json_lines}.get(path.suffix)
        if reader is None:
            raise ValueError(f"datasets: {path}: only .parquet and .jsonl files are read")
        count = 0
        for count, values in enumerate(reader(path), 1):
            yield Row(values, f"{path}:{count}")
        if count == 0:
            raise ValueError(f"datasets: {path} holds no row")


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a whole parquet file ({error}); make it again") from error


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                values = json.loads(line.decode("utf-8"))
            except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
                raise ValueError(f"{path}:{number}: not a line of JSON in UTF-8: {error}") from error
            if not isinstance(values, dict):
                raise ValueError(f"{path}:{number}: a JSON object is needed, not {type(values).__name__}")
            yield values
