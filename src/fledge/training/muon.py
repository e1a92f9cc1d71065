"""Muon for the hidden matrices and AdamW for the rest, as one optimizer that the Trainer can drive."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fledge.model.build import decoder_layers


class BatchedMuon(torch.optim.Muon):
    """torch.optim.Muon, its Newton-Schulz iteration run once for all matrices of one shape.

    The same update up to bfloat16 rounding, and the same state. A small model's matrices are too small to keep the
    cores busy one by one.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = closure() if closure else None
        for group in self.param_groups:
            same_shape = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    same_shape[tuple(sorted(weight.shape))].append(weight)
            for weights in same_shape.values():
                self._step_together(weights, group)
        return loss

    def _step_together(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        gradients = [weight.grad for weight in weights]
        momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
        directions = orthogonal(torch.stack([wide(update).bfloat16() for update in updates]), group)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        for weight, direction in zip(weights, directions, strict=True):
            rows, columns = weight.shape
            weight.add_(
                direction if rows <= columns else direction.mT, alpha=-group["lr"] * max(1, rows / columns) ** 0.5
            )


def wide(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix, or its transpose where it has more rows than columns."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT


def orthogonal(stack: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    """Newton-Schulz: every matrix (rows <= columns) of a (n, rows, columns) stack made nearly orthogonal."""
    a, b, c = group["ns_coefficients"]
    stack = stack / stack.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = stack @ stack.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        stack = torch.baddbmm(stack, gram, stack, beta=a)
    return stack


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on every two-dimensional weight of the decoder layers, `rest` on all other parameters.

    Muon replaces each matrix's momentum by the nearest orthogonal matrix (Jordan et al. 2024, "Muon: an optimizer for
    hidden layers in neural networks"), and learns a small model in about half the steps. Both optimizers share one
    learning rate schedule: a scheduler scales each group's own rate.

    Args:
        matrices: weights for Muon, each two-dimensional.
        rest: the optimizer of everything else.
        lr: Muon's learning rate, in units of its orthogonal update.
    """

    def __init__(
        self, matrices: list[nn.Parameter], rest: torch.optim.Optimizer, lr: float, weight_decay: float
    ) -> None:
        self.muon = BatchedMuon(matrices, lr=lr, weight_decay=weight_decay)
        self.rest = rest
        super().__init__(matrices, {})
        self._share_groups()

    def _share_groups(self) -> None:
        # The very dictionaries of both, so that a scheduler that writes a rate here writes it there.
        self.param_groups = [*self.muon.param_groups, *self.rest.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = closure() if closure else None
        self.muon.step()
        self.rest.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "rest": self.rest.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.muon.load_state_dict(state_dict["muon"])
        self.rest.load_state_dict(state_dict["rest"])
        self._share_groups()


def hidden_matrices(model: PreTrainedModel) -> list[nn.Parameter]:
    """Every two-dimensional weight of the decoder layers.

    Raises:
        ValueError: an architecture that keeps its matrices transposed, whose update would be scaled the wrong way.
    """
    layers = decoder_layers(model)
    if any(isinstance(module, Conv1D) for module in layers.modules()):
        raise ValueError(
            f"muon_learning_rate: {model.config.model_type} keeps its matrices transposed, and queries, keys and "
            "values in one, which Muon is not made for; leave the key out, or take another model_type"
        )
    return [weight for weight in layers.parameters() if weight.ndim == 2]
