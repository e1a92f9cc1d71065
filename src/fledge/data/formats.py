"""The formats of common data sets, recognised by their columns and turned into one of a few shapes.

    text          {"text": str}                                                 pretraining
    messages      {"messages": [{"role", "content"}, ...]}                      fine-tuning
    preference    {"prompt": [...], "chosen": [...], "rejected": [...]}         preference tuning, each a message list
    prompt        {"prompt": [...]}                                             requests to answer

Other columns are kept; a column that would suggest another shape is not. What a row lacks becomes None: to find and
count such rows is the business of fledge.data.faults, so nothing here raises on the content of a row.

TRL's `maybe_convert_to_chatml` and `extract_prompt` do a part of this, and importing them brings torch, five seconds
on top of a tokenizer, in every worker of prepare. They also leave ShareGPT's roles (human, gpt) as they are, and cut
two texts at their first different character, in the middle of an answer. What they do for message lists is done here
alike; tests/test_formats.py holds the two against each other.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any


Values = dict[str, Any]

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
"""ShareGPT's names; any other is taken as it is."""

CONVERSATIONS = ("messages", "conversations", "conversation")

TURNS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("problem", "solution"),
)
"""Columns that hold one request and its answer, the first that fits taken."""

CONTEXTS = ("input", "context")
SYSTEMS = ("system", "system_prompt")
REQUESTS = ("prompt", "question", "instruction")

SHAPES = {
    "text": {"text"},
    "messages": {"messages"},
    "preference": {"prompt", "chosen", "rejected"},
    "prompt": {"prompt"},
}

UNDERSTOOD = (
    "text; "
    + " or ".join(CONVERSATIONS)
    + " (lists of role/content or from/value); chosen and rejected, with or without "
    + " or ".join(REQUESTS)
    + "; "
    + "; ".join(f"{asked} and {answer}" for asked, answer in TURNS)
    + "; prompt"
)


@dataclass(frozen=True)
class Format:
    """A recognised format: `name` says it with its columns, `shape` is what `convert` makes of a row."""

    name: str
    shape: str
    convert: Callable[[Values], Values]


def recognise(columns: Sequence[str]) -> Format | None:
    """The format of rows with these columns, None if it is none that is understood."""

    def first(names: Sequence[str]) -> str | None:
        return next((name for name in names if name in columns), None)

    system = first(SYSTEMS)
    if "chosen" in columns and "rejected" in columns:
        asked = first(REQUESTS)
        context = first(CONTEXTS) if asked else None
        used = [column for column in (system, asked, context, "chosen", "rejected") if column]
        pair = partial(_preference, system=system, asked=asked, context=context)
        return _format("preference", used, columns, pair)
    if conversation := first(CONVERSATIONS):
        return _format("messages", [conversation], columns, partial(_conversation, column=conversation))
    for asked, answer in TURNS:
        if asked in columns and answer in columns:
            context = first(CONTEXTS)
            used = [column for column in (system, asked, context, answer) if column]
            turns = partial(_turns, system=system, asked=asked, context=context, answer=answer)
            return _format("messages", used, columns, turns)
    if "text" in columns:
        return _format("text", ["text"], columns, _text)
    if "prompt" in columns:
        return _format("prompt", ["prompt"], columns, _prompt)
    return None


def _format(shape: str, used: list[str], columns: Sequence[str], convert: Callable[[Values], Values]) -> Format:
    name = shape if used == [shape] else f"{shape} from {', '.join(used)}"
    misleading = set.union(*SHAPES.values()) - SHAPES[shape]
    unwanted = frozenset(column for column in columns if column in misleading or column in used) - SHAPES[shape]
    return Format(name, shape, partial(_without, unwanted, convert) if unwanted else convert)


def _without(unwanted: frozenset[str], convert: Callable[[Values], Values], values: Values) -> Values:
    converted = dict(convert(values))
    for name in unwanted:
        converted.pop(name, None)
    return converted


# --- one row


def _text(values: Values) -> Values:
    return values if "text" in values else {**values, "text": None}


def _prompt(values: Values) -> Values:
    return {**values, "prompt": _said("user", values.get("prompt"))}


def _conversation(values: Values, column: str) -> Values:
    return {**values, "messages": _chat(values.get(column))}


def _turns(values: Values, system: str | None, asked: str, context: str | None, answer: str) -> Values:
    messages = [*_said("user", _request(values, asked, context)), *_said("assistant", values.get(answer))]
    return {**values, "messages": _with_system(values.get(system), messages)}


def _request(values: Values, asked: str, context: str | None) -> Any:
    """What is asked, and below it what it is asked about."""
    request, about = values.get(asked), values.get(context)
    return f"{request}\n\n{about}" if about and isinstance(request, str) else request


def _preference(values: Values, system: str | None, asked: str | None, context: str | None) -> Values:
    """Splits off the prompt where the two sides hold it: the turns they begin with alike, the last never."""
    request = _request(values, asked, context) if asked else []
    prompt = _dialogue(request, "user")
    chosen, rejected = (
        None if (said := values.get(side)) is None else _dialogue(said, "assistant") for side in ("chosen", "rejected")
    )
    stated = isinstance(request, list)  # then only a side that repeats the prompt is more than an answer
    if _whole(chosen) and _whole(rejected) and not (stated and chosen[: len(prompt)] != prompt):
        shared = _shared(chosen, rejected)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if prompt and prompt[-1] == {"role": "assistant", "content": ""}:  # "... Assistant:" waits for the answer
        prompt = prompt[:-1]
    return {**values, "prompt": _with_system(values.get(system), prompt), "chosen": chosen, "rejected": rejected}


def _whole(turns: Any) -> bool:
    """Whether a side is a conversation from its beginning, rather than an answer alone."""
    return (
        bool(turns) and isinstance(turns, list) and isinstance(turns[0], dict) and turns[0].get("role") != "assistant"
    )


def _shared(chosen: list[Any], rejected: list[Any]) -> int:
    most = min(len(chosen), len(rejected)) - 1
    return next((index for index in range(most) if chosen[index] != rejected[index]), most)


def _with_system(system: Any, messages: Any) -> Any:
    return [{"role": "system", "content": system}, *messages] if system and isinstance(messages, list) else messages


def _said(role: str, value: Any) -> list[Any]:
    """Messages as they are; anything else as what `role` said."""
    return _chat(value) if isinstance(value, list) else [{"role": role, "content": value}]


def _dialogue(value: Any, role: str) -> list[Any]:
    r"""As `_said`, and a text of turns, `\n\nHuman: ...\n\nAssistant: ...` (Anthropic's hh-rlhf), as its messages."""
    parts = re.split(r"\n\n(Human|Assistant):", value) if isinstance(value, str) else [""]
    if len(parts) == 1 or parts[0].strip():
        return _said(role, value)
    speakers = ("user" if name == "Human" else "assistant" for name in parts[1::2])
    return [{"role": speaker, "content": said.strip()} for speaker, said in zip(speakers, parts[2::2], strict=True)]


def _chat(turns: Any) -> Any:
    """ShareGPT's from/value as role/content; pairs of input/output (Capybara) as two messages."""
    if not isinstance(turns, list):
        return turns
    for turn in turns:
        if isinstance(turn, dict) and "role" not in turn:
            return [message for turn in turns for message in _messages(turn)]
    return turns


def _messages(turn: Any) -> list[Any]:
    if not isinstance(turn, dict) or "role" in turn:
        return [turn]
    if "input" in turn and "output" in turn:
        return [{"role": "user", "content": turn["input"]}, {"role": "assistant", "content": turn["output"]}]
    speaker = turn.get("from")
    role = ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker
    return [{"role": role, "content": turn.get("value")}]
