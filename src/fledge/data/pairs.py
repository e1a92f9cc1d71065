"""Preference pairs on disk, checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length

from .faults import CONTROL, FAULTS, MOJIBAKE, REPLACED, fault_of


MESSAGES = [{"role": datasets.Value("string"), "content": datasets.Value("string")}]
FEATURES = datasets.Features(
    {
        "prompt": MESSAGES,
        "chosen": MESSAGES,
        "rejected": MESSAGES,
        "form": datasets.Value("string"),
        "made": datasets.Value("string"),
        "rejected_score": datasets.Value("float32"),
    }
)
"""`made` says how the rejected answer came about, or which set gave the pair; `form` and `rejected_score`, what the
judge gave the rejected answer (0 to 1), are null for given pairs."""

SAMPLED = {REPLACED, CONTROL, MOJIBAKE}
"""Faults of a pair that are let through: a rejected answer is what the model wrote, broken characters included."""


def write_pairs(path: Path, pairs: Sequence[dict[str, Any]]) -> None:
    """Write checked pairs as parquet."""
    for index, pair in enumerate(pairs, 1):
        check_pair(pair, f"pair {index}")
    datasets.Dataset.from_list(list(pairs), features=FEATURES).to_parquet(path)


def read_pairs(path: Path) -> datasets.Dataset:
    """Pairs as DPOTrainer takes them.

    Raises:
        ValueError: no such file, or a pair there is nothing to learn from, with its row.
    """
    if not path.is_file():
        raise ValueError(f"pairs: no such file: {path}; run the pairs stage that writes it")
    pairs = datasets.Dataset.from_parquet(str(path))
    for index, pair in enumerate(pairs, 1):
        check_pair(pair, f"{path}:{index}")
    return pairs


def check_pair(pair: dict[str, Any], place: str) -> None:
    """Raise ValueError for a pair that teaches nothing: an empty or missing side, two sides that are the same, ..."""
    fault = fault_of(pair)
    if fault and fault not in SAMPLED:
        raise ValueError(f"{place}: {fault}; {FAULTS[fault]}")


def encode(tokenizer: PreTrainedTokenizerBase, pair: dict[str, Any]) -> tuple[list[int], list[int], list[int]]:
    """Token ids of the prompt and of what follows it on either side.

    The rule is TRL's (DPOTrainer, tokenize_fn): an answer begins where the rendered pair leaves the rendered prompt.
    """

    def ids(messages: list[dict[str, str]], **keys: Any) -> list[int]:
        return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **keys)["input_ids"]

    prompt = ids(pair["prompt"], add_generation_prompt=True)
    chosen, rejected = (ids(pair["prompt"] + pair[side]) for side in ("chosen", "rejected"))
    shared = min(common_prefix_length(prompt, chosen), common_prefix_length(prompt, rejected))
    return prompt[:shared], chosen[shared:], rejected[shared:]
