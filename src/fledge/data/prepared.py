"""The frozen data set between prepare and training: memory-mapped rows and the manifest that describes them."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from fledge.files import read_json, write_json

from .pack import best_fit
from .tokenise import Document


MANIFEST = "manifest.json"
FEATURES = datasets.Features(
    {name: datasets.Sequence(datasets.Value("int32")) for name in ("input_ids", "labels", "seq_lengths")}
)
"""Of one row: the ids and labels of its documents one after another, and the length of each document, in tokens."""


def write_split(folder: Path, documents: Sequence[Document], max_length: int, seed: int) -> dict[str, Any]:
    """Pack `documents` into rows, save them under `folder` and return what the manifest says of them."""
    documents = list(documents)
    random.Random(seed).shuffle(documents)
    packed = best_fit([len(document.input_ids) for document in documents], max_length)
    rows: dict[str, list[list[int]]] = {name: [] for name in FEATURES}
    for indices in packed:
        row = [documents[index] for index in indices]
        rows["input_ids"].append([token for document in row for token in document.input_ids])
        rows["labels"].append([label for document in row for label in document.labels])
        rows["seq_lengths"].append([len(document.input_ids) for document in row])
    dataset = datasets.Dataset.from_dict(rows, features=FEATURES)
    dataset.save_to_disk(folder)
    tokens = sum(len(row) for row in rows["input_ids"])
    return {
        "rows": len(dataset),
        "documents": len(documents),
        "tokens": tokens,
        "supervised_tokens": sum(document.supervised for document in documents),
        "fill": round(tokens / (len(dataset) * max_length), 4),
        "sha256": _digest(rows),
    }


def _digest(rows: dict[str, list[list[int]]]) -> str:
    digest = hashlib.sha256()
    for name in FEATURES:
        for row in rows[name]:
            digest.update(np.array([len(row), *row], dtype="<i4").tobytes())
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, last of all: a folder without it is not whole."""
    write_json(folder / MANIFEST, manifest)


def load_prepared(folder: str | Path) -> tuple[datasets.Dataset, datasets.Dataset | None, dict[str, Any]]:
    """Training rows, held-out rows if there are any, and the manifest.

    Raises:
        ValueError: the folder is not one that prepare finished.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"prepared: {folder} holds no {MANIFEST}; run the prepare stage that writes it")
    manifest = read_json(folder / MANIFEST)
    train = datasets.load_from_disk(folder / "train")
    heldout = datasets.load_from_disk(folder / "eval") if "eval" in manifest else None
    return train, heldout, manifest
