"""Mixtures by token share, and an order of samples that needs no table. Pure functions of counts and seeds."""

import hashlib
import math
from collections.abc import Mapping

import numpy as np


SMALL = 1 << 8
"""A Feistel network of a smaller domain shows its making; so few samples are sifted out of this one."""

BLOCK = 1 << 16
"""Samples computed at once: their 64-bit words stay in the processor's cache."""

TOLERANCE = 1e-3
"""By how much stated weights may miss 1: three sources of 0.333 are meant to be thirds."""


def epochs_of(
    tokens: Mapping[str, int],
    weights: Mapping[str, float | None],
    max_repeats: float,
    key: str = "datasets",
    unit: str = "tokens",
) -> dict[str, float]:
    """How often each source is read in one epoch of the mixture, so that its share of the tokens is its weight.

    Sources without a weight are read once and share what the weights leave. If all have one, the mixture is the
    smallest that reads every source at least once, so nothing is left unread.

    Args:
        tokens: what each source has, all of it read once.
        weights: share of the mixture's tokens, or None.
        max_repeats: how often a source may be read at most.
        unit: what is counted in `tokens`, for messages.

    Raises:
        ValueError: shares that are none, a weighted source without tokens, a source that would have to be read more
            often than max_repeats, with the numbers and the weight that would fit.
    """
    shares = _shares(tokens, weights, key)
    if empty := [name for name in shares if not tokens[name]]:
        raise ValueError(f"{key}: {empty[0]} has a weight and no {unit}; leave it out, or correct its filter")
    total = _total(tokens, shares)
    epochs = {name: shares[name] * total / tokens[name] if name in shares else 1.0 for name in tokens}
    over = [name for name, repeats in epochs.items() if repeats > max_repeats * (1 + 1e-9)]
    if over:
        fitting = _fitting(tokens, shares, over, max_repeats)
        raise ValueError(
            "\n".join(
                f"{key}: {name}: a weight of {shares[name]:.4g} is {shares[name] * total:,.0f} of the mixture's "
                f"{total:,.0f} {unit}, and it has {tokens[name]:,}: it would be read {epochs[name]:.2f} times, and "
                f"max_repeats is {max_repeats:g}. Write `weight: {fitting[name]}`, with the other weights in "
                "proportion; or raise max_repeats, add text to it, or take some from the larger sources"
                for name in over
            )
        )
    return epochs


def _fitting(
    tokens: Mapping[str, int], shares: Mapping[str, float], over: list[str], max_repeats: float
) -> dict[str, str]:
    """The weights at which the sources `over` are read max_repeats times; four digits, never above."""
    left = 1 - sum(shares[name] for name in over)
    rest = {name: count for name, count in tokens.items() if name not in over}
    total = _total(rest, {name: share / left for name, share in shares.items() if name in rest})
    total += max_repeats * sum(tokens[name] for name in over)
    return {name: f"{math.floor(1e4 * max_repeats * tokens[name] / total) / 1e4:.4f}" for name in over}


def _shares(tokens: Mapping[str, int], weights: Mapping[str, float | None], key: str) -> dict[str, float]:
    shares = {name: weight for name in tokens if (weight := weights[name]) is not None}
    stated = sum(shares.values())
    if len(shares) == len(tokens):
        if abs(stated - 1) > TOLERANCE:
            raise ValueError(
                f"{key}: the weights add up to {stated:.6g}; shares of tokens add up to 1, or leave out the weight of "
                "a source that is to be read once"
            )
        return {name: weight / stated for name, weight in shares.items()}
    if stated >= 1:
        raise ValueError(f"{key}: the weights add up to {stated:.6g} and leave nothing for the sources without one")
    return shares


def _total(tokens: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """Tokens of the mixture."""
    unweighted = [count for name, count in tokens.items() if name not in shares]
    if unweighted:
        return sum(unweighted) / (1 - sum(shares.values()))
    return max((tokens[name] / share for name, share in shares.items()), default=0.0)


def choose(lengths: np.ndarray, epochs: float, seed: int) -> np.ndarray:
    """Which documents of a source go into one epoch of the mixture, in order; indices repeat as `epochs` asks.

    Every whole epoch is a permutation of its own; the fractional one takes the beginning of a permutation, as many
    documents as come nearest to the tokens that are due, so the source's tokens miss by half a document at most.

    Args:
        lengths: tokens of every document.
        epochs: how often the source is read, from epochs_of.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    whole = int(epochs + 1e-9)
    parts = [order(seed, epoch, len(lengths)) for epoch in range(whole)]
    due = (epochs - whole) * lengths.sum()
    if due > 0:
        last = order(seed, whole, len(lengths))
        reached = np.concatenate([[0], np.cumsum(lengths[last])])
        parts.append(last[: int(np.abs(reached - due).argmin())])
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The samples 0 to n - 1 in the order of an epoch: element i is the sample that comes i-th."""
    found = np.empty(n, dtype=np.int64)
    for start in range(0, n, BLOCK):
        found[start : start + BLOCK] = sample_at(np.arange(start, min(start + BLOCK, n)), seed, epoch, n)
    return found


def sample_at(index: np.ndarray, seed: int, epoch: int, n: int) -> np.ndarray:
    """The samples that come at the places `index` of an epoch of n samples: a pure function, no table is kept.

    A Feistel network permutes the next power of two, and cycle walking (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains") brings what falls beyond n back: a pseudo-random permutation of n. Shape as `index`.
    """
    index = np.asarray(index, dtype=np.uint64)
    if index.size and int(index.max()) >= n:
        raise IndexError(f"place {int(index.max())} of {n} samples")
    keys = np.frombuffer(hashlib.sha512(f"{seed} {epoch} {n}".encode()).digest(), "<u8")
    if n <= SMALL:
        few = _permuted(np.arange(SMALL, dtype=np.uint64), SMALL.bit_length() - 1, keys)
        return few[few < n][index].astype(np.int64)
    bits = (n - 1).bit_length()
    found = _permuted(index.ravel(), bits, keys)
    beyond = np.flatnonzero(found >= n)
    while beyond.size:
        found[beyond] = _permuted(found[beyond], bits, keys)
        beyond = beyond[found[beyond] >= n]
    return found.astype(np.int64).reshape(index.shape)


def _permuted(values: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of 0 to 2**bits - 1 (uint64): each half in turn is changed by a function of the other."""
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << bits // 2) - 1)
    high_mask = np.uint64((1 << bits - bits // 2) - 1)
    high, low = values >> low_bits, values & low_mask
    for odd, even in keys.reshape(-1, 2):
        high = high ^ (_mixed(low ^ odd) & high_mask)
        low = low ^ (_mixed(high ^ even) & low_mask)
    return high << low_bits | low


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014); uint64, wrapping."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
