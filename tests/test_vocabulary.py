"""A tokenizer with more tokens than the model: rows at the mean, ids that follow, and DPO from disk begins at ln 2."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CONVERSATIONS, TEMPLATES, prepared, recipe
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fledge.data.pairs import write_pairs
from fledge.files import read_json
from fledge.model.modeling_fledge import FledgeForCausalLM
from fledge.stages import dpo, export, sft
from fledge.training.vocabulary import replace_tokenizer


CHAT = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[PAD]"]
QUIET = {"bf16": False, "torch_compile": False, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}


@pytest.fixture
def larger(tokenizer_folder: Path) -> PreTrainedTokenizerBase:
    """The same tokenizer and four tokens more, as Prem-1B's chat model has them."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.add_special_tokens({"extra_special_tokens": CHAT[:3]})
    tokenizer.add_special_tokens({"pad_token": CHAT[3]})
    tokenizer.chat_template = (TEMPLATES / "prem-1b.jinja").read_text(encoding="utf-8")
    assert tokenizer.convert_tokens_to_ids(CHAT) == [320, 321, 322, 323]
    return tokenizer


@pytest.mark.parametrize("tied", [False, True])
def test_new_tokens_begin_at_the_mean(
    tied: bool,
    make_model: Callable[..., FledgeForCausalLM],
    tokenizer: PreTrainedTokenizerBase,
    larger: PreTrainedTokenizerBase,
) -> None:
    model = make_model(tie_word_embeddings=tied)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    assert replace_tokenizer(model, tokenizer, larger, "here") == [320, 321, 322, 323]
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == len(larger) == 324
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model.num_parameters() == sum(w.numel() for w in before.values()) + 4 * 32 * (1 if tied else 2)
    for name, weight in model.named_parameters():
        assert torch.equal(weight[:320] if len(weight) == 324 else weight, before[name])
        if len(weight) == 324:
            torch.testing.assert_close(weight[320:], before[name].mean(dim=0).expand(4, -1), rtol=0, atol=1e-7)
    ids = torch.arange(0, 20)[None]
    logits = model(ids).logits
    # A token at the mean is as likely as the average logit says.
    torch.testing.assert_close(logits[..., 323], logits[..., :320].mean(-1), rtol=0, atol=1e-5)


def test_special_tokens_follow(
    make_model: Callable[..., FledgeForCausalLM], tokenizer: PreTrainedTokenizerBase, larger: PreTrainedTokenizerBase
) -> None:
    model = make_model()
    replace_tokenizer(model, tokenizer, larger, "here")
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (323, 1, 2)
    assert (model.generation_config.pad_token_id, model.generation_config.eos_token_id) == (323, [2, 322])


def test_rows_that_are_there_already_are_used(
    make_model: Callable[..., FledgeForCausalLM], tokenizer: PreTrainedTokenizerBase, larger: PreTrainedTokenizerBase
) -> None:
    model = make_model()
    model.resize_token_embeddings(330, mean_resizing=False)  # padded to a round number, as nanoGPT's is
    before = model.lm_head.weight.detach().clone()
    assert replace_tokenizer(model, tokenizer, larger, "here") == [320, 321, 322, 323]
    assert model.config.vocab_size == 330
    assert torch.equal(model.lm_head.weight[324:], before[324:]) and torch.equal(
        model.lm_head.weight[:320], before[:320]
    )
    torch.testing.assert_close(model.lm_head.weight[321], before[:320].mean(dim=0), rtol=0, atol=1e-7)


def test_a_tokenizer_of_other_ids_is_refused(
    make_model: Callable[..., FledgeForCausalLM], tokenizer: PreTrainedTokenizerBase, larger: PreTrainedTokenizerBase
) -> None:
    model = make_model()
    message = (
        r"tokenizer: here: 4 tokens .* such as '<\|start_header_id\|>', 320 there and None here; .*base_tokenizer"
    )
    with pytest.raises(ValueError, match=message):
        replace_tokenizer(model, larger, tokenizer, "here")
    assert model.config.vocab_size == 320


def test_sft_grows_the_vocabulary_and_dpo_begins_at_ln_2(
    make_model: Callable[..., FledgeForCausalLM],
    tokenizer: PreTrainedTokenizerBase,
    larger: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    base = tmp_path / "pretrain"
    make_model().save_pretrained(base)
    tokenizer.save_pretrained(base)
    rows = prepared(tmp_path / "rows", larger, CONVERSATIONS, max_length=160)
    stated = {"model_name_or_path": base, "prepared": rows, "max_length": 160, "packing": True}
    stated |= {"assistant_only_loss": True, "tokens_per_step": 320, "per_device_train_batch_size": 2, "max_steps": 2}
    with pytest.raises(ValueError, match="its rows were made with another tokenizer or chat template"):
        sft.main(recipe(tmp_path, "sft", **QUIET, **stated))

    tuned = recipe(tmp_path, "sft", **QUIET, **stated, tokenizer=tmp_path / "rows" / "tokenizer", learning_rate=0.01)
    sft.main(tuned)
    folder = tuned.output_dir
    assert read_json(folder / "summary.json")["results"]["new_tokens"] == 4
    config, generation = (read_json(folder / name) for name in ("config.json", "generation_config.json"))
    assert (config["vocab_size"], config["pad_token_id"], config["eos_token_id"]) == (324, 323, 2)
    assert (generation["pad_token_id"], generation["eos_token_id"]) == (323, [2, 322])
    assert len(AutoTokenizer.from_pretrained(folder)) == 324
    weights = load_file(folder / "model.safetensors")
    assert not torch.equal(weights["lm_head.weight"][322], weights["lm_head.weight"][323])  # <|eot_id|> was learnt

    sides = [[{"role": "assistant", "content": answer}] for answer in ("yes", "no")]
    asked = [[{"role": "user", "content": f"Is {number} even?"}] for number in range(8)]
    made = {"form": None, "made": "here", "rejected_score": None}
    write_pairs(
        tmp_path / "train.parquet",
        [{"prompt": p, "chosen": sides[i % 2], "rejected": sides[1 - i % 2], **made} for i, p in enumerate(asked)],
    )
    keys = {"pairs": tmp_path, "pairs_per_step": 4, "per_device_train_batch_size": 4, "max_steps": 1}
    aligned = recipe(tmp_path, "dpo", **QUIET, **keys, model_name_or_path=folder, max_length=160, beta=0.01)
    dpo.main(aligned)
    results = read_json(aligned.output_dir / "summary.json")["results"]
    assert results["step0_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert read_json(aligned.output_dir / "generation_config.json")["eos_token_id"] == [2, 322]
    exported = recipe(tmp_path, "export", model_name_or_path=aligned.output_dir)
    export.main(exported)
    assert read_json(exported.output_dir / "config.json")["vocab_size"] == 324
