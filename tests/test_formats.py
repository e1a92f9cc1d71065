"""Formats: the column layouts of common hub sets, recognised and turned into the shapes that stages read."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from trl import extract_prompt, maybe_convert_to_chatml

from fledge.arguments import DatasetEntry
from fledge.data.formats import recognise
from fledge.data.sources import open_sources, read_rows


def says(*turns: str, first: str = "user") -> list[dict[str, str]]:
    """Messages of user and assistant in turn."""
    order = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": order[index % 2], "content": turn} for index, turn in enumerate(turns)]


def answer(text: str) -> list[dict[str, str]]:
    return says(text, first="assistant")


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def shared(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    """ShareGPT's from and value."""
    return [{"from": speaker, "value": value} for speaker, value in turns]


CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "fineweb-edu": ({"text": "A.", "id": "1", "score": 3.1}, "text", {"text": "A.", "id": "1", "score": 3.1}),
    "cosmopedia": ({"prompt": "Write.", "text": "A.", "format": "x"}, "text", {"text": "A.", "format": "x"}),
    "ultrachat": (
        {"prompt": "Hi", "prompt_id": "7", "messages": says("Hi", "Hello")},
        "messages",
        {"prompt_id": "7", "messages": says("Hi", "Hello")},
    ),
    "slimorca": (
        {"conversations": shared([("system", "Be brief."), ("human", "Hi"), ("gpt", "Hello")]), "weight": 1.0},
        "messages from conversations",
        {"messages": [system("Be brief."), *says("Hi", "Hello")], "weight": 1.0},
    ),
    "magpie": (
        {"conversation": says("Hi", "Hello"), "instruction": "Hi", "response": "Hello"},
        "messages from conversation",
        {"messages": says("Hi", "Hello"), "instruction": "Hi", "response": "Hello"},
    ),
    "capybara": (
        {"conversation": [{"input": "Hi", "output": "Hello"}, {"input": "More", "output": "No"}], "source": "s"},
        "messages from conversation",
        {"messages": says("Hi", "Hello", "More", "No"), "source": "s"},
    ),
    "alpaca": (
        {"instruction": "Translate.", "input": "Chat", "output": "Cat", "text": "Below is ..."},
        "messages from instruction, input, output",
        {"messages": says("Translate.\n\nChat", "Cat")},
    ),
    "alpaca without input": (
        {"instruction": "Say yes.", "input": "", "output": "yes"},
        "messages from instruction, input, output",
        {"messages": says("Say yes.", "yes")},
    ),
    "dolly": (
        {"instruction": "When?", "context": "In 1900.", "response": "1900", "category": "qa"},
        "messages from instruction, context, response",
        {"messages": says("When?\n\nIn 1900.", "1900"), "category": "qa"},
    ),
    "openorca": (
        {"id": "1", "system_prompt": "Be brief.", "question": "Hi", "response": "Hello"},
        "messages from system_prompt, question, response",
        {"id": "1", "messages": [system("Be brief."), *says("Hi", "Hello")]},
    ),
    "gsm8k": ({"question": "1+1?", "answer": "2"}, "messages from question, answer", {"messages": says("1+1?", "2")}),
    "metamath": (
        {"type": "GSM", "query": "1+1?", "original_question": "?", "response": "2"},
        "messages from query, response",
        {"type": "GSM", "messages": says("1+1?", "2"), "original_question": "?"},
    ),
    "prompt and completion": (
        {"prompt": "Hi", "completion": "Hello"},
        "messages from prompt, completion",
        {"messages": says("Hi", "Hello")},
    ),
    "prompt and completion as messages": (
        {"prompt": says("Hi"), "completion": answer("Hello")},
        "messages from prompt, completion",
        {"messages": says("Hi", "Hello")},
    ),
    "requests": (
        {"prompt": "Hi", "reference": "Hello"},
        "prompt",
        {"prompt": says("Hi"), "reference": "Hello"},
    ),
    "ultrafeedback_binarized": (
        {
            "prompt": "Hi",
            "chosen": says("Hi", "Hello"),
            "rejected": says("Hi", "Go"),
            "messages": says("Hi", "Hello"),
            "score_chosen": 8.0,
        },
        "preference from prompt, chosen, rejected",
        {"prompt": says("Hi"), "chosen": answer("Hello"), "rejected": answer("Go"), "score_chosen": 8.0},
    ),
    "several turns": (
        {"chosen": says("Hi", "Hello", "Well?", "Well."), "rejected": says("Hi", "Hello", "Well?", "No.")},
        "preference from chosen, rejected",
        {"prompt": says("Hi", "Hello", "Well?"), "chosen": answer("Well."), "rejected": answer("No.")},
    ),
    "pairs of our own": (
        {"prompt": says("Hi"), "chosen": answer("Hello"), "rejected": answer("Go"), "form": "x"},
        "preference from prompt, chosen, rejected",
        {"prompt": says("Hi"), "chosen": answer("Hello"), "rejected": answer("Go"), "form": "x"},
    ),
    "a prompt of messages repeated in both sides": (
        {"prompt": says("Hi"), "chosen": says("Hi", "Hello"), "rejected": says("Hi", "Go")},
        "preference from prompt, chosen, rejected",
        {"prompt": says("Hi"), "chosen": answer("Hello"), "rejected": answer("Go")},
    ),
    "orca_dpo_pairs": (
        {"system": "Be brief.", "question": "Hi", "chosen": "Hello", "rejected": "Go"},
        "preference from system, question, chosen, rejected",
        {"prompt": [system("Be brief."), *says("Hi")], "chosen": answer("Hello"), "rejected": answer("Go")},
    ),
    "orca_dpo_pairs without system": (
        {"system": "", "question": "Hi", "chosen": "Hello", "rejected": "Go"},
        "preference from system, question, chosen, rejected",
        {"prompt": says("Hi"), "chosen": answer("Hello"), "rejected": answer("Go")},
    ),
    # The answers begin with the same letters: what they share is no prompt.
    "hh-rlhf": (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: I do.", "rejected": "\n\nHuman: Hi\n\nAssistant: I don't."},
        "preference from chosen, rejected",
        {"prompt": says("Hi"), "chosen": answer("I do."), "rejected": answer("I don't.")},
    ),
    "rm-static": (
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "response": " x", "chosen": " Hello", "rejected": " Go"},
        "preference from prompt, chosen, rejected",
        {"prompt": says("Hi"), "response": " x", "chosen": answer(" Hello"), "rejected": answer(" Go")},
    ),
    "sharegpt pairs": (
        {
            "conversations": shared([("human", "Hi")]),
            "chosen": shared([("human", "Hi"), ("gpt", "Hello")]),
            "rejected": shared([("human", "Hi"), ("gpt", "Go")]),
        },
        "preference from chosen, rejected",
        {
            "conversations": shared([("human", "Hi")]),
            "prompt": says("Hi"),
            "chosen": answer("Hello"),
            "rejected": answer("Go"),
        },
    ),
}


@pytest.mark.parametrize(("given", "name", "expected"), CASES.values(), ids=CASES)
def test_the_formats_of_common_sets(given: dict[str, Any], name: str, expected: dict[str, Any]) -> None:
    before = copy.deepcopy(given)
    found = recognise(list(given))
    assert found is not None and found.name == name
    assert found.convert(given) == expected
    assert given == before


FAULTY: list[Any] = [None, 7, "", [], ["Hi"], [None], [{"from": ["x"]}], [{"from": "gpt"}], [{}], {"role": "user"}]


@pytest.mark.parametrize("name", CASES)
def test_a_faulty_row_is_converted_without_raising(name: str) -> None:
    # What is wrong with it is named later, by its place; nothing may crash here or pass as something else.
    given, _, expected = CASES[name]
    found = recognise(list(given))
    assert found is not None
    shape = set(expected) & {"text", "messages", "prompt", "chosen", "rejected"}
    for column in given:
        for value in FAULTY:
            assert shape <= set(found.convert({**copy.deepcopy(given), column: value}))
        assert shape <= set(found.convert({other: value for other, value in given.items() if other != column}))
    assert shape <= set(found.convert({}))


def test_ours_agrees_with_trl_where_trl_is_right() -> None:
    for first, second in [
        (says("Hi", "Hello"), says("Hi", "Go")),
        (says("Hi", "Hello", "Well?", "Well."), says("Hi", "Hello", "Well?", "No.")),
        (says("Hi", "Hello", "Well?", "Well."), says("Hi", "Go", "Why?", "So.")),
        (says("Hi", "Hello"), says("Hi", "Hello")),
    ]:
        given = {"chosen": first, "rejected": second}
        ours = recognise(list(given))
        assert ours is not None and ours.convert(given) == extract_prompt(given)
    turns = {"conversations": shared([("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")])}
    ours = recognise(list(turns))
    assert ours is not None and ours.convert(turns) == maybe_convert_to_chatml(copy.deepcopy(turns))


def test_columns_that_are_not_understood_are_listed_with_those_that_are(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"title": "a", "body": "b"}\n')
    with pytest.raises(ValueError) as refused:
        open_sources([DatasetEntry(path=str(path))])
    message = str(refused.value)
    assert message.startswith(f"datasets[0]: {path}: nothing is known to read of the columns title, body; ")
    for understood in ("text", "conversations", "chosen and rejected", "instruction and output", "prompt"):
        assert understood in message
    assert [row.values for row in read_rows([DatasetEntry(path=str(path), columns={"text": "body"})])] == (
        [{"text": "b"}]
    )


def test_one_format_serves_a_whole_source(tmp_path: Path) -> None:
    # A row of other columns is not guessed at: what it lacks is None, and named as a fault.
    path = tmp_path / "a.jsonl"
    rows = [CASES["slimorca"][0], {"messages": says("Hi", "Hello")}, {"text": "A."}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [source] = open_sources([DatasetEntry(path=str(path))])
    assert source.format == "messages"
    converted = [row.values["messages"] for part in source.split() for row in part.rows()]
    assert converted == [None, says("Hi", "Hello"), None]
