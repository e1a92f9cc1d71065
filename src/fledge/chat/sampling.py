"""How an answer is drawn from a model: the options of `fledge chat`, and of its /params. Imports nothing heavy."""

import argparse
from dataclasses import dataclass, field, fields, replace
from typing import Any


def option(default: Any, letter: str, text: str, slider: tuple[float, float, float] | None = None) -> Any:
    """A field with what --help says of it, and the least, most and step of its slider in the browser."""
    return field(default=default, metadata={"letter": letter, "text": text, "slider": slider})


@dataclass(frozen=True)
class Sampling:
    """Named and meant as in transformers.GenerationConfig; a value that makes no sense is a ValueError."""

    temperature: float = option(0.8, "T", "lower is likelier, higher is wilder", (0.05, 2, 0.05))
    top_k: int = option(0, "K", "only the K likeliest tokens; 0 for all", (0, 200, 1))
    top_p: float = option(0.95, "P", "only the likeliest tokens that make up this share", (0.05, 1, 0.01))
    min_p: float = option(0.0, "P", "only tokens at least this share as likely as the likeliest", (0, 1, 0.01))
    repetition_penalty: float = option(1.0, "R", "above 1: what was said is less likely to come again", (1, 2, 0.01))
    max_new_tokens: int = option(256, "N", "the longest answer", (1, 1024, 1))
    seed: int | None = option(None, "S", "for the same answers again, from every /reset")
    greedy: bool = option(False, "", "the likeliest token at every step")

    def __post_init__(self) -> None:
        wrong = {
            "temperature": (self.temperature > 0, "above 0; use --greedy for the likeliest token"),
            "top_k": (self.top_k >= 0, "at least 0; 0 keeps every token"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1; 1 keeps every token"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1; 0 keeps every token"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0; 1 changes nothing"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
        }
        for name, (is_right, must) in wrong.items():
            if not is_right:
                raise ValueError(f"--{name} {getattr(self, name)}: must be {must}")

    @classmethod
    def of(cls, options: dict[str, Any]) -> "Sampling":
        """Out of the options of a command, which lose what belongs here."""
        return cls(**{one.name: options.pop(one.name) for one in fields(cls)})

    def generation(self) -> dict[str, Any]:
        """The arguments of `generate`."""
        kept = {"repetition_penalty": self.repetition_penalty, "max_new_tokens": self.max_new_tokens}
        if self.greedy:
            return {**kept, "do_sample": False}
        drawn = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p or None,
        }
        return {**kept, **drawn, "do_sample": True}

    def changed(self, words: list[str]) -> "Sampling":
        """With other values: `temperature 0.5 greedy yes`.

        Raises:
            ValueError: an unknown name, or a value that is none.
        """
        values = {}
        known = {one.name: one for one in fields(self)}
        for name, text in zip(words[::2], [*words[1::2], ""], strict=False):
            if name not in known:
                raise ValueError(f"/params: there is no {name}; there are {', '.join(known)}")
            try:
                values[name] = (
                    {"yes": True, "no": False}[text] if known[name].type is bool else _number(text, known[name])
                )
            except (KeyError, ValueError):
                raise ValueError(f"/params: {name} {text}: write a number; for greedy yes or no") from None
        return replace(self, **values)

    def __str__(self) -> str:
        return ", ".join(f"{one.name} {getattr(self, one.name)}" for one in fields(self))


def add_options(parser: argparse.ArgumentParser) -> None:
    """One option for every field."""
    for one in fields(Sampling):
        if one.type is bool:
            parser.add_argument(f"--{one.name}", action="store_true", help=one.metadata["text"])
            continue
        kind = float if one.type is float else int
        text = one.metadata["text"] + ("" if one.default is None else f"; {one.default} if left out")
        parser.add_argument(f"--{one.name}", type=kind, default=one.default, metavar=one.metadata["letter"], help=text)


def _number(text: str, one: Any) -> float | int:
    return float(text) if one.type is float else int(text)
