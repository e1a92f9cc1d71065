"""Tokenise, check, pack, count and freeze the rows a training stage reads.

fledge prepare recipes/tang-poems/prepare.yaml         # text, for pretrain
fledge prepare recipes/tang-poems/prepare_sft.yaml     # conversations, for sft
"""

import logging
import shutil
from typing import Any

from tqdm import tqdm
from transformers import AutoTokenizer

from fledge.arguments import DatasetEntry, PrepareArguments
from fledge.data.checks import check_tokenizer, fingerprint
from fledge.data.prepared import MANIFEST, write_manifest, write_split
from fledge.data.sources import read_rows
from fledge.data.tokenise import Tokeniser
from fledge.recipe import Recipe
from fledge.results.record import Record


logger = logging.getLogger(__name__)


def main(recipe: Recipe) -> None:
    """Write `train` and, if asked for, `eval` rows under output_dir, then the manifest."""
    keys = recipe.own(PrepareArguments)
    record = Record(recipe)
    tokenizer = AutoTokenizer.from_pretrained(keys.tokenizer, trust_remote_code=False)
    check_tokenizer(tokenizer)
    (recipe.output_dir / MANIFEST).unlink(missing_ok=True)

    manifest: dict[str, Any] = {"max_length": keys.max_length, "tokenizer": fingerprint(tokenizer)}
    for split, entries in (("train", keys.datasets), ("eval", keys.eval_datasets)):
        shutil.rmtree(recipe.output_dir / split, ignore_errors=True)
        if entries:
            manifest[split] = prepare_split(split, entries, keys, tokenizer, recipe)
    write_manifest(recipe.output_dir, manifest)
    record.finish(**{split: manifest[split] for split in ("train", "eval") if split in manifest})


def prepare_split(
    split: str, entries: list[DatasetEntry], keys: PrepareArguments, tokenizer: Any, recipe: Recipe
) -> dict[str, Any]:
    """Tokenise and pack one split; returns its part of the manifest."""
    tokenise = Tokeniser(tokenizer, keys.max_length, keys.overlong, keys.faulty)
    rows = tqdm(read_rows(entries), desc=f"{recipe.name}: {split}", unit=" rows", disable=None)
    documents = [document for row in rows for document in tokenise.documents(row)]
    if not sum(document.supervised for document in documents):
        raise ValueError(
            f"{split}: no token to learn from is left of {tokenise.counts['rows']} rows: {tokenise.counts}"
        )
    for fault, count in tokenise.counts.items():
        if fault != "rows":
            logger.warning("%s: %s: %d of %d rows", split, fault, count, tokenise.counts["rows"])
    written = write_split(recipe.output_dir / split, documents, keys.max_length, keys.seed)
    return {**written, "counts": dict(tokenise.counts), "sources": [entry.name or entry.path for entry in entries]}
