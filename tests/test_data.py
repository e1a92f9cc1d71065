"""Data: packed documents never see each other, nothing is lost or cut in silence, and bad input names its place."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import CONVERSATIONS, TEXTS, documents_of, packed_rows, places, recipe, write_lines
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from fledge.data.checks import check_agreement, fingerprint
from fledge.data.collate import PackedCollator
from fledge.data.prepared import load_prepared
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
        return {**PackedCollator(LENGTH, tokenizer.pad_token_id)(rows), "rows": rows}

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
        (batch["input_ids"][row, columns].tolist(), batch["labels"][row, columns].tolist())
        for row, columns in places(batch["rows"])
    ]
    expected = documents_of(tokenizer, KINDS[kind], LENGTH)
    assert sorted(found) == sorted((document.input_ids.tolist(), document.labels.tolist()) for document in expected)
    supervised = sum(document.supervised for document in expected)
    assert (batch["labels"] != -100).sum() == supervised > 0


def test_nothing_is_trained_on_that_has_nothing_before_it(tokenizer: PreTrainedTokenizerBase) -> None:
    # In a packed row what stands before it is another document.
    assert {document.labels[0] for document in documents_of(tokenizer, [*KINDS["text"], *CONVERSATIONS], 256)} == {
        -100
    }
    tokenizer.chat_template = "{% generation %}{{ messages[0]['content'] + eos_token }}{% endgeneration %}"
    [document] = documents_of(tokenizer, [{"messages": SAID}], 32)
    assert document.labels.tolist() == [-100, *document.input_ids[1:].tolist()]


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
    tokens = sum(len(row["input_ids"]) for row in train)
    assert manifest["train"]["tokens"] == tokens == sum(row["seq_lengths"].sum() for row in train)
    assert manifest["train"]["documents"] == len(TEXTS) + len(CONVERSATIONS)
    assert manifest["sources"] == ["poems", str(chats)]
    assert [source["name"] for source in manifest["train"]["sources"]] == ["poems", str(chats)]
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
