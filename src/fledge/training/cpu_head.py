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
    """Logits (n, V), targets (n,) -> log-probability, log-partition, entropy, mean logit, is_top1, each (n,)."""
    logits = logits.float()
    top = logits.amax(-1)
    exp = torch.exp(logits - top[:, None])
    total = exp.sum(-1)
    log_partition = top + torch.log(total)
    entropy = log_partition - (exp * logits).sum(-1) / total
    target_logit = logits.gather(-1, targets[:, None])[:, 0]
    return target_logit - log_partition, log_partition, entropy, logits.mean(-1), target_logit >= top


def _tile_gradient(logits: torch.Tensor, log_partition: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Gradient of sum(grad * log_probs) in the logits, but for the targets: -grad * softmax, in the logits' dtype."""
    return (-grad[:, None] * torch.exp(logits.float() - log_partition[:, None])).to(logits.dtype)


_compiled: dict[str, Any] = {}


def compile_tiles() -> None:
    """Compile the element-wise loops from now on; a few seconds, once a process."""
    if _compiled:
        return
    _compiled["statistics"] = torch.compile(_tile_statistics, dynamic=False)
    _compiled["gradient"] = torch.compile(_tile_gradient, dynamic=False)


class CpuLogProbFunction(torch.autograd.Function):
    """Stands in for `trl.kernels.ChunkedLogProbFunction` on a CPU: same arguments, same five outputs.

    Entropy, the mean logit and is_top1 are for logging and carry no gradient. Temperature, soft-capping, logit scale
    and bias are refused: no fledge model has them.
    """

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
        statistics = _compiled.get("statistics", _tile_statistics)
        count = len(hidden)
        if _compiled:  # whole tiles only, one at least: one shape, one compilation
            missing = max(TILE_TOKENS - count, -count % TILE_TOKENS)
            hidden, targets = pad(hidden, (0, 0, 0, missing)), pad(targets, (0, missing))
        tiles = [
            statistics(hidden[start : start + TILE_TOKENS] @ weight.t(), targets[start : start + TILE_TOKENS])
            for start in range(0, max(len(hidden), 1), TILE_TOKENS)  # one at least: a batch may have no label
        ]
        log_probs, log_partition, entropy, mean_logits, is_top1 = (
            torch.cat(column) for column in zip(*tiles, strict=True)
        )
        ctx.save_for_backward(hidden, weight, targets, log_partition)
        ctx.count = count
        entropy, mean_logits, is_top1 = entropy[:count], mean_logits[:count], is_top1[:count]
        ctx.mark_non_differentiable(entropy, mean_logits, is_top1)
        return log_probs[:count], entropy, None, mean_logits, is_top1

    @staticmethod
    def backward(ctx: Any, grad_log_probs: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, targets, log_partition = ctx.saved_tensors
        gradient = _compiled.get("gradient", _tile_gradient)
        grad_log_probs = pad(grad_log_probs, (0, len(hidden) - ctx.count))
        grad_hidden = torch.empty(hidden.shape, dtype=hidden.dtype)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32)
        for start in range(0, len(hidden), TILE_TOKENS):
            tile = slice(start, start + TILE_TOKENS)
            logits = hidden[tile] @ weight.t()
            grad_logits = gradient(logits, log_partition[tile], grad_log_probs[tile])
            # Not in the loop, which comparing every entry with its row's target would make half as fast.
            places = torch.arange(len(logits)), targets[tile]
            others = 1 - torch.exp(logits[places].float() - log_partition[tile])
            grad_logits[places] = (grad_log_probs[tile] * others).to(grad_logits.dtype)
            torch.mm(grad_logits, weight, out=grad_hidden[tile])
            grad_weight += grad_logits.t() @ hidden[tile]
        return grad_hidden[: ctx.count], grad_weight, *[None] * 7


def install() -> None:
    """Make TRL's fused head use this function for tensors on a CPU. Only for processes that train on a CPU.

    TRL leaves tokens without a label out where it has Triton only, because elsewhere a changing number of tokens means
    a new compilation; whole tiles do not mind, and in fine-tuning nearly half the tokens have no label.
    """
    import trl.trainer.utils

    trl.trainer.utils._ChunkedLogProbFunction = CpuLogProbFunction
    trl.trainer.utils._use_triton = lambda device: True
