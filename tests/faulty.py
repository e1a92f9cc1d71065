"""Rows with faults at known places, any number of them, the same for the same seed; written as they are made.

python tests/faulty.py conversations.jsonl 1000000     # prints how many rows of each kind of fault, and which

Sound rows are random words, so that none resembles another; a row with a fault carries MARK wherever it holds text of
its own, so that it can be told whether it was trained on.
"""

import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from fledge.data import duplicates, faults


MARK = "§"
WORDS = [first + last for first in "bdfghjklmnprstvwxyz" for last in ("a", "e", "i", "o", "u", "ay", "ow")]
ASKED, SAID = 16, 18
"""Words of a question and of its answer."""


def turns(*said: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def words(index: int) -> list[str]:
    """Those of row `index`, a function of it alone."""
    return random.Random(index).choices(WORDS, k=ASKED + SAID)


def sound(index: int) -> dict[str, Any]:
    """A sound conversation."""
    said = words(index)
    return turns(("user", " ".join(said[:ASKED])), ("assistant", " ".join(said[ASKED:])))


def sound_pair(index: int) -> dict[str, Any]:
    """A sound preference pair."""
    asked, said = sound(index)["messages"]
    return {"prompt": [asked], "chosen": [said], "rejected": [{**said, "content": said["content"][::-1]}]}


def sound_text(index: int) -> dict[str, Any]:
    """A sound text."""
    return {"text": " ".join(words(index))}


def said(text: str) -> dict[str, Any]:
    """A conversation whose answer holds `text`."""
    return turns(("user", f"Say it {MARK}"), ("assistant", f"{MARK} {text}"))


USER, ASSISTANT, SYSTEM = ("user", f"Go on {MARK}"), ("assistant", f"Well {MARK}"), ("system", f"Be kind {MARK}")
LONGER = "longer than 256 tokens"

Make = Callable[[], dict[str, Any] | bytes]
CONVERSATIONS: dict[str, tuple[str, Make]] = {
    "messages is null": (faults.NO_LIST, lambda: {"messages": None}),
    "messages is a string": (faults.NO_LIST, lambda: {"messages": f"user: Hi {MARK}"}),
    "no messages at all": (faults.NO_LIST, lambda: {"title": MARK}),
    "an empty list": (faults.NO_MESSAGE, lambda: {"messages": []}),
    "a message is a string": (faults.NO_OBJECT, lambda: {"messages": [MARK]}),
    "no role": (faults.NO_OBJECT, lambda: {"messages": [{"content": MARK}]}),
    "no content": (faults.NO_OBJECT, lambda: {"messages": [{"role": "user"}]}),
    "content is null": (faults.CONTENT, lambda: turns(USER, ("assistant", None))),
    "content is a number": (faults.CONTENT, lambda: turns(USER, ("assistant", 42))),
    "content is a list": (faults.CONTENT, lambda: turns(("user", [{"type": "text", "text": MARK}]), ASSISTANT)),
    "a role misspelt": (faults.ROLE, lambda: turns(("usr", MARK), ASSISTANT)),
    "a late system turn": (faults.LATE_SYSTEM, lambda: turns(USER, ASSISTANT, SYSTEM, USER, ASSISTANT)),
    "two user turns": (faults.TWO_USERS, lambda: turns(USER, USER, ASSISTANT)),
    "two assistant turns": (faults.TWO_ASSISTANTS, lambda: turns(USER, ASSISTANT, ASSISTANT)),
    "the assistant first": (faults.ASSISTANT_FIRST, lambda: turns(ASSISTANT, USER, ASSISTANT)),
    "a user turn last": (faults.USER_LAST, lambda: turns(USER, ASSISTANT, USER)),
    "no assistant turn": (faults.NO_ASSISTANT, lambda: turns(SYSTEM, USER)),
    "an empty answer": (faults.NO_ANSWER, lambda: turns(USER, ("assistant", ""))),
    "a blank answer": (faults.NO_ANSWER, lambda: turns(USER, ("assistant", " \n"))),
    "an empty question": (faults.NO_QUESTION, lambda: turns(("user", ""), ASSISTANT)),
    "lost characters": (faults.REPLACED, lambda: said("caf\ufffd")),
    "a NUL": (faults.CONTROL, lambda: said("a\x00b")),
    "half a surrogate pair": (faults.SURROGATE, lambda: said("\ud83d")),
    "mojibake": (faults.MOJIBAKE, lambda: said("Itâ€™s")),
    "a stop token in the text": (faults.SPECIAL, lambda: said("done<|end|>")),
    "a turn token in the text": (faults.SPECIAL, lambda: said("<|user|>done")),
    "bytes that are no UTF-8": ("bytes that are no UTF-8", lambda: json.dumps(said("X")).encode()[:-9] + b"\xff\xfe"),
    "a cut line": ("a broken line of JSON", lambda: json.dumps(said("never ends")).encode()[:-9]),
    "a list for an object": ("no JSON object", lambda: json.dumps(["user", MARK]).encode()),
    "over-long": (LONGER, lambda: said("on and on " * 400)),
}
"""Kinds of faults of a line of conversations: what they are called when met, and how they are made."""

PAIRS: dict[str, tuple[str, Make]] = {
    "no rejected side": (faults.NO_SIDE, lambda: {**sound_pair(0), "rejected": []}),
    "a side is null": (faults.NO_SIDE, lambda: {**sound_pair(0), "chosen": None}),
    "an empty side": (faults.NO_ANSWER, lambda: {**sound_pair(0), "chosen": [{"role": "assistant", "content": ""}]}),
    "the same twice": (faults.SAME_SIDES, lambda: {**sound_pair(0), "rejected": sound_pair(0)["chosen"]}),
    "no prompt": (faults.NO_PROMPT, lambda: {**sound_pair(0), "prompt": []}),
    "another prompt": (faults.NOT_SHARED, lambda: {**sound_pair(0), "rejected": turns(USER, ASSISTANT)["messages"]}),
    "a stop token": (faults.SPECIAL, lambda: {**sound_pair(0), "chosen": said("done<|end|>")["messages"][1:]}),
}
TEXTS: dict[str, tuple[str, Make]] = {
    "null": (faults.NOT_TEXT, lambda: {"text": None}),
    "empty": (faults.EMPTY, lambda: {"text": ""}),
    "blank": (faults.BLANK, lambda: {"text": " \n\u3000"}),
    "lost characters": (faults.REPLACED, lambda: {"text": f"{MARK} caf\ufffd"}),
    "a NUL": (faults.CONTROL, lambda: {"text": f"{MARK} \x00"}),
    "mojibake": (faults.MOJIBAKE, lambda: {"text": f"{MARK} schÃ¶n"}),
    "a turn token in the text": (faults.SPECIAL, lambda: {"text": f"{MARK} <|assistant|>"}),
    "bytes that are no UTF-8": ("bytes that are no UTF-8", lambda: f"{MARK} ".encode() + b"\xff"),
}

RELATED = {
    "a repeat": duplicates.REPEAT,
    "a near repeat": duplicates.NEAR,
    "a held-out row": duplicates.COPY,
    "a held-out question": duplicates.PROMPT,
}
"""Kinds that refer to another row."""


@dataclass
class Faulty:
    """A plan of `rows` rows, `each` of every kind of fault among them, at random places.

    Besides `kinds` there are four that refer to another row: repeats and near repeats of an earlier sound row, copies
    and questions of held-out rows. Held-out rows are the sound rows rows, rows + 1, ...
    """

    rows: int
    kinds: dict[str, tuple[str, Make]]
    sound: Callable[[int], dict[str, Any]]
    each: int
    seed: int = 0
    kind_of: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        names = [*self.kinds, *(RELATED if self.sound is not sound_pair else ())]
        if self.sound is sound_text:
            names.remove("a held-out question")
        places = random.Random(self.seed).sample(range(1, self.rows), self.each * len(names))
        self.kind_of = {place: names[number % len(names)] for number, place in enumerate(places)}

    def __iter__(self) -> Iterator[dict[str, Any] | bytes]:
        """The rows in order; bytes for a line that is no JSON."""
        before = 0
        for index in range(self.rows):
            kind = self.kind_of.get(index)
            if kind is None:
                before = index
                yield self.sound(index)
            elif kind in self.kinds:
                yield self.kinds[kind][1]()
            else:
                yield self._related(kind, index, before)

    def _related(self, kind: str, index: int, before: int) -> dict[str, Any]:
        if kind == "a repeat":
            return self.sound(before)
        if kind == "a near repeat":  # of 22 grams the last is another
            row, more = self.sound(before), "l" + WORDS[index % len(WORDS)]
            if "text" in row:
                return {"text": row["text"] + more}
            asked, answered = row["messages"]
            return {"messages": [asked, {**answered, "content": answered["content"] + more}]}
        row = self.sound(self.rows + index % self.each)
        return row if kind == "a held-out row" else turns(("user", row["messages"][0]["content"]), ASSISTANT)

    def expected(self) -> dict[str, list[int]]:
        """What each fault is called -> its rows, counted from 1, in order."""
        found: dict[str, list[int]] = {}
        for index in sorted(self.kind_of):
            kind = self.kind_of[index]
            name = self.kinds[kind][0] if kind in self.kinds else RELATED[kind]
            found.setdefault(name, []).append(index + 1)
        return found

    def write_lines(self, path: Path) -> None:
        """The rows as JSON lines."""
        with path.open("wb") as file:
            for row in self:
                file.write((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n")

    def write_held_out(self, path: Path) -> None:
        """The held-out rows as JSON lines."""
        rows = (self.sound(self.rows + number) for number in range(self.each))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write_parquet(self, path: Path) -> None:
        """Texts as parquet, in row groups of 10,000 rows; bytes that are no UTF-8 stand in the column as they are."""
        rows = iter(self)
        with pyarrow.parquet.ParquetWriter(path, pyarrow.schema({"text": pyarrow.string()})) as file:
            for _ in range(0, self.rows, 10_000):
                group = [row if isinstance(row, bytes) else row["text"] for row in islice(rows, 10_000)]
                texts = [text.encode() if isinstance(text, str) else text for text in group]
                column = pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())
                file.write_table(pyarrow.table({"text": column}))


if __name__ == "__main__":
    plan = Faulty(int(sys.argv[2]), CONVERSATIONS, sound, each=int(sys.argv[2]) // 1000)
    plan.write_lines(Path(sys.argv[1]))
    for name, places in plan.expected().items():
        print(f"{len(places)} rows: {name}: {', '.join(map(str, places[:5]))}, ...")
