"""128-bit hashes of texts and 64-bit hashes of their 13-grams, many texts at a time.

The same in every process and on every machine. A gram is made of words, or of characters in scripts that write without
spaces; case, white space, punctuation and Unicode compatibility forms do not count in it. Nothing here withstands
texts that were made to collide.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import xxhash


GRAM = 13
BATCH = 1 << 18
"""Characters hashed at once, unless a single row has more."""
IN_WORD, ALONE = 1, 2
SPACELESS = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF)),  # Thai, Lao, Burmese, Khmer
    *((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),  # kana, Han
)


def digests(texts: Sequence[str]) -> list[bytes]:
    """The 128-bit hash of each text; the same for texts that differ in case, white space or compatibility forms."""
    found = []
    for _, points, ends in _folded(texts):
        start = 0
        for end in ends.tolist():
            found.append(xxhash.xxh3_128_digest(points[start:end].tobytes()))
            start = end + 1
    return found


def grams(texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The 13-grams of the texts in order, BATCH characters at a time: 64-bit hashes, and the index of each one's text.

    A gram that occurs twice is there twice.
    """
    for first, points, ends in _folded(texts):
        units, starts = _units(points)
        owners = np.searchsorted(ends, starts) + first
        count = max(len(units) - GRAM + 1, 0)
        hashes = np.zeros(count, np.uint64)
        for offset, factor in enumerate(_IN_GRAM):
            hashes += units[offset : offset + count] * factor
        whole = owners[:count] == owners[len(owners) - count :]
        yield mixed(hashes[whole]), owners[:count][whole]


def length(text: str) -> int:
    """Words of a text, or characters where words are not set apart."""
    return sum(len(_units(points)[0]) for _, points, _ in _folded([text]))


def _folded(texts: Sequence[str]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Index of the first text, code points of some texts joined by newlines, and where each of them ends."""
    start = size = 0
    for stop, text in enumerate(texts, 1):
        size += len(text)
        if size >= BATCH or stop == len(texts):
            normal = [" ".join(unicodedata.normalize("NFC", text).split()) for text in texts[start:stop]]
            joined = "\n".join(normal).encode("utf-32-le", "surrogatepass")
            ends = np.cumsum([len(text) + 1 for text in normal]) - 1
            yield start, _plain()[np.frombuffer(joined, "<u4")], ends
            start, size = stop, 0


def _units(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """64-bit hash of every word, or of every character of a script without spaces, and where it starts."""
    kinds = _kinds()[points]
    begins = kinds > 0
    begins[1:] &= (kinds[1:] == ALONE) | (kinds[:-1] != IN_WORD)
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.zeros(0, np.uint64), starts
    place = np.arange(len(points)) - starts[np.cumsum(begins) - 1]
    letters = mixed(points.astype(np.uint64)) * _IN_WORD[np.clip(place, 0, 255)] * (kinds > 0)
    return mixed(np.add.reduceat(letters, starts)), starts


def mixed(values: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of the value (the finaliser of splitmix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def multipliers(count: int, purpose: int) -> np.ndarray:
    """Fixed odd numbers, (count,) uint64, others for every purpose."""
    return mixed(np.arange(1, count + 1, dtype=np.uint64) + np.uint64(purpose << 32)) | np.uint64(1)


_IN_WORD, _IN_GRAM = multipliers(256, 1), multipliers(GRAM, 2)


@cache
def _plain() -> np.ndarray:
    """For every code point its form without case and compatibility, where that is one character."""
    plain = np.arange(0x110000, dtype=np.uint32)
    for point in range(0x20000):
        form = unicodedata.normalize("NFKC", chr(point)).casefold()
        if len(form) == 1:
            plain[point] = ord(form)
    return plain


@cache
def _kinds() -> np.ndarray:
    """For every code point IN_WORD, ALONE, or 0 for what is no part of a word."""
    kinds = np.fromiter((chr(point).isalnum() for point in range(0x110000)), np.uint8, 0x110000)
    for first, last in SPACELESS:
        kinds[first : last + 1] *= ALONE
    return kinds
