"""Attention that takes the documents of packed rows as sequences of their own: no mask, and no work between them.

The work grows with the sum of the squared lengths of the documents, where a mask over rows of T tokens always costs
T squared a row. On CUDA the kernel is FlashAttention's (Dao 2023, arXiv 2307.08691) as torch.nn.attention.varlen has
it, in half precision, without dropout; on a CPU fledge.training.documents arranges it.
"""

from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fledge.machine import on_cpu

from .documents import attend


VARLEN = "varlen"


def choose_attention(stated: str, config: PreTrainedConfig, bf16: bool) -> str:
    """`auto` is varlen where there is a kernel for it and sdpa elsewhere; registers varlen with transformers.

    Raises:
        ValueError: varlen is stated, and this machine or this model has no kernel for it.
    """
    if stated not in ("auto", VARLEN):
        return stated
    if lacking := _lacking(config, bf16):
        if stated == VARLEN:
            raise ValueError(f"attn_implementation: varlen {lacking}; leave the key out, or write sdpa")
        return "sdpa"
    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(VARLEN, _mask)
    return VARLEN


def padded_attention(stated: str) -> str:
    """What stands for `auto` where rows are padded, each a document; raises ValueError for varlen."""
    if stated == VARLEN:
        raise ValueError("attn_implementation: varlen is for packed rows, and pairs are padded; leave the key out")
    return "sdpa" if stated == "auto" else stated


def varlen_attention(
    module: nn.Module,
    query: torch.Tensor,  # (B, H, T, E)
    key: torch.Tensor,  # (B, K, T, E)
    value: torch.Tensor,  # (B, K, T, E)
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,  # where documents begin in the B * T tokens, and B * T; int32
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within documents, (B, T, H, E); batches that come with a mask instead are left to sdpa."""
    if cu_seq_lens_q is None:
        if attention_mask is None:
            raise ValueError("varlen attention: a batch with neither cu_seq_lens_q nor an attention_mask")
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    # Under autocast the rotary embedding leaves queries and keys in float32.
    flat = [states.transpose(1, 2).flatten(0, 1).to(value.dtype) for states in (query, key, value)]
    if on_cpu():
        attended = attend(*flat, cu_seq_lens_q, scaling, dropout)
    else:
        attended = _kernel(*flat, cu_seq_lens_q, max_length_q, scaling)
    return attended.unflatten(0, (len(query), -1)), None


def _kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, begins: torch.Tensor, longest: int, scaling: float
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    groups = query.shape[1] // key.shape[1]
    known = signature(varlen_attn).parameters
    how: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "enable_gqa" in known:
        how["enable_gqa"] = groups > 1
    else:  # torch before 2.13
        key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    return varlen_attn(query, key, value, begins, begins, longest, longest, scale=scaling, **how)


def _lacking(config: PreTrainedConfig, bf16: bool) -> str:
    window = getattr(config, "sliding_window", None)
    if window and window < config.max_position_embeddings:
        return "knows no sliding window, and the model has one"
    if on_cpu():
        return ""
    if not bf16:
        return "needs bf16 on a GPU"
    dropouts = (getattr(config, name, 0.0) for name in ("attention_dropout", "attn_pdrop"))
    return "knows no dropout on a GPU, and the model has some" if any(dropouts) else ""


def _mask(*, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """Packed rows bring no attention_mask and need none; for padded ones, always one that is written out."""
    if attention_mask is None:
        return None
    return sdpa_mask(**kwargs | {"attention_mask": attention_mask, "allow_is_causal_skip": False})
