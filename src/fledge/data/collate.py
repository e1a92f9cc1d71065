"""Packed rows -> a batch in which no document sees another."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .tokenise import IGNORED


@dataclass
class PackedCollator:
    """Pads rows to `max_length` and restarts position_ids at every document; the padding is a document of its own.

    Without an attention_mask, transformers makes the attention block-diagonal from the restarts. Takes rows of numpy
    arrays or lists; returns input_ids, labels and position_ids, each (rows, max_length) int64, and `rows`, their
    numbers, if they have any.

    Args:
        boundaries: also return cu_seq_lens_q, (documents + 1,) int32, where each begins among all tokens, and
            max_length_q, an upper bound of their lengths: what varlen attention takes in place of a mask.
    """

    max_length: int
    pad_token_id: int
    boundaries: bool = False

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        shape = (len(rows), self.max_length)
        input_ids = np.full(shape, self.pad_token_id)
        labels = np.full(shape, IGNORED)
        position_ids = np.tile(np.arange(self.max_length), (len(rows), 1))
        for index, row in enumerate(rows):
            used = len(row["input_ids"])
            input_ids[index, :used] = row["input_ids"]
            labels[index, :used] = row["labels"]
            lengths = np.append(row["seq_lengths"], self.max_length - used)
            position_ids[index] -= np.repeat(np.cumsum(lengths) - lengths, lengths)
        batch = {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
        if all("row" in row for row in rows):
            batch["rows"] = np.array([row["row"] for row in rows])
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        if not self.boundaries:
            return tensors
        begins = np.append(np.flatnonzero(position_ids == 0), position_ids.size)
        return tensors | {"cu_seq_lens_q": torch.from_numpy(begins.astype(np.int32)), "max_length_q": self.max_length}
