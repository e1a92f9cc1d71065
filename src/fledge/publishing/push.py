"""Empty an outbox: every revision a commit on a branch of its own, the final model on main."""

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import HfHubHTTPError

from fledge.files import hold
from fledge.schema.check import redacted

from .outbox import FILES, FINAL, OUTBOX, Outbox, Parcel


SILENCE_SECONDS = 60.0
"""A hub that says nothing for so long counts as down; the library alone would wait for ever."""


def outboxes(folder: Path) -> list[Outbox]:
    """Those of a stage's folder, or of all stages of a run."""
    return [Outbox(path.parent) for path in sorted({folder / OUTBOX, *folder.glob(f"*/{OUTBOX}")}) if path.is_dir()]


def push_all(outbox: Outbox) -> Iterator[tuple[Parcel, str | None]]:
    """Push what waits, the oldest first; each with None, or with why it did not arrive. One process at a time.

    Where the hub is down or refuses everything, the rest is not tried.

    Raises:
        ValueError: another process empties this outbox.
    """
    hold(outbox.folder, outbox.folder / ".lock")
    get_session().timeout = SILENCE_SECONDS
    for parcel in outbox.waiting():
        try:
            outbox.arrived(parcel, push(parcel, outbox.files_of(parcel)))
            yield parcel, None
        except Exception as error:  # of the network, the hub or the disk: whatever it is, the run must not end of it
            why = reason(error)
            outbox.failed(parcel, why)
            yield parcel, why
            if not _only_this(error):
                return


def push(parcel: Parcel, folder: Path) -> str:
    """Push one revision; returns the hash of its commit."""
    api = HfApi()
    api.create_repo(parcel.repo, private=parcel.private, exist_ok=True)
    if parcel.revision != FINAL:
        api.create_branch(parcel.repo, branch=parcel.revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=parcel.repo,
        folder_path=folder,
        revision=parcel.revision,
        allow_patterns=list(FILES),
        commit_message=f"{parcel.tag or 'the final model'}, by fledge",
    )
    if parcel.tag:
        api.create_tag(parcel.repo, tag=parcel.tag, revision=parcel.revision, exist_ok=True)
    return commit.oid


def _only_this(error: Exception) -> bool:
    """Whether the hub refused what it was given, and not whom, or everything."""
    code = error.response.status_code if isinstance(error, HfHubHTTPError) else 500
    return 400 <= code < 500 and code not in (401, 403, 429)


def reason(error: Exception) -> str:
    """One line, without tokens."""
    if isinstance(error, HfHubHTTPError):
        said = error.server_message or error.response.reason_phrase
        return redacted(f"{error.response.status_code} {said}")
    lines = str(error).strip().splitlines()
    return redacted(f"{type(error).__name__}: {lines[0] if lines else ''}")
