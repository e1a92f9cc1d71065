"""Many generated rows with every kind of fault among them go through prepare: each is counted where it stands."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import recipe, write_lines
from faulty import CONVERSATIONS, MARK, PAIRS, TEXTS, Faulty, sound, sound_pair, sound_text
from transformers import PreTrainedTokenizerBase

from fledge.arguments import DatasetEntry
from fledge.data.duplicates import COPY, PROMPT
from fledge.data.faults import CONTROL, FAULTS, NO_ANSWER, TWO_USERS, fault_of, special_text
from fledge.data.prepared import load_prepared
from fledge.data.sources import open_sources
from fledge.stages import prepare


SIZES = [10_000, pytest.param(1_000_000, marks=pytest.mark.slow)]
DROP = dict.fromkeys(("faulty", "overlong", "contamination", "repeats", "near_repeats"), "drop")


@pytest.fixture
def prepare_plan(tmp_path: Path, tokenizer_folder: Path) -> Callable[..., Path]:
    """Writes the rows of a plan and what is held out, prepares them, and returns the folder."""

    def make(plan: Faulty, name: str, **keys: Any) -> Path:
        write = plan.write_parquet if name.endswith(".parquet") else plan.write_lines
        write(tmp_path / name)
        plan.write_held_out(tmp_path / "heldout.jsonl")
        entries = {
            "datasets": [{"path": str(tmp_path / name)}],
            "eval_datasets": [{"path": str(tmp_path / "heldout.jsonl")}],
        }
        made = recipe(tmp_path, "prepare", tokenizer=tokenizer_folder, max_length=256, **entries, **keys)
        prepare.main(made)
        return made.output_dir

    return make


def check(plan: Faulty, file: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Every planted row is counted, the first of each kind are named, and the sound rows alone are trained on."""
    train, _, manifest = load_prepared(folder)
    expected = plan.expected()
    assert manifest["train"]["counts"] == {
        "rows": plan.rows,
        **{f"dropped: {fault}": len(places) for fault, places in expected.items()},
    }
    assert manifest["train"]["places"] == {
        f"dropped: {fault}": [f"{file}:{place}" for place in places[:5]] for fault, places in expected.items()
    }
    assert manifest["train"]["documents"] == plan.rows - len(plan.kind_of)
    assert marks(train, tokenizer) == 0


def marks(rows: Iterable[dict[str, np.ndarray]], tokenizer: PreTrainedTokenizerBase) -> int:
    """How often MARK stands in the rows."""
    mark = np.array(tokenizer(MARK, add_special_tokens=False)["input_ids"])
    windows = (np.lib.stride_tricks.sliding_window_view(row["input_ids"], len(mark)) for row in rows)
    return sum(int((found == mark).all(axis=1).sum()) for found in windows)


@pytest.mark.parametrize("rows", SIZES)
def test_conversations(
    rows: int, tmp_path: Path, prepare_plan: Callable[..., Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    plan = Faulty(rows, CONVERSATIONS, sound, each=rows // 1000)
    assert len(set(plan.kind_of.values())) >= 30
    check(plan, tmp_path / "chats.jsonl", prepare_plan(plan, "chats.jsonl", **DROP), tokenizer)


@pytest.mark.parametrize("rows", SIZES)
def test_texts(
    rows: int, tmp_path: Path, prepare_plan: Callable[..., Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    plan = Faulty(rows, TEXTS, sound_text, each=rows // 1000)
    check(plan, tmp_path / "texts.parquet", prepare_plan(plan, "texts.parquet", **DROP), tokenizer)


@pytest.mark.parametrize("rows", SIZES)
def test_pairs(rows: int, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    plan = Faulty(rows, PAIRS, sound_pair, each=rows // 1000)
    plan.write_lines(tmp_path / "pairs.jsonl")
    special = special_text(tokenizer.all_special_tokens)
    [source] = open_sources([DatasetEntry(path=str(tmp_path / "pairs.jsonl"))])
    found: dict[str, list[int]] = {}
    for part in source.split():
        for row in part.rows():
            if fault := fault_of(row.values, special):
                found.setdefault(fault, []).append(int(row.place.rpartition(":")[2]))
    assert found == plan.expected()


@pytest.mark.parametrize("kind", ["no role", "a cut line", "mojibake", "over-long", "a repeat", "a held-out question"])
def test_where_the_recipe_says_fail_the_first_row_is_named(kind: str, prepare_plan: Callable[..., Path]) -> None:
    kinds = {name: CONVERSATIONS[name] for name in [kind] if name in CONVERSATIONS}
    plan = Faulty(300, kinds, sound, each=3)
    plan.kind_of = {place: name for place, name in plan.kind_of.items() if name == kind}
    [(fault, places)] = plan.expected().items()
    with pytest.raises(ValueError, match=rf"/chats\.jsonl:{places[0]}: ") as raised:
        prepare_plan(plan, "chats.jsonl", **dict.fromkeys(DROP, "fail"))
    if kind != "over-long":
        assert fault in str(raised.value)
    if fault in FAULTS:
        assert "`faulty: drop`" in str(raised.value)


def test_where_the_recipe_says_keep_what_can_be_tokenised_is_kept(
    prepare_plan: Callable[..., Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    kinds = {name: CONVERSATIONS[name] for name in ("two user turns", "a NUL", "an empty answer", "a cut line")}
    plan = Faulty(300, kinds, sound, each=3)
    folder = prepare_plan(plan, "chats.jsonl", faulty="keep", contamination="keep", repeats="off")
    train, _, manifest = load_prepared(folder)
    assert manifest["train"]["counts"] == {
        "rows": 300,
        **{f"kept: {fault}": 3 for fault in (TWO_USERS, CONTROL, COPY, PROMPT)},
        **{f"dropped: {fault}": 3 for fault in (NO_ANSWER, "a broken line of JSON")},
    }
    assert manifest["train"]["documents"] == 300 - 6
    assert marks(train, tokenizer) == 3 * (3 + 2 + 1)  # two users and an answer, both sides of the NUL, an answer


def test_held_out_rows_are_set_apart_before_packing(
    tmp_path: Path, tokenizer_folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = {"train": range(200), "heldout": range(1000, 1050)}
    paths = {name: write_lines(tmp_path / f"{name}.jsonl", [*map(sound_text, rows)]) for name, rows in texts.items()}
    made = recipe(
        tmp_path,
        "prepare",
        datasets=[{"path": str(paths["train"])}],
        eval_datasets=[{"path": str(paths["heldout"])}],
        tokenizer=tokenizer_folder,
        max_length=512,
    )
    prepare.main(made)
    for name, rows in zip(texts, load_prepared(made.output_dir), strict=False):
        ends = [np.cumsum(row["seq_lengths"]) for row in rows]
        assert max(map(len, ends)) > 1
        found = [ids for row, end in zip(rows, ends, strict=True) for ids in np.split(row["input_ids"], end[:-1])]
        expected = [sound_text(index)["text"] for index in texts[name]]
        assert sorted(tokenizer.decode(ids, skip_special_tokens=True) for ids in found) == sorted(expected)
