"""Finished shards -> the rows of a split: repeats left out, sources mixed, documents packed, everything counted."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fledge.arguments import PrepareArguments
from fledge.files import digest

from .duplicates import BANDS, NEAR, REPEAT, exact_repeats, near_repeats, refusal
from .faults import Tally
from .mix import choose, epochs_of, order
from .pack import pack
from .shards import Record, Shard
from .sources import Source


class Split:
    """The documents of a split's finished shards.

    Args:
        folder: where the shards are and the index goes.
        sources: in the order of the recipe, and for every shard the number of its source.
        shards, records: in order, all of them finished.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        source_of: Sequence[int],
        shards: Sequence[Shard],
        records: Sequence[Record],
        keys: PrepareArguments,
    ) -> None:
        self.folder, self.sources, self.shards, self.records, self.keys = folder, sources, shards, records, keys
        self.source_of = np.array(source_of)
        self.ends = np.cumsum([record["documents"] for record in records])
        self.table = np.concatenate([np.fromfile(shard.path("documents"), np.uint32) for shard in shards])
        self.table = self.table.reshape(-1, 3)
        self.lengths = self.table[:, 0]
        self.kept = np.ones(len(self.table), bool)
        self.tally = Tally.merged(Tally.from_json(record["rows"], record["met"]) for record in records)

    def write(self, number_of: dict[str, int]) -> dict[str, Any]:
        """Write the index files and return what the manifest says of the split.

        Args:
            number_of: each source's name -> its number in the manifest.

        Raises:
            ValueError: too many over-long rows, repeats where the policy is `fail`, weights that cannot be met, or
                nothing to learn from.
        """
        self._check_overlong()
        self._leave_out_repeats()
        copies, epochs = self._mixture()
        pieces, rows = pack(self.lengths[copies], self.keys.max_length, self._strategy())
        if not len(pieces):
            raise self._nothing("no document is left")
        pieces[:, 0] = copies[pieces[:, 0]]
        starts = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        index = {"documents.npy": starts, "pieces.npy": pieces, "rows.npy": rows}
        for name, array in index.items():
            np.save(self.folder / name, array)
        tokens = int(self.lengths[copies].sum(dtype=np.int64))
        # What a text is cut at goes in as context only.
        supervised = int(self.table[copies, 1].sum(dtype=np.int64)) - int(np.count_nonzero(pieces[:, 1]))
        if not supervised:
            raise self._nothing("no token to learn from is left")
        paths = {name: self.folder / name for name in index}
        files = {name: {"bytes": path.stat().st_size, "sha256": digest(path)} for name, path in paths.items()}
        shards = [self._shard(shard, number_of) for shard in range(len(self.shards))]
        content = [file["sha256"] for file in files.values()] + [record["sha256"] for record in self.records]
        return {
            "rows": len(rows) - 1,
            "documents": len(copies),
            "pieces": len(pieces),
            "tokens": tokens,
            "supervised_tokens": supervised,
            "fill": round(tokens / ((len(rows) - 1) * self.keys.max_length), 4),
            "sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
            "counts": {"rows": self.tally.rows, **dict(sorted(self.tally.faults.items()))},
            "places": dict(sorted(self.tally.places.items())),
            "lengths": _histogram(self.lengths[self.kept]),
            "sources": [self._source(number, copies, epochs) for number in range(len(self.sources))],
            "index": files,
            "shards": shards,
        }

    def _nothing(self, what: str) -> ValueError:
        hint = "; raise heldout_ratio" if self.keys.heldout_ratio and self.folder.name == "eval" else ""
        return ValueError(f"{self.folder.name}: {what} of {self.tally.rows} rows: {self.tally.faults}{hint}")

    def _strategy(self) -> str:
        splits = self.keys.packing_strategy == "best-fit" and self.keys.overlong == "split"
        return "best-fit-split" if splits else self.keys.packing_strategy

    def _check_overlong(self) -> None:
        overlong, rows = sum(record["overlong_rows"] for record in self.records), self.tally.rows
        if overlong > self.keys.max_overlong_ratio * rows:
            raise ValueError(
                f"{self.folder.name}: {overlong} of {rows} rows ({overlong / rows:.2%}) are longer than "
                f"{self.keys.max_length} tokens, and max_overlong_ratio is {self.keys.max_overlong_ratio:.2%}; raise "
                f"max_length, or max_overlong_ratio if `overlong: {self.keys.overlong}` shall apply to so many"
            )

    def _leave_out_repeats(self) -> None:
        # A conversation that was split has several documents of one row; its first stands for it.
        new = np.ones(len(self.table), bool)
        new[1:] = self.table[1:, 2] != self.table[:-1, 2]
        new[self.ends[self.ends < len(new)]] = True
        firsts = np.flatnonzero(new)
        repeated = np.zeros(len(firsts), bool)
        for kind, key in ((REPEAT, "repeats"), (NEAR, "near_repeats")):
            policy = getattr(self.keys, key)
            if policy == "off":
                continue
            looked_at = np.flatnonzero(~repeated)
            of = self._repeats(kind, firsts[looked_at])
            found = np.flatnonzero(of >= 0)
            for index in found:
                place, other = self._place(firsts[looked_at[index]]), self._place(firsts[looked_at[of[index]]])
                if policy == "fail":
                    raise ValueError(refusal(kind, place, other, key))
                self.tally.add(f"{'kept' if policy == 'keep' else 'dropped'}: {kind}", place)
            repeated[looked_at[found]] = True
            if policy == "drop":
                gone = np.zeros(len(firsts), bool)
                gone[looked_at[found]] = True
                self.kept &= ~gone[np.cumsum(new) - 1]

    def _repeats(self, kind: str, firsts: np.ndarray) -> np.ndarray:
        if kind == REPEAT:
            return exact_repeats(self._keys("keys", 2)[firsts])
        bands = np.lib.format.open_memmap(self.folder / "bands.partial", "w+", np.uint64, (len(firsts), BANDS))
        at = 0
        for shard, end in zip(self.shards, self.ends, strict=True):
            mine = np.fromfile(shard.path("bands"), np.uint64).reshape(-1, BANDS)
            wanted = firsts[(firsts >= end - len(mine)) & (firsts < end)] - (end - len(mine))
            bands[at : at + len(wanted)] = mine[wanted]
            at += len(wanted)
        found = near_repeats(bands)
        (self.folder / "bands.partial").unlink()
        return found

    def _keys(self, kind: str, columns: int) -> np.ndarray:
        return np.concatenate([np.fromfile(shard.path(kind), np.uint64) for shard in self.shards]).reshape(-1, columns)

    def _place(self, document: int) -> str:
        shard = int(np.searchsorted(self.ends, document, side="right"))
        return f"{self.shards[shard].part.path}:{self.table[document, 2]}"

    def _documents(self, source: int) -> np.ndarray:
        """The kept documents of a source; they stand together."""
        mine = np.flatnonzero(self.source_of == source)
        begin = self.ends[mine[0]] - self.records[mine[0]]["documents"]
        return begin + np.flatnonzero(self.kept[begin : self.ends[mine[-1]]])

    def _mixture(self) -> tuple[np.ndarray, dict[str, float]]:
        """Documents in the order they are packed in, as often as the mixture reads them; and the epochs by source."""
        documents = [self._documents(number) for number in range(len(self.sources))]
        tokens = {
            source.name: int(self.lengths[mine].sum(dtype=np.int64))
            for source, mine in zip(self.sources, documents, strict=True)
        }
        weights = {source.name: source.weight for source in self.sources}
        epochs = epochs_of(tokens, weights, self.keys.max_repeats)
        copies = np.concatenate(
            [
                mine[choose(self.lengths[mine], epochs[source.name], self.keys.seed)]
                for source, mine in zip(self.sources, documents, strict=True)
            ]
        )
        return copies[order(self.keys.seed, 0, len(copies))], epochs

    def _source(self, number: int, copies: np.ndarray, epochs: dict[str, float]) -> dict[str, Any]:
        source, mine = self.sources[number], self._documents(number)
        begin, end = (mine[0], mine[-1]) if len(mine) else (0, -1)
        read = self.lengths[copies[(copies >= begin) & (copies <= end)]].sum(dtype=np.int64)
        return {
            "name": source.name,
            "format": source.format,
            "weight": source.weight,
            "rows": sum(r["rows"] for r, of in zip(self.records, self.source_of, strict=True) if of == number),
            "documents": len(mine),
            "tokens": int(self.lengths[mine].sum(dtype=np.int64)),
            "epochs": round(epochs[source.name], 6),
            "tokens_read": int(read),
            "share": round(int(read) / int(self.lengths[copies].sum(dtype=np.int64)), 6),
        }

    def _shard(self, shard: int, number_of: dict[str, int]) -> dict[str, Any]:
        record = {name: value for name, value in self.records[shard].items() if name not in ("fingerprint", "met")}
        source = self.sources[self.source_of[shard]].name
        return {"name": self.shards[shard].stem.name, "source": number_of[source], **record}


def _histogram(lengths: np.ndarray) -> dict[str, int]:
    """Documents by length in tokens, between powers of two: {"64-127": 1200}."""
    powers, counts = np.unique(np.log2(lengths).astype(int), return_counts=True)
    return {f"{1 << p}-{(2 << p) - 1}": c for p, c in zip(powers.tolist(), counts.tolist(), strict=True)}
