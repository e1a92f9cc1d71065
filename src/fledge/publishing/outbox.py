"""What waits for the hub, beside the run that made it, and a journal of what became of it.

    outbox/step-40/          the files of one revision: hard links, which outlive the checkpoint and take no room
    outbox/step-40.json      written last: where it goes
    outbox/journal.jsonl     a line for each that arrived and for each attempt that failed, with the reason

Only files named in FILES ever enter it: no optimizer, no pickle, no data, no record of the machine.
"""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fledge.files import read_json, write_json
from fledge.schema.check import redacted


OUTBOX = "outbox"
JOURNAL = "journal.jsonl"
FINAL = "main"
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
)
"""All that is ever pushed."""


@dataclass(frozen=True)
class Parcel:
    """One revision of a repository.

    Args:
        repo: owner/name.
        revision: the branch it becomes, step-40 or main.
        tag: a second name of its commit, such as tokens-81920.
        private: for a repository that is not there yet; None leaves it to the hub.
    """

    repo: str
    revision: str
    tag: str | None = None
    private: bool | None = None


class Outbox:
    """The outbox of a stage's output_dir."""

    def __init__(self, output_dir: Path) -> None:
        self.folder = output_dir / OUTBOX

    def put(self, source: Path, parcel: Parcel, texts: dict[str, str] | None = None) -> None:
        """Let the model of `source` wait, with `texts` by name; it replaces what waits for the same revision."""
        folder = self.files_of(parcel)
        folder.with_suffix(".json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in allowed_files(source):
            if path.name not in (texts or {}):
                _link(path, folder / path.name)
        for name, text in (texts or {}).items():
            (folder / name).write_text(text, encoding="utf-8")
        _write_as_plain(folder)
        write_json(folder.with_suffix(".json"), asdict(parcel))

    def files_of(self, parcel: Parcel) -> Path:
        """The folder with its files."""
        return self.folder / parcel.revision

    def waiting(self) -> list[Parcel]:
        """What has not arrived, the oldest first and the final model last."""
        found = [Parcel(**read_json(path)) for path in self.folder.glob("*.json")]
        return sorted(found, key=lambda it: (it.revision == FINAL, len(it.revision), it.revision))

    def arrived(self, parcel: Parcel, commit: str) -> None:
        """Note a commit, and let go of its files."""
        self._note(parcel, commit=commit)
        self.files_of(parcel).with_suffix(".json").unlink()
        shutil.rmtree(self.files_of(parcel))

    def failed(self, parcel: Parcel, why: str) -> None:
        """Note an attempt; the parcel goes on waiting."""
        self._note(parcel, failed=redacted(why))

    def journal(self) -> list[dict[str, Any]]:
        """All lines so far; one that a kill cut off is passed over."""
        path, lines = self.folder / JOURNAL, []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return lines

    def _note(self, parcel: Parcel, **what: str) -> None:
        line = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **asdict(parcel), **what}
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def check_repo(name: object, key: str) -> None:
    """Raise ValueError if that is no repository's whole name."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise ValueError(f"{key}: {name!r}: where to push; write owner/name")


def allowed_files(source: Path) -> list[Path]:
    """The files of a model's folder that may be pushed."""
    return [path for pattern in FILES for path in sorted(source.glob(pattern))]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _write_as_plain(folder: Path) -> None:
    """Make the config.json of a fledge model one that transformers reads without fledge, if there is one."""
    path = folder / "config.json"
    if read_json(path).get("model_type") != "fledge":
        return
    from fledge.model.configuration_fledge import FledgeConfig
    from fledge.model.plain import plain_config

    config = FledgeConfig.from_pretrained(folder)
    if not (config.qk_norm and config.mlp_bias):
        plain = plain_config(config)
        path.unlink()  # the link, not the checkpoint's own file
        plain.save_pretrained(folder)
