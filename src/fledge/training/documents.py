"""Attention within documents on a CPU, where torch has no kernel that takes their boundaries.

Documents of about the same length are laid side by side, filled up to it at their ends: under causal attention no
token sees what is behind it, so the filling changes nothing and needs no mask. Then the work grows with the sum of
the squared lengths, where a mask over rows of T tokens costs T squared a row.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from . import blocked


SHORT = 256
"""Up to this length all scores of a document are held, which is faster; torch's fused attention starts slowly."""

STEP = 16
"""Short documents are filled up to a multiple of this, the tile of the CPU's matrix units; longer ones of twice it."""

TOGETHER = 1024
"""Tokens of short documents that are laid side by side, at most; the documents are a power of two.

That leaves few shapes. For each new one oneDNN compiles its products and keeps them, and memory gets holes: with
all documents of a length together a step took an eighth longer, and memory grew for as long as batches differed.
"""

_compiled: dict[str, Any] = {}


class Layout(NamedTuple):
    """Where the heads of tokens stand side by side. `groups`: (documents, length) of each, in order.

    `there` (M,) takes the N tokens' heads, (N * heads,), to their places, document by document and head by head, and
    has -1 for the filling; `back` (N * heads,) returns.
    """

    groups: tuple[tuple[int, int], ...]
    there: torch.Tensor
    back: torch.Tensor


def compile_loop() -> None:
    """Move tokens in one compiled loop from now on."""
    if not _compiled:
        _compiled["moved"] = torch.compile(_moved, dynamic=True)


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
    where = begins.numpy().tobytes()
    if length := alike(where):  # they stand as they are wanted
        states = [states.unflatten(0, (-1, length)).transpose(1, 2) for states in (query, key, value)]
        return _attend_alike(*states, scaling, dropout).transpose(1, 2).flatten(0, 1)
    width, apart = query.shape[2], []
    for states in (query, key, value):
        groups, there, back = layout(where, heads := states.shape[1])
        sizes = [count * heads * length for count, length in groups]
        *parts, _ = _Moved.apply(states.reshape(-1, width), there, back).split([*sizes, len(there) - sum(sizes)])
        shapes = [(count, heads, length, width) for count, length in groups]
        apart.append([part.view(shape) for part, shape in zip(parts, shapes, strict=True)])
    done = [_attend_alike(*one, scaling, dropout).reshape(-1, width) for one in zip(*apart, strict=True)]
    _, there, back = layout(where, query.shape[1])
    return _Moved.apply(torch.cat(done), back, there[: sum(map(len, done))]).view_as(query)


def _attend_alike(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, dropout: float
) -> torch.Tensor:
    """Queries (D, H, L, E), keys and values (D, K, L, E) of D documents of one length -> (D, H, L, E)."""
    if query.shape[2] <= SHORT and not dropout:
        return _ShortAttention.apply(query, key, value, scaling)
    if blocked.pays(query, dropout):
        return blocked.BlockedAttention.apply(query, key, value, scaling)
    grouped = query.shape[1] > key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=grouped
    )


class _ShortAttention(torch.autograd.Function):
    """Queries (D, H, L, E), keys and values (D, K, L, E) -> (D, H, L, E), with all shares of a document held."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        ctx.shape, ctx.scaling = query.shape, scaling
        _, heads, length, width = query.shape
        grouped = heads // key.shape[1]
        # The queries that share keys stand below each other, (D * K, grouped * L, E): nothing is repeated.
        query = query.reshape(-1, grouped * length, width)
        key, value = (states.reshape(-1, length, width) for states in (key, value))
        future = _future(length, grouped, query.dtype)
        shares = torch.baddbmm(future, query, key.transpose(1, 2), alpha=scaling).softmax(-1)
        ctx.save_for_backward(query, key, value, shares)
        return shares.bmm(value).view(ctx.shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, shares = ctx.saved_tensors
        grad = grad.reshape(query.shape)
        of_shares = grad.bmm(value.transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype)
        of_query = of_scores.bmm(key).mul_(ctx.scaling)
        of_key = of_scores.transpose(1, 2).bmm(query).mul_(ctx.scaling)
        of_value = shares.transpose(1, 2).bmm(grad)
        apart = ctx.shape[0], -1, *ctx.shape[2:]
        return of_query.view(ctx.shape), of_key.view(apart), of_value.view(apart), None


@lru_cache(maxsize=64)
def _future(length: int, grouped: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((length, length), -torch.inf, dtype=dtype).triu(1).repeat(grouped, 1)


def filled(lengths: np.ndarray) -> np.ndarray:
    """What documents of these lengths are filled up to."""
    step = np.where(lengths <= SHORT, STEP, 2 * STEP)
    return np.where(lengths <= blocked.LONGEST, -(-lengths // step) * step, lengths)


def most(length: int) -> int:
    """How many documents of that filled length are laid side by side, at most."""
    return 2 ** ((TOGETHER // length).bit_length() - 1)


@lru_cache(maxsize=4)
def alike(begins: bytes) -> int:
    """The length of the documents that begin there, if all have one and it needs no filling; else 0."""
    lengths = np.diff(np.frombuffer(begins, np.int32))
    return int(lengths[0]) if (filled(lengths) == lengths[0]).all() and (lengths == lengths[0]).all() else 0


@lru_cache(maxsize=8)  # the layers of a model ask for the same, and forward and backward of a checkpointed one
def layout(begins: bytes, heads: int) -> Layout:
    """How the documents that begin there (int32, with N as the last) are laid side by side, the longest first."""
    starts = np.frombuffer(begins, np.int32).astype(np.int64)
    lengths = np.diff(starts)
    order, wide = np.argsort(-lengths, kind="stable"), filled(lengths)
    groups, places, at = [], [], 0
    while at < len(order):
        length = int(wide[order[at]])
        among = order[at : at + most(length)] if length <= SHORT else order[wide[order] == length]
        count = 2 ** (len(among) - 1).bit_length() if length <= SHORT else len(among)
        rows = np.full((count, heads, length), -1)
        tokens = starts[among, None, None] + np.arange(length)
        its = tokens * heads + np.arange(heads)[:, None]
        rows[: len(among)] = np.where(np.arange(length) < lengths[among, None, None], its, -1)
        groups.append((count, length))
        places.append(rows.ravel())
        at += len(among)
    there = np.concatenate(places)
    there = np.pad(there, (0, -len(there) % (TOGETHER * heads)), constant_values=-1)
    back = np.empty(starts[-1] * heads, np.int64)
    back[there[there >= 0]] = np.flatnonzero(there >= 0)
    return Layout(tuple(groups), torch.from_numpy(there), torch.from_numpy(back))


def _moved(rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Rows (R, E) of these places (M,), zeros where one is -1."""
    return torch.where((places >= 0)[:, None], rows[places.clamp(min=0)], 0)


class _Moved(torch.autograd.Function):
    """Rows `there`; the gradient comes `back`, and nothing from the zeros."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, there: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.back = back
        return _compiled.get("moved", _moved)(rows, there)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _compiled.get("moved", _moved)(grad, ctx.back), None, None
