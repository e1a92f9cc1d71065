"""LoRA: an adapter is trained, saved, resumed, stacked, loaded by every stage, merged; and it is what was trained."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONVERSATIONS, TEMPLATES, TEXTS, prepared, recipe
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fledge.data.adapter import load_adapter
from fledge.data.load import load_model
from fledge.data.pairs import write_pairs
from fledge.files import read_json
from fledge.model.build import build_config, build_model
from fledge.model.modeling_fledge import FledgeForCausalLM
from fledge.results.record import read_metrics
from fledge.stages import dpo, export, sft


KEY = "model_name_or_path"
LENGTH = 128
QUIET = {"bf16": False, "torch_compile": False, "disable_tqdm": True, "logging_steps": 1, "learning_rate": 0.02}
LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1}
IDS = torch.arange(8, 72).view(2, 32)


@pytest.fixture(scope="module", autouse=True)
def cpu():
    """Train on the CPU, wherever the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """Prepared conversations, pairs, a base model, and an adapter that sft trained on it for four steps."""
    folder = tmp_path_factory.mktemp("lora")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    shutil.move(prepared(folder / "made", tokenizer, CONVERSATIONS * 4, max_length=LENGTH), folder / "rows")
    turns = [[{"role": "user", "content": text}] for text in TEXTS]
    answers = [[{"role": "assistant", "content": text[::-1]}] for text in TEXTS]
    made = {"form": "any", "made": "here", "rejected_score": 0.0}
    pairs = [{"prompt": turns[i], "chosen": answers[i], "rejected": answers[i - 1], **made} for i in range(len(TEXTS))]
    (folder / "pairs").mkdir()
    write_pairs(folder / "pairs" / "train.parquet", pairs)
    save_base(folder / "base", tokenizer, {"num_key_value_heads": 2, "intermediate_size": 48})
    sft.main(sft_recipe(folder, save_strategy="steps", save_steps=2))
    return folder


def save_base(folder: Path, tokenizer: PreTrainedTokenizerBase, keys: dict[str, Any]) -> None:
    """A tiny model with random weights large enough to tell inputs apart."""
    torch.manual_seed(0)
    llama = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
    keys = keys if "n_embd" in keys else llama | keys
    model = build_model(build_config({"initializer_range": 0.1, **keys}, tokenizer))
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def sft_recipe(work: Path, **keys: Any) -> Any:
    values = {"prepared": work / "rows", "max_length": LENGTH, "packing": True, "assistant_only_loss": True}
    values |= {"tokens_per_step": 2 * LENGTH, "per_device_train_batch_size": 2, "max_steps": 4}
    return recipe(work, "sft", **QUIET | LORA | values | {KEY: work / "base", "save_strategy": "no"} | keys)


def dpo_recipe(work: Path, output_dir: Path, **keys: Any) -> Any:
    values = {"pairs": work / "pairs", "pairs_per_step": 4, "per_device_train_batch_size": 4, "max_length": 192}
    values |= {"max_steps": 2, "save_strategy": "no", KEY: work / "sft", "output_dir": output_dir}
    return recipe(output_dir.parent, "dpo", **QUIET | values | keys)


def results(folder: Path) -> dict[str, Any]:
    return read_json(folder / "summary.json")["results"]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder) if "loss" in line]


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(IDS).logits


# --- what is trained and saved


def test_an_adapter_is_saved_and_the_model_is_not(work: Path) -> None:
    names = {path.name for path in (work / "sft").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "config.json", "tokenizer.json"} <= names
    assert "model.safetensors" not in names and not list((work / "sft").glob("*.bin"))
    assert read_json(work / "sft" / "adapter_config.json")["base_model_name_or_path"] == str(work / "base")
    assert losses(work / "sft")[-1] < losses(work / "sft")[0]


def test_the_count_of_trained_parameters_is_said(work: Path) -> None:
    # A matrix (in, out) gets rank x (in + out): q and o 32+32, k and v 32+16, gate, up and down 32+48.
    per_layer = 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    found = results(work / "sft")
    assert found["trained_parameters"] == 2 * per_layer
    assert found["parameters"] == load_model(work / "base", KEY).num_parameters() + 2 * per_layer


def test_merging_changes_the_form_and_not_the_model(work: Path) -> None:
    base, apart, merged = (
        load_model(work / "base", KEY),
        load_adapter(work / "sft", KEY),
        load_model(work / "sft", KEY),
    )
    assert type(merged) is FledgeForCausalLM and merged.name_or_path == str(work / "sft")
    assert all(weight.requires_grad for weight in merged.parameters())
    assert merged.generation_config.eos_token_id == base.generation_config.eos_token_id
    # The same sums in another order, in float32; what was learnt is four orders larger.
    assert (logits(apart) - logits(merged)).abs().max() < 1e-5
    assert (logits(base) - logits(merged)).abs().max() > 0.1


def test_resuming_continues_to_the_bit(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "sft" / "checkpoint-2", tmp_path / "checkpoint-2")
    assert not list(tmp_path.rglob("model.safetensors"))
    sft.main(sft_recipe(work, output_dir=tmp_path))
    assert losses(tmp_path) == losses(work / "sft")[2:]
    whole, resumed = (load_file(folder / "adapter_model.safetensors") for folder in (work / "sft", tmp_path))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# --- the stages after it


@pytest.mark.parametrize("precompute", [True, False])
@pytest.mark.parametrize("lora", [True, False])
def test_dpo_of_an_adapter_begins_at_ln_2(work: Path, tmp_path: Path, lora: bool, precompute: bool) -> None:
    # ln 2 only if the reference is the model that sft made: not its base, nor the base with a new adapter.
    dpo.main(dpo_recipe(work, tmp_path / "dpo", precompute_ref_log_probs=precompute, **LORA if lora else {}))
    assert results(tmp_path / "dpo")["step0_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert (tmp_path / "dpo" / "adapter_model.safetensors").exists() == lora
    before, after = load_model(work / "sft", KEY), load_model(tmp_path / "dpo", KEY)
    assert (logits(before) - logits(after)).abs().max() > 0.001
    if not lora:
        assert all((a != b).any() for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_export_merges_adapters_upon_adapters(work: Path, tmp_path: Path) -> None:
    dpo.main(dpo_recipe(work, tmp_path / "dpo", **LORA | {"lora_target_modules": ["q_proj", "v_proj"]}))
    assert results(tmp_path / "dpo")["trained_parameters"] == 2 * 4 * (64 + 48)
    export.main(recipe(tmp_path, "export", **{KEY: tmp_path / "dpo"}))
    found = results(tmp_path / "export")
    assert found["architecture"] == "LlamaForCausalLM" and found["max_logit_difference"] == 0.0
    assert 0 < found["max_merged_difference"] < 1e-4 * found["max_logit"]
    assert not list((tmp_path / "export").glob("adapter*"))
    assert torch.equal(logits(load_model(tmp_path / "export", KEY)), logits(load_model(tmp_path / "dpo", KEY)))


def test_a_wrong_merge_is_not_exported(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "load_model", lambda *_: load_model(work / "base", KEY))
    with pytest.raises(RuntimeError, match=r"the merged logits differ from the adapter's by"):
        export.main(recipe(tmp_path, "export", **{KEY: work / "sft"}))


def test_gpt2s_transposed_matrices(work: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    keys = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, **dropout}
    save_base(tmp_path / "base", tokenizer, keys)
    sft.main(sft_recipe(work, output_dir=tmp_path / "sft", **{KEY: tmp_path / "base"}))
    assert results(tmp_path / "sft")["trained_parameters"] == 2 * 4 * ((32 + 96) + (32 + 32) + 2 * (32 + 128))
    base, apart, merged = (
        load_model(tmp_path / "base", KEY),
        load_adapter(tmp_path / "sft", KEY),
        load_model(tmp_path / "sft", KEY),
    )
    assert (logits(apart) - logits(merged)).abs().max() < 1e-5 < 0.1 < (logits(base) - logits(merged)).abs().max()


@pytest.mark.parametrize("tied", [False, True])
def test_the_rows_of_new_tokens_are_learnt_beside_the_adapter(
    work: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, tied: bool
) -> None:
    keys = {"num_key_value_heads": 2, "intermediate_size": 48, "tie_word_embeddings": tied}
    save_base(tmp_path / "base", tokenizer, keys)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]})
    tokenizer.chat_template = (TEMPLATES / "prem-1b.jinja").read_text(encoding="utf-8")
    rows = prepared(tmp_path / "made", tokenizer, CONVERSATIONS, max_length=LENGTH)
    stated = {KEY: tmp_path / "base", "tokenizer": tmp_path / "made" / "tokenizer", "prepared": rows}
    sft.main(sft_recipe(work, output_dir=tmp_path / "sft", **stated))
    start, apart, merged = (
        load_model(tmp_path / "sft" / "start", KEY),
        load_adapter(tmp_path / "sft", KEY),
        load_model(tmp_path / "sft", KEY),
    )
    for before, after in zip(
        (start.get_input_embeddings(), start.get_output_embeddings()),
        (merged.get_input_embeddings(), merged.get_output_embeddings()),
        strict=True,
    ):
        assert torch.equal(before.weight[:320], after.weight[:320])
        assert (before.weight[320:] != after.weight[320:]).any(dim=1).all()
    assert (logits(apart) - logits(merged)).abs().max() < 1e-5
    assert merged.generation_config.eos_token_id == [2, 322]


# --- mistakes


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"use_peft": False}, r"sft.yaml:\d+: lora_\w+: has no effect here; add `use_peft: true`, or leave it out"),
        ({"muon_learning_rate": 0.1}, r"sft.yaml:\d+: muon_learning_rate: Muon is for whole matrices"),
        ({"lora_target_modules": ["q_proj", "qproj"]}, r"no linear layer is called qproj; take some of down_proj,"),
        ({"lora_target_modules": ["lm_head"]}, r"adapter to `lm_head` is not supported"),
    ],
)
def test_keys_that_do_not_fit_are_refused(work: Path, tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sft.main(sft_recipe(work, output_dir=tmp_path, **keys))


def edit(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(read_json(path) | keys), encoding="utf-8")


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def of_another_model(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(dict(list(tensors.items())[1:]), folder / "adapter_model.safetensors")


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (pickled, "holds no adapter_model.safetensors"),
    (cut, "adapter_model.safetensors is not whole"),
    (of_another_model, "the adapter is not one of .*lora_A.weight is in one of the two only"),
    (lambda f: edit(f / "adapter_config.json", peft_type="IA3"), "peft_type is 'IA3', and fledge takes LORA only"),
    (lambda f: edit(f / "adapter_config.json", megatron_config={"a": 1}), "megatron_config names code"),
    (lambda f: edit(f / "adapter_config.json", r=8), "the adapter cannot be loaded: "),
    (lambda f: edit(f / "adapter_config.json", base_model_name_or_path=None), "is None, no model to stand on"),
    (lambda f: edit(f / "adapter_config.json", base_model_name_or_path=str(f)), "which stands on it"),
    (
        lambda f: edit(f / "adapter_config.json", base_model_name_or_path=str(f / "no")),
        "the model that its adapter was trained on: .*: no such folder",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[message[:30] for _, message in DAMAGES])
def test_a_damaged_adapter_is_one_message(
    work: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "sft"
    shutil.copytree(work / "sft", folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder, KEY)
    assert str(caught.value).startswith(f"{KEY}: {folder}")
