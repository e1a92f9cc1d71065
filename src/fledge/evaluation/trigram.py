"""A character trigram with interpolated Kneser-Ney smoothing: the baseline a trained model has to beat."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator


START, END = "\x02", "\x03"
"""Stand before and after every document; no text holds these control characters."""


class Trigram:
    """P(c | ab), interpolated down to the bigram, the unigram and the uniform distribution.

    Each level discounts every count by D = n1 / (n1 + 2 n2); the lower levels count the contexts a character follows
    rather than its occurrences (Kneser and Ney 1995, in the interpolated form of Chen and Goodman 1999, section 4.1).
    """

    def __init__(self, documents: Iterable[str]) -> None:
        trigrams: Counter[str] = Counter()
        for document in documents:
            trigrams.update(_grams(document))
        bigrams = Counter(gram[1:] for gram in trigrams)
        unigrams = Counter(gram[1:] for gram in bigrams)
        self.levels = [_Level(unigrams), _Level(bigrams), _Level(trigrams)]
        self.uniform = 1 / (len(unigrams) + 1)  # one more for every character never seen

    def probability(self, gram: str) -> float:
        """Of the last of three characters, after the two before it."""
        probability = self.uniform
        for order, level in enumerate(self.levels, 1):
            probability = level.interpolate(gram[-order:], probability)
        return probability

    def bits(self, document: str) -> float:
        """Code length of a document and its end, in bits."""
        return -sum(math.log2(self.probability(gram)) for gram in _grams(document))


class _Level:
    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self.totals: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        for gram, count in counts.items():
            self.totals[gram[:-1]] += count
            self.kinds[gram[:-1]] += 1
        once, twice = (sum(count == times for count in counts.values()) for times in (1, 2))
        self.discount = once / (once + 2 * twice) if once else 0.5

    def interpolate(self, gram: str, lower: float) -> float:
        context = gram[:-1]
        total = self.totals[context]
        if not total:
            return lower
        discounted = max(self.counts[gram] - self.discount, 0.0)
        return (discounted + self.discount * self.kinds[context] * lower) / total


def _grams(document: str) -> Iterator[str]:
    padded = START + START + document + END
    return (padded[i : i + 3] for i in range(len(document) + 1))
