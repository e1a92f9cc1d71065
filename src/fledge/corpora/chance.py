"""Choices without random numbers: what a corpus picks follows from the text alone."""

import hashlib


def fraction(*parts: str) -> float:
    """A number in [0, 1) that depends on the parts alone: the same on every machine and in every run."""
    return int.from_bytes(hashlib.sha256("\n".join(parts).encode()).digest()[:6]) / 256**6
