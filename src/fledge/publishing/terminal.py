"""`fledge publish`: a run's model with its card, and whatever else waits beside the run."""

from pathlib import Path

from fledge.causes import NotPushed
from fledge.results.card import card

from .outbox import FINAL, Outbox, Parcel, allowed_files, check_repo
from .push import outboxes, push_all


CARD = "README.md"


def publish(run: Path, to: str | None, private: bool, dry_run: bool) -> int:
    """Push all that waits in a run or in one of its stages, the oldest first; returns the exit code.

    Args:
        to: also the run's export, with its model card, to the main revision of this repository, owner/name.
        private: make that repository a private one, if it is not there yet.
        dry_run: only say what would be pushed, file by file, and show the card.

    Raises:
        ValueError: there is no such folder, no export in it, or nothing that ever had to be pushed.
        NotPushed: something has not arrived.
    """
    if not run.is_dir():
        raise ValueError(f"publish: {run}: no such folder; name a run, or one of its stages")
    if to:
        _offer(run, to, private, dry_run)
    found = outboxes(run)
    if not found and not to:
        raise ValueError(
            f"publish: {run}: nothing waits for the hub; `push_to_hub: true` in a recipe pushes every save, and "
            "--to OWNER/NAME the run's export"
        )
    if dry_run:
        for outbox in found:
            for parcel in outbox.waiting():
                _list(parcel, sorted(outbox.files_of(parcel).iterdir()))
        return 0
    for outbox in found:
        for parcel, why in push_all(outbox):
            print(f"{parcel.repo} {parcel.revision}: {why or 'pushed'}", flush=True)
    if waiting := sum(len(outbox.waiting()) for outbox in found):
        raise NotPushed(f"{waiting} revision(s) still wait; fledge publish {run} tries again")
    done = sum("commit" in line for outbox in found for line in outbox.journal())
    print(f"nothing waits; {done} revision(s) have arrived in all")
    return 0


def _offer(run: Path, repo: str, private: bool, dry_run: bool) -> None:
    """Put a run's export with its card into the outbox beside it, or only show both."""
    check_repo(repo, "--to")
    export = run / "export" if (run / "export").is_dir() else run
    text = card(export.parent, export, repo)
    parcel = Parcel(repo, FINAL, private=private or None)
    if dry_run:
        _list(parcel, [path for path in allowed_files(export) if path.name != CARD])
        print(f"  {CARD}, the model card:\n\n{text}")
        return
    Outbox(export).put(export, parcel, {CARD: text})


def _list(parcel: Parcel, files: list[Path]) -> None:
    print(f"{parcel.repo} {parcel.revision}{f', tag {parcel.tag}' if parcel.tag else ''}")
    for path in files:
        print(f"  {path.name:<40} {path.stat().st_size:>15,} bytes")
