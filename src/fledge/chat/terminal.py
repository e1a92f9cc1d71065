"""`fledge chat`: talk to a model in the terminal, or through a pipe. Answers go to stdout, all else to stderr."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from .models import load_speakers
from .sampling import Sampling


if TYPE_CHECKING:
    from .session import Session


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
    speakers = load_speakers(folder, compare, device)
    from .session import HELP, Session

    session = Session(speakers, sampling, system)
    if prompt is not None:
        if _turn(session, prompt):
            raise KeyboardInterrupt
        return 0
    if sys.stdin.isatty():
        _say(HELP)
    for line in _lines([f"/{name} " for name in (*session.commands, "exit")]):
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


def _turn(session: "Session", text: str) -> bool:
    """Answer one message on stdout, speaker by speaker; whether Ctrl-C cut the answers short."""
    with _interruptible(session.stop):
        for name in session.speakers:
            if len(session.speakers) > 1:
                _write(f"[{name}] ")
            session.reply(name, text, _write, lambda line: _say(f"({line})"))
            _write("\n")
            if session.stop.is_set():
                _say("(stopped)")
                break
    return session.stop.is_set()


@contextmanager
def _interruptible(stop: Event) -> Iterator[None]:
    """While this is open, Ctrl-C sets the event and does nothing else."""
    stop.clear()
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _lines(commands: list[str]) -> Iterator[str]:
    """What the user says, line by line; empty lines say nothing."""
    lines = _typed(commands) if sys.stdin.isatty() else sys.stdin
    return filter(None, (line.strip() for line in lines))


def _typed(commands: list[str]) -> Iterator[str]:
    """Lines typed at a prompt until Ctrl-D; Ctrl-C discards the line, and Tab completes a command."""
    import readline  # gives input() its arrow keys and its memory

    readline.set_completer(lambda text, state: [*(it for it in commands if it.startswith(text)), None][state])
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
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
