"""Bytes that a forward pass keeps for the backward pass, operation by operation.

Counted in transformers' code (LlamaDecoderLayer, GPT2Block) and compared with torch's saved tensors by a test. A
compiled layer fuses element-wise operations and keeps less: the figures are those without torch_compile.
"""

from dataclasses import dataclass
from typing import Literal

from .shape import Shape


Precision = Literal["float32", "autocast", "bfloat16"]
"""float32; float32 weights multiplied in bfloat16 (autocast); bfloat16 weights, as FSDP2 gathers them."""

COMPOSED = ("gelu_new", "gelu_fast", "quick_gelu")
"""Activation functions that transformers writes out in elementary operations, each keeping its own result."""


@dataclass(frozen=True)
class Batch:
    """What a process computes at once."""

    sequences: int
    length: int

    @property
    def tokens(self) -> int:
        """Padding included."""
        return self.sequences * self.length


def layer_bytes(shape: Shape, batch: Batch, precision: Precision, attention: str, on_gpu: bool = True) -> int:
    """Kept by one decoder layer, nothing computed again.

    Args:
        attention: varlen, sdpa or eager. Under the latter two packed rows bring a mask: it keeps documents apart.
        on_gpu: whether the kernels are CUDA's: autocast takes powers in float32 there, and
            dropout keeps a byte an element.
    """
    per_token = _norms(shape, precision) + _mlp(shape, precision, on_gpu)
    per_token += _attention(shape, batch.length, precision, attention)
    if shape.dropout:
        per_token += 2 * shape.hidden_size * (1 if on_gpu else _compute(precision))  # which elements stay
    return batch.tokens * per_token


def stream_bytes(shape: Shape, batch: Batch, precision: Precision) -> int:
    """The residual stream between two layers: all that activation checkpointing keeps of a layer."""
    return batch.tokens * shape.hidden_size * _stream(precision)


def shared_bytes(shape: Shape, batch: Batch, precision: Precision, attention: str) -> int:
    """Kept once: the mask, rotary cosines and sines, token ids, positions and labels, the last norm."""
    an_entry = {"varlen": 0, "sdpa": 1, "eager": _compute(precision)}[attention]
    mask = batch.tokens * batch.length * an_entry
    rotary = 0 if shape.is_gpt2 else 2 * batch.tokens * shape.head_dim * _stream(precision)
    return mask + rotary + batch.tokens * (3 * 8 + _norms(shape, precision) // 2)


def _norms(shape: Shape, precision: Precision) -> int:
    """Both norms of a layer, and the inputs of the matrices that follow them; bytes a token."""
    hidden, stream, compute = shape.hidden_size, _stream(precision), _compute(precision)
    if shape.is_gpt2:
        statistics = 2 * stream
        return 2 * (stream * hidden + compute * hidden + statistics)
    # LlamaRMSNorm computes in float32: its input there (a copy if that is bfloat16), the normalised value, 1 / rms.
    norm = 4 * hidden + stream * hidden + 4
    # Under autocast each matrix product casts its input anew: queries, keys, values; gate, up.
    casts = 5 if precision == "autocast" else 2
    return 2 * norm + casts * compute * hidden


def _attention(shape: Shape, length: int, precision: Precision, attention: str) -> int:
    heads, queries, compute = shape.num_heads, shape.query_size, _compute(precision)
    # With a mask, keys and values are repeated for every query head; and the result is kept.
    repeated = shape.key_value_size if attention == "varlen" else queries
    kept = compute * (queries + 2 * repeated) + compute * queries
    if attention == "varlen":
        kept += 4 * heads  # log-sum-exp
    elif attention == "eager":
        probabilities = compute if shape.is_gpt2 and precision == "bfloat16" else 4
        if probabilities != compute:
            probabilities += compute  # the softmax is in float32, its product with the values is not
        kept += probabilities * heads * length
    else:
        kept += 4 * heads + compute * length  # log-sum-exp; the mask as numbers, one for all heads
    if shape.qk_norm:
        both = queries + shape.key_value_size
        kept += (4 + compute) * both + 4 * (heads + shape.num_key_value_heads)
    return kept


def _mlp(shape: Shape, precision: Precision, on_gpu: bool) -> int:
    compute, inner = _compute(precision), shape.intermediate_size
    if not shape.is_gpt2:
        return 4 * compute * inner  # gate, its activation, up, their product
    if shape.activation not in COMPOSED:
        return 2 * compute * inner
    if precision == "autocast" and on_gpu:
        return (3 * 4 + 2 * compute) * inner
    return 5 * compute * inner


def _stream(precision: Precision) -> int:
    return 2 if precision == "bfloat16" else 4


def _compute(precision: Precision) -> int:
    return 4 if precision == "float32" else 2
