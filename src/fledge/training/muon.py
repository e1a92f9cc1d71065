"""Muon for the hidden matrices and AdamW for the rest, as one optimizer that the Trainer can drive."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """torch.optim.Muon on every two-dimensional weight of the decoder layers, `rest` on all other parameters.

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
        self.muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay)
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


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Every two-dimensional weight of the decoder layers."""
    return [weight for weight in model.base_model.layers.parameters() if weight.ndim == 2]
