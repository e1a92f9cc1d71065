"""What is wrong with a row, named before it is tokenised, and the tally of what was met.

    special = special_text(tokenizer.all_special_tokens)
    tally = Tally()
    for row in part.rows():
        tally.rows += 1
        if fault := fault_of(row.values, special):
            if policy == "fail":
                raise ValueError(refusal(fault, row.place))
            tally.add(fault, row.place)
            if policy == "drop" or fault not in KEEPABLE:
                continue
        ...
    whole = Tally.merged(tallies_of_the_parts_in_order)
    for line in whole.warnings("train"):
        logger.warning(line)
    manifest["faults"] = whole.to_json()

Counts and first places are the same however many processes made the tallies, as long as they are merged in the order
of the parts.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ftfy


NO_SHAPE = "no text, messages or pair"
NOT_TEXT = "text that is no text"
EMPTY = "empty text"
BLANK = "only white space"
REPLACED = "not valid text (replacement characters)"
CONTROL = "not valid text (control characters)"
SURROGATE = "not valid text (half of a surrogate pair)"
MOJIBAKE = "not valid text (UTF-8 read as another encoding)"
SPECIAL = "a special token in the text"
NO_LIST = "messages that are no list"
NO_MESSAGE = "no message"
NO_OBJECT = "a message that is no object with role and content"
CONTENT = "content that is no text"
ROLE = "an unknown role"
LATE_SYSTEM = "roles out of order (system after the first turn)"
TWO_USERS = "roles out of order (two user turns in a row)"
TWO_ASSISTANTS = "roles out of order (two assistant turns in a row)"
ASSISTANT_FIRST = "roles out of order (the assistant speaks first)"
USER_LAST = "roles out of order (ends with a user turn)"
NO_ASSISTANT = "no assistant turn"
NO_QUESTION = "an empty user turn"
NO_ANSWER = "an empty answer"
NO_PROMPT = "pair without a prompt"
NO_SIDE = "pair without its chosen or rejected side"
NOT_SHARED = "pair whose sides do not share the prompt"
SAME_SIDES = "chosen and rejected are the same"
SAME_CUT = "chosen and rejected are the same after truncation"
NO_ROOM = "no answer left after truncation"

FAULTS = {
    NO_SHAPE: "name the column in `columns`, or correct the row",
    NOT_TEXT: "the value is null or a number; write text",
    EMPTY: "write text, or leave the row out",
    BLANK: "write text, or leave the row out",
    REPLACED: "U+FFFD or its usual misreading: bytes were lost; decode the source again with its own encoding",
    CONTROL: "NUL, escape and other control characters; remove them from the source",
    SURROGATE: "a \\ud800 to \\udfff escape without its other half; write the whole character",
    MOJIBAKE: "such as Ã© for é; decode the source again as UTF-8",
    SPECIAL: "the tokenizer would read it as a real turn or stop token; remove or rewrite it",
    NO_LIST: "`messages`, `prompt`, `chosen` and `rejected` are lists of role and content",
    NO_MESSAGE: "the list is empty; leave the row out",
    NO_OBJECT: 'each message is {"role": ..., "content": ...}',
    CONTENT: "null, a number or a list of parts; write text",
    ROLE: "the roles are system, user and assistant",
    LATE_SYSTEM: "the system turn is the first one",
    TWO_USERS: "user and assistant take turns; join the two",
    TWO_ASSISTANTS: "user and assistant take turns; join the two",
    ASSISTANT_FIRST: "a conversation begins with the user, after the system turn if there is one",
    USER_LAST: "the last turn has no answer; remove it",
    NO_ASSISTANT: "there is nothing to learn from; leave the row out",
    NO_QUESTION: "a user turn says nothing; write it, or leave the row out",
    NO_ANSWER: "an assistant turn says nothing; write it, or leave the row out",
    NO_PROMPT: "there is nothing to answer; write the prompt",
    NO_SIDE: "a pair has both sides; write it, or leave the row out",
    NOT_SHARED: "chosen and rejected hold the answers only, both to the same prompt",
    SAME_SIDES: "there is nothing to prefer; leave the row out",
    SAME_CUT: "they differ only after max_length; raise max_length, or leave the row out",
    NO_ROOM: "the prompt alone fills max_length; raise max_length, or leave the row out",
}
"""Every fault of a row, and its fix."""

KEEPABLE = frozenset(
    {REPLACED, CONTROL, MOJIBAKE, SPECIAL, LATE_SYSTEM, TWO_USERS, TWO_ASSISTANTS, ASSISTANT_FIRST, USER_LAST}
    | {NO_QUESTION}
)
"""Faults of rows that can still be tokenised: policy `keep` keeps these and drops the others."""

ROLES = ("system", "user", "assistant")
_OUT_OF_ORDER = {
    ("user", "user"): TWO_USERS,
    ("assistant", "assistant"): TWO_ASSISTANTS,
    ("", "assistant"): ASSISTANT_FIRST,
    ("system", "assistant"): ASSISTANT_FIRST,
    ("system", "system"): LATE_SYSTEM,
    ("user", "system"): LATE_SYSTEM,
    ("assistant", "system"): LATE_SYSTEM,
}
# U+951F U+65A4 U+62F7 is what two U+FFFD become when their UTF-8 is read as GBK.
_BROKEN = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffd]|锟斤拷")
# A UTF-8 lead byte followed by a continuation byte, both read as Latin-1 or Windows-1252.
_SUSPECT = re.compile("[\xc2-\xf4][\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]")


def special_text(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that finds any of the tokenizer's special tokens in a text; None if there are none."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def fault_of(values: dict[str, Any], special: re.Pattern[str] | None = None) -> str | None:
    """The first fault of one canonical row (`text`, `messages`, or `prompt` with `chosen` and `rejected`), or None.

    `special` comes from special_text. The answer is a key of FAULTS. Mojibake is what ftfy can undo (Speer 2019,
    tuned for less than one false alarm in a million texts); UTF-8 that was read as GBK is not found.
    """
    if "chosen" in values or "rejected" in values:
        return _pair_fault(values, special)
    if "messages" in values:
        return _conversation_fault(values["messages"], special)
    if "text" in values:
        return _text_fault(values["text"], special)
    return NO_SHAPE


def truncated_fault(
    prompt_ids: Sequence[int], chosen_ids: Sequence[int], rejected_ids: Sequence[int], max_length: int
) -> str | None:
    """NO_ROOM or SAME_CUT if a pair teaches nothing once prompt and answer are cut to `max_length` tokens, else None.

    The end is cut, as DPOTrainer does it (truncation_mode keep_start).
    """
    room = max_length - len(prompt_ids)
    if room <= 0:
        return NO_ROOM
    return SAME_CUT if list(chosen_ids[:room]) == list(rejected_ids[:room]) else None


def _text_fault(text: Any, special: re.Pattern[str] | None) -> str | None:
    if not isinstance(text, str):
        return NOT_TEXT
    if not text:
        return EMPTY
    if text.isspace():
        return BLANK
    return _character_fault(text, special)


def _character_fault(text: str, special: re.Pattern[str] | None) -> str | None:
    if not text.isascii() and _SUSPECT.search(text) and ftfy.fix_encoding(text) != text:
        return MOJIBAKE
    if broken := _BROKEN.search(text):
        character = broken[0][0]
        if "\ud800" <= character <= "\udfff":
            return SURROGATE
        return CONTROL if character < "\xa0" else REPLACED
    return SPECIAL if special is not None and special.search(text) else None


def _conversation_fault(messages: Any, special: re.Pattern[str] | None) -> str | None:
    if not isinstance(messages, list):
        return NO_LIST
    if not messages:
        return NO_MESSAGE
    before, answered, contents = "", False, []
    for message in messages:
        try:
            role, content = message["role"], message["content"]
        except (TypeError, KeyError):
            return NO_OBJECT
        if role is None:
            return NO_OBJECT
        if role not in ROLES:
            return ROLE
        if not isinstance(content, str):
            return CONTENT
        if fault := _OUT_OF_ORDER.get((before, role)):
            return fault
        if role != "system":
            if not content or content.isspace():
                return NO_ANSWER if role == "assistant" else NO_QUESTION
            answered |= role == "assistant"
        contents.append(content)
        before = role
    if not answered:
        return NO_ASSISTANT
    if before == "user":
        return USER_LAST
    return _character_fault("\n".join(contents), special)


def _pair_fault(values: dict[str, Any], special: re.Pattern[str] | None) -> str | None:
    prompt, chosen, rejected = (values.get(name) for name in ("prompt", "chosen", "rejected"))
    if not chosen or not rejected:
        return NO_SIDE
    for side in (chosen, rejected):
        if not isinstance(side, list):
            return NO_LIST
        if isinstance(side[0], dict) and side[0].get("role") in ("system", "user"):
            return NOT_SHARED
    if not prompt:
        return NO_PROMPT
    if not isinstance(prompt, list):
        return NO_LIST
    if fault := _conversation_fault(prompt + chosen, special) or _conversation_fault(prompt + rejected, special):
        return fault
    return SAME_SIDES if _said(chosen) == _said(rejected) else None


def _said(side: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in side]


def refusal(fault: str, place: str, key: str = "faulty") -> str:
    """The message of policy `fail`: the row, its fault, the fix."""
    return f"{place}: {fault}; {FAULTS[fault]}; or write `{key}: drop` to leave such rows out, counted"


@dataclass
class Tally:
    """Rows met, and of each fault how many rows and where the first few stand."""

    rows: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)
    """The first FIRST places of each fault, in the order of the rows."""

    FIRST = 5

    def add(self, fault: str, place: str) -> None:
        """Count a fault, of FAULTS or of any other name, at `place`; places come in the order of the rows."""
        self.faults[fault] = self.faults.get(fault, 0) + 1
        places = self.places.setdefault(fault, [])
        if len(places) < self.FIRST:
            places.append(place)

    @classmethod
    def merged(cls, tallies: Iterable["Tally"]) -> "Tally":
        """The tally of all parts, given in the order of the parts."""
        whole = cls()
        for tally in tallies:
            whole.rows += tally.rows
            for fault, count in tally.faults.items():
                whole.faults[fault] = whole.faults.get(fault, 0) + count
                places = whole.places.setdefault(fault, [])
                places += tally.places[fault][: cls.FIRST - len(places)]
        return whole

    def to_json(self) -> dict[str, Any]:
        """For the manifest, faults by name: {"empty text": {"rows": 2, "first": ["a.jsonl:3", "a.jsonl:9"]}}."""
        return {fault: {"rows": self.faults[fault], "first": self.places[fault]} for fault in sorted(self.faults)}

    @classmethod
    def from_json(cls, rows: int, faults: dict[str, Any]) -> "Tally":
        """What to_json wrote, read back."""
        return cls(
            rows, {fault: met["rows"] for fault, met in faults.items()}, {f: met["first"] for f, met in faults.items()}
        )

    def warnings(self, split: str, verb: str = "dropped") -> list[str]:
        """One line for each fault, the most frequent first: count, share and first places."""
        lines = []
        for fault, count in sorted(self.faults.items(), key=lambda item: (-item[1], item[0])):
            places = ", ".join(self.places[fault]) + (", ..." if count > len(self.places[fault]) else "")
            lines.append(f"{split}: {verb} {count} of {self.rows} rows ({count / self.rows:.2%}): {fault}: {places}")
        return lines
