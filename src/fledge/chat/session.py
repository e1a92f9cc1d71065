"""What is said to one model, or to several side by side, and the commands that begin with a slash."""

from __future__ import annotations

import json
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import torch

from fledge.files import write_json

from .history import Messages
from .sampling import Sampling


if TYPE_CHECKING:
    from .speaker import Speaker

HELP = """/reset            forget the conversation
/system TEXT      begin anew, with this as the system prompt; without TEXT, with none
/params           how answers are drawn; /params temperature 0.5 top_k 40 changes that
/save FILE        write the conversation as JSON; /load FILE goes on with one
/exit             leave, as Ctrl-D does
/help             this
Ctrl-C stops an answer."""


class Session:
    """Conversations that begin alike: one for each speaker. Setting `stop` ends an answer that is under way.

    Args:
        speakers: by the name that stands with an answer where there are several.
        system: the system prompt, if there is one.
    """

    def __init__(self, speakers: dict[str, Speaker], sampling: Sampling, system: str | None) -> None:
        self.speakers, self.sampling, self.system = speakers, sampling, system
        self.stop = Event()
        self.commands: dict[str, Callable[[str], str]] = {
            "reset": self.reset,
            "system": self._set_system,
            "params": self._params,
            "save": self._save,
            "load": self._load,
            "help": lambda _: HELP,
        }
        self.reset()

    def reset(self, _: str = "") -> str:
        """Forget what was said, and draw answers as from the beginning."""
        if self.sampling.seed is None:
            torch.seed()  # or every process would draw the same
        else:
            torch.manual_seed(self.sampling.seed)
        begun: Messages = [{"role": "system", "content": self.system}] if self.system else []
        self.histories = dict.fromkeys(self.speakers, begun)
        return "a new conversation"

    def reply(self, name: str, text: str, write: Callable[[str], None], say: Callable[[str], None]) -> None:
        """Have one speaker answer `text`.

        Args:
            write: takes the answer as it comes.
            say: takes what is said about it: how much was forgotten to make room.

        Raises:
            TurnTooLong: there is no room for it, whatever is forgotten. The conversation is as it was.
        """
        messages = [*self.histories[name], {"role": "user", "content": text}]
        kept = self.speakers[name].fit(messages, self.sampling)
        if gone := len(messages) - len(kept):
            say(f"forgetting the first {gone} messages: the model's context is full")
        answer = self.speakers[name].answer(kept, self.sampling, write, self.stop)
        self.histories[name] = [*kept, {"role": "assistant", "content": answer}]

    def command(self, line: str) -> str:
        """Do what a line that begins with a slash asks for; returns what to say about it.

        Raises:
            ValueError: no such command, or it cannot be done.
        """
        name, _, rest = line[1:].partition(" ")
        if name not in self.commands:
            near = get_close_matches(name, self.commands, 1)
            raise ValueError(
                f"/{name}: no such command; {f'did you mean /{near[0]}?' if near else '/help lists them'}"
            )
        return self.commands[name](rest.strip())

    def _set_system(self, text: str) -> str:
        self.system = text or None
        self.reset()
        return "a new conversation, with this system prompt" if text else "a new conversation, without a system prompt"

    def _params(self, text: str) -> str:
        self.sampling = self.sampling.changed(text.split())
        return str(self.sampling)

    def _save(self, file: str) -> str:
        path, history = self._file(file, "/save")
        try:
            write_json(path, history)
        except OSError as error:
            raise ValueError(f"/save: {path}: {error.strerror}; name a file in a folder that can be written") from None
        return f"{len(history)} messages in {path}"

    def _load(self, file: str) -> str:
        path, _ = self._file(file, "/load")
        try:
            messages = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(messages, list):
                raise TypeError("it holds no list")
            roles = [message["role"] for message in messages if isinstance(message["content"], str)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"/load: {path.name}: no conversation that /save wrote ({error})") from None
        if len(roles) < len(messages) or not {*roles} <= {"system", "user", "assistant"}:
            raise ValueError(
                f"/load: {path.name}: every message has a role (system, user, assistant) and a text as content"
            )
        self.system = messages[0]["content"] if roles[:1] == ["system"] else None
        self.histories = dict.fromkeys(self.speakers, messages)
        return f"going on after {len(messages)} messages"

    def _file(self, name: str, command: str) -> tuple[Path, Messages]:
        if not name:
            raise ValueError(f"{command}: name a file")
        if len(self.histories) > 1:
            raise ValueError(f"{command}: --compare holds several conversations, and a file has one")
        return Path(name).expanduser(), next(iter(self.histories.values()))
