"""What models are measured on: the rows that evaluate.yaml names, read once."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fledge.arguments import DatasetEntry, EvaluateArguments
from fledge.corpora import load_corpus
from fledge.data.pairs import read_pairs
from fledge.data.sources import read_rows


Rows = list[dict[str, Any]]

MEASURES = {
    "heldout_documents": "bits per character and byte, loss, perplexity",
    "heldout_chats": "bits per character of answers",
    "requests": "generated answers",
    "choices": "multiple choice",
    "pairs": "preference accuracy",
    "tasks": "tasks of lm-evaluation-harness",
}
"""The keys that name what is measured on, and the figures that a recipe without the key leaves out."""

RESERVED = {"trigram", "checkpoints"}
"""Keys of evaluation.json that are no model of the recipe's."""


@dataclass(frozen=True)
class Heldout:
    """The rows of every kind; empty where the recipe names none. `sources` is text by the name of its source."""

    corpus: ModuleType | None
    train: Rows
    sources: dict[str, Rows]
    chats: Rows
    requests: Rows
    choices: Rows
    pairs: Rows

    @classmethod
    def read(cls, keys: EvaluateArguments) -> "Heldout":
        """The rows that the keys name. Raises ValueError for keys that do not go together, or rows that are faulty."""
        corpus = load_corpus(keys.corpus) if keys.corpus else None
        _check(keys, corpus)
        train, chats, requests, choices = map(
            _values, (keys.train_documents, keys.heldout_chats, keys.requests, keys.choices)
        )
        sources = {entry.name or entry.path: _values([entry]) for entry in keys.heldout_documents}
        pairs = list(read_pairs(Path(keys.pairs) / "heldout.parquet")) if keys.pairs else []
        return cls(corpus, train, sources, chats, requests, choices, pairs)

    @property
    def judged(self) -> bool:
        """Whether code can tell a good answer from a bad one."""
        return hasattr(self.corpus, "judge")

    def counts(self) -> dict[str, int]:
        """How many rows there are of each kind that figures are taken from."""
        found = {
            "requests": len(self.requests),
            "heldout_documents": sum(map(len, self.sources.values())),
            "heldout_chats": len(self.chats),
            "heldout_pairs": len(self.pairs),
            "choices": len(self.choices),
        }
        return {name: count for name, count in found.items() if count}

    def digest(self) -> str:
        """SHA-256 of all rows."""
        found = hashlib.sha256()
        for rows in (self.train, *self.sources.values(), self.chats, self.requests, self.choices, self.pairs):
            found.update(b"rows")
            for row in rows:
                found.update(json.dumps(row, sort_keys=True, default=str).encode())
        found.update(json.dumps(list(self.sources)).encode())
        return found.hexdigest()


def left_out(keys: EvaluateArguments) -> dict[str, str]:
    """Figures that are not taken, by the key that the recipe lacks."""
    return {name: figures for name, figures in MEASURES.items() if not getattr(keys, name)}


def _check(keys: EvaluateArguments, corpus: ModuleType | None) -> None:
    for name in RESERVED & keys.models.keys():
        raise ValueError(f"models: {name} is what evaluation.json calls something else; take another name")
    named = {"base_models": keys.base_models, "reference": [keys.reference] if keys.reference else []}
    for key, names in named.items():
        for name in names:
            if name not in keys.models:
                raise ValueError(f"{key}: {name} is none of `models`: {', '.join(keys.models)}")
    if len(left_out(keys)) == len(MEASURES):
        raise ValueError(f"nothing to measure: name held-out rows or tasks in one of {', '.join(MEASURES)}")
    if bool(keys.pairs) != bool(keys.reference):
        given, missing = ("pairs", "reference") if keys.pairs else ("reference", "pairs")
        raise ValueError(f"{given}: needs `{missing}` too: preference accuracy compares with a reference on pairs")
    if keys.checkpoints and not keys.heldout_documents:
        raise ValueError("checkpoints: needs `heldout_documents`, whose likelihood is measured")
    if corpus is None and keys.requests:
        raise ValueError("requests: needs `corpus`, which knows how a base model is asked and how answers are counted")
    if corpus is None and keys.choices and keys.base_models:
        raise ValueError("choices: needs `corpus`, which knows how a base model is asked")
    if hasattr(corpus, "judge") and keys.requests and not keys.train_documents:
        raise ValueError(f"train_documents: {keys.corpus} counts lines copied from them; name the training text")


def _values(entries: list[DatasetEntry]) -> Rows:
    return [row.values for row in read_rows(entries)]
