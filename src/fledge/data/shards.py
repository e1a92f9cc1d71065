"""One part of a source -> one shard: flat files of token ids, of what is trained on, and of the documents.

    00000.ids         token ids, one document after another, in the smallest unsigned type that holds the vocabulary
    00000.mask        one bit a token, little end first: whether it is trained on
    00000.documents   three uint32 a document: its tokens, how many of them are trained on, and its row in the file
    00000.keys        two uint64 a document: the hash that its exact repeats share
    00000.bands       16 uint64 a document: hashes that near repeats share one of (both empty if not looked for)
    00000.json        counts, the SHA-256 of the others, and the fingerprint of what they were made from; written last

What a shard holds depends on its part, the tokenizer and the recipe's keys, and on nothing else. A shard whose files
are whole and whose fingerprint is the one wanted is not made again, so interrupted work goes on where it stopped.
"""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fledge.files import digest, read_json, write_json

from .faults import Tally
from .screen import Screen
from .sources import Part, Row
from .tokenise import IGNORED, Tokeniser


KINDS = ("ids", "mask", "documents", "keys", "bands")
BATCH_ROWS, BATCH_CHARACTERS = 1000, 1_000_000
"""A batch ends at whichever comes first; the tokenizer needs about 100 bytes a token while it works."""

Record = dict[str, Any]
"""What a shard's JSON says."""


@dataclass(frozen=True)
class Shard:
    """What is to be made: the rows of `part` as `<stem>.ids` and so on."""

    part: Part
    stem: Path
    fingerprint: str

    def path(self, kind: str) -> Path:
        """The file of one of KINDS, or `json`."""
        return self.stem.with_name(f"{self.stem.name}.{kind}")

    def finished(self) -> Record | None:
        """The record of the shard on disk, if it is whole and the one that is wanted."""
        try:
            record = read_json(self.path("json"))
            wanted = record["fingerprint"] == self.fingerprint
            whole = wanted and all(digest(self.path(kind)) == record["sha256"][kind] for kind in KINDS)
        except (OSError, ValueError, KeyError):
            return None
        return record if whole else None


def shard_fingerprint(part: Part, settings: dict[str, Any]) -> str:
    """SHA-256 of what decides a shard: its rows, by the file's size and time of change, and the settings."""
    stat = os.stat(part.path)
    made_from = [repr(part), stat.st_size, stat.st_mtime_ns, settings]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def code_fingerprint() -> str:
    """SHA-256 of the code of this room, which turns rows into shards and shards into packed rows."""
    code = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(b"".join(code)).hexdigest()


def id_type(vocabulary: int) -> np.dtype:
    """The smallest unsigned type that holds ids below `vocabulary`."""
    return np.min_scalar_type(vocabulary - 1)


@dataclass
class Maker:
    """Makes shards: which rows are taken, and how they become documents. Picklable."""

    screen: Screen
    tokeniser: Tokeniser

    def finish(self, shard: Shard) -> Record:
        """Make the shard unless it is finished, and return its record."""
        if record := shard.finished():
            return record
        shard.stem.parent.mkdir(parents=True, exist_ok=True)
        self.screen.tally = self.tokeniser.tally = tally = Tally()
        self.tokeniser.overlong_rows = 0
        partials = {kind: shard.path(f"{kind}.{os.getpid()}.partial") for kind in KINDS}
        try:
            with ExitStack() as stack:
                files = {kind: stack.enter_context(path.open("wb")) for kind, path in partials.items()}
                sizes = self._write(shard.part.rows(strict=self.screen.faulty == "fail"), files)
            record = {
                **sizes,
                "rows": tally.rows,
                "overlong_rows": self.tokeniser.overlong_rows,
                "met": tally.to_json(),
                "sha256": {kind: digest(path) for kind, path in partials.items()},
                "fingerprint": shard.fingerprint,
            }
            for kind, path in partials.items():
                path.replace(shard.path(kind))
            write_json(shard.path("json"), record)
        finally:
            for path in partials.values():
                path.unlink(missing_ok=True)
        return record

    def _write(self, rows: Iterable[Row], files: dict[str, BinaryIO]) -> dict[str, int]:
        kind = id_type(len(self.tokeniser.tokenizer))
        bits = np.zeros(0, dtype=bool)
        sums = np.zeros(3, np.int64)
        for batch in _batches(rows):
            batch, keys, bands = self.screen.sound(batch)
            of_rows = self.tokeniser.documents(batch)
            found = [document for documents in of_rows for document in documents]
            if not found:
                continue
            input_ids = np.concatenate([document.input_ids for document in found])
            learnt = np.concatenate([document.labels for document in found]) != IGNORED
            lengths = np.array([len(document) for document in found])
            supervised = np.add.reduceat(learnt, np.cumsum(lengths) - lengths, dtype=np.int64)
            per_row = [len(documents) for documents in of_rows]
            numbers = np.repeat([int(row.place.rpartition(":")[2]) for row in batch], per_row)

            files["ids"].write(input_ids.astype(kind).tobytes())
            files["documents"].write(np.stack([lengths, supervised, numbers], axis=1).astype(np.uint32).tobytes())
            files["keys"].write(np.repeat(keys, per_row, axis=0).tobytes())
            files["bands"].write(np.repeat(bands, per_row, axis=0).tobytes())
            bits = np.concatenate([bits, learnt])
            whole = len(bits) // 8 * 8
            files["mask"].write(np.packbits(bits[:whole], bitorder="little").tobytes())
            bits = bits[whole:]
            sums += len(found), len(input_ids), supervised.sum()
        files["mask"].write(np.packbits(bits, bitorder="little").tobytes())
        return dict(zip(("documents", "tokens", "supervised_tokens"), sums.tolist(), strict=True))


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += _characters(row.values)
        if len(batch) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _characters(values: dict[str, Any]) -> int:
    text = values.get("text")
    if isinstance(text, str):
        return len(text)
    messages = values.get("messages")
    turns = messages if isinstance(messages, list) else []
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict)]
    return sum(len(content) for content in contents if isinstance(content, str))


def finish_shards(shards: Sequence[Shard], maker: Maker, num_proc: int) -> Iterator[Record]:
    """The record of every shard in order, made in up to `num_proc` processes where it is not finished yet.

    Raises:
        ValueError: what the first shard that fails has to say.
    """
    processes = min(num_proc, len(shards))
    if processes < 2:
        yield from map(maker.finish, shards)
        return
    # Not fork: the tokenizer's threads may hold a lock at that moment.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(maker,)) as pool:
        try:
            yield from pool.map(_finish, shards)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_of_worker: dict[str, Maker] = {}


def _start_worker(maker: Maker) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores already
    _of_worker["maker"] = maker


def _finish(shard: Shard) -> Record:
    return _of_worker["maker"].finish(shard)
