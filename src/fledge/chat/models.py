"""Which models of a run there are to talk to."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fledge.results.record import SUMMARY


if TYPE_CHECKING:
    from .speaker import Speaker

CHATTING = ("export", "dpo", "sft")
"""Folders of a run whose models know how to converse, the last of the chain first."""

COMPARED = {"base": "pretrain", "sft": "sft", "dpo": "dpo"}
"""What --compare calls the models of a run, and their folders."""


def load_speakers(folder: Path, compare: bool, device: str | None) -> dict[str, "Speaker"]:
    """The model to talk to, by the name "", or those of a run that --compare asks for, by theirs.

    Args:
        folder: a run, or a transformers model folder with a chat template.
        compare: the base, SFT and DPO models of a run.
        device: as `Speaker` takes it.

    Raises:
        ValueError: there is no such model, or it cannot be loaded.
    """
    folders = models_of(folder) if compare else {"": find_model(folder)}
    print(f"loading {', '.join(map(str, folders.values()))} ...", file=sys.stderr, flush=True)
    from .speaker import Speaker  # takes seconds

    return {name: Speaker(path, device) for name, path in folders.items()}


def find_model(folder: Path) -> Path:
    """The model folder to talk to: `folder` itself, or the last finished one of the run it is.

    Raises:
        ValueError: there is none.
    """
    if (folder / "config.json").is_file():
        return folder
    for name in CHATTING:
        if _is_finished(folder / name):
            return folder / name
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give a run, such as runs/tang-poems, or a model folder")
    raise ValueError(
        f"{folder}: no model to talk to: it has no config.json, and none of {', '.join(CHATTING)} in it is finished "
        f"(config.json and {SUMMARY}); give a model folder, or run the stages with fledge run"
    )


def models_of(run: Path) -> dict[str, Path]:
    """The finished models of a run that have a chat template, by what --compare calls them.

    Raises:
        ValueError: there are none to compare.
    """
    found = {name: run / stage for name, stage in COMPARED.items() if _is_finished(run / stage)}
    found = {name: path for name, path in found.items() if (path / "chat_template.jinja").is_file()}
    if len(found) < 2:
        raise ValueError(
            f"--compare: {run}: fewer than two of {', '.join(COMPARED.values())} in it are finished and have a chat "
            "template; leave --compare out to talk to one"
        )
    return found


def _is_finished(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / SUMMARY).is_file()
