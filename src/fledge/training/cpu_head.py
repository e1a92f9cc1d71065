"""Log-probabilities of the next token on a CPU, without full logits and near the speed of the matrix products.

All three training stages take their loss from TRL's fused head (`trl.trainer.utils.add_fused_lm_head`): Triton on a
GPU, plain torch elsewhere. On a CPU the plain torch version goes over each logits tile about ten times and multiplies
in float32; at 8,192 tokens and 7,168 entries it cost 2.6 s a step where the matrix products need 0.2 s (measured on 2
cores with AMX). Here each tile is small enough for the cache, its element-wise work is one compiled loop, and the
products stay in bfloat16 under autocast, accumulated over tiles in float32.
"""

from typing import Any

import torch
from torch.nn.functional import pad


TILE_TOKENS = 1024


def _tile_statistics(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Logits (n, V), targets (n,) -> exp(logits - top) in their dtype, its sum; and what the head gives, each (n,)."""
    dtype, logits = logits.dtype, logits.float()
    top = logits.amax(-1)
    exp = torch.exp(logits - top[:, None])
    total = exp.sum(-1)
    log_partition = top + torch.log(total)
    entropy = log_partition - (exp * logits).sum(-1) / total
    target_logit = logits.gather(-1, targets[:, None])[:, 0]
    log_probs = target_logit - log_partition
    return exp.to(dtype), total, log_probs, entropy, logits.mean(-1), target_logit >= top


_compiled: dict[str, Any] = {}


def compile_tiles() -> None:
    """Compile the element-wise loop from now on; a few seconds, once a process."""
    if not _compiled:
        _compiled["statistics"] = torch.compile(_tile_statistics, dynamic=False)


class _Gradients:
    """Of sum(grad * log_probs) in the hidden states (N, D) and the weight (V, D): tile by tile, in float32."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, of_weight: bool) -> None:
        self.weight = weight
        self.of_hidden = torch.empty(hidden.shape)
        self.of_weight = torch.zeros(weight.shape) if of_weight else None

    def add(self, tile: slice, found: tuple[torch.Tensor, ...], hidden: torch.Tensor, grad: torch.Tensor) -> None:
        """Take in a tile's hidden states, targets, and what the statistics have: its `exp` is written over.

        softmax is exp / total: that quotient is taken of the narrow side of each product.
        """
        exp, total, targets = found
        places = torch.arange(len(targets)), targets
        exp[places] = (exp[places].float() - total).to(exp.dtype)
        scale = (-grad / total)[:, None]
        torch.mul(exp @ self.weight, scale, out=self.of_hidden[tile])
        if self.of_weight is not None:
            self.of_weight += exp.t() @ (hidden * scale).to(hidden.dtype)


class CpuLogProbFunction(torch.autograd.Function):
    """Stands in for `trl.kernels.ChunkedLogProbFunction` on a CPU: same arguments, same five outputs.

    Entropy, the mean logit and is_top1 are for logging and carry no gradient. Temperature, soft-capping, logit scale
    and bias are refused: no fledge model has them.

    A loss that sums log-probabilities weighs all alike, so that the gradients can be taken but for that weight while
    a tile's logits are there (as Liger's fused cross-entropy does). One that does not, DPO's, shows it at the first
    backward pass; there and from then on the logits are computed once more.
    """

    alike = True
    """Whether every backward pass of this process weighed all log-probabilities alike."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # (N, D)
        weight: torch.Tensor,  # (V, D)
        bias: torch.Tensor | None,
        targets: torch.Tensor,  # (N,)
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = (),
    ) -> tuple[torch.Tensor | None, ...]:
        if bias is not None or temperature != 1.0 or final_logit_softcapping is not None or logit_scale != 1.0:
            raise NotImplementedError("the CPU head has no bias, temperature, soft-capping or logit scale")
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else hidden.dtype
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        count = len(hidden)
        if _compiled:  # whole tiles only, one at least: one shape, one compilation
            missing = max(TILE_TOKENS - count, -count % TILE_TOKENS)
            hidden, targets = pad(hidden, (0, 0, 0, missing)), pad(targets, (0, missing))
        ctx.count, ctx.of_weight, ctx.gradients = count, ctx.needs_input_grad[1], None
        if ctx.needs_input_grad[0] and CpuLogProbFunction.alike:
            ctx.gradients = _Gradients(hidden, weight, ctx.of_weight)
        results = _tiles(hidden, weight, targets, ctx.gradients, pad(torch.ones(count), (0, len(hidden) - count)))
        ctx.save_for_backward(hidden, weight, targets)
        log_probs, *for_logging = (torch.cat(column)[:count] for column in zip(*results, strict=True))
        ctx.mark_non_differentiable(*for_logging)
        entropy, mean_logits, is_top1 = for_logging
        return log_probs, entropy, None, mean_logits, is_top1

    @staticmethod
    def backward(ctx: Any, grad_log_probs: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        alike = bool((grad_log_probs == grad_log_probs[:1]).all())
        CpuLogProbFunction.alike &= alike
        gradients, by = ctx.gradients, grad_log_probs[:1].sum()
        ctx.gradients = None  # they are scaled in place, so once
        if gradients is None or not alike:
            gradients, by = _Gradients(hidden, weight, ctx.of_weight), 1
            _tiles(hidden, weight, targets, gradients, pad(grad_log_probs, (0, len(hidden) - ctx.count)))
        of_hidden = gradients.of_hidden[: ctx.count].mul_(by).to(hidden.dtype)
        return of_hidden, gradients.of_weight.mul_(by) if ctx.of_weight else None, *[None] * 7


def _tiles(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    gradients: _Gradients | None,
    grad: torch.Tensor,  # (N,) of the log-probabilities
) -> list[list[torch.Tensor]]:
    """What the head gives, tile by tile; the gradients are added up on the way."""
    statistics, results = _compiled.get("statistics", _tile_statistics), []
    for start in range(0, max(len(hidden), 1), TILE_TOKENS):  # one at least: a batch may have no label
        tile = slice(start, start + TILE_TOKENS)
        exp, total, *given = statistics(hidden[tile] @ weight.t(), targets[tile])
        if gradients:
            gradients.add(tile, (exp, total, targets[tile]), hidden[tile], grad[tile])
        results.append(given)
    return results


def install() -> None:
    """Make TRL's fused head use this function for tensors on a CPU. Only for processes that train on a CPU.

    TRL leaves tokens without a label out where it has Triton only, because elsewhere a changing number of tokens means
    a new compilation; whole tiles do not mind, and in fine-tuning nearly half the tokens have no label.
    """
    import trl.trainer.utils

    trl.trainer.utils._ChunkedLogProbFunction = CpuLogProbFunction
    trl.trainer.utils._use_triton = lambda device: True
