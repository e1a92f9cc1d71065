"""`fledge publish`: what waits beside a run, and sending it."""

from pathlib import Path

from fledge.causes import NotPushed

from .outbox import Outbox
from .push import outboxes, push_all


def publish(folder: Path, dry_run: bool) -> None:
    """Push all that waits in a run or in one of its stages, the oldest first.

    Args:
        dry_run: only say what would be pushed, file by file.

    Raises:
        ValueError: there is no such folder, or nothing in it ever had to be pushed.
        NotPushed: something has not arrived.
    """
    if not folder.is_dir():
        raise ValueError(f"publish: {folder}: no such folder; name a run, or one of its stages")
    found = outboxes(folder)
    if not found:
        raise ValueError(f"publish: {folder}: nothing was to be pushed; `push_to_hub: true` in a recipe is what asks")
    waiting = 0
    for outbox in found:
        if dry_run:
            _list(outbox)
            continue
        for parcel, why in push_all(outbox):
            print(f"{parcel.repo} {parcel.revision}: {why or 'pushed'}", flush=True)
        waiting += len(outbox.waiting())
    if waiting:
        raise NotPushed(f"{waiting} revision(s) still wait; the same command tries again")
    if not dry_run:
        done = sum("commit" in line for outbox in found for line in outbox.journal())
        print(f"nothing waits; {done} revision(s) have arrived in all")


def _list(outbox: Outbox) -> None:
    for parcel in outbox.waiting():
        print(f"{parcel.repo} {parcel.revision}{f', tag {parcel.tag}' if parcel.tag else ''}")
        for path in sorted(outbox.files_of(parcel).iterdir()):
            print(f"  {path.name:<40} {path.stat().st_size:>15,} bytes")
