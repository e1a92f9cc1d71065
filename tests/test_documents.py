"""Attention within documents on a CPU: equal to one document after the other, whatever their lengths, and cheaper."""

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fledge.training import blocked, documents
from fledge.training.documents import SHORT, STEP, TOGETHER, attend, layout


LENGTHS = [9, 20, 3, 32, 1, 1, 14, 8, SHORT + 44, SHORT + 1, 64, SHORT, 17, 16, 20]


def begins(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def states(tokens: int, heads: int, key_heads: int, dtype: torch.dtype) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(heads)
    return [
        torch.randn(tokens, count, 16, generator=chance, dtype=torch.float64).to(dtype).requires_grad_()
        for count in (heads, key_heads, key_heads)
    ]


def one_by_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    done = []
    for one in zip(*(whole.split(lengths) for whole in (query, key, value)), strict=True):
        done.append(
            scaled_dot_product_attention(
                *(part.transpose(0, 1) for part in one), is_causal=True, scale=0.3, enable_gqa=True
            )
        )
    return torch.cat([part.transpose(0, 1) for part in done])


@pytest.mark.parametrize("lengths", [LENGTHS, [1], [STEP] * 4, [SHORT + 1]], ids=["mixed", "token", "tiles", "long"])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
def test_it_is_one_document_after_the_other(
    lengths: list[int], heads: int, key_heads: int, dtype: torch.dtype, tolerance: float
) -> None:
    given = states(sum(lengths), heads, key_heads, dtype)
    mine, wanted = attend(*given, begins(lengths), 0.3), one_by_one(*given, lengths)
    towards = torch.randn(mine.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)
    pairs = zip(
        [mine, *torch.autograd.grad(mine, given, towards)],
        [wanted, *torch.autograd.grad(wanted, given, towards)],
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=tolerance * (1 + theirs.abs().max().item()), rtol=0)


@pytest.mark.parametrize("compiled", [True, False])
def test_the_backward_pass_in_blocks_is_as_near_to_float32_as_torchs(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [blocked.BLOCK + 1, 300, 301, 2 * blocked.BLOCK, 2 * blocked.BLOCK + 1, 40]
    given = states(sum(lengths), 6, 3, torch.bfloat16)
    exact = [part.detach().float().requires_grad_() for part in given]
    towards = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(one_by_one(*exact, lengths), exact, towards)

    def errors() -> list[float]:
        attended = attend(*given, begins(lengths), 0.3)
        found = torch.autograd.grad(attended, given, towards.bfloat16())
        return [
            ((ours.float() - theirs).norm() / theirs.norm()).item() for ours, theirs in zip(found, wanted, strict=True)
        ]

    monkeypatch.setattr(blocked, "_compiled", {})
    monkeypatch.setattr(documents, "_compiled", {})
    of_torch = errors()
    if compiled:
        blocked.compile_loop()
        documents.compile_loop()
    else:
        monkeypatch.setattr(blocked, "_compiled", {"means": blocked._means, "gradients": blocked._gradients})
    of_blocks = errors()
    assert of_blocks != of_torch  # the other way was taken
    assert max(of_torch) < 0.01 and max(of_blocks) < 0.01


def test_every_token_has_one_place_and_comes_back() -> None:
    groups, there, back = layout(begins(LENGTHS).numpy().tobytes(), heads=3)
    assert sum(count for count, _ in groups) >= len(LENGTHS)
    assert sum(3 * count * length for count, length in groups) <= len(there)
    assert torch.equal(there[back], torch.arange(3 * sum(LENGTHS)))
    assert (there == -1).sum() == len(there) - 3 * sum(LENGTHS)  # the rest is filling


def test_batches_of_any_lengths_have_few_shapes() -> None:
    # A training meets new lengths at every step. What it compiles for a shape it keeps, so the shapes have to end.
    chance, short, long, sizes = np.random.default_rng(0), set(), set(), set()
    for _ in range(300):
        groups, there, _ = layout(begins(chance.integers(1, blocked.LONGEST, 20).tolist()).numpy().tobytes(), heads=1)
        short |= {(count, length) for count, length in groups if length <= SHORT}
        long |= {length for _, length in groups if length > SHORT}
        sizes.add(len(there))
    assert len(short) < 50 and all(length % STEP == 0 and count * length <= TOGETHER for count, length in short)
    assert long == set(range(SHORT + 2 * STEP, blocked.LONGEST + 1, 2 * STEP))
    assert len(sizes) < 12


def test_dropout_drops_shares_and_keeps_their_mean() -> None:
    given = states(64, 4, 4, torch.float32)
    without = attend(*given, begins([32, 32]), 0.3)
    torch.manual_seed(0)
    many = torch.stack([attend(*given, begins([32, 32]), 0.3, dropout=0.5) for _ in range(2000)])
    assert (many[0] != many[1]).any()
    error = many.std(0) / 2000**0.5
    assert ((many.mean(0) - without).abs() < 6 * error + 1e-4).all()


def test_short_documents_in_long_rows_cost_what_they_are() -> None:
    # 2,048 tokens of documents of 100: 2,048 x 2,048 scores under a mask, 21 x 112 x 112 here. 17 times fewer; a third
    # of that is asked for, since other tests run beside this one.
    lengths = [100] * 20 + [48]
    given = [part.bfloat16().detach().requires_grad_() for part in states(2048, 8, 8, torch.float32)]
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = (ids[:, None] == ids[None]).tril()

    def dense() -> torch.Tensor:
        return scaled_dot_product_attention(
            *(part.transpose(0, 1)[None] for part in given), attn_mask=mask[None, None]
        )

    def seconds(run: Callable[[], torch.Tensor]) -> float:
        began = time.perf_counter()
        run().float().sum().backward()
        return time.perf_counter() - began

    tries = [(seconds(lambda: attend(*given, begins(lengths), 0.3)), seconds(dense)) for _ in range(4)]
    assert min(slow for _, slow in tries) > 3 * min(fast for fast, _ in tries)
