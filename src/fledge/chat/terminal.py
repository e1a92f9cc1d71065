"""`fledge chat`: talk to a model in the terminal, or through a pipe. Answers go to stdout, all else to stderr."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from fledge.chat.history import Messages, TurnTooLong
from fledge.results.record import SUMMARY


if TYPE_CHECKING:
    from fledge.chat.speaker import Speaker

CHATTING = ("export", "dpo", "sft")
"""Folders of a run whose models know how to converse, the last of the chain first."""

HELP = """/reset  forget the conversation
/exit   leave, as Ctrl-D does
/help   this
Ctrl-C stops an answer."""


def chat(
    folder: Path,
    prompt: str | None,
    *,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int | None,
    greedy: bool,
    device: str | None,
) -> int:
    """Answer `prompt`, or whatever is typed or piped in, and return the exit code.

    Args:
        folder: a run, or a transformers model folder with a chat template.
        prompt: answer this alone.
        seed: makes a conversation repeatable, from its beginning and from every /reset.
        temperature, top_p, max_new_tokens, greedy, device: as `Speaker` takes them.

    Raises:
        ValueError: there is no model to talk to, or an option makes no sense.
        KeyboardInterrupt: Ctrl-C stopped the answer to `prompt`, which is therefore not whole.
    """
    _check(temperature, top_p, max_new_tokens)
    model = find_model(folder)
    _say(f"loading {model} ...")
    import torch

    from fledge.chat.speaker import Speaker

    speaker = Speaker(
        model, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, greedy=greedy, device=device
    )

    def begin() -> Messages:
        if seed is not None:
            torch.manual_seed(seed)
        return []

    history = begin()
    if prompt is not None:
        _, stopped = _turn(speaker, history, prompt)
        if stopped:
            raise KeyboardInterrupt
        return 0
    if sys.stdin.isatty():
        _say(HELP)
    for line in _lines():
        if line == "/exit":
            break
        if line == "/reset":
            history = begin()
            _say("(a new conversation)")
        elif line == "/help":
            _say(HELP)
        else:
            history = _tolerant_turn(speaker, history, line)
    return 0


def find_model(folder: Path) -> Path:
    """The model folder to talk to: `folder` itself, or the last finished one of the run it is.

    Raises:
        ValueError: there is none.
    """
    if (folder / "config.json").is_file():
        return folder
    for name in CHATTING:
        model = folder / name
        if (model / "config.json").is_file() and (model / SUMMARY).is_file():
            return model
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give a run, such as runs/tang-poems, or a model folder")
    raise ValueError(
        f"{folder}: no model to talk to: it has no config.json, and none of {', '.join(CHATTING)} in it is finished "
        f"(config.json and {SUMMARY}); give a model folder, or run the stages with fledge run"
    )


def _check(temperature: float, top_p: float, max_new_tokens: int) -> None:
    if temperature <= 0:
        raise ValueError(f"--temperature {temperature}: must be above 0; use --greedy for the likeliest token")
    if not 0 < top_p <= 1:
        raise ValueError(f"--top_p {top_p}: must be above 0 and at most 1; 1 keeps every token")
    if max_new_tokens < 1:
        raise ValueError(f"--max_new_tokens {max_new_tokens}: must be at least 1")


def _tolerant_turn(speaker: "Speaker", history: Messages, text: str) -> Messages:
    """The history after one turn; at a keyboard, a message that is too long costs a line and not the program."""
    try:
        return _turn(speaker, history, text)[0]
    except TurnTooLong as error:
        if not sys.stdin.isatty():
            raise
        _say(f"({error})")
        return history


def _turn(speaker: "Speaker", history: Messages, text: str) -> tuple[Messages, bool]:
    """Answer one message on stdout; returns the history with both, and whether Ctrl-C cut the answer short."""
    messages = [*history, {"role": "user", "content": text}]
    kept = speaker.fit(messages)
    if len(kept) < len(messages):
        _say(f"(forgetting the first {len(messages) - len(kept)} messages: the model's context is full)")
    with _interruptible() as stop:
        answer = speaker.answer(kept, _write, stop)
    _write("\n")
    if stop.is_set():
        _say("(stopped)")
    return [*kept, {"role": "assistant", "content": answer}], stop.is_set()


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
