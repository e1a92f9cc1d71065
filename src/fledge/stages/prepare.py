"""Tokenise, check, pack, count and freeze the rows a training stage reads.

fledge prepare recipes/tang-poems/prepare.yaml         # text, for pretrain
fledge prepare recipes/tang-poems/prepare_sft.yaml     # conversations, for sft
fledge prepare RECIPE --executor slurm --tasks 64      # shards on many machines, through datatrove
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fledge.arguments import DatasetEntry, PrepareArguments
from fledge.data.checks import check_tokenizer, fingerprint
from fledge.data.duplicates import HeldOut
from fledge.data.faults import fault_of
from fledge.data.merge import Split
from fledge.data.prepared import MANIFEST
from fledge.data.screen import Screen
from fledge.data.shards import Maker, Shard, code_fingerprint, finish_shards, id_type, shard_fingerprint
from fledge.data.sources import open_sources, read_rows
from fledge.data.tokenise import Tokeniser
from fledge.files import write_json
from fledge.recipe import Recipe
from fledge.results.record import Record, versions


ROWS_PER_SHARD = 10_000

logger = logging.getLogger(__name__)


def main(recipe: Recipe) -> None:
    """Make the shards of `train` and, if asked for, `eval`; then index them, and write the manifest last."""
    keys = recipe.own(PrepareArguments)
    record = Record(recipe)
    tokenizer = AutoTokenizer.from_pretrained(keys.tokenizer, trust_remote_code=False)
    check_tokenizer(tokenizer)
    (recipe.output_dir / MANIFEST).unlink(missing_ok=True)
    num_proc = keys.num_proc or len(os.sched_getaffinity(0))

    works = [
        Work(split, entries, keys, tokenizer, recipe.output_dir)
        for split, entries in (("train", keys.datasets), ("eval", keys.eval_datasets))
        if entries
    ]
    if keys.executor:
        from fledge.data.tasks import run_tasks

        if not run_tasks([(work.shards, work.maker) for work in works], keys, recipe, num_proc):
            return  # Slurm has it now; its last job comes here again without an executor
    names = list(dict.fromkeys(source.name for work in works for source in work.sources))
    number_of = {name: number for number, name in enumerate(names)}
    manifest: dict[str, Any] = {
        "max_length": keys.max_length,
        "packing_strategy": keys.packing_strategy,
        "overlong": keys.overlong,
        "seed": keys.seed,
        "id_type": id_type(len(tokenizer)).name,
        "tokenizer": fingerprint(tokenizer),
        "chat_template": hashlib.sha256(tokenizer.chat_template.encode()).hexdigest(),
        "code": code_fingerprint(),
        "versions": versions(),
        "sources": names,
    }
    for work in works:
        manifest[work.split] = work.finish(number_of, num_proc, recipe.name)
    write_json(recipe.output_dir / MANIFEST, manifest)
    left_out = ("index", "shards", "places")
    record.finish(
        **{
            work.split: {key: value for key, value in manifest[work.split].items() if key not in left_out}
            for work in works
        }
    )


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
        self.sources = open_sources(entries, key)
        self._check(key)
        cuts_text = keys.packing_strategy != "best-fit" or keys.overlong == "split"
        heldout = self._heldout() if split == "train" and (keys.eval_datasets or keys.benchmarks) else None
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

    def _check(self, key: str) -> None:
        for source in self.sources:
            if self.split == "eval" and source.weight is not None:
                raise ValueError(f"{key}: {source.name}: held-out rows are all read, once; leave `weight` out")
            if self.keys.packing_strategy == "wrapped" and source.format.startswith("messages"):
                raise ValueError(
                    f"packing_strategy: wrapped cuts documents anywhere, and {source.name} holds conversations; "
                    "write `packing_strategy: best-fit`"
                )

    def _heldout(self) -> HeldOut:
        rows = read_rows([*self.keys.eval_datasets, *self.keys.benchmarks], "eval_datasets")
        return HeldOut((row for row in rows if not fault_of(row.values)), self.keys.contamination_overlap)
