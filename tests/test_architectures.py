"""The architectures a recipe may name beside fledge's own: isolated documents, the same losses, the same stages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from conftest import CONVERSATIONS, TEXTS, packed_rows, places, prepared, recipe, write_lines
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from fledge.data.checks import preflight
from fledge.data.collate import PackedCollator
from fledge.files import read_json
from fledge.inspecting.leak import leak_test
from fledge.inspecting.models import _small
from fledge.model.build import ARCHITECTURES, build_config, build_model, decoder_layers
from fledge.recipe import RecipeError, load_recipe
from fledge.stages import export, pretrain
from fledge.training.muon import hidden_matrices
from fledge.training.trainer import Pretrainer


LENGTH = 80
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "tie_word_embeddings": True,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.1}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "vocab_size": 384, **GPT2},
    "llama": {"model_type": "llama", **LLAMA},
    # A window shorter than a row, and than most documents: both masks are at work.
    "mistral": {"model_type": "mistral", **LLAMA, "sliding_window": 12},
}
every_architecture = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on the CPU, wherever the tests run."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture
def make(tokenizer: PreTrainedTokenizerBase) -> Callable[..., PreTrainedModel]:
    """Builds a tiny model of an architecture from a recipe's keys, in float32."""

    def build(name: str, attention: str = "sdpa", **keys: Any) -> PreTrainedModel:
        torch.manual_seed(0)
        model = build_model(build_config(MODELS[name] | keys, tokenizer)).eval()
        model.set_attn_implementation(attention)
        return model

    return build


def test_every_architecture_a_recipe_may_name_is_tried_here() -> None:
    assert set(MODELS) | {"fledge"} == set(ARCHITECTURES)


# --- documents never see each other


@every_architecture
def test_no_document_sees_another(
    name: str, make: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = packed_rows(tmp_path, tokenizer, [{"text": text} for text in TEXTS], LENGTH)
    rows = [row for row in rows if len(row["seq_lengths"]) > 1]
    tried = leak_test(make(name), name, rows, tokenizer, LENGTH)
    # Every way leaves a neighbour as it was; the controls, which training never does, do not.
    assert tried.fault() is None
    ways = {"sdpa", "eager"} if "sliding_window" in MODELS[name] else {"sdpa", "eager", "varlen"}
    assert {trial.name for trial in tried.trials if not trial.is_control} == ways
    assert all(trial.itself > 0.01 for trial in tried.trials)


@every_architecture
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_fused_head_trains_on_the_documents_own_losses(
    name: str,
    attention: str,
    make: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    rows = packed_rows(tmp_path / "rows", tokenizer, [*CONVERSATIONS, *({"text": text} for text in TEXTS)], LENGTH)
    batch = PackedCollator(LENGTH, tokenizer.pad_token_id)(rows)
    model = make(name, attention).train()
    alone = torch.zeros(())
    for row, columns in places(rows):
        ids, labels = batch["input_ids"][row, columns], batch["labels"][row, columns]
        alone = alone + cross_entropy(model(ids[None]).logits[0, :-1], labels[1:], reduction="sum")
    alone.backward()
    expected = {key: weight.grad.clone() for key, weight in model.named_parameters()}
    model.zero_grad()

    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    trainer = Pretrainer(model, args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer)
    trainer.use_fused_head()
    loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=torch.tensor(1))
    loss.backward()
    # The same sums in another order, in float32; a learned position that did not restart would show at once.
    assert loss.item() == pytest.approx(alone.item(), rel=1e-6)
    for key, weight in model.named_parameters():
        torch.testing.assert_close(
            weight.grad, expected[key], rtol=1e-4, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}"
        )


# --- the stages


@pytest.fixture
def stated(tokenizer_folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Callable[..., Any]:
    """A pretrain recipe of two steps on prepared texts."""
    rows = prepared(tmp_path, tokenizer, [{"text": text} for text in TEXTS * 4], max_length=LENGTH)

    def state(**keys: Any) -> Any:
        values = {"tokenizer": tokenizer_folder, "prepared": rows, "tokens_per_step": 2 * LENGTH, "max_steps": 2}
        values |= {"per_device_train_batch_size": 2, "learning_rate": 0.01, "bf16": False, "torch_compile": False}
        return recipe(tmp_path, "pretrain", **values | {"disable_tqdm": True} | keys)

    return state


@every_architecture
def test_pretraining_and_export_keep_the_architecture(
    name: str, stated: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    dropout = {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2} if name == "gpt2" else {}
    pretrain.main(stated(model_config=MODELS[name] | dropout, torch_compile=True))
    assert len(compiled) == 2 and len(set(compiled)) == 1  # every decoder layer

    export.main(recipe(tmp_path, "export", model_name_or_path=tmp_path / "pretrain"))
    config = read_json(tmp_path / "export" / "config.json")
    assert config["model_type"] == name and "auto_map" not in config
    assert config["vocab_size"] == MODELS[name].get("vocab_size", 320)
    summary = read_json(tmp_path / "export" / "summary.json")["results"]
    assert summary["max_logit_difference"] == 0.0
    assert summary["architecture"] == config["architectures"][0]
    trained, exported = (
        AutoModelForCausalLM.from_pretrained(tmp_path / stage, trust_remote_code=False).eval()
        for stage in ("pretrain", "export")
    )
    ids = torch.arange(40)[None]
    assert torch.equal(trained(ids).logits, exported(ids).logits)
    assert exported.config.to_diff_dict().get("resid_pdrop", 0.1) == dropout.get("resid_pdrop", 0.1)


def test_gpt2_begins_as_nanogpt_does(make: Callable[..., PreTrainedModel]) -> None:
    # What writes into the residual stream is narrower by sqrt(2 x layers): transformers' own initialisation, kept.
    for name, weight in make("gpt2").named_parameters():
        if weight.ndim == 2:
            narrow = 0.1 / (2 * 2) ** 0.5 if name.endswith("c_proj.weight") else 0.1
            assert weight.std().item() == pytest.approx(narrow, rel=0.1), name


def test_muon_takes_the_matrices_of_llamas_line_and_refuses_those_of_gpt2(
    make: Callable[..., PreTrainedModel], stated: Callable[..., Any]
) -> None:
    assert len(hidden_matrices(make("mistral"))) == 2 * 7
    with pytest.raises(ValueError, match=r"muon_learning_rate: gpt2 keeps its matrices transposed"):
        pretrain.main(stated(model_config=MODELS["gpt2"], muon_learning_rate=0.01))


def test_decoder_layers_are_found_or_the_architecture_is_named(make: Callable[..., PreTrainedModel]) -> None:
    assert all(len(decoder_layers(make(name))) == 2 for name in MODELS)
    model = make("gpt2")
    model.transformer.blocks = model.transformer.h
    del model.transformer.h
    with pytest.raises(ValueError, match="GPT2LMHeadModel: its decoder layers are named none of layers, h"):
        decoder_layers(model)


@every_architecture
def test_a_large_model_is_looked_at_small(name: str, make: Callable[..., PreTrainedModel]) -> None:
    large = make(name, **({"n_layer": 3} if name == "gpt2" else {"num_hidden_layers": 3})).config
    small = _small(large)
    assert (small.num_hidden_layers, large.num_hidden_layers) == (2, 3)
    assert small.num_attention_heads == large.num_attention_heads and small.hidden_size == 128
    assert build_model(small)(torch.tensor([[1, 2]])).logits.shape == (1, 2, large.vocab_size)


# --- what does not fit


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(stated: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"model_config: the tokenizer has 320 entries, the model 319; write `vocab_"):
        pretrain.main(stated(model_config=MODELS["gpt2"] | {"vocab_size": 319}))


def test_rows_longer_than_the_learned_positions_are_refused(stated: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"prepared: rows of 80 tokens, and n_positions is 79"):
        pretrain.main(stated(model_config=MODELS["gpt2"] | {"n_positions": 79}))


def test_larger_vocabularies_and_the_tokenizers_own_size_pass(tokenizer: PreTrainedTokenizerBase) -> None:
    for keys, size in (({}, len(tokenizer)), ({"vocab_size": 50_304}, 50_304)):
        config = build_config({"model_type": "gpt2", **keys}, tokenizer)
        assert config.vocab_size == size and config.eos_token_id == tokenizer.eos_token_id
        assert not [check.problem for check in preflight(tokenizer, config) if check.problem]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model_type: bert", 'model_type: "bert" is not one of fledge, gpt2, llama, mistral'),
        ("model_type: gtp2", 'model_type: "gtp2" is not one of fledge, gpt2, llama, mistral; did you mean gpt2?'),
        ("model_type: gpt2\n  n_layers: 3", "n_layers: unknown key; did you mean n_layer?"),
        ("model_type: gpt2\n  hidden_size: 64", "hidden_size: unknown key; known are model_type, vocab_size, n_pos"),
        ("model_type: mistral\n  qk_norm: true", "qk_norm: unknown key; known are model_type"),
        ("model_type: llama\n  sliding_window: 8", "sliding_window: unknown key; known are model_type"),
        ("sliding_window: 8", "sliding_window: unknown key; known are model_type"),
        ("model_type: gpt2\n  resid_pdrop: 1.5", "resid_pdrop: must be at most 1, not 1.5"),
        ("model_type: gpt2\n  eos_token_id: 1", "eos_token_id: comes from the tokenizer; leave it out"),
    ],
)
def test_a_key_of_another_architecture_is_refused(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "pretrain.yaml"
    path.write_text(
        f"tokenizer: a\nprepared: b\ntokens_per_step: 8\noutput_dir: c\nmodel_config:\n  {line}\n", encoding="utf-8"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe("pretrain", path)
    assert f"model_config.{message}" in str(caught.value)


def test_the_command_line_reaches_an_architectures_keys(tmp_path: Path) -> None:
    write_lines(tmp_path / "empty.jsonl", [])
    path = tmp_path / "pretrain.yaml"
    path.write_text("tokenizer: a\nprepared: b\ntokens_per_step: 8\noutput_dir: c\nmodel_config: {model_type: gpt2}\n")
    found = load_recipe("pretrain", path, ["--model_config.n_layer", "2"])
    assert found.values["model_config"] == {"model_type": "gpt2", "n_layer": 2}
