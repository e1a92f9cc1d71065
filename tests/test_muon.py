"""Muon: which weights it takes, that it is torch's Muon beside torch's AdamW, and that it continues to the bit."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from fledge.model.modeling_fledge import FledgeForCausalLM
from fledge.training.muon import MuonWithAdamW, hidden_matrices
from fledge.training.trainer import Pretrainer


MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def split(model: FledgeForCausalLM) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Muon's weights and the others, by name."""
    named = list(model.named_parameters())
    return [w for n, w in named if n.split(".")[-2] in MATRICES], [
        w for n, w in named if n.split(".")[-2] not in MATRICES
    ]


def step(model: FledgeForCausalLM, optimizers: list[torch.optim.Optimizer], seed: int) -> None:
    """One step with random gradients, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)
    for optimizer in optimizers:
        optimizer.step()
    for optimizer in optimizers:
        optimizer.zero_grad()
    assert all(weight.grad is None for weight in model.parameters())


def pair(model: FledgeForCausalLM) -> list[torch.optim.Optimizer]:
    """torch's two optimizers, each for itself."""
    matrices, rest = split(model)
    return [torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1), torch.optim.AdamW(rest, lr=0.01, weight_decay=0.2)]


def joined(model: FledgeForCausalLM) -> tuple[MuonWithAdamW, torch.optim.lr_scheduler.LambdaLR]:
    _, rest = split(model)
    adamw = torch.optim.AdamW(rest, lr=0.01, weight_decay=0.2)
    optimizer = MuonWithAdamW(hidden_matrices(model), adamw, lr=0.02, weight_decay=0.1)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda count: 0.5**count)


def assert_equal(a: FledgeForCausalLM, b: FledgeForCausalLM) -> None:
    for name, weight in a.state_dict().items():
        assert torch.equal(weight, b.state_dict()[name]), name


def test_matrices_move_by_muon_and_the_rest_by_adamw(make_model: Callable[..., FledgeForCausalLM]) -> None:
    ours, theirs = make_model(qk_norm=True), make_model(qk_norm=True)
    optimizer, scheduler = joined(ours)
    references = pair(theirs)
    for count in range(3):
        for reference, rate in zip(references, (0.02, 0.01), strict=True):
            reference.param_groups[0]["lr"] = rate * 0.5**count  # the schedule scales both rates
        step(ours, [optimizer], count)
        step(theirs, references, count)
        scheduler.step()
        assert_equal(ours, theirs)


def test_state_continues_to_the_bit(make_model: Callable[..., FledgeForCausalLM]) -> None:
    model = make_model()
    optimizer, scheduler = joined(model)
    for count in range(4):
        if count == 2:
            file = io.BytesIO()
            torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], file)
        step(model, [optimizer], count)
        scheduler.step()

    other = make_model(seed=1)
    optimizer, scheduler = joined(other)
    file.seek(0)
    for part, state in zip((other, optimizer, scheduler), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    for count in (2, 3):
        step(other, [optimizer], count)
        scheduler.step()
    assert_equal(model, other)


@pytest.mark.parametrize("tied", [True, False])
def test_the_trainer_gives_each_weight_to_one_of_them(
    make_model: Callable[..., FledgeForCausalLM], tmp_path: Path, tied: bool
) -> None:
    model = make_model(qk_norm=True, tie_word_embeddings=tied)
    args = TrainingArguments(str(tmp_path), use_cpu=True, bf16=False, learning_rate=0.01, weight_decay=0.1)
    trainer = Pretrainer(model, args)
    trainer.muon_learning_rate = 0.02
    optimizer = trainer.create_optimizer()
    matrices, rest = split(model)
    muon, *others = [{id(weight) for weight in group["params"]} for group in optimizer.param_groups]
    assert muon == {id(weight) for weight in matrices} and len(matrices) == 14
    assert set.union(*others) == {id(weight) for weight in rest}
    assert sum(map(len, others)) == len(rest) == len(list(model.parameters())) - 14
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.01, 0.01]
    assert all(weight.requires_grad for weight in model.parameters())
