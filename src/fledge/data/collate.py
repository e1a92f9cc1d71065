"""Packed rows -> a batch in which no document sees another."""

from dataclasses import dataclass
from typing import Any

import torch

from .tokenise import IGNORED


@dataclass
class PackedCollator:
    """Pads rows to `max_length` and restarts position_ids at every document; the padding is a document of its own.

    Without an attention_mask, transformers makes the attention block-diagonal from the restarts. Returns input_ids,
    labels and position_ids, each (rows, max_length).
    """

    max_length: int
    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        shape = (len(rows), self.max_length)
        input_ids = torch.full(shape, self.pad_token_id)
        labels = torch.full(shape, IGNORED)
        position_ids = torch.zeros(shape, dtype=torch.long)
        for index, row in enumerate(rows):
            used = len(row["input_ids"])
            input_ids[index, :used] = torch.tensor(row["input_ids"])
            labels[index, :used] = torch.tensor(row["labels"])
            lengths = [*row["seq_lengths"], self.max_length - used]
            position_ids[index] = torch.cat([torch.arange(length) for length in lengths])
        return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
