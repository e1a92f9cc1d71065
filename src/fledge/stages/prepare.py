"""Tokenise, check, pack, count and freeze the rows a training stage reads.

fledge prepare recipes/tang-poems/prepare.yaml         # text, for pretrain
fledge prepare recipes/tang-poems/prepare_sft.yaml     # conversations, for sft
fledge prepare RECIPE --executor slurm --tasks 64      # shards on many machines, through datatrove
"""

import hashlib
import os
from typing import Any

from fledge.arguments import PrepareArguments
from fledge.data.checks import check_tokenizer, fingerprint
from fledge.data.load import load_tokenizer
from fledge.data.prepared import MANIFEST
from fledge.data.shards import code_fingerprint, id_type
from fledge.data.work import Work, heldout_entries
from fledge.files import write_json
from fledge.recipe import Recipe
from fledge.results.record import Record, versions


LEFT_OUT = ("index", "shards", "places")
"""What the manifest says of a split that is too long for the stage's summary."""


def main(recipe: Recipe) -> None:
    """Make the shards of `train` and, if asked for, `eval`; then index them, and write the manifest last."""
    keys = recipe.own(PrepareArguments)
    record = Record(recipe)
    tokenizer = load_tokenizer(keys.tokenizer, "tokenizer")
    check_tokenizer(tokenizer, chat=False)
    (recipe.output_dir / MANIFEST).unlink(missing_ok=True)
    num_proc = keys.num_proc or len(os.sched_getaffinity(0))

    works = [
        Work(split, entries, keys, tokenizer, recipe.output_dir)
        for split, entries in (("train", keys.datasets), ("eval", heldout_entries(keys)))
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
        "chat_template": hashlib.sha256((tokenizer.chat_template or "").encode()).hexdigest(),
        "code": code_fingerprint(),
        "versions": versions(),
        "sources": names,
    }
    for work in works:
        manifest[work.split] = work.finish(number_of, num_proc, recipe.name)
    write_json(recipe.output_dir / MANIFEST, manifest)
    said = {work.split: manifest[work.split].items() for work in works}
    record.finish(
        **{split: {key: value for key, value in items if key not in LEFT_OUT} for split, items in said.items()}
    )
