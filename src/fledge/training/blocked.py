"""Causal attention on a CPU in bfloat16, with a backward pass in blocks of keys: two thirds of the time of torch's.

torch's fused kernel is quick forward and five times as slow backward: in a model of 40 million parameters and rows of
512 tokens its backward pass took more than a third of a step. Here, as in FlashAttention (Dao 2023, arXiv 2307.08691),
the shares are computed again out of the logarithm of their sum; the products are whole matrix products, and all that
lies between them is one compiled loop.
"""

import math
from typing import Any

import torch


AT_ONCE = 16
"""Heads whose scores are held at a time; with BLOCK keys of 512 queries they are 4 MB."""

BLOCK = 256
"""Keys at a time, at most."""

LONGEST = 512
"""Above this length the scores outgrow the cache, and torch's kernel is as fast."""

_compiled: dict[str, Any] = {}


def compile_loop() -> None:
    """Take this way from now on; without a compiler its loop would be several, and torch's kernel is faster."""
    if _compiled:
        return
    _compiled["means"] = torch.compile(_means, dynamic=True, recompile_limit=32)
    _compiled["gradients"] = torch.compile(_gradients, dynamic=True, recompile_limit=32)


def pays(query: torch.Tensor, dropout: float) -> bool:
    """Whether `BlockedAttention` is the faster one for queries (D, H, L, E)."""
    return bool(_compiled) and query.dtype == torch.bfloat16 and query.shape[2] <= LONGEST and not dropout


def _means(attended: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """What a query's gradients of its shares are on the mean, weighed by the shares: (D, H, L, E) -> (D, H, L)."""
    return (attended.float() * grad.float()).sum(-1)


def _gradients(
    query: torch.Tensor,  # (H, M, E): the queries that see the block
    key: torch.Tensor,  # (K, B, E): the block, B <= M
    value: torch.Tensor,  # (K, B, E)
    grad: torch.Tensor,  # (H, M, E)
    log_sums: torch.Tensor,  # (H, M): logarithm of the sum that a query's shares were divided by
    means: torch.Tensor,  # (H, M)
    grad_query: torch.Tensor,  # (H, M, E) float32, added to
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of one document's block of keys and values, (K, B, E)."""
    sharing, among = len(query) // len(key), key.shape[1]
    keys, values = (states.repeat_interleave(sharing, 0) for states in (key, value))
    scores = query @ keys.transpose(1, 2)
    above = grad @ values.transpose(1, 2)
    seen = torch.arange(query.shape[1])[:, None] >= torch.arange(among)
    shares = torch.where(seen, torch.exp(scores.float() * scaling - log_sums[..., None]), 0.0)
    grad_scores = (shares * (above.float() - means[..., None]) * scaling).to(query.dtype)
    grad_query += grad_scores @ keys
    grads = grad_scores.transpose(1, 2) @ query, shares.to(query.dtype).transpose(1, 2) @ grad
    grad_key, grad_value = (each.unflatten(0, (-1, sharing)).float().sum(1).to(query.dtype) for each in grads)
    return grad_key, grad_value


class BlockedAttention(torch.autograd.Function):
    """Queries (D, H, L, E), keys and values (D, K, L, E) of D documents of L tokens -> attended to, (D, H, L, E)."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        # What scaled_dot_product_attention calls on a CPU; by itself it does not give the logarithms.
        attended, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, is_causal=True, scale=scaling
        )
        ctx.save_for_backward(query, key, value, attended, log_sums)
        ctx.scaling = scaling
        return attended

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, attended, log_sums = ctx.saved_tensors
        means = _compiled["means"](attended, grad)
        grad_query = torch.zeros_like(query, dtype=torch.float32)
        grad_key, grad_value = torch.empty_like(key), torch.empty_like(value)
        documents, heads, length, _ = query.shape
        sharing = heads // key.shape[1]
        size = math.ceil(length / math.ceil(length / BLOCK))  # of alike blocks; none of a single key
        step = max(1, AT_ONCE // sharing)
        for document in range(documents):
            for first in range(0, key.shape[1], step):
                group = document, slice(first, first + step)
                asking = document, slice(first * sharing, (first + step) * sharing)
                for start in range(0, length, size):
                    block, later = (*group, slice(start, start + size)), (*asking, slice(start, None))
                    grad_key[block], grad_value[block] = _compiled["gradients"](
                        query[later],
                        key[block],
                        value[block],
                        grad[later],
                        log_sums[later],
                        means[later],
                        grad_query[later],
                        ctx.scaling,
                    )
        return grad_query.to(query.dtype), grad_key, grad_value, None
