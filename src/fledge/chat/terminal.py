"""`fledge chat`: talk to a model in the terminal, or through a pipe. Answers go to stdout, all else to stderr."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from fledge.results.record import SUMMARY

from .sampling import Sampling


if TYPE_CHECKING:
    from .session import Session

CHATTING = ("export", "dpo", "sft")
"""Folders of a run whose models know how to converse, the last of the chain first."""

COMPARED = {"base": "pretrain", "sft": "sft", "dpo": "dpo"}
"""What --compare calls the models of a run, and their folders."""


def chat(
    folder: Path,
    prompt: str | None,
    sampling: Sampling,
    *,
    system: str | None = None,
    compare: bool = False,
    device: str | None = None,
) -> int:
    """Answer `prompt`, or whatever is typed or piped in, and return the exit code.

    Args:
        folder: a run, or a transformers model folder with a chat template.
        prompt: answer this alone.
        system: a system prompt.
        compare: ask every model of the run, one after the other.
        device: as `Speaker` takes it.

    Raises:
        ValueError: there is no model to talk to, or, not at a keyboard, a command that cannot be done.
        KeyboardInterrupt: Ctrl-C stopped the answer to `prompt`, which is therefore not whole.
    """
    folders = models_of(folder) if compare else {"": find_model(folder)}
    _say(f"loading {', '.join(map(str, folders.values()))} ...")
    from .session import HELP, Session
    from .speaker import Speaker

    speakers = {name: Speaker(path, device) for name, path in folders.items()}
    session = Session(speakers, sampling, system, _write, _say)
    if prompt is not None:
        if _turn(session, prompt):
            raise KeyboardInterrupt
        return 0
    if sys.stdin.isatty():
        _say(HELP)
    for line in _lines():
        if line == "/exit":
            break
        try:
            if line.startswith("/"):
                said = session.command(line)
                _say(said if said == HELP else f"({said})")
            else:
                _turn(session, line)
        except ValueError as error:
            # At a keyboard a mistake costs a line and not the program.
            if not sys.stdin.isatty():
                raise
            _say(f"({error})")
    return 0


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


def _turn(session: "Session", text: str) -> bool:
    """Answer one message on stdout; whether Ctrl-C cut the answer short."""
    with _interruptible() as stop:
        session.turn(text, stop)
    return stop.is_set()


@contextmanager
def _interruptible() -> Iterator[Event]:
    """While this is open, Ctrl-C sets the event and does nothing else."""
    stop = Event()
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """What the user says, line by line; empty lines say nothing."""
    read = _typed if sys.stdin.isatty() else lambda: iter(sys.stdin)
    return filter(None, (line.strip() for line in read()))


def _typed() -> Iterator[str]:
    """Lines typed at a prompt until Ctrl-D; Ctrl-C discards the line."""
    import readline  # noqa: F401  # gives input() its arrow keys and its memory

    while True:
        try:
            yield input("> ")
        except EOFError:
            _write("\n")
            return
        except KeyboardInterrupt:
            _write("\n")


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
