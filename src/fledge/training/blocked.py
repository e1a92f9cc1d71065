"""Causal attention on a CPU in bfloat16, with a backward pass in blocks of keys: two thirds of the time of torch's.

torch's fused kernel is quick forward and five times as slow backward: in a model of 40 million parameters and rows of
512 tokens its backward pass took more than a third of a step. Here, as in FlashAttention (Dao 2023, arXiv 2307.08691),
the shares are computed again out of the logarithm of their sum; the products are whole matrix products, and all that
lies between them is one compiled loop.
"""

import math
from typing import Any

import torch


AT_ONCE = 8
"""Heads of documents whose scores are held at a time; with BLOCK keys of LONGEST queries they are 3 MB."""

BLOCK = 256
"""Keys at a time, at most."""

LONGEST = 768
"""Above this length the scores outgrow the cache, and torch's kernel is as fast."""

_compiled: dict[str, Any] = {}


def compile_loop() -> None:
    """Take this way from now on; without a compiler its loop would be several, and torch's kernel is faster."""
    if _compiled:
        return
    _compiled["shares"] = torch.compile(_shares, dynamic=True)


def pays(query: torch.Tensor, dropout: float) -> bool:
    """Whether `BlockedAttention` is the faster one for queries (D, H, L, E)."""
    return bool(_compiled) and query.dtype == torch.bfloat16 and query.shape[2] <= LONGEST and not dropout


def _shares(
    scores: torch.Tensor, above: torch.Tensor, log_sums: torch.Tensor, means: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and the gradients of their shares, (M, B) -> the shares and the gradients of the unscaled scores.

    Args:
        log_sums: logarithm of the sum that a query's shares were divided by, (M, 1).
        means: of the gradients of its shares, weighed by the shares, (M, 1).
    """
    shares = torch.exp(scores.float() * scaling - log_sums)
    return shares.to(scores.dtype), (shares * (above.float() - means) * scaling).to(scores.dtype)


class BlockedAttention(torch.autograd.Function):
    """Queries, keys and values (D, H, L, E) of D documents of L tokens -> what each token attends to, (D, H, L, E)."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        query, key, value = (states.contiguous() for states in (query, key, value))
        # What scaled_dot_product_attention calls on a CPU; by itself it does not give the logarithms.
        attended, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, is_causal=True, scale=scaling
        )
        ctx.save_for_backward(query, key, value, attended, log_sums)
        ctx.scaling = scaling
        return attended

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *states, attended, log_sums = ctx.saved_tensors
        means = (attended.float() * grad).sum(-1)
        query, key, value, grad = (each.flatten(0, 1) for each in (*states, grad))
        log_sums, means = (each.flatten(0, 1)[..., None] for each in (log_sums, means))
        grad_query = torch.zeros(query.shape)
        grad_key, grad_value = torch.empty_like(key), torch.empty_like(value)
        length = query.shape[1]
        size = math.ceil(length / math.ceil(length / BLOCK))  # of alike blocks; none of a single key
        future = torch.full((size, size), -torch.inf, dtype=query.dtype).triu(1)
        for first in range(0, len(query), AT_ONCE):
            heads = slice(first, first + AT_ONCE)
            for start in range(0, length, size):
                block, later = (heads, slice(start, start + size)), (heads, slice(start, None))  # who sees whom
                scores = query[later] @ key[block].transpose(1, 2)
                among = scores.shape[2]
                scores[:, :among] += future[:among, :among]
                above = grad[later] @ value[block].transpose(1, 2)
                flat = [states.flatten(0, 1) for states in (scores, above, log_sums[later], means[later])]
                shares, above = (states.view(scores.shape) for states in _compiled["shares"](*flat, ctx.scaling))
                grad_query[later] += above @ key[block]
                grad_key[block] = above.transpose(1, 2) @ query[later]
                grad_value[block] = shares.transpose(1, 2) @ grad[later]
        documents = ctx.saved_tensors[0].shape[:2]
        grads = (grad_query.to(query.dtype), grad_key, grad_value)
        return *(states.unflatten(0, documents) for states in grads), None
