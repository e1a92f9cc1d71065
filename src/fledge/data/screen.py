"""Which rows of a batch are looked at no further: faulty ones, and training rows that hold held-out text."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from . import duplicates
from .duplicates import Batch, HeldOut
from .faults import FAULTS, KEEPABLE, Tally, fault_of, refusal, special_text
from .sources import Row
from .tokenise import Policy


@dataclass
class Screen:
    """Leaves rows out by policy, `fail`, `drop` or `keep`, and counts them in `tally` in any case.

    Args:
        tokenizer: whose special tokens have no place in a text.
        faulty: policy for what fault_of names; `keep` keeps the faults that can be tokenised.
        heldout: what training rows must not hold, if there is any.
        contamination: policy for rows that do.
        repeats, near_repeats: whether the rows will be compared with each other.
    """

    tokenizer: PreTrainedTokenizerBase
    faulty: Policy
    heldout: HeldOut | None
    contamination: Policy
    repeats: bool
    near_repeats: bool
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self._special = special_text(self.tokenizer.all_special_tokens)

    def fingerprint(self) -> str:
        """SHA-256 of what decides which rows are left."""
        digest = hashlib.sha256(f"{self.faulty} {self.contamination} {self.repeats} {self.near_repeats}".encode())
        if self.heldout is not None:
            digest.update(f"{self.heldout.overlap}".encode() + b"".join([*self.heldout.whole, *self.heldout.prompts]))
            digest.update(self.heldout.hashes.tobytes() + self.heldout.owners.tobytes())
        return digest.hexdigest()

    def sound(self, rows: Sequence[Row]) -> tuple[list[Row], np.ndarray, np.ndarray]:
        """The rows that are left, and of each what repeats are found by.

        Returns:
            rows, their exact_keys (rows, 2) and band_keys (rows, 16), uint64; (rows, 0) where they are not wanted.

        Raises:
            ValueError: a row that is not sound, where the policy is `fail`; with its place.
        """
        self.tally.rows += len(rows)
        rows = [row for row in rows if self._is_sound(row)]
        if not rows:
            return [], np.zeros((0, 0), np.uint64), np.zeros((0, 0), np.uint64)
        batch, kept = Batch([row.values for row in rows]), np.ones(len(rows), bool)
        if self.heldout is not None:
            found = self.heldout.find(batch)
            kept[:] = [not copy or self._is_kept(row, *copy) for row, copy in zip(rows, found, strict=True)]
        keys = batch.exact_keys() if self.repeats else np.zeros((len(rows), 0), np.uint64)
        bands = batch.band_keys() if self.near_repeats else np.zeros((len(rows), 0), np.uint64)
        return [row for row, keep in zip(rows, kept, strict=True) if keep], keys[kept], bands[kept]

    def _is_sound(self, row: Row) -> bool:
        fault = row.fault or fault_of(row.values, self._special)
        if fault and self.faulty == "fail":
            raise ValueError(refusal(fault, row.place) if fault in FAULTS else f"{row.place}: {fault}")
        if not fault and "chosen" in row.values:
            raise ValueError(f"{row.place}: a preference pair; prepare takes text and conversations, pairs go to dpo")
        keep = self.faulty == "keep" and fault in KEEPABLE
        if fault:
            self.tally.add(f"{'kept' if keep else 'dropped'}: {fault}", row.place)
        return not fault or keep

    def _is_kept(self, row: Row, kind: str, other: str) -> bool:
        if self.contamination == "fail":
            raise ValueError(duplicates.refusal(kind, row.place, other, "contamination"))
        keep = self.contamination == "keep"
        self.tally.add(f"{'kept' if keep else 'dropped'}: {kind}", row.place)
        return keep
