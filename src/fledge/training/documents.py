"""Attention within documents on a CPU, where torch has no kernel that takes their boundaries.

Documents of about the same length are laid side by side, filled up to it at their ends: under causal attention no
token sees what is behind it, so the filling changes nothing and needs no mask. Then the work grows with the sum of
the squared lengths, where a mask over rows of T tokens costs T squared a row.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from . import blocked


SHORT = 256
"""Up to this length all scores of a document are held, which is faster; torch's fused attention starts slowly."""

STEP = 16
"""Short documents are filled up to a multiple of this, the tile of the CPU's matrix units."""


class Layout(NamedTuple):
    """Where tokens stand side by side. `groups`: (documents, length) of each, in order.

    `there` (M,) takes tokens to their places, and N, one past the last token, to the filling; `back` (N,) returns.
    """

    groups: tuple[tuple[int, int], ...]
    there: torch.Tensor
    back: torch.Tensor


@torch.compiler.disable  # shapes change with every batch
def attend(
    query: torch.Tensor,  # (N, H, E)
    key: torch.Tensor,  # (N, K, E)
    value: torch.Tensor,  # (N, K, E)
    begins: torch.Tensor,  # (documents + 1,) int32
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal attention of N tokens within their documents, (N, H, E)."""
    groups, there, back = layout(begins.numpy().tobytes())
    if len(groups) == 1 and len(there) == len(query):  # documents of one length stand as they are wanted
        states = [states.unflatten(0, groups[0]).transpose(1, 2) for states in (query, key, value)]
        return _attend_alike(states, scaling, dropout).transpose(1, 2).flatten(0, 1)
    sizes = [count * length for count, length in groups]
    apart = zip(*(_Moved.apply(states, there, back).split(sizes) for states in (query, key, value)), strict=True)
    done = [
        _attend_alike([states.unflatten(0, group).transpose(1, 2) for states in one], scaling, dropout)
        for group, one in zip(groups, apart, strict=True)
    ]
    return _Moved.apply(torch.cat([states.transpose(1, 2).flatten(0, 1) for states in done]), back, there)


def _attend_alike(states: list[torch.Tensor], scaling: float, dropout: float) -> torch.Tensor:
    """Queries (D, H, L, E), keys and values (D, K, L, E) of D documents of one length -> (D, H, L, E)."""
    query, key, value = states
    documents, heads, length, _ = query.shape
    grouped = heads // key.shape[1]
    if length > SHORT and not blocked.pays(query, dropout):
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=grouped > 1
        )
    if length > SHORT:
        return blocked.BlockedAttention.apply(query, key, value, scaling)
    # The queries that share keys stand below each other, (D * K, grouped * L, E): nothing is repeated.
    query = query.unflatten(1, (-1, grouped)).flatten(0, 1).flatten(1, 2)
    key, value = (one.flatten(0, 1) for one in (key, value))
    future = torch.full((length, length), -torch.inf, dtype=query.dtype).triu(1).repeat(grouped, 1)
    shares = torch.baddbmm(future, query, key.transpose(1, 2), alpha=scaling).softmax(-1)
    return torch.dropout(shares, dropout, train=True).bmm(value).view(documents, heads, length, -1)


@lru_cache(maxsize=4)  # the layers of a model ask for the same, and forward and backward of a checkpointed one
def layout(begins: bytes) -> Layout:
    """How the documents that begin there (int32, with N as the last) are laid side by side."""
    starts = np.frombuffer(begins, np.int32).astype(np.int64)
    lengths = np.diff(starts)
    filled = np.where(lengths <= SHORT, -(-lengths // STEP) * STEP, lengths)
    total = starts[-1]
    groups, there = [], []
    for length in np.unique(filled):
        of_it = np.flatnonzero(filled == length)
        places = starts[of_it, None] + np.arange(length)
        there.append(np.where(np.arange(length) < lengths[of_it, None], places, total).ravel())
        groups.append((len(of_it), int(length)))
    places = np.concatenate(there)
    back = np.empty(total, np.int64)
    used = places < total
    back[places[used]] = np.flatnonzero(used)
    return Layout(tuple(groups), torch.from_numpy(places), torch.from_numpy(back))


class _Moved(torch.autograd.Function):
    """Rows `there`, zeros for an index past the last; the gradient comes `back`, and nothing from the zeros."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, there: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        return _rows(rows, there)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _rows(grad, *ctx.saved_tensors), None, None


def _rows(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    has_filling = len(index) > len(rows)
    return (pad(rows, (0, 0, 0, 0, 0, 1)) if has_filling else rows).index_select(0, index)
