"""Figures that need not be taken again: one file a model, named after a digest of all that decides them."""

import hashlib
import json
import logging
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import fledge
from fledge.data.load import ADAPTER, MODEL_FILES, local_folder
from fledge.files import digest, read_json, write_json
from fledge.machine import choose_bf16, on_cpu


CODE = ("corpora", "data", "evaluation", "model", "machine.py", "stages/evaluate.py")
"""The code that figures come from, below src/fledge."""

LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "peft", "lm_eval")

BOOKKEEPING = {"recipe.json", "versions.json", "summary.json", "chain.json"}
"""Files beside a model that change no figure."""

logger = logging.getLogger(__name__)


class Cache:
    """Results under `folder`/cache, or where the chain has set an older evaluation aside, `folder`.previous/cache.

    A result is taken from there only if its key is the same in every part; otherwise it is made and written at once,
    so that an evaluation that was stopped goes on after the last result it finished.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cache"
        self.earlier = folder.with_name(f"{folder.name}.previous") / "cache"
        self.taken: list[str] = []
        """What was not made again."""
        self._used: set[Path] = set()

    def get(self, name: str, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` returns, JSON, or returned earlier for the same key."""
        path = self.folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.json"
        self._used.add(path)
        for place in (path, self.earlier / path.name):
            try:
                entry = read_json(place)
                same = entry["key"] == key
            except FileNotFoundError:
                continue
            except (ValueError, KeyError, TypeError):
                logger.warning("%s is damaged and is made again", place)
                continue
            if same:
                if place != path:
                    self._write(path, entry)
                self.taken.append(name)
                return entry["result"]
        entry = {"key": key, "result": make()}
        self._write(path, entry)
        return json.loads(json.dumps(entry["result"]))  # the same from here as from the file

    def _write(self, path: Path, entry: dict[str, Any]) -> None:
        path.parent.mkdir(exist_ok=True)
        write_json(path, entry)

    def close(self) -> None:
        """Remove what this evaluation had no use for, and say what it did not take again."""
        for path in self.folder.glob("*"):
            if path not in self._used:
                path.unlink()
        if self.taken:
            logger.info("taken from the cache, nothing that decides them has changed: %s", ", ".join(self.taken))


def circumstances() -> dict[str, Any]:
    """What decides every figure besides model, rows and recipe: code, versions, and how products are taken.

    Figures in bfloat16 may differ in their last digits from one kind of processor to another.
    """
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    device = f"CPU, {torch.backends.cpu.get_cpu_capability()}" if on_cpu() else torch.cuda.get_device_name()
    return {"code": _code(), "versions": found, "device": device, "bf16": choose_bf16("auto")}


def digests(folder: str, key: str) -> dict[str, Any]:
    """SHA-256 of the files of a model folder or hub id: weights, configuration, tokenizer; an adapter's base too.

    Raises:
        ValueError: there is no such folder; `key` is the recipe key that names it.
    """
    local = local_folder(folder, key, MODEL_FILES)
    paths = sorted({path for pattern in MODEL_FILES for path in local.glob(pattern)})
    found: dict[str, Any] = {path.name: digest(path) for path in paths if path.name not in BOOKKEEPING}
    if (local / ADAPTER).is_file():
        base = read_json(local / ADAPTER).get("base_model_name_or_path")
        found["base"] = digests(base, key) if isinstance(base, str) and Path(base) != Path(folder) else None
    return found


def _code() -> str:
    """SHA-256 of CODE."""
    root, found = Path(fledge.__file__).parent, hashlib.sha256()
    for name in CODE:
        for path in sorted((root / name).rglob("*.py")) if (root / name).is_dir() else [root / name]:
            found.update(path.read_bytes())
    return found.hexdigest()
