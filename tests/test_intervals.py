"""Bootstrap intervals where theory says what they are."""

import math

import numpy as np
import pytest

from fledge.evaluation.intervals import Ratio, settled


def test_the_interval_of_a_share_is_close_to_the_normal_one() -> None:
    # 300 of 1,000: a standard error of sqrt(p (1 - p) / n) = 0.01449.
    low, high = Ratio([1] * 300 + [0] * 700).interval(seed=0)
    error = math.sqrt(0.3 * 0.7 / 1000)

    assert low == pytest.approx(0.3 - 1.96 * error, abs=0.003)
    assert high == pytest.approx(0.3 + 1.96 * error, abs=0.003)


def test_the_interval_of_a_constant_is_a_point() -> None:
    assert Ratio([0.25] * 50).interval(seed=0) == [0.25, 0.25]
    # Twice as many bits in every document that is twice as long.
    assert Ratio([2.0, 4.0, 8.0], [1, 2, 4]).interval(seed=0) == [2.0, 2.0]
    assert Ratio([5.0]).interval(seed=0) == [5.0, 5.0]


def test_documents_are_drawn_whole() -> None:
    # One document has nearly all bytes: a resample without it (36.8% of them) or with it has one ratio or the other.
    low, high = Ratio([1000.0, 2.0, 2.0], [1000, 1, 1]).interval(seed=0)

    assert low == pytest.approx(1.0, abs=0.01) and high == 2.0


def test_95_of_100_intervals_hold_the_truth() -> None:
    chance = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        sizes = chance.integers(20, 200, size=80)
        bits = sizes * chance.normal(2.0, 0.5, size=80)  # two bits a byte, whatever the size
        low, high = Ratio(bits, sizes).interval(seed)
        held += low <= 2.0 <= high

    # The percentile interval of 80 items is a little short; 300 draws know the share to within 0.013 (one error).
    assert 0.90 <= held / 300 <= 0.98


def test_a_rising_function_moves_the_ends_with_the_figure() -> None:
    loss, perplexity = Ratio([1.0, 2.0, 4.0]), Ratio([1.0, 2.0, 4.0], shown=math.exp)

    assert perplexity.value == pytest.approx(math.exp(loss.value))
    assert perplexity.interval(3) == pytest.approx([math.exp(end) for end in loss.interval(3)])


def test_what_was_not_measured_has_no_interval() -> None:
    found = settled({"empty": Ratio([]), "no_lines": Ratio([0, 0], [0, 0]), "share": Ratio([1, 1]), "n": 2}, seed=0)

    assert found == {"empty": 0.0, "no_lines": 0.0, "share": 1.0, "n": 2, "intervals": {"share": [1.0, 1.0]}}


def test_the_seed_decides_the_interval_and_memory_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ratio = Ratio(range(100), range(1, 101))
    whole = ratio.interval(seed=7)
    monkeypatch.setattr("fledge.evaluation.intervals.AT_ONCE", 1000)  # a hundred rounds of ten

    assert ratio.interval(seed=7) == whole != ratio.interval(seed=8)
