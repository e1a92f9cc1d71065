"""Repeats and copies: planted ones are found, as often as theory says, and clean rows are left alone."""

import pickle
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from conftest import CONVERSATIONS, TEXTS, conversation

from fledge.data import duplicates, grams
from fledge.data.duplicates import (
    BANDS,
    COPY,
    HASHES,
    OVERLAP,
    PROMPT,
    Batch,
    HeldOut,
    exact_repeats,
    near_repeats,
    refusal,
)
from fledge.data.grams import GRAM
from fledge.data.sources import Row


def words(chance: random.Random, count: int) -> list[str]:
    """Words of a vocabulary so large that two texts share no 13-gram by chance."""
    return [f"w{chance.randrange(100_000)}" for _ in range(count)]


def texts(*values: str) -> list[dict[str, Any]]:
    return [{"text": value} for value in values]


def held_out(rows: list[dict[str, Any]], **keys: float) -> HeldOut:
    return HeldOut([Row(values, f"eval:{number}") for number, values in enumerate(rows, 1)], **keys)


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    sides = {"prompt": ("user", prompt), "chosen": ("assistant", chosen), "rejected": ("assistant", rejected)}
    return {name: [{"role": role, "content": content}] for name, (role, content) in sides.items()}


# --- exact


SAME = [
    ("The Kettle was on.", "the kettle  was\n on. "),
    ("caf\u00e9, 100%", "cafe\u0301, １００％"),  # composed and decomposed, full width
    ("床前明月光，疑是地上霜。", "床前明月光,疑是地上霜。\u3000"),
]
OTHER = [("2 + 3 = ?", "2 - 3 = ?"), ("3.5", "35"), ("ab c", "a bc"), ("ab", "ba"), ("", "a"), ("!!!", "???")]


def test_exact_repeats_ignore_case_white_space_and_compatibility_forms_and_nothing_else() -> None:
    for one, two in SAME:
        assert exact_repeats(Batch(texts(one, two)).exact_keys()).tolist() == [-1, 0]
    for one, two in OTHER:
        assert exact_repeats(Batch(texts(one, two)).exact_keys()).tolist() == [-1, -1]


def test_who_said_what_belongs_to_a_conversation() -> None:
    rows = [
        conversation("Hi", "Hello"),
        conversation("Hello", "Hi"),
        conversation("Hi", "Hello", system=" "),
        {"text": "Hi\nHello"},
        {"messages": [{"role": "user", "content": "Hi\nHello"}]},
        pair("Hi", "Hello", "Go"),
        pair("Hi", "Go", "Hello"),
        conversation("hi ", "HELLO"),
        pair("Hi", "Hello", "go"),
    ]
    assert exact_repeats(Batch(rows).exact_keys()).tolist() == [-1] * 7 + [0, 5]


def test_the_first_of_many_repeats_stays() -> None:
    chance = random.Random(0)
    said = [chance.choice("abcdefgh") * chance.randint(1, 3) for _ in range(500)]
    expected = [said.index(text) if said.index(text) < number else -1 for number, text in enumerate(said)]
    assert exact_repeats(Batch(texts(*said)).exact_keys()).tolist() == expected
    assert exact_repeats(np.zeros((0, 2), np.uint64)).tolist() == []


def test_hashes_are_the_same_in_every_batch_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(1)
    rows = [*texts(*TEXTS, *(" ".join(words(chance, 40)) for _ in range(30))), *CONVERSATIONS]
    whole = Batch(rows)
    for size in (1, 7):
        monkeypatch.setattr(grams, "BATCH", 100 * size)
        parts = [Batch(rows[start : start + size]) for start in range(0, len(rows), size)]
        for name in ("exact_keys", "band_keys"):
            cut = np.concatenate([getattr(part, name)() for part in parts])
            assert np.array_equal(cut, getattr(whole, name)())
    code = (
        "from fledge.data.duplicates import Batch; b = Batch([{'text': 'The sun ' * 9}]); print(b.band_keys()[0, 0])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(said.stdout) == Batch(texts("The sun " * 9)).band_keys()[0, 0]


# --- near


def similar(chance: random.Random, jaccard: float, count: int = 400) -> tuple[str, str]:
    """Two texts of `count` 13-grams each, of which they share as many as make that Jaccard similarity."""
    shared = round(2 * count * jaccard / (1 + jaccard))
    head = words(chance, shared + GRAM - 1)
    return tuple(" ".join(head + words(chance, count - shared)) for _ in range(2))


@pytest.mark.parametrize("jaccard", [0.9, 0.8, 0.65, 0.5, 0.3])
def test_near_repeats_are_found_as_often_as_the_formula_says(jaccard: float) -> None:
    chance, pairs = random.Random(2), 500
    rows = texts(*(text for _ in range(pairs) for text in similar(chance, jaccard)))
    of = near_repeats(Batch(rows).band_keys())
    assert (of[::2] == -1).all()
    assert set(of[1::2] - np.arange(0, 2 * pairs, 2)) <= {
        0,
        *(-1 - np.arange(0, 2 * pairs, 2)),
    }  # its own pair or none
    found = (of[1::2] >= 0).mean()
    expected = 1 - (1 - jaccard**HASHES) ** BANDS
    assert found == pytest.approx(expected, abs=4 * (expected * (1 - expected) / pairs) ** 0.5 + 1 / pairs)


def test_near_repeats_of_chinese_go_by_characters() -> None:
    chance = random.Random(3)
    poem = "".join(chr(chance.randrange(0x4E00, 0x9FA5)) for _ in range(112))
    changed = poem[:100] + "月" + poem[101:]
    other = "".join(chr(chance.randrange(0x4E00, 0x9FA5)) for _ in range(112))
    verses = "，\n".join(changed[start : start + 7] for start in range(0, 112, 7))
    assert near_repeats(Batch(texts(poem, other, changed, verses)).band_keys()).tolist() == [-1, -1, 0, 0]
    assert grams.length(poem) == 112 and grams.length("月光 by Li Bai, 3月") == 2 + 3 + 2
    assert grams.length("ひらがな カタカナ ไทย 한국어 문장") == 4 + 4 + 3 + 2


def test_rows_without_a_gram_are_never_near_repeats() -> None:
    short = " ".join("abcdefghijkl")
    assert near_repeats(Batch(texts(short, short, "", "!?", short + " m", short + " m")).band_keys()).tolist() == [
        *[-1] * 5,
        4,
    ]


def test_a_repeat_of_a_repeat_names_the_earliest_it_resembles() -> None:
    bands = np.arange(1, 4 * BANDS + 1, dtype=np.uint64).reshape(4, BANDS)
    bands[2, 5], bands[3, 7] = bands[0, 5], bands[2, 7]
    assert near_repeats(bands).tolist() == [-1, -1, 0, 2]


# --- held-out rows


def test_copies_of_held_out_rows_are_found_and_nothing_else() -> None:
    chance = random.Random(4)
    clean = [" ".join(words(chance, 150)) for _ in range(300)]
    kept = [" ".join(words(chance, 150)) for _ in range(100)]
    search = held_out([*texts(*kept), conversation("Who wrote the poem about the moon?", "Li Bai."), *texts(*TEXTS)])
    assert search.find(Batch(texts(*clean))) == [None] * 300

    assert search.find(Batch(texts(*kept))) == [(COPY, f"eval:{number}") for number in range(1, 101)]
    assert search.find(Batch(texts(*(text.upper() + "\n" for text in kept)))) == search.find(Batch(texts(*kept)))
    assert search.find(Batch(texts(TEXTS[0], TEXTS[7]))) == [(COPY, "eval:102"), (COPY, "eval:109")]
    inside = [
        " ".join([clean[number], text[100:700].replace(" ", " , "), clean[-1]]) for number, text in enumerate(kept)
    ]
    assert search.find(Batch(texts(*inside))) == [(OVERLAP, f"eval:{number}") for number in range(1, 101)]
    answered = [conversation("Say something.", text + " And no more.") for text in kept]
    assert search.find(Batch(answered)) == [(OVERLAP, f"eval:{number}") for number in range(1, 101)]
    chosen = [pair("Say something.", "No.", text + " And no more.") for text in kept]
    assert search.find(Batch(chosen)) == [(OVERLAP, f"eval:{number}") for number in range(1, 101)]
    question = "who wrote the poem about the moon?"
    rows = [conversation(question, "Du Fu."), pair(question, "Li Bai.", "Du Fu."), {"text": question}]
    rows += [conversation("Who wrote it?", "Li Bai."), conversation("Hi", "Hello", question, "Li Bai.")]
    assert search.find(Batch(rows)) == [(PROMPT, "eval:101")] * 3 + [None] * 2


def test_a_greeting_is_no_held_out_prompt() -> None:
    search = held_out([conversation("Hi, how are you?", "Fine."), conversation("Hi, how are you today?", "Fine.")])
    rows = [conversation("Hi, how are you?", "Well."), conversation("Hi, how are you today?", "Well.")]
    assert search.find(Batch(rows)) == [None, (PROMPT, "eval:2")]
    assert search.find(Batch([conversation("Hi, how are you?", "Fine.")])) == [(COPY, "eval:1")]


@pytest.mark.parametrize(("edited", "at_least"), [(0.01, 1.0), (0.03, 0.99), (0.05, 0.95)])
def test_edited_copies_are_found(edited: float, at_least: float) -> None:
    """A gram survives with probability (1 - edited)**13: 0.88, 0.67 and 0.51, against an overlap of 0.3."""
    chance = random.Random(5)
    kept = [words(chance, 200) for _ in range(400)]
    search = held_out(texts(*map(" ".join, kept)))
    rows = [" ".join("changed" if chance.random() < edited else word for word in text) for text in kept]
    found = search.find(Batch(texts(*rows)))
    right = [copy is not None and copy[1] == f"eval:{number}" for number, copy in enumerate(found, 1)]
    assert sum(right) >= at_least * len(kept)
    assert all(copy is None or ok for copy, ok in zip(found, right, strict=True))


def grams_of(text: str) -> set[tuple[str, ...]]:
    said = text.split()
    return {tuple(said[start : start + GRAM]) for start in range(len(said) - GRAM + 1)}


@pytest.mark.parametrize("overlap", [0, 0.05, 0.3, 1])
def test_overlap_agrees_with_sets_of_words(overlap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(6)
    phrases = [words(chance, chance.randint(5, 30)) for _ in range(20)]

    def document() -> str:
        return " ".join(word for _ in range(chance.randint(1, 6)) for word in chance.choice(phrases))

    kept, rows = [document() for _ in range(40)], [document() for _ in range(200)]
    monkeypatch.setattr(grams, "BATCH", 2000)
    found = pickle.loads(pickle.dumps(held_out(texts(*kept), overlap=overlap))).find(Batch(texts(*rows)))
    kinds, looked_for = set(), [grams_of(text) for text in kept]
    for row, copy in zip(rows, found, strict=True):
        held = grams_of(row)
        shares = [len(held & wanted) / max(len(wanted), 1) for wanted in looked_for]
        best = max(range(len(kept)), key=shares.__getitem__)
        if row in kept:
            expected = (COPY, f"eval:{kept.index(row) + 1}")
        elif shares[best] > 0 and shares[best] >= overlap:
            expected = (OVERLAP, f"eval:{best + 1}")
        else:
            expected = None
        assert copy == expected
        kinds.add(copy and copy[0])
    assert {None, OVERLAP} <= kinds


def test_nothing_held_out_finds_nothing() -> None:
    assert held_out([]).find(Batch([*texts(*TEXTS), *CONVERSATIONS])) == [None] * (len(TEXTS) + len(CONVERSATIONS))
    assert held_out(texts("short")).find(Batch([])) == []


def test_a_refusal_names_both_rows_and_the_key() -> None:
    assert refusal(duplicates.NEAR, "a.jsonl:9", "a.jsonl:3", "near_duplicates") == (
        "a.jsonl:9: nearly repeats an earlier row: a.jsonl:3; take one of the two out, or write "
        "`near_duplicates: drop` to leave such rows out, counted"
    )
