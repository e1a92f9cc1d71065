"""Files that are whole or not there, and folders that one run writes at a time."""

import errno
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

WRITE_FAILED = ("No space left on device", "PytorchStreamWriter failed writing", "iostream error")
"""safetensors quotes the system's words; torch.save only says that a file could not be written."""

_held: dict[Path, TextIO] = {}


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stays_inside(name: object) -> bool:
    """Whether what a file says is the name of another one is a path that does not lead out of their folder."""
    return isinstance(name, str) and name != "" and not Path(name).is_absolute() and ".." not in Path(name).parts


def is_full_disk(error: BaseException | None) -> bool:
    """Whether a write failed, here or below, because the disk, a quota or the limit of a file's size left no room."""
    while error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(words in str(error) for words in WRITE_FAILED):
            return True
        error = error.__cause__ or error.__context__
    return False


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


def write_text(path: Path, text: str) -> None:
    """Write `text` beside `path` and rename, so that a reader never sees half a file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, as `write_text` writes."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The JSON of one file."""
    return json.loads(path.read_text(encoding="utf-8"))
