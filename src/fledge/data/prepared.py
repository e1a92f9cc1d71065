"""The frozen data set between prepare and training: shards of tokens, an index of rows, and their manifest.

    manifest.json          written last: a folder without it is not whole
    train/00000.ids ...    the shards, see fledge.data.shards; a shard holds documents, in the order of its source
    train/documents.npy    (N + 1,) int64: where each document begins, in tokens counted over all shards
    train/pieces.npy       (P, 3) uint32: document, start, stop: the pieces of documents that rows are made of
    train/rows.npy         (R + 1,) int64: row r is pieces[rows[r] : rows[r + 1]]
    eval/                  the same

Rows are index only: a source that a mixture reads several times is stored once. All of it is memory-mapped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fledge.files import read_json, stays_inside

from .tokenise import IGNORED


if TYPE_CHECKING:
    import datasets

MANIFEST = "manifest.json"
INDEX = ("documents", "pieces", "rows")
OPEN_SHARDS = 256
"""Shards held open at once; each takes two file descriptors, and a process has 1024 by default."""
LOOKED_AT = 1 << 16
"""Pieces that `mean_length` reads of very many, whose index is too large to read whole at every start."""


class PreparedRows(Sequence):
    """Packed rows as training reads them: a map-style data set, also for the workers of a DataLoader.

    Row r is a dict of numpy arrays: input_ids and labels, (tokens,) int64; seq_lengths, the length of every piece of a
    document, and sources, the index into manifest["sources"] of each, (pieces,) int64; and `row`, r itself. The first
    label of a piece is ignored: in a packed row what stands before it is another document.
    """

    def __init__(self, folder: str | Path, split: str, empty: int = 0) -> None:
        self.folder, self.split, self._empty = Path(folder), split, empty
        manifest = read_json(self.folder / MANIFEST)
        self._dtype = np.dtype(manifest["id_type"])
        self._shards: list[dict[str, Any]] = manifest[split]["shards"]
        index = (np.load(self._path(f"{name}.npy"), mmap_mode="r") for name in INDEX)
        self._documents, self._pieces, self._rows = index
        tokens = np.array([shard["tokens"] for shard in self._shards], np.int64)
        self._starts: list[int] = (np.cumsum(tokens) - tokens).tolist()
        self._open = lru_cache(OPEN_SHARDS)(self._map)

    def __reduce__(self) -> tuple[type, tuple[Path, str, int]]:
        return type(self), (self.folder, self.split, self._empty)  # a process opens its own maps

    def __len__(self) -> int:
        return len(self._rows) - 1 + self._empty

    def whole_batches(self, at_once: int) -> PreparedRows:
        """The same rows and as many empty ones as make a multiple of `at_once`, or a process would get some twice."""
        return PreparedRows(self.folder, self.split, -(len(self._rows) - 1) % at_once)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        if index >= len(self._rows) - 1:
            empty = {name: np.array([], np.int64) for name in ("input_ids", "labels", "seq_lengths", "sources")}
            return empty | {"row": index}
        found = [self._piece(*piece) for piece in self._pieces[self._rows[index] : self._rows[index + 1]].tolist()]
        ids, labels, sources = zip(*found, strict=True)
        return {
            "input_ids": np.concatenate(ids),
            "labels": np.concatenate(labels),
            "seq_lengths": np.array([len(piece) for piece in ids]),
            "sources": np.array(sources),
            "row": index,
        }

    @property
    def mean_length(self) -> float:
        """Tokens of the piece that the mean token is in: the sum of the pieces' squared lengths over that of lengths.

        From about LOOKED_AT pieces, evenly spaced, where there are many more.
        """
        pieces = self._pieces[:: max(1, len(self._pieces) // LOOKED_AT)].astype(np.float64)
        lengths = pieces[:, 2] - pieces[:, 1]
        return float((lengths**2).sum() / lengths.sum())

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[index] for index in range(len(self)))

    def _piece(self, document: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, int]:
        begin = int(self._documents[document])
        shard = bisect_right(self._starts, begin) - 1
        ids, mask = self._open(shard)
        start, stop = (begin - self._starts[shard] + at for at in (start, stop))
        piece = ids[start:stop].astype(np.int64)
        bits = np.unpackbits(mask[start // 8 : -(-stop // 8)], bitorder="little")[start % 8 :][: len(piece)]
        labels = np.where(bits, piece, IGNORED)
        labels[0] = IGNORED
        return piece, labels, self._shards[shard]["source"]

    def _map(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        name = self._shards[shard]["name"]
        ids, mask = (np.memmap(self._path(f"{name}.{kind}"), mode="r") for kind in ("ids", "mask"))
        return ids.view(np.ndarray).view(self._dtype), mask.view(np.ndarray)

    def _path(self, name: str) -> Path:
        return self.folder / self.split / name


def load_prepared(folder: str | Path) -> tuple[PreparedRows, PreparedRows | None, dict[str, Any]]:
    """Training rows, held-out rows if there are any, and the manifest.

    Raises:
        ValueError: the folder is not one that prepare finished, or a file of it is missing or cut short.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"prepared: {folder} holds no {MANIFEST}; run the prepare stage that writes it")
    manifest = read_json(folder / MANIFEST)
    if "id_type" not in manifest:
        raise ValueError(f"prepared: {folder} was written by an older fledge; run its prepare stage again")
    for split in ("train", "eval"):
        for name, size in _sizes(manifest.get(split), manifest["id_type"]):
            path = folder / split / name
            if not stays_inside(name):
                raise ValueError(f"prepared: {folder}: {MANIFEST} names {name!r}, which is no file of this folder")
            if not path.is_file() or path.stat().st_size != size:
                raise ValueError(f"prepared: {path} does not have the {size} bytes that prepare wrote; run it again")
    heldout = PreparedRows(folder, "eval") if "eval" in manifest else None
    return PreparedRows(folder, "train"), heldout, manifest


def _sizes(split: dict[str, Any] | None, id_type: str) -> Iterator[tuple[str, int]]:
    """Every file of a split by its name there, and how many bytes long it is."""
    if split is None:
        return
    for name, file in split["index"].items():
        yield name, file["bytes"]
    for shard in split["shards"]:
        tokens = shard["tokens"]
        sizes = {"ids": tokens * np.dtype(id_type).itemsize, "mask": -(-tokens // 8)}
        for kind, size in sizes.items():
            yield f"{shard['name']}.{kind}", size


def as_hugging_face(rows: PreparedRows) -> datasets.Dataset:
    """The rows as a datasets.Dataset, which TRL's trainers insist on: row numbers, looked up as they are read."""
    import datasets

    return datasets.Dataset.from_dict({"row": range(len(rows))}).with_transform(partial(_look_up, rows))


def _look_up(rows: PreparedRows, batch: dict[str, list[int]]) -> dict[str, list[np.ndarray]]:
    found = [rows[index] for index in batch["row"]]
    return {name: [row[name] for row in found] for name in found[0]}
