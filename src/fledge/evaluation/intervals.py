"""Bootstrap intervals: how far a figure would move with other documents, answers or pairs of the same kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


RESAMPLES = 1000
LEVEL = 0.95
AT_ONCE = 1_000_000
"""Random places drawn at a time; a bound of memory, not of anything that is measured."""


@dataclass(frozen=True)
class Ratio:
    """A figure that is one sum over items divided by another: a mean, or bits over bytes.

    Args:
        tops: what each item (document, answer, pair) adds to the numerator, (items,).
        bottoms: what it adds to the denominator, (items,); 1 each if None, which makes the figure a mean.
        shown: a rising function from the ratio to the figure, such as exp from a loss to a perplexity.
    """

    tops: Sequence[float]
    bottoms: Sequence[float] | None = None
    shown: Callable[[float], float] = float

    @property
    def value(self) -> float:
        """The figure; 0 where there is nothing to divide by."""
        top, bottom = (float(sums.sum()) for sums in self._arrays())
        return self.shown(top / bottom) if bottom else 0.0

    def interval(self, seed: int) -> list[float] | None:
        """The 95% percentile bootstrap interval, [low, high] (Efron 1979); None where there is nothing to divide by.

        Items are drawn with replacement, as many as there are, RESAMPLES times; a resample that happens to have
        nothing to divide by is left out.
        """
        tops, bottoms = self._arrays()
        if not bottoms.sum():
            return None
        chance, found = np.random.default_rng(seed), []
        rows = max(1, AT_ONCE // len(tops))
        for start in range(0, RESAMPLES, rows):
            drawn = chance.integers(len(tops), size=(min(rows, RESAMPLES - start), len(tops)))
            over, under = tops[drawn].sum(axis=1), bottoms[drawn].sum(axis=1)
            found.append(over[under > 0] / under[under > 0])
        tail = (1 - LEVEL) / 2
        return [self.shown(float(end)) for end in np.quantile(np.concatenate(found), [tail, 1 - tail])]

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        tops = np.asarray(self.tops, dtype=np.float64)
        return tops, np.ones_like(tops) if self.bottoms is None else np.asarray(self.bottoms, dtype=np.float64)


def settled(figures: dict[str, Any], seed: int) -> dict[str, Any]:
    """The figures as numbers, with `intervals`: the bootstrap interval of each that is a Ratio."""
    ratios = {name: figure for name, figure in figures.items() if isinstance(figure, Ratio)}
    found = {name: ratio.interval(seed) for name, ratio in ratios.items()}
    intervals = {name: ends for name, ends in found.items() if ends is not None}
    values = {name: figure.value if name in ratios else figure for name, figure in figures.items()}
    return {**values, "intervals": intervals} if intervals else values
