"""Every fault of a row is found where it stands, and sound rows raise no alarm."""

import ast
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import CONVERSATIONS, TEXTS, conversation

from fledge.data import faults
from fledge.data.faults import FAULTS, KEEPABLE, Tally, fault_of, refusal, special_text, truncated_fault


TOKENS = ["<|pad|>", "<|end|>", "<|user|>", "</s>"]
SPECIAL = special_text(TOKENS)


def turns(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def pair(**sides: Any) -> dict[str, Any]:
    """A sound preference pair, with the given sides instead; a string stands for one turn."""
    whole = {"prompt": "Why?", "chosen": "Because.", "rejected": "No.", **sides}
    role = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {n: [{"role": role[n], "content": v}] if isinstance(v, str) else v for n, v in whole.items()}


ASK, SAY = ("user", "Hi"), ("assistant", "Hello")
PLANTED = [
    (faults.NO_SHAPE, {"body": "The wrong column."}),
    (faults.NOT_TEXT, {"text": None}),
    (faults.NOT_TEXT, {"text": 7}),
    (faults.EMPTY, {"text": ""}),
    (faults.BLANK, {"text": " \n\t\u3000\xa0"}),
    (faults.REPLACED, {"text": "The caf\ufffd is closed."}),
    (faults.REPLACED, {"text": "锟斤拷的世界"}),
    (faults.CONTROL, {"text": "cut\x00here"}),
    (faults.CONTROL, {"text": "it\x92s Windows-1252 read as Latin-1"}),
    (faults.CONTROL, turns(("user", "\x1b[31mred"), SAY)),
    (faults.SURROGATE, {"text": "half a smile \ud83d"}),
    (faults.MOJIBAKE, {"text": "The cafÃ© is closed."}),
    (faults.MOJIBAKE, {"text": "Itâ€™s the reader who pays."}),
    (faults.MOJIBAKE, turns(("user", "床前明月光".encode().decode("latin-1")), SAY)),
    (faults.MOJIBAKE, pair(rejected="Это".encode().decode("cp1252"))),
    (faults.SPECIAL, {"text": "ends here<|end|>or not"}),
    (faults.SPECIAL, turns(ASK, ("assistant", "Hello</s>"))),
    (faults.SPECIAL, pair(prompt="<|user|>Why?")),
    (faults.NO_LIST, {"messages": None}),
    (faults.NO_LIST, {"messages": "user: Hi"}),
    (faults.NO_MESSAGE, {"messages": []}),
    (faults.NO_OBJECT, {"messages": ["Hi", "Hello"]}),
    (faults.NO_OBJECT, {"messages": [None]}),
    (faults.NO_OBJECT, {"messages": [{"role": "user"}]}),
    (faults.NO_OBJECT, {"messages": [{"content": "Hi"}]}),
    (faults.NO_OBJECT, turns((None, "Hi"), SAY)),
    (faults.CONTENT, turns(ASK, ("assistant", None))),
    (faults.CONTENT, turns(("user", 3), SAY)),
    (faults.CONTENT, turns(("user", [{"type": "text", "text": "Hi"}]), SAY)),
    (faults.ROLE, turns(("usr", "Hi"), SAY)),
    (faults.ROLE, turns((["user"], "Hi"), SAY)),
    (faults.ROLE, turns(ASK, SAY, ("tool", "x"))),
    (faults.LATE_SYSTEM, turns(ASK, SAY, ("system", "Be brief."), ASK, SAY)),
    (faults.LATE_SYSTEM, turns(("system", "Be."), ("system", "Be brief."), ASK, SAY)),
    (faults.TWO_USERS, turns(ASK, ASK, SAY)),
    (faults.TWO_ASSISTANTS, turns(ASK, SAY, SAY)),
    (faults.ASSISTANT_FIRST, turns(SAY, ASK, SAY)),
    (faults.ASSISTANT_FIRST, turns(("system", "Be brief."), SAY)),
    (faults.USER_LAST, turns(ASK, SAY, ASK)),
    (faults.NO_ASSISTANT, turns(ASK)),
    (faults.NO_ASSISTANT, turns(("system", "Be brief."))),
    (faults.NO_QUESTION, turns(("user", " "), SAY)),
    (faults.NO_ANSWER, turns(ASK, ("assistant", ""))),
    (faults.NO_ANSWER, turns(ASK, SAY, ASK, ("assistant", "\n"))),
    (faults.NO_PROMPT, pair(prompt=[])),
    (faults.NO_PROMPT, pair(prompt=None)),
    (faults.NO_SIDE, pair(chosen=None)),
    (faults.NO_SIDE, pair(rejected=[])),
    (faults.NO_SIDE, {"prompt": pair()["prompt"], "chosen": pair()["chosen"]}),
    (faults.NO_LIST, {**pair(), "rejected": "No."}),
    (faults.NO_LIST, {**pair(), "prompt": "Why?"}),
    (faults.NO_OBJECT, {**pair(), "chosen": ["Because."]}),
    (faults.NO_ANSWER, pair(chosen=" ")),
    (faults.NOT_SHARED, pair(prompt=[], chosen=turns(ASK, SAY)["messages"])),
    (faults.NOT_SHARED, pair(rejected=turns(ASK, SAY)["messages"])),
    (faults.SAME_SIDES, pair(rejected="Because.")),
]


@pytest.mark.parametrize(("fault", "values"), PLANTED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_planted_fault_is_named(fault: str, values: dict[str, Any]) -> None:
    assert fault_of(values, SPECIAL) == fault


def test_every_fault_of_the_table_is_planted_and_has_a_fix() -> None:
    cut = {truncated_fault(range(9), [1], [2], 9), truncated_fault([1], [5, 6], [5, 7], 2)}
    assert {fault for fault, _ in PLANTED} | cut == set(FAULTS)
    assert set(FAULTS) > KEEPABLE
    source = ast.parse(Path(faults.__file__).read_text(encoding="utf-8"))
    names = [node.value.value for node in source.body if isinstance(node, ast.Assign) and is_text(node.value)]
    assert sorted(names) == sorted(FAULTS)
    for fault in FAULTS:
        assert refusal(fault, "a.jsonl:3").startswith(f"a.jsonl:3: {fault}; {FAULTS[fault]}; or write `faulty: drop`")


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


SOUND = [
    *({"text": text} for text in TEXTS),
    *CONVERSATIONS,
    {"text": "The kettle was on. “You’re early,” she said — and the café, naïvely, wasn’t open. (£3.50, 20 °C, ½.)"},
    {"text": "Le prix de l’été\xa0: « À LA CARTE », voilà\xa0»; CAFÉ»; NOËL” — Ça y est\xa0! Où ça\xa0?"},
    {"text": "¿Qué? ¡Él! Größe, ÄÖÜß; São João, NÃO; İstanbul; ČESKÁ; Ελληνικά; русский; हिन्दी; 한국어; 日本語"},
    {"text": "def f(x):\r\n\treturn x < 3 or x > 5  # 3 <= x <= 5, <b>bold</b>, a|b, <|> and user: Hi"},
    {"text": "form\x0cfeed 👩\u200d🚀 \ufeffbyte order mark, zero\u200bwidth, soft\xadhyphen, ··········, ÀÀÀÀÀÀ"},
    turns(("system", ""), ASK, SAY),
    {**conversation("Hi", "Hello"), "text": None, "score": None},
    pair(),
    pair(chosen=turns(SAY, ASK, SAY)["messages"], prompt=turns(("system", "Be."), ASK, SAY, ASK)["messages"]),
]


@pytest.mark.parametrize("values", SOUND, ids=range(len(SOUND)))
def test_a_sound_row_raises_no_alarm(values: dict[str, Any]) -> None:
    assert fault_of(values, SPECIAL) is None


def test_special_tokens_are_found_only_where_there_are_any() -> None:
    assert fault_of({"text": "a <|end|> b"}) is None
    assert special_text(token for token in []) is None
    assert fault_of({"text": "a <|end|> b"}, pickle.loads(pickle.dumps(SPECIAL))) == faults.SPECIAL


def test_a_pair_is_judged_as_dpo_will_cut_it() -> None:
    prompt, chosen, rejected = [1, 2, 3], [4, 5, 6], [4, 5, 7]
    expected = {2: faults.NO_ROOM, 3: faults.NO_ROOM, 4: faults.SAME_CUT, 5: faults.SAME_CUT, 6: None, 100: None}
    assert {n: truncated_fault(prompt, chosen, rejected, n) for n in expected} == expected
    assert truncated_fault(prompt, [4], [4, 5], 4) == faults.SAME_CUT  # the stop token is cut as well
    assert truncated_fault(prompt, [4], [4, 5], 5) is None


# --- the tally


def tally_of(places: list[tuple[str, str]]) -> Tally:
    tally = Tally()
    for fault, place in places:
        tally.rows += 1
        if fault:
            tally.add(fault, place)
    return tally


@pytest.mark.parametrize("cuts", [[], [50], [1, 2, 3, 60], list(range(1, 100))])
def test_the_tally_is_the_same_however_the_rows_were_shared_out(cuts: list[int]) -> None:
    chance = random.Random(0)
    rows = [(chance.choice(["", "", *list(FAULTS)[:4]]), f"a.jsonl:{number}") for number in range(1, 101)]
    whole = tally_of(rows)
    parts = [tally_of(rows[start:end]) for start, end in zip([0, *cuts], [*cuts, 100], strict=True)]
    assert Tally.merged(parts) == whole
    kept = json.loads(json.dumps(whole.to_json()))
    assert Tally.from_json(100, kept) == whole
    for fault in list(FAULTS)[:4]:
        places = [place for name, place in rows if name == fault]
        assert kept[fault] == {"rows": len(places), "first": places[:5]}


def test_the_warning_lines_say_how_many_of_what_and_where() -> None:
    places = [("empty text", f"a.jsonl:{number}") for number in range(1, 8)] + [("no message", "b.parquet:2")]
    tally = tally_of([*places, *[("", "b.parquet:9")] * 92])
    assert tally.warnings("train") == [
        "train: dropped 7 of 100 rows (7.00%): empty text: a.jsonl:1, a.jsonl:2, a.jsonl:3, a.jsonl:4, a.jsonl:5, ...",
        "train: dropped 1 of 100 rows (1.00%): no message: b.parquet:2",
    ]
    assert Tally().warnings("train") == []
