"""Data: packed documents never see each other, nothing is lost or cut in silence, and bad input names its place."""

import copy
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import CONVERSATIONS, TEXTS, conversation, documents_of, packed_rows, places, recipe, write_lines
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from fledge.data.checks import check_agreement, fingerprint
from fledge.data.collate import PackedCollator
from fledge.data.pack import best_fit
from fledge.data.prepared import load_prepared
from fledge.data.sources import Row
from fledge.data.tokenise import Document, Tokeniser
from fledge.files import read_json
from fledge.model.modeling_fledge import FledgeForCausalLM
from fledge.stages import prepare
from fledge.stages.sft import check_stated


LENGTH = 160
KINDS = {"text": [{"text": text} for text in TEXTS], "conversation": CONVERSATIONS}

SAID = [{"role": "assistant", "content": "yes"}]
CANNOT = "the chat template cannot render it "

both_attentions = pytest.mark.parametrize("attention", ["sdpa", "eager"])
both_kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def packed(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Callable[[str], dict[str, Any]]:
    """Every row of `kind`, packed, written, read back and collated: several rows with several documents each."""

    def pack(kind: str) -> dict[str, Any]:
        rows = packed_rows(tmp_path / kind, tokenizer, KINDS[kind], LENGTH)
        assert len(rows) > 1 and max(len(row["seq_lengths"]) for row in rows) > 2
        return {"rows": rows, **PackedCollator(LENGTH, tokenizer.pad_token_id)(rows)}

    return pack


def summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of one document: logits (T, V), labels (T,)."""
    return cross_entropy(logits[:-1], labels[1:], reduction="sum")


# --- packing


@both_attentions
@both_kinds
def test_packed_loss_equals_the_loss_alone(
    packed: Callable[[str], dict[str, Any]], make_model: Callable[..., FledgeForCausalLM], attention: str, kind: str
) -> None:
    batch, model = packed(kind), make_model(attention)
    rows = batch.pop("rows")
    with torch.no_grad():
        output = model(**batch, use_cache=False)
        total = 0.0
        for row, columns in places(rows):
            ids, labels = batch["input_ids"][row, columns], batch["labels"][row, columns]
            alone = summed_loss(model(ids[None]).logits[0], labels)
            torch.testing.assert_close(summed_loss(output.logits[row, columns], labels), alone, rtol=1e-5, atol=1e-5)
            total += alone.item()
    supervised = (batch["labels"] != -100).sum().item()
    assert output.loss.item() == pytest.approx(total / supervised, abs=1e-5)


@both_attentions
@both_kinds
def test_a_neighbour_changes_nothing(
    packed: Callable[[str], dict[str, Any]], make_model: Callable[..., FledgeForCausalLM], attention: str, kind: str
) -> None:
    batch, model = packed(kind), make_model(attention)
    rows = batch.pop("rows")
    changed = batch["input_ids"].clone()
    mine = torch.zeros_like(changed, dtype=torch.bool)
    for row, columns in places(rows)[::2]:
        mine[row, columns] = True
    changed[mine] = (changed[mine] + 7) % model.config.vocab_size
    with torch.no_grad():
        before = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        after = model(changed, position_ids=batch["position_ids"], use_cache=False).logits
    torch.testing.assert_close(after[~mine], before[~mine], rtol=0, atol=0)
    assert (after[mine] - before[mine]).abs().amax(-1).min() > 1e-3


@both_kinds
def test_rows_hold_the_documents_whole_with_their_labels(
    packed: Callable[[str], dict[str, Any]], tokenizer: PreTrainedTokenizerBase, kind: str
) -> None:
    batch = packed(kind)
    found = [
        Document(batch["input_ids"][row, columns].tolist(), batch["labels"][row, columns].tolist())
        for row, columns in places(batch["rows"])
    ]
    expected = documents_of(tokenizer, KINDS[kind], LENGTH)
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    supervised = sum(document.supervised for document in expected)
    assert (batch["labels"] != -100).sum() == supervised > 0


def test_nothing_is_trained_on_that_has_nothing_before_it(tokenizer: PreTrainedTokenizerBase) -> None:
    # In a packed row what stands before it is another document.
    assert {document.labels[0] for document in documents_of(tokenizer, [*KINDS["text"], *CONVERSATIONS], 256)} == {
        -100
    }
    tokenizer.chat_template = "{% generation %}{{ messages[0]['content'] + eos_token }}{% endgeneration %}"
    [document] = documents_of(tokenizer, [{"messages": SAID}], 32)
    assert document.labels == [-100, *document.input_ids[1:]]


def first_fit(lengths: list[int], max_length: int) -> int:
    """Rows of first-fit packing in the given order."""
    rooms: list[int] = []
    for length in lengths:
        place = next((i for i, room in enumerate(rooms) if room >= length), None)
        if place is None:
            rooms.append(max_length - length)
        else:
            rooms[place] -= length
    return len(rooms)


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_places_everything_once_and_tightly(seed: int) -> None:
    chance = random.Random(seed)
    lengths = [chance.randint(1, 128) for _ in range(2000)]
    rows = best_fit(lengths, 128)
    assert sorted(index for row in rows for index in row) == list(range(2000))
    assert max(sum(lengths[index] for index in row) for row in rows) <= 128
    assert len(rows) <= first_fit(lengths, 128)
    assert rows == best_fit(list(lengths), 128)


def test_best_fit_takes_the_row_with_the_least_room() -> None:
    # 15 and 12 open rows, 7 fits the second only and leaves it 1; the first still has 5, and 1 goes to the second.
    assert best_fit([1, 15, 12, 7], 20) == [[1], [2, 3, 0]]
    with pytest.raises(ValueError, match="document 1 has 11 tokens, a row has 10"):
        best_fit([3, 11], 10)


# --- rows that cannot be trained on


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"messages": [{"role": "user", "content": "Hi"}]}, "no assistant turn"),
        ({"messages": []}, "no assistant turn"),
        (conversation("Hi", "yes", "And?", " "), "an empty assistant turn"),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant"}]}, "an empty assistant turn"),
        ({"messages": [*SAID, {"role": "tool", "content": "x"}]}, CANNOT + "(role tool is"),
        ({"messages": [{"role": "user", "content": None}, *SAID]}, CANNOT),
        ({"messages": ["Hi"]}, "a message that is no object"),
        ({"text": ""}, "empty text"),
        ({"text": None}, "empty text"),
    ],
)
def test_faulty_rows_fail_with_their_place_or_are_counted(
    tokenizer: PreTrainedTokenizerBase, values: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ValueError, match=rf"^a\.jsonl:3: {re.escape(fault)}.*; .*`faulty: drop`"):
        Tokeniser(tokenizer, 64, faulty="fail").documents(Row(values, "a.jsonl:3"))
    dropping = Tokeniser(tokenizer, 64, faulty="drop")
    assert dropping.documents(Row(values, "a.jsonl:3")) == []
    assert len(dropping.documents(Row(conversation("Hi", "yes"), "a.jsonl:4"))) == 1
    [[dropped, count]] = [item for item in dropping.counts.items() if item[0] != "rows"]
    assert dropped.startswith(f"dropped: {fault}") and (count, dropping.counts["rows"]) == (1, 2)


def test_an_overlong_conversation_is_never_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    row = Row({**conversation("Say it", "x" * 50), "text": "a column besides"}, "a.jsonl:7")
    for overlong in ("fail", "split"):
        with pytest.raises(ValueError, match=r"^a\.jsonl:7: \d+ tokens, and max_length is 32; raise max_length"):
            Tokeniser(tokenizer, 32, overlong=overlong).documents(row)
    dropping = Tokeniser(tokenizer, 32, overlong="drop")
    assert dropping.documents(row) == []
    assert dropping.counts == {"rows": 1, "dropped: longer than 32 tokens": 1}


def test_an_overlong_text_is_split_without_loss(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "".join(TEXTS)
    whole = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    splitting = Tokeniser(tokenizer, 32, overlong="split")
    parts = splitting.documents(Row({"text": text}, "a.jsonl:1"))
    assert [token for part in parts for token in part.input_ids] == whole
    assert max(len(part.input_ids) for part in parts) == 32
    for part in parts:
        assert part.labels == [-100, *part.input_ids[1:]]
    assert splitting.counts == {"rows": 1, "split": 1}
    with pytest.raises(ValueError, match=r"a\.jsonl:1: .*`overlong: split`"):
        Tokeniser(tokenizer, 32).documents(Row({"text": text}, "a.jsonl:1"))


# --- the prepare stage, and what must agree with it


def test_prepare_is_repeatable_and_marks_itself_whole(tmp_path: Path, tokenizer_folder: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "poems.parquet")
    chats = write_lines(tmp_path / "chats.jsonl", CONVERSATIONS)
    stated = {
        "datasets": [{"path": str(tmp_path / "poems.parquet"), "name": "poems"}, {"path": str(chats)}],
        "eval_datasets": [{"path": str(chats)}],
        "tokenizer": tokenizer_folder,
        "max_length": LENGTH,
    }
    manifests = []
    for seed in (0, 0, 1):
        made = recipe(tmp_path, "prepare", seed=seed, **stated)
        prepare.main(made)
        manifests.append(read_json(made.output_dir / "manifest.json"))
    assert manifests[0] == manifests[1]
    assert manifests[0]["train"]["sha256"] != manifests[2]["train"]["sha256"] != manifests[2]["eval"]["sha256"]

    train, heldout, manifest = load_prepared(made.output_dir)
    tokens = sum(map(len, train["input_ids"]))
    assert manifest["train"]["tokens"] == tokens == sum(map(sum, train["seq_lengths"]))
    assert manifest["train"]["documents"] == len(TEXTS) + len(CONVERSATIONS)
    assert manifest["train"]["sources"] == ["poems", str(chats)]
    assert manifest["train"]["fill"] == pytest.approx(tokens / (len(train) * LENGTH), abs=1e-4)
    assert manifest["eval"]["rows"] == len(heldout)

    (made.output_dir / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"holds no manifest\.json; run the prepare stage"):
        load_prepared(made.output_dir)


def test_what_prepare_froze_is_held_against_tokenizer_model_and_recipe(
    tokenizer: PreTrainedTokenizerBase, make_model: Callable[..., FledgeForCausalLM]
) -> None:
    manifest = {"tokenizer": fingerprint(tokenizer), "max_length": 64}
    config = make_model().config
    check_agreement(tokenizer, config, manifest)
    other = copy.deepcopy(tokenizer)
    other.chat_template += " "
    with pytest.raises(ValueError, match="another tokenizer or chat template; run prepare again"):
        check_agreement(other, config, manifest)
    tokenizer.add_tokens(["new"])
    with pytest.raises(ValueError, match="the tokenizer has 321 entries, the model 320"):
        check_agreement(tokenizer, config, manifest)

    stated = {"output_dir": "x", "use_cpu": True, "bf16": False, "packing": True, "assistant_only_loss": True}
    check_stated(SFTConfig(**stated, max_length=64), manifest)
    with pytest.raises(ValueError, match="write `max_length: 64`"):
        check_stated(SFTConfig(**stated, max_length=128), manifest)
    for key in ("packing", "assistant_only_loss"):
        with pytest.raises(ValueError, match="write `packing: true` and `assistant_only_loss: true`"):
            check_stated(SFTConfig(**{**stated, key: False}, max_length=64), manifest)
