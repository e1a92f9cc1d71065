"""The model: Llama to the bit with its switches off, its switches by their formulas, and whole on disk."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, tiny_config
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fledge.model import register
from fledge.model.configuration_fledge import FledgeConfig
from fledge.model.modeling_fledge import FledgeForCausalLM


Make = Callable[..., FledgeForCausalLM]
both_attentions = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@pytest.fixture
def ids() -> torch.Tensor:
    """Three rows of 24 random ids; none is a special token."""
    return torch.randint(6, 320, (3, 24), generator=torch.Generator().manual_seed(1))


@both_attentions
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_with_its_switches_off_it_is_llama_to_the_bit(
    make_model: Make, ids: torch.Tensor, attention: str, padded: bool, tied: bool
) -> None:
    ours = make_model(attention, tie_word_embeddings=tied)
    config = LlamaConfig(**TINY, tie_word_embeddings=tied, attn_implementation=attention)  # no pad: no padding_idx
    llama = LlamaForCausalLM(config).eval()
    llama.load_state_dict(ours.state_dict())
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :5] = 0
    labels = ids.masked_fill(mask == 0, -100)
    found, expected = (model(ids, attention_mask=mask, labels=labels) for model in (ours, llama))
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.loss, expected.loss)
    found.loss.backward()
    expected.loss.backward()
    gradients = {name: weight.grad for name, weight in llama.named_parameters()}
    for name, weight in ours.named_parameters():
        assert torch.equal(weight.grad, gradients.pop(name)), name
    assert not gradients


def test_a_1b_recipe_has_the_parameters_it_says() -> None:
    config = FledgeConfig(
        vocab_size=32003,
        hidden_size=2048,
        intermediate_size=5504,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = FledgeForCausalLM(config)
    assert model.num_parameters() == 1_105_827_840


# --- the switches


@pytest.mark.parametrize("scaled", [True, False])
def test_scaled_residual_init_narrows_the_two_that_write_to_the_stream(make_model: Make, scaled: bool) -> None:
    model = make_model(scaled_residual_init=scaled, num_hidden_layers=8)
    narrow = 0.1 / math.sqrt(2 * 8)
    for name, weight in model.named_parameters():
        if weight.ndim != 2:
            assert torch.equal(weight, torch.ones_like(weight)), name
            continue
        residual = name.split(".")[-2] in ("o_proj", "down_proj")
        # At least 512 draws: the standard error of their std is below 3.2 %, and 12 % are four of them.
        assert weight.std().item() == pytest.approx(narrow if scaled and residual else 0.1, rel=0.12), name


def test_qk_norm_is_rms_norm_over_each_head_before_rope(make_model: Make, ids: torch.Tensor) -> None:
    plain, normed = make_model(), make_model(qk_norm=True)
    extra = normed.state_dict().keys() - plain.state_dict().keys()
    assert len(extra) == 4 and all(name.endswith(("q_norm.weight", "k_norm.weight")) for name in extra)
    assert {weight.shape for name, weight in normed.named_parameters() if name in extra} == {(8,)}

    # Queries and keys turn into unit RMS: scaling q_proj and k_proj has no effect; without qk_norm it has.
    with torch.no_grad():
        for model in (plain, normed):
            before = model(ids).logits
            for layer in model.model.layers:
                layer.self_attn.q_proj.weight.mul_(4)
                layer.self_attn.k_proj.weight.mul_(0.5)
            change = (model(ids).logits - before).abs().max()
            assert (change < 1e-3) == (model is normed)

        attention = normed.model.layers[0].self_attn
        heads = torch.randn(2, 5, 4, 8)
        attention.q_norm.weight.uniform_(0.5, 2)
        expected = heads / heads.square().mean(-1, keepdim=True).add(1e-6).sqrt() * attention.q_norm.weight
        torch.testing.assert_close(attention.q_norm(heads), expected)


def test_z_loss_is_the_mean_squared_log_partition(make_model: Make, ids: torch.Tensor) -> None:
    plain, weighted = make_model(), make_model(z_loss_weight=0.01)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.3, -100)
    logits = plain(ids).logits[:, :-1]
    used = labels[:, 1:] != -100
    squares = torch.log(torch.exp(logits).sum(-1)).square()[used]
    loss = plain(ids, labels=labels).loss
    assert weighted(ids, labels=labels).loss.item() == pytest.approx((loss + 0.01 * squares.mean()).item(), rel=1e-6)
    summed = cross_entropy(logits[used], labels[:, 1:][used], reduction="sum") + 0.01 * squares.sum()
    step = weighted(ids, labels=labels, num_items_in_batch=torch.tensor(200)).loss
    assert step.item() == pytest.approx(summed.item() / 200, rel=1e-6)


# --- training and generating


@both_attentions
def test_activation_checkpointing_gives_equal_gradients(make_model: Make, ids: torch.Tensor, attention: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_model(attention).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            calls = []
            model.model.layers[0].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([weight.grad for weight in model.parameters()])
    assert len(calls) == 2  # forward, and once more in backward
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@both_attentions
def test_the_cache_changes_nothing(make_model: Make, ids: torch.Tensor, attention: str) -> None:
    model = make_model(attention, qk_norm=True)
    model.generation_config.eos_token_id = None
    mask = torch.ones_like(ids)
    mask[0, :6] = 0  # left padding
    cached, anew = (
        model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert cached.shape == (3, 36) and torch.equal(cached, anew)

    with torch.no_grad():
        whole, past, pieces = model(ids, use_cache=False).logits, None, []
        for piece in ids.split([10, 1, 1, 12], dim=1):
            output = model(piece, past_key_values=past, use_cache=True)
            past = output.past_key_values
            pieces.append(output.logits)
        torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(ids, logits_to_keep=3).logits, whole[:, -3:], rtol=1e-5, atol=1e-5)
        chosen = torch.tensor([0, 7])
        torch.testing.assert_close(model(ids, logits_to_keep=chosen).logits, whole[:, chosen], rtol=1e-5, atol=1e-5)


def test_the_embedding_of_the_padding_token_learns(ids: torch.Tensor) -> None:
    # Llama's padding_idx would leave a stop token that also pads without a gradient.
    token = ids[0, 3].item()
    model = FledgeForCausalLM(tiny_config(pad_token_id=token, eos_token_id=token))
    model(ids, labels=ids).loss.backward()
    assert model.model.embed_tokens.weight.grad[token].abs().max() > 0


def test_ids_or_embeddings_but_not_both(make_model: Make, ids: torch.Tensor) -> None:
    model = make_model()
    embeddings = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeddings).logits, model(ids).logits)
    for values in ({}, {"input_ids": ids, "inputs_embeds": embeddings}):
        with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
            model(**values)


# --- on disk


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load(make_model: Make, ids: torch.Tensor, tmp_path: Path, tied: bool) -> None:
    register()
    register()
    model = make_model(tie_word_embeddings=tied, qk_norm=True, z_loss_weight=0.5)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False).eval()
    assert type(loaded) is FledgeForCausalLM and type(AutoConfig.from_pretrained(tmp_path)) is FledgeConfig
    assert (loaded.config.qk_norm, loaded.config.z_loss_weight) == (True, 0.5)
    shared = loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    assert shared == tied
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert sorted(path.name for path in tmp_path.glob("*.py")) == ["configuration_fledge.py", "modeling_fledge.py"]


ALONE = """
import sys, torch
from transformers import AutoModelForCausalLM
try:
    import fledge
except ImportError:
    pass
else:
    raise SystemExit("fledge is installed here: nothing would be proved")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
ids, logits = torch.load(sys.argv[2])
assert type(model).__module__.startswith("transformers_modules"), type(model)
assert torch.equal(model(ids).logits, logits)
print("equal")
"""


def test_a_saved_folder_loads_without_fledge(make_model: Make, ids: torch.Tensor, tmp_path: Path) -> None:
    model = make_model(qk_norm=True, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "model")
    torch.save([ids, model(ids).logits.detach()], tmp_path / "expected.pt")
    # An editable or regular install of fledge is on sys.path too: the finder below hides it.
    hide = "import sys; sys.modules['fledge'] = None\n"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", hide + ALONE, tmp_path / "model", tmp_path / "expected.pt"],
        cwd=tmp_path,
        env={**environment, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "equal\n", done.stderr
