"""Mixtures: token shares come out as weighted, impossible ones are refused with numbers, and order needs no table."""

import re

import numpy as np
import pytest

from fledge.data.mix import choose, epochs_of, order, sample_at


def documents(rng: np.random.Generator, tokens: int) -> np.ndarray:
    """Lengths with a long tail, as documents have them, `tokens` altogether or a little more."""
    lengths = np.ceil(rng.lognormal(5.0, 1.0, size=tokens // 100)).astype(np.int64)
    return lengths[: int(np.searchsorted(np.cumsum(lengths), tokens)) + 1]


@pytest.mark.parametrize("seed", range(3))
def test_three_sources_come_out_70_20_10(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = {"web": 0.7, "books": 0.2, "chat": 0.1}
    lengths = {name: documents(rng, size) for name, size in zip(weights, (3_000_000, 500_000, 900_000), strict=True)}
    tokens = {name: int(array.sum()) for name, array in lengths.items()}
    epochs = epochs_of(tokens, weights, max_repeats=4)
    assert min(epochs.values()) == pytest.approx(1) and 1 < epochs["books"] < 4
    chosen = {name: int(lengths[name][choose(lengths[name], epochs[name], seed)].sum()) for name in weights}
    total = sum(chosen.values())
    for name, weight in weights.items():
        assert chosen[name] / total == pytest.approx(weight, abs=0.002 * weight)


def test_whole_epochs_read_every_document_and_the_rest_is_a_prefix() -> None:
    lengths = np.arange(1, 1001)
    chosen = choose(lengths, 2.25, seed=7)
    assert sorted(chosen[:1000]) == sorted(chosen[1000:2000]) == list(range(1000))
    assert list(chosen[:1000]) != list(chosen[1000:2000])
    last = chosen[2000:]
    assert len(set(last)) == len(last)
    assert list(last) == list(order(7, 2, 1000)[: len(last)])
    assert abs(lengths[last].sum() - 0.25 * lengths.sum()) <= 500  # half of the longest document
    assert list(choose(lengths, 1.0, seed=7)) == list(order(7, 0, 1000))
    assert len(choose(np.array([], dtype=int), 1.0, seed=7)) == 0


def test_sources_without_a_weight_are_read_once_and_share_the_rest() -> None:
    assert epochs_of({"a": 10, "b": 90}, {"a": None, "b": None}, 4) == {"a": 1.0, "b": 1.0}
    # 900 tokens are what 10% leave, so the mixture has 1,000 and chat 100 of them: its 50, twice.
    assert epochs_of({"web": 600, "books": 300, "chat": 50}, {"web": None, "books": None, "chat": 0.1}, 4) == (
        {"web": 1.0, "books": 1.0, "chat": pytest.approx(2.0)}
    )
    # Less of a large source than there is.
    assert epochs_of({"web": 900, "chat": 1000}, {"web": None, "chat": 0.1}, 4)["chat"] == pytest.approx(0.1)


def test_a_weight_that_needs_too_many_repeats_is_refused_with_the_numbers() -> None:
    tokens = {"web": 10_000_000, "books": 2_000_000, "chat": 100_000}
    weights = {"web": 0.7, "books": 0.2, "chat": 0.1}
    with pytest.raises(ValueError) as refused:
        epochs_of(tokens, weights, max_repeats=4)
    # 10,000,000 / 0.7 is the mixture; a tenth of it is 14.29 times what chat has.
    assert str(refused.value).startswith(
        "datasets: chat: a weight of 0.1 is 1,428,571 of the mixture's 14,285,714 tokens, and it has 100,000: "
        "it would be read 14.29 times, and max_repeats is 4. Write `weight: 0.0301`"
    )
    # 4 x 100,000 beside 10,000,000 / (7/9) of the others.
    fitting = float(re.search(r"weight: ([\d.]+)", str(refused.value))[1])
    assert fitting == pytest.approx(400_000 / (400_000 + 10_000_000 / (0.7 / 0.9)), abs=1e-4)
    scaled = {"web": 0.7 * (1 - fitting) / 0.9, "books": 0.2 * (1 - fitting) / 0.9, "chat": fitting}
    assert epochs_of(tokens, scaled, 4)["chat"] == pytest.approx(4, abs=0.02)
    assert epochs_of(tokens, weights, max_repeats=14.5)["chat"] == pytest.approx(14.2857, abs=1e-4)


def test_two_weights_that_do_not_fit_are_given_values_that_fit_together() -> None:
    tokens = {"a": 10_000, "b": 30_000, "c": 800}
    with pytest.raises(ValueError) as refused:
        epochs_of(tokens, {"a": 0.7, "b": 0.2, "c": 0.1}, 4)
    first, second = str(refused.value).splitlines()
    fitting = {name: float(re.search(r"`weight: ([\d.]+)`", line)[1]) for name, line in (("a", first), ("c", second))}
    epochs = epochs_of(tokens, {**fitting, "b": 1 - sum(fitting.values())}, 4)
    assert epochs == {"a": pytest.approx(4, abs=0.01), "b": pytest.approx(1), "c": pytest.approx(4, abs=0.01)}
    # Beside a source that is read once: 3,200 of 13,200 tokens.
    with pytest.raises(ValueError, match=r"read 12\.50 times, and max_repeats is 4\. Write `weight: 0\.2424`"):
        epochs_of({"c": 800, "d": 10_000}, {"c": 0.5, "d": None}, 4)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 0.7, "b": 0.2}, r"datasets: the weights add up to 0\.9; shares of tokens add up to 1"),
        ({"a": 0.7, "b": 0.31}, r"add up to 1\.01"),
        ({"a": 1.0, "b": None}, r"add up to 1 and leave nothing for the sources without one"),
        ({"a": 0.5, "b": 0.5, "none": None}, r"add up to 1 and leave nothing"),
        ({"a": 0.5, "none": 0.5}, r"datasets: none has a weight and no token"),
    ],
)
def test_weights_that_are_no_shares_are_refused(weights: dict[str, float | None], message: str) -> None:
    tokens = {name: 0 if name == "none" else 1000 for name in weights}
    with pytest.raises(ValueError, match=message):
        epochs_of(tokens, weights, 4)


def test_thirds_need_not_be_written_out() -> None:
    assert epochs_of({"a": 10, "b": 20, "c": 40}, dict.fromkeys("abc", 0.333), 4) == (
        {"a": pytest.approx(4), "b": pytest.approx(2), "c": pytest.approx(1)}
    )


# --- order


@pytest.mark.parametrize("n", [0, 1, 2, 3, 100, 255, 256, 257, 1024, 1025, 70_000])
def test_an_order_is_a_permutation_that_can_be_asked_anywhere(n: int) -> None:
    whole = order(3, 1, n)
    assert sorted(whole) == list(range(n))
    index = np.arange(n)[:: max(n // 50, 1)][::-1]
    assert list(sample_at(index, 3, 1, n)) == list(whole[index])
    with pytest.raises(IndexError, match=f"place {n} of {n} samples"):
        sample_at(np.array([n]), 3, 1, n)


def test_an_order_never_changes() -> None:
    # Frozen: prepared data sets and resumed runs rely on it.
    assert order(0, 0, 10).tolist() == [5, 2, 7, 8, 4, 1, 9, 0, 6, 3]
    assert sample_at(np.array([0, 1, 999_999]), 1, 2, 1_000_000).tolist() == [533710, 153038, 596558]


def test_seed_and_epoch_change_the_order() -> None:
    n = 10_000
    orders = [order(0, 0, n), order(0, 1, n), order(1, 0, n), np.arange(n)]
    for index, first in enumerate(orders):
        for second in orders[index + 1 :]:
            # Independent permutations agree in one place on average, and correlate with 1 / sqrt(n) at random.
            assert (first == second).sum() < 10
            assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(orders[0][:-1], orders[0][1:])[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.parametrize("n", [5, 300])
def test_every_sample_comes_at_every_place_alike(n: int) -> None:
    seeds = 1000
    counts = np.zeros((n, n))
    for seed in range(seeds):
        counts[np.arange(n), order(seed, 0, n)] += 1
    expected = seeds / n
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    assert abs(chi_squared - freedom) < 4 * np.sqrt(2 * freedom)
