"""FLOPs, hours, cost and disk of a training run."""

import math
from dataclasses import dataclass

from .shape import Shape


H100_FLOPS = 989e12
"""Dense bfloat16 FLOP/s of one H100 SXM, from its data sheet."""

FORMULA = "6N + 12LdT a token"
STRICT_FORMULA = "6M + 6LdT a token"
"""N all parameters, M those in matrix products (the head too), L layers, d width of all heads, T tokens a row."""


@dataclass(frozen=True)
class Prices:
    """What a GPU gives and costs; all three are assumptions of whoever plans."""

    mfu: float = 0.40
    """Model FLOPs utilisation: the share of the peak that training reaches (PaLM, Chowdhery et al. 2022)."""
    peak_flops: float = H100_FLOPS
    per_gpu_hour: float = 2.50
    """US dollars; about what an H100 rents for."""


def flops_per_token(shape: Shape, length: int) -> float:
    """Forward and backward: 6N + 12LdT, as PaLM's appendix B, nanoGPT and lit-gpt count; attention is not halved."""
    return 6 * shape.total + 12 * shape.num_layers * shape.query_size * length


def strict_flops_per_token(shape: Shape, length: float) -> float:
    """Forward and backward, only what is multiplied: 6M + 6LdT. No embedding look-up, no norm; attention is causal."""
    return 6 * shape.matrices + 6 * shape.num_layers * shape.query_size * length


def frozen_saving(frozen: int) -> float:
    """FLOPs a token that frozen weights (LoRA) save: they get no gradient, a third of 6N."""
    return 2 * frozen


def reference_flops_per_token(shape: Shape, length: int) -> float:
    """A forward pass of DPO's frozen reference: 2N + 4LdT."""
    return flops_per_token(shape, length) / 3


def hours(flops: float, gpus: int, prices: Prices) -> float:
    """Wall-clock hours on this many GPUs."""
    return flops / (gpus * prices.peak_flops * prices.mfu) / 3600


def saves(steps: int, every: float) -> int:
    """Checkpoints that `save_steps` makes; below 1 it is a share of the steps. The last step always saves one."""
    interval = math.ceil(every * steps) if every < 1 else int(every)
    return -(-steps // interval)
