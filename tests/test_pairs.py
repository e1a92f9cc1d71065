"""Given pairs: sets in the hub's shapes become pairs that DPO takes, and every faulty or over-long one is counted."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from conftest import recipe, write_lines
from transformers import PreTrainedTokenizerBase

from fledge.data import faults
from fledge.data.pairs import encode, read_pairs
from fledge.files import read_json
from fledge.stages import pairs
from fledge.stages.dpo import check_lengths


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def ultrafeedback(number: int) -> dict[str, Any]:
    """A row of argilla/ultrafeedback-binarized-preferences-cleaned."""
    asked = f"Name {number} rivers that reach the sea."
    sides = {"chosen": f"The first of the {number} is the Yellow River.", "rejected": "I do not know of any."}
    row: dict[str, Any] = {"source": "evol_instruct", "prompt": asked}
    for side, answer in sides.items():
        row |= {
            side: [turn("user", asked), turn("assistant", answer)],
            f"{side}-rating": 4.5,
            f"{side}-model": "gpt-4",
        }
    return row


def orca(number: int) -> dict[str, Any]:
    """A row of Intel/orca_dpo_pairs."""
    system = "You are an AI assistant. You will be given a task." if number % 2 else ""
    asked = f"Is {number} even?"
    return {"system": system, "question": asked, "chosen": ["no", "yes"][number % 2 == 0], "rejected": "Perhaps."}


def oasst2(number: int) -> dict[str, Any]:
    """A row of alexredna/oasst2_dpo_pairs; every third is German, the others ask what UltraFeedback asks."""
    german = number % 3 == 0
    asked = f"Nenne {number} Flüsse." if german else ultrafeedback(number)["prompt"]
    chosen, rejected = ([turn("user", asked), turn("assistant", said)] for said in ("The Rhine, and others.", "None."))
    return {
        "prompt_id": f"id-{number}",
        "prompt": asked,
        "messages": chosen,
        "chosen": chosen,
        "rejected": rejected,
        "score_chosen": 3.0,
        "score_rejected": 1.0,
        "lang": "de" if german else "en",
    }


@pytest.fixture
def hub(tmp_path: Path) -> list[dict[str, Any]]:
    """The three sets as entries: 40, 30 and 30 rows."""
    for name, shape, count in (("ultrafeedback", ultrafeedback, 40), ("oasst2", oasst2, 30)):
        table = pyarrow.Table.from_pylist([shape(number) for number in range(count)])
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    write_lines(tmp_path / "orca.jsonl", [orca(number) for number in range(30)])
    return [
        {"name": "ultrafeedback", "path": str(tmp_path / "ultrafeedback.parquet")},
        {"name": "orca", "path": str(tmp_path / "orca.jsonl")},
        {"name": "oasst2", "path": str(tmp_path / "oasst2.parquet"), "filter": {"lang": "en"}},
    ]


def made(folder: Path, entries: list[dict[str, Any]], **keys: Any) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """What the stage makes of the entries: training pairs, held-out pairs, and its results."""
    stated = recipe(folder, "pairs", datasets=entries, **keys)
    pairs.main(stated)
    train, heldout = (read_pairs(stated.output_dir / f"{split}.parquet").to_list() for split in ("train", "heldout"))
    return train, heldout, read_json(stated.output_dir / "summary.json")["results"]


def said(pair: dict[str, Any]) -> tuple[str, ...]:
    return tuple(message["content"] for side in ("prompt", "chosen", "rejected") for message in pair[side])


def test_the_sets_of_the_hub_become_one_list_of_pairs(hub: list[dict[str, Any]], tmp_path: Path) -> None:
    train, heldout, results = made(tmp_path, hub, heldout_ratio=0.2, seed=1)
    counts = {"ultrafeedback": 40, "orca": 30, "oasst2": 20}
    assert results["made"] == Counter(pair["made"] for pair in train + heldout) == counts
    assert results["pairs"] == len(train) + len(heldout) == results["rows"] == 90 and results["met"] == {}
    system = [(), ("You are an AI assistant. You will be given a task.",)]
    expected = [
        (u["prompt"], *(u[s][-1]["content"] for s in ("chosen", "rejected"))) for u in map(ultrafeedback, range(40))
    ]
    expected += [
        (*system[i % 2], o["question"], o["chosen"], o["rejected"]) for i, o in enumerate(map(orca, range(30)))
    ]
    expected += [(oasst2(i)["prompt"], "The Rhine, and others.", "None.") for i in range(30) if i % 3]
    assert sorted(map(said, train + heldout)) == sorted(expected)
    for pair in train + heldout:
        assert [message["role"] for message in pair["chosen"] + pair["rejected"]] == ["assistant"] * 2
        assert pair["prompt"][-1]["role"] == "user"
    # 70 prompts, of which two sets share 20: a fifth of them is held out, with all of their pairs.
    prompts = [{json.dumps(pair["prompt"]) for pair in some} for some in (train, heldout)]
    assert (len(prompts[0]), len(prompts[1]), prompts[0] & prompts[1]) == (56, 14, set())
    assert [pair["made"] for pair in train] != sorted(pair["made"] for pair in train)  # in random order


def test_the_same_seed_gives_the_same_pairs(hub: list[dict[str, Any]], tmp_path: Path) -> None:
    first, second, third = (made(tmp_path, hub, seed=seed)[:2] for seed in (1, 1, 2))
    assert first == second != third


def test_weights_are_shares_of_the_pairs(hub: list[dict[str, Any]], tmp_path: Path) -> None:
    for entry, weight in zip(hub, (0.5, 0.25, 0.25), strict=True):
        entry["weight"] = weight
    train, heldout, _ = made(tmp_path, hub, heldout_ratio=0.05, seed=3)
    counts = Counter(pair["made"] for pair in train)
    whole = Counter(pair["made"] for pair in train + heldout)
    assert counts["orca"] == pytest.approx(len(train) / 4, abs=1) and abs(counts["oasst2"] - counts["orca"]) <= 1
    assert counts["ultrafeedback"] == pytest.approx(len(train) / 2, abs=1)
    assert len({said(pair) for pair in train if pair["made"] == "oasst2"}) < counts["oasst2"]  # some of them twice
    assert whole["orca"] >= 30
    hub[2]["weight"], hub[1]["weight"] = 0.45, 0.05
    with pytest.raises(ValueError, match=r"oasst2: a weight of 0\.45 .* pairs, and it has .*; or raise max_repeats"):
        made(tmp_path, hub, max_repeats=1.0)


def pair(asked: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
    return {
        "prompt": asked if isinstance(asked, list) else [turn("user", asked)],
        "chosen": None if chosen is None else [turn("assistant", chosen)],
        "rejected": None if rejected is None else [turn("assistant", rejected)],
    }


SOUND = [pair(f"What is {number} and one?", f"{number + 1}.", f"{number}.") for number in range(20)]
FAULTY = [
    (faults.SAME_SIDES, pair("Why?", "Because.", "Because.")),
    (faults.NO_ANSWER, pair("Why?", "Because.", " ")),
    (faults.NO_SIDE, pair("Why?", "Because.", None)),
    (faults.NO_PROMPT, pair([], "Because.", "No.")),
    (faults.TWO_USERS, pair([turn("user", "Why"), turn("user", "not?")], "Because.", "No.")),
    (faults.MOJIBAKE, pair("Why?", "The cafÃ© is closed.", "No.")),
    (faults.SPECIAL, pair("Why?", "Because.<|end|>", "No.")),
    ("a broken line of JSON", '{"prompt": [{"role": "us'),
]
CHARACTERS = {faults.MOJIBAKE, faults.SPECIAL}


def lines(path: Path, rows: list[Any]) -> list[dict[str, Any]]:
    """An entry for a file of the rows; a text stands in it as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return [{"path": str(path)}]


@pytest.mark.parametrize("policy", ["drop", "keep"])
def test_faulty_pairs_are_counted_with_file_and_row(
    policy: str, tmp_path: Path, tokenizer_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pairs.jsonl"
    entries = lines(path, [*SOUND, *(row for _, row in FAULTY)])
    with caplog.at_level(logging.WARNING):
        train, heldout, results = made(tmp_path, entries, faulty=policy, tokenizer=tokenizer_folder)
    kept = CHARACTERS if policy == "keep" else set()
    assert results["pairs"] == len(train) + len(heldout) == len(SOUND) + len(kept)
    assert results["rows"] == len(SOUND) + len(FAULTY)
    assert results["met"] == {
        f"{'kept' if fault in kept else 'dropped'}: {fault}": {"rows": 1, "first": [f"{path}:{number}"]}
        for number, (fault, _) in enumerate(FAULTY, len(SOUND) + 1)
    }
    assert f"pairs: met 1 of 28 rows (3.57%): dropped: {faults.SAME_SIDES}: {path}:21" in caplog.text


@pytest.mark.parametrize(("fault", "row"), FAULTY, ids=[fault for fault, _ in FAULTY])
def test_the_first_faulty_pair_is_refused_by_default(
    fault: str, row: Any, tmp_path: Path, tokenizer_folder: Path
) -> None:
    entries = lines(tmp_path / "pairs.jsonl", [*SOUND, row])
    with pytest.raises(ValueError, match=rf"/pairs\.jsonl:21: {fault.replace('(', '.').replace(')', '.')}"):
        made(tmp_path, entries, tokenizer=tokenizer_folder)


def test_special_tokens_in_the_text_matter_only_to_a_tokenizer(tmp_path: Path) -> None:
    entries = lines(tmp_path / "pairs.jsonl", [*SOUND, dict(FAULTY)[faults.SPECIAL]])
    assert made(tmp_path, entries)[2]["pairs"] == 21


# --- lengths


def lengths(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt, and of the prompt with the longer answer."""
    prompt, chosen, rejected = encode(tokenizer, row)
    return len(prompt), len(prompt) + max(len(chosen), len(rejected))


LONG = pair("Count.", "one two three four five six seven eight nine ten", "No.")
LATE = pair(
    "Count.", "one two three four five six seven eight nine ten", "one two three four five six seven eight 9 10"
)
FULL = pair("Count to ten and then from ten to one, slowly, and say every number twice. " * 4, "one", "two")
LIMIT = 32


def test_over_long_pairs_are_counted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, tokenizer_folder: Path
) -> None:
    assert all(lengths(tokenizer, row)[1] > LIMIT for row in (LONG, LATE, FULL))
    assert all(lengths(tokenizer, row)[1] <= LIMIT for row in SOUND) and lengths(tokenizer, FULL)[0] > LIMIT
    path = tmp_path / "pairs.jsonl"
    entries = lines(path, [*SOUND, LONG, LATE, FULL])
    keys = {"tokenizer": tokenizer_folder, "max_length": LIMIT}
    dropped = made(tmp_path, entries, **keys, overlong="drop")[2]
    assert dropped["pairs"] == len(SOUND)
    assert dropped["met"] == {
        f"dropped: longer than {LIMIT} tokens": {"rows": 3, "first": [f"{path}:{n}" for n in (21, 22, 23)]}
    }
    train, heldout, cut = made(tmp_path, entries, **keys, overlong="truncate", faulty="drop")
    assert said(LONG) in map(said, train + heldout) and len(train + heldout) == len(SOUND) + 1
    assert {fault: met["first"] for fault, met in cut["met"].items()} == {
        f"dpo cuts its end: longer than {LIMIT} tokens": [f"{path}:21"],
        f"dropped: {faults.SAME_CUT}": [f"{path}:22"],
        f"dropped: {faults.NO_ROOM}": [f"{path}:23"],
    }
    with pytest.raises(ValueError, match=rf"pairs\.jsonl:21: a pair of \d+ tokens, and max_length is {LIMIT}; raise"):
        made(tmp_path, entries, **keys)
    with pytest.raises(ValueError, match=rf"pairs\.jsonl:22: {faults.SAME_CUT}; "):
        made(tmp_path, entries, **keys, overlong="truncate")


def test_dpo_cuts_over_long_pairs_only_where_its_recipe_says_so(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    def check(rows: list[dict[str, Any]], policy: str) -> float:
        return check_lengths(datasets.Dataset.from_list(rows), tokenizer, LIMIT, policy)[0]

    whole = [
        sum(len(prompt) + len(side) for side in sides) for prompt, *sides in (encode(tokenizer, row) for row in SOUND)
    ]
    assert check(SOUND, "fail") == check(SOUND, "truncate") == sum(whole) / len(SOUND)
    assert not caplog.records
    prompt, _, rejected = encode(tokenizer, LONG)
    assert check([LONG], "truncate") == LIMIT + len(prompt) + len(rejected)
    assert f"pairs: 1 of 2 sides are cut at {LIMIT} tokens, their stop token with them" in caplog.text
    with pytest.raises(ValueError, match=r"row 2: chosen has \d+ tokens .* or write `overlong: truncate`$"):
        check([SOUND[0], LONG], "fail")
    for row, fault in ((LATE, faults.SAME_CUT), (FULL, faults.NO_ROOM)):
        with pytest.raises(ValueError, match=f"row 1: {fault}; "):
            check([row], "truncate")


# --- the recipe


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"judge": "tang"}, "model_name_or_path, num_pairs: needed to make pairs, since `judge` is stated"),
        ({"num_pairs": 4}, "num_pairs: `datasets` hold the pairs, without `judge`; leave it out"),
        ({"temperature": 1.0, "num_requests": 9}, "num_requests, temperature: `datasets` hold the pairs"),
        ({"max_length": 64}, "max_length: lengths are counted in tokens; name the `tokenizer`"),
        (
            {"judge": "tang", "model_name_or_path": "a/b", "num_pairs": 4, "overlong": "drop"},
            "overlong: pairs are made, since `judge` is stated; leave it out",
        ),
    ],
)
def test_keys_that_mean_nothing_together_are_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as raised:
        made(tmp_path, lines(tmp_path / "pairs.jsonl", SOUND), **keys)
    assert message in str(raised.value)


def test_a_set_without_both_sides_is_refused(tmp_path: Path) -> None:
    requests = [{"prompt": "Why?", "form": "x", "reference": "Because."}]
    with pytest.raises(ValueError, match=r"pairs\.jsonl: prompt, and pairs have chosen and rejected; .* `judge`"):
        made(tmp_path, lines(tmp_path / "pairs.jsonl", requests))


def test_training_and_held_out_pairs_are_both_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 training and 1 held-out pairs are left of 1 rows"):
        made(tmp_path, lines(tmp_path / "pairs.jsonl", SOUND[:1]))
