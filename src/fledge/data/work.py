"""The work of prepare on one split: from the entries of the recipe to rows."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from fledge.arguments import DatasetEntry, PrepareArguments

from .checks import fingerprint
from .duplicates import HeldOut
from .faults import fault_of
from .merge import Split
from .screen import Screen
from .shards import Maker, Shard, code_fingerprint, finish_shards, shard_fingerprint
from .sources import open_sources, read_rows
from .tokenise import Tokeniser


ROWS_PER_SHARD = 10_000

logger = logging.getLogger(__name__)


class Work:
    """One split: its sources, cut into shards, and what makes them."""

    def __init__(
        self,
        split: str,
        entries: Sequence[DatasetEntry],
        keys: PrepareArguments,
        tokenizer: PreTrainedTokenizerBase,
        output_dir: Path,
    ) -> None:
        self.split, self.keys, self.folder = split, keys, output_dir / split
        key = "datasets" if split == "train" else "eval_datasets"
        self.sources = open_sources(entries, key, self._share())
        self._check(tokenizer)
        cuts_text = keys.packing_strategy != "best-fit" or keys.overlong == "split"
        heldout = self._heldout()
        self.maker = Maker(
            Screen(
                tokenizer, keys.faulty, heldout, keys.contamination, keys.repeats != "off", keys.near_repeats != "off"
            ),
            Tokeniser(tokenizer, keys.max_length, keys.overlong, keys.faulty, cuts_text),
        )
        settings = {
            "tokenizer": fingerprint(tokenizer),
            "code": code_fingerprint(),
            "screen": self.maker.screen.fingerprint(),
            "documents": [keys.max_length, keys.overlong, cuts_text],
        }
        parts = [(number, part) for number, source in enumerate(self.sources) for part in source.split(ROWS_PER_SHARD)]
        self.source_of = [number for number, _ in parts]
        self.shards = [
            Shard(part, self.folder / f"{index:05d}", shard_fingerprint(part, settings))
            for index, (_, part) in enumerate(parts)
        ]

    def finish(self, number_of: dict[str, int], num_proc: int, name: str) -> dict[str, Any]:
        """Make what is not finished, index it, and return what the manifest says of the split."""
        records = finish_shards(self.shards, self.maker, num_proc)
        bar = tqdm(records, f"{name}: {self.split}", len(self.shards), unit=" shards", disable=None)
        split = Split(self.folder, self.sources, self.source_of, self.shards, list(bar), self.keys)
        written = split.write(number_of)
        for line in split.tally.warnings(self.split, "met"):
            logger.warning(line)
        wanted = {shard.stem.name for shard in self.shards} | set(written["index"])
        for path in self.folder.iterdir():
            if path.name not in wanted and path.stem not in wanted:
                path.unlink()  # of an earlier run with more rows
        return written

    def _share(self) -> tuple[float, float] | None:
        trains = self.split == "train" and self.keys.heldout_ratio
        return (self.keys.heldout_ratio, 1.0) if trains else heldout_share(self.keys)

    def _check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        for source in self.sources:
            if source.format.startswith("messages") and not tokenizer.chat_template:
                raise ValueError(
                    f"{source.name} holds conversations, and the tokenizer {self.keys.tokenizer} has no chat "
                    "template; name one of chat_templates/ in tokenizer.yaml"
                )
            if self.keys.packing_strategy == "wrapped" and source.format.startswith("messages"):
                raise ValueError(
                    f"packing_strategy: wrapped cuts documents anywhere, and {source.name} holds conversations; "
                    "write `packing_strategy: best-fit`"
                )

    def _heldout(self) -> HeldOut | None:
        if self.split != "train" or self.keys.contamination == "off":
            return None
        rows = list(read_rows(heldout_entries(self.keys), "eval_datasets", heldout_share(self.keys)))
        rows += read_rows(self.keys.benchmarks, "benchmarks")
        sound = [row for row in rows if not fault_of(row.values)]
        if len(sound) < len(rows):
            logger.warning(
                "contamination: %d of %d held-out rows are faulty, not looked for", len(rows) - len(sound), len(rows)
            )
        return HeldOut(sound, self.keys.contamination_overlap) if sound else None


def heldout_entries(keys: PrepareArguments) -> list[DatasetEntry]:
    """`eval_datasets`, or with `heldout_ratio` those of `datasets`, each row of which is read once.

    Raises:
        ValueError: both are stated.
    """
    if not keys.heldout_ratio:
        return keys.eval_datasets
    if keys.eval_datasets:
        raise ValueError("heldout_ratio: eval_datasets names held-out rows already; leave one of the two out")
    return [replace(entry, weight=None) for entry in keys.datasets]


def heldout_share(keys: PrepareArguments) -> tuple[float, float] | None:
    """What share of heldout_entries is held out, as open_sources takes it; None for all of it."""
    return (0.0, keys.heldout_ratio) if keys.heldout_ratio else None
