"""A loaded model that answers a conversation. Imports torch and transformers, which takes seconds."""

import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from threading import Event

import torch
from jinja2 import TemplateError
from transformers import BatchEncoding
from transformers.utils import logging

from fledge.chat.history import Messages, fit
from fledge.chat.sampling import Sampling
from fledge.data.load import load_model, load_tokenizer


REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What bytes decode to that are no whole character."""


class Speaker:
    """The model of a folder, and how much it can keep in mind.

    Args:
        folder: a transformers model folder with a chat template.
        device: a torch device; the fastest there is if None.

    Raises:
        ValueError: the folder cannot be loaded or has no chat template, or there is no such device.

    Attributes:
        size: parameters.
        context: the most tokens that fit, or None.
    """

    def __init__(self, folder: Path, device: str | None = None) -> None:
        logging.disable_progress_bar()
        self.device = _device(device)
        self.tokenizer = load_tokenizer(folder, "chat")
        model = load_model(folder, "chat")
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"{folder}: the tokenizer has no chat template; save one beside it as chat_template.jinja, "
                "or talk to a model tuned on conversations"
            )
        self.model = model.to(self.device)
        if self.model.generation_config.eos_token_id is None:
            _say(f"{folder}: generation_config names no stop token: every answer runs to its full length")
        self.size = self.model.num_parameters()
        # Not every architecture has a limit, or calls it by this name.
        self.context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self._told = 0

    def fit(self, messages: Messages, sampling: Sampling) -> Messages:
        """The newest messages that leave room for an answer; see `history.fit`."""
        if self.context is None:
            return messages
        room = self.context - self._longest(sampling)
        return fit(messages, lambda kept: self._prompt(kept)["input_ids"].shape[1], room)

    def answer(self, messages: Messages, sampling: Sampling, write: Callable[[str], None], stop: Event) -> str:
        """Answer `messages`, passing the text on as it comes, until the model stops or `stop` is set."""
        prompt = self._prompt(messages).to(self.device)
        ends = self.model.generation_config.eos_token_id
        stops = frozenset(ends if isinstance(ends, list) else [ends])
        pieces = _Pieces(lambda tokens: self.tokenizer.decode(tokens, skip_special_tokens=True), write, stops)
        self.model.generate(
            **prompt,
            **sampling.generation() | {"max_new_tokens": self._longest(sampling)},
            streamer=pieces,
            stopping_criteria=[lambda *_, **__: stop.is_set()],
        )
        return pieces.text

    def _longest(self, sampling: Sampling) -> int:
        """The longest answer: half of the context, if more was asked for."""
        if self.context is None or sampling.max_new_tokens <= self.context // 2:
            return sampling.max_new_tokens
        if self._told != sampling.max_new_tokens:
            self._told = sampling.max_new_tokens
            _say(f"answers have at most {self.context // 2} tokens, half of the model's context of {self.context}")
        return self.context // 2

    def _prompt(self, messages: Messages) -> BatchEncoding:
        try:
            return self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        except TemplateError as error:
            raise ValueError(f"the model's chat template refuses this conversation: {error}") from None


class _Pieces:
    """A streamer for `generate`: passes an answer on as text without its stop token, and never half a character."""

    def __init__(
        self, decode: Callable[[list[int]], str], write: Callable[[str], None], stops: frozenset[int] = frozenset()
    ) -> None:
        self.decode, self.write, self.stops = decode, write, stops
        self.tokens: list[int] | None = None
        self.text = ""

    def put(self, tokens: torch.Tensor) -> None:
        """Called once with the prompt, then with every token."""
        if self.tokens is None:
            self.tokens = []
            return
        self.tokens += [token for token in tokens.tolist() if token not in self.stops]
        # The rest of a character may still come.
        self._pass_on(self.decode(self.tokens).rstrip(REPLACEMENT))

    def end(self) -> None:
        """Nothing more comes."""
        self._pass_on(self.decode(self.tokens or []))

    def _pass_on(self, text: str) -> None:
        new = text[len(self.text) :]
        if new:
            self.text = text
            self.write(_harmless(new))


def _harmless(text: str) -> str:
    """Text without control characters, which could drive a terminal: models come from strangers."""
    return "".join(REPLACEMENT if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


def _device(name: str | None) -> torch.device:
    if name is None:
        fastest = torch.accelerator.current_accelerator(check_available=True)
        return fastest or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        # torch says AssertionError where it was built without the device.
        raise ValueError(f"--device {name}: not on this machine; leave it out to take the fastest there is") from None
    return device


def _say(line: str) -> None:
    print(line, file=sys.stderr)
