"""Attention within documents: what it computes, and when it is chosen. CUDA's kernel itself needs a GPU."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from fledge.data.collate import PackedCollator
from fledge.machine import on_cpu
from fledge.model import register
from fledge.model.build import build_model
from fledge.training import varlen
from fledge.training.varlen import VARLEN, choose_attention, padded_attention


DEVICE = "cpu" if on_cpu() else "cuda"
SMALL = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 97, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "attn_pdrop": 0.0}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0}
ROWS = [([9, 20, 3], 1), ([32], 2), ([1, 1, 14, 8], 3)]  # lengths of the documents of rows of at most 32, and a seed


def documents_alone(q: Any, k: Any, v: Any, begins: Any, _: Any, most: int, __: int, scale: float, **how: Any) -> Any:
    """What torch's kernel computes, one document after the other."""
    assert how in ({"window_size": (-1, 0), "enable_gqa": q.shape[1] != k.shape[1]}, {"is_causal": True})
    done = []
    for start, end in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True):
        assert 0 < end - start <= most
        one = [states[start:end].transpose(0, 1)[None] for states in (q, k, v)]  # (1, heads, length, width)
        out = torch.nn.functional.scaled_dot_product_attention(*one, is_causal=True, scale=scale, enable_gqa=True)
        done.append(out[0].transpose(0, 1))
    return torch.cat(done)


@pytest.fixture(params=["documents", "kernel"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU's way, and a GPU's: for its kernel, where there is none, the loop above."""
    if DEVICE == "cpu" and request.param == "kernel":
        monkeypatch.setattr(varlen, "on_cpu", lambda: False)
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", documents_alone)
    elif DEVICE != "cpu" and request.param == "documents":
        pytest.skip("a GPU has the kernel")


def make(model_type: str, attention: str) -> PreTrainedModel:
    register()
    torch.manual_seed(1)
    config = AutoConfig.for_model(model_type, **(GPT2 if model_type == "gpt2" else SMALL))
    model = build_model(config).train().to(DEVICE)
    model.set_attn_implementation(choose_attention(attention, config, bf16=True))
    return model


def batch(boundaries: bool) -> dict[str, Any]:
    rows = []
    for lengths, seed in ROWS:
        ids = torch.randint(1, 97, (sum(lengths),), generator=torch.Generator().manual_seed(seed)).tolist()
        rows.append({"input_ids": ids, "labels": ids, "seq_lengths": lengths})
    made = PackedCollator(32, 0, boundaries)(rows)
    return {name: value.to(DEVICE) if torch.is_tensor(value) else value for name, value in made.items()}


def run(model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.autocast(DEVICE, torch.bfloat16):
        return model(**inputs, use_cache=False)


def test_documents_begin_where_positions_restart() -> None:
    made = batch(boundaries=True)
    assert made["cu_seq_lens_q"].tolist() == [0, 9, 29, 32, 64, 65, 66, 80, 88, 96]  # 88: eight tokens of padding
    assert made["cu_seq_lens_q"].dtype == torch.int32 and made["max_length_q"] == 32


@pytest.mark.parametrize("model_type", ["fledge", "llama", "mistral", "gpt2"])
def test_varlen_is_sdpa_with_a_mask(path: None, model_type: str) -> None:
    ours, theirs = make(model_type, "auto"), make(model_type, "sdpa")
    assert ours.config._attn_implementation == VARLEN
    mine, wanted = run(ours, batch(True)), run(theirs, batch(False))
    used = batch(False)["labels"] != -100
    torch.testing.assert_close(mine.logits[used], wanted.logits[used], atol=0.02, rtol=0.02)  # bfloat16
    mine.loss.backward()
    wanted.loss.backward()
    for (name, weight), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        difference = (weight.grad - other.grad).norm() / other.grad.norm().clamp(min=1e-6)
        assert difference < 0.02, (name, difference)


def test_no_document_sees_another(path: None) -> None:
    model, inputs = make("fledge", "auto"), batch(True)
    changed = inputs["input_ids"].clone()
    changed[0, 9:29] = (changed[0, 9:29] + 1) % 97
    difference = (run(model, inputs).logits - run(model, inputs | {"input_ids": changed}).logits).abs().amax(-1)
    assert difference[0, 9:29].min() > 0
    difference[0, 9:29] = 0
    assert difference.max() == 0


def test_padded_batches_are_left_to_sdpa_and_others_refused(path: None) -> None:
    ours, theirs = make("fledge", "auto"), make("fledge", "sdpa")
    ids = batch(False)["input_ids"]
    for padded in (0, 5):
        mask = torch.ones_like(ids)
        mask[1, 32 - padded :] = 0
        padded_rows = {"input_ids": ids, "attention_mask": mask}
        assert torch.equal(run(ours, padded_rows).logits[mask == 1], run(theirs, padded_rows).logits[mask == 1])
    with pytest.raises(ValueError, match="neither cu_seq_lens_q nor an attention_mask"):
        run(ours, {"input_ids": ids})


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    config = AutoConfig.for_model("fledge", **SMALL)
    dropping = AutoConfig.for_model("gpt2", **GPT2 | {"attn_pdrop": 0.1})
    sliding = AutoConfig.for_model("mistral", **SMALL, sliding_window=16)
    for gpu, bf16, model, chosen, told in (
        (False, True, config, VARLEN, None),
        (False, False, dropping, VARLEN, None),
        (False, True, sliding, "sdpa", "knows no sliding window"),
        (True, False, config, "sdpa", "needs bf16 on a GPU"),
        (True, True, dropping, "sdpa", "knows no dropout on a GPU"),
        (True, True, sliding, "sdpa", "knows no sliding window"),
        (True, True, config, VARLEN, None),
    ):
        monkeypatch.setattr(varlen, "on_cpu", lambda gpu=gpu: not gpu)
        assert choose_attention("auto", model, bf16) == chosen
        assert choose_attention("eager", model, bf16) == "eager"
        if told:
            with pytest.raises(ValueError, match=f"attn_implementation: varlen {told}"):
                choose_attention(VARLEN, model, bf16)
    assert padded_attention("auto") == "sdpa" and padded_attention("eager") == "eager"
    with pytest.raises(ValueError, match="pairs are padded"):
        padded_attention(VARLEN)
