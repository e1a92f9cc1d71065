"""The CPU head: the numbers of a plain log-softmax, tile by tile, compiled or not."""

import shutil
from typing import Any

import pytest
import torch

from fledge.training import cpu_head


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles from few tokens, and nothing compiled beforehand or afterwards."""
    monkeypatch.setattr(cpu_head, "TILE_TOKENS", 64)
    monkeypatch.setattr(cpu_head, "_compiled", {})
    monkeypatch.setattr(cpu_head.CpuLogProbFunction, "alike", True)


def log_prob_reference(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, upstream: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """log_probs, entropy, is_top1 and the gradients of hidden and weight, by full float32 logits."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = hidden @ weight.t()
    log_softmax = logits.log_softmax(-1)
    log_probs = log_softmax.gather(-1, targets[:, None])[:, 0]
    log_probs.backward(upstream)
    entropy = -(log_softmax.exp() * log_softmax).sum(-1)
    return log_probs.detach(), entropy.detach(), logits.argmax(-1) == targets, hidden.grad, weight.grad


def log_prob_inputs(tokens: int, alike: bool = False) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, 32), torch.randn(200, 32) / 4
    targets = torch.randint(200, (tokens,))
    targets[::3] = (hidden @ weight.t()).argmax(-1)[::3]  # so that is_top1 is often true
    return hidden, weight, targets, torch.full((tokens,), -0.7) if alike else torch.rand(tokens) + 0.5


def cpu_head_results(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, upstream: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    log_probs, entropy, _, _, is_top1 = cpu_head.CpuLogProbFunction.apply(hidden, weight, None, targets, 1.0, 256)
    log_probs.backward(upstream)
    return log_probs.detach(), entropy, is_top1, hidden.grad, weight.grad


@pytest.mark.parametrize(
    "compiled",
    [False, pytest.param(True, marks=pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler"))],
)
def test_cpu_head_is_log_softmax(compiled: bool) -> None:
    if compiled:
        cpu_head.compile_tiles()
    # a loss that sums, one that does not, and the first again, which is no longer counted upon
    for alike, counted_upon in ((True, True), (False, False), (True, False)):
        inputs = log_prob_inputs(64 + 64 + 21, alike)
        for found, expected in zip(cpu_head_results(*inputs), log_prob_reference(*inputs), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert cpu_head.CpuLogProbFunction.alike == counted_upon


@pytest.mark.parametrize("alike", [True, False])
def test_cpu_head_of_a_weight_that_is_not_trained(alike: bool) -> None:
    hidden, weight, targets, upstream = log_prob_inputs(100, alike)
    wanted = log_prob_reference(hidden, weight, targets, upstream)[3]
    hidden.requires_grad_()
    cpu_head.CpuLogProbFunction.apply(hidden, weight, None, targets, 1.0, 256)[0].backward(upstream)
    torch.testing.assert_close(hidden.grad, wanted, rtol=1e-5, atol=1e-5)


def test_cpu_head_multiplies_a_tile_of_a_summed_loss_three_times() -> None:
    wide = []

    class Products(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
            if function in (torch.ops.aten.mm.default, torch.ops.aten.mm.out):
                wide.append(given)
            return function(*given, **(named or {}))

    for alike, products in ((True, 3), (False, 3 + 3), (False, 4)):
        inputs = log_prob_inputs(64, alike)
        wide.clear()
        with Products():
            cpu_head_results(*inputs)
        assert len(wide) == products


@pytest.mark.parametrize("compiled", [False, True])
def test_cpu_head_of_no_token_at_all(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled:  # whole tiles, without waiting for a compiler
        monkeypatch.setattr(cpu_head, "_compiled", {"statistics": cpu_head._tile_statistics})
    hidden, weight, targets, upstream = log_prob_inputs(3)
    found = cpu_head_results(hidden[:0], weight, targets[:0], upstream[:0])
    assert [len(value) for value in found[:3]] == [0, 0, 0]
    assert found[3].shape == (0, 32) and not found[4].any()


@pytest.mark.parametrize("alike", [True, False])
def test_cpu_head_under_bf16_autocast(alike: bool) -> None:
    # bfloat16 keeps 8 bits: a logit of up to 8 is off by 2^-6 at most. Sums over tiles are kept in float32, so that
    # the gradient of the weight, a sum over 32 tiles, is no worse than one of its terms.
    inputs = log_prob_inputs(2048, alike)
    with torch.autocast("cpu", torch.bfloat16):
        log_probs, entropy, _, *gradients = cpu_head_results(*inputs)
    expected_log_probs, expected_entropy, _, *expected_gradients = log_prob_reference(*inputs)
    torch.testing.assert_close(log_probs, expected_log_probs, rtol=0, atol=2**-5)
    torch.testing.assert_close(entropy, expected_entropy, rtol=0, atol=2**-5)
    for found, expected in zip(gradients, expected_gradients, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 2**-8 * expected.norm()


def test_cpu_head_refuses_what_it_does_not_compute() -> None:
    hidden, weight, targets, _ = log_prob_inputs(4)
    for bias, temperature in ((torch.zeros(200), 1.0), (None, 0.7)):
        with pytest.raises(NotImplementedError, match="no bias, temperature"):
            cpu_head.CpuLogProbFunction.apply(hidden, weight, bias, targets, temperature, 256)
