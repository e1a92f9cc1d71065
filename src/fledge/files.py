"""JSON files that are whole or not there, and folders that one run writes at a time."""

import fcntl
import hashlib
import json
import logging
import os
import platform
import time
from pathlib import Path
from typing import Any, TextIO


logger = logging.getLogger(__name__)

_held: dict[Path, TextIO] = {}


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hold(folder: Path, lock: Path | None = None) -> None:
    """Keep other runs out of `folder` for as long as this process lives.

    Args:
        lock: the file that says so; .NAME.lock beside the folder if None.

    Raises:
        ValueError: another run is in it. Nothing was written.
    """
    lock = (lock or folder.with_name(f".{folder.name}.lock")).absolute()
    if lock in _held:
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = lock.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another run"
        raise ValueError(f"{folder} is in use by {holder}; wait for it, or take another output_dir") from None
    except OSError as error:  # some network file systems
        logger.warning("%s cannot be locked (%s): a second run in it would not be noticed", folder, error.strerror)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    _held[lock] = file


def write_json(path: Path, value: Any) -> None:
    """Write `value` beside `path` and rename, so that a reader never sees half a file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> Any:
    """The JSON of one file."""
    return json.loads(path.read_text(encoding="utf-8"))
