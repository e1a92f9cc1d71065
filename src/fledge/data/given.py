"""Pairs out of sets that hold both sides already: screened, counted, held out by prompt, mixed.

The formats are those of fledge.data.formats: TRL's preference formats, UltraFeedback's and Orca's columns among them.
"""

import json
import logging
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from fledge.arguments import PairsArguments

from .faults import FAULTS, SPECIAL, Tally, fault_of, refusal, special_text, truncated_fault
from .mix import choose, epochs_of
from .pairs import SAMPLED, encode
from .sources import Row, Source, open_sources


KEPT = SAMPLED | {SPECIAL}
"""Faults that policy `keep` keeps: DPO can be given any characters, but not roles out of order or one side only."""

Pair = dict[str, Any]

logger = logging.getLogger(__name__)


@dataclass
class Given:
    """The pairs of pairs.yaml's `datasets`, counted in `tally` as they are read.

    Args:
        tokenizer: None if special tokens in the text and lengths do not matter.
    """

    keys: PairsArguments
    tokenizer: PreTrainedTokenizerBase | None
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self._special = special_text(self.tokenizer.all_special_tokens) if self.tokenizer else None

    def split(self) -> tuple[list[Pair], list[Pair]]:
        """Training and held-out pairs, in random order; all pairs of one prompt stand on the same side.

        Raises:
            ValueError: a set without both sides, a pair that is not sound where the policy is `fail`, weights that
                cannot be met, or nothing left to train on.
        """
        sources = open_sources(self.keys.datasets)
        pairs = {source.name: list(self._sound(source)) for source in sources}
        for line in self.tally.warnings("pairs", "met"):
            logger.warning(line)
        heldout = self._heldout_prompts([pair for found in pairs.values() for pair in found])
        train = {name: [pair for pair in found if _asked(pair) not in heldout] for name, found in pairs.items()}
        apart = [pair for found in pairs.values() for pair in found if _asked(pair) in heldout]
        mixed = self._mixed(train, {source.name: source.weight for source in sources})
        if not mixed or not apart:
            raise ValueError(
                f"datasets: {len(mixed)} training and {len(apart)} held-out pairs are left of {self.tally.rows} rows: "
                f"{self.tally.faults}; both are needed"
            )
        chance = random.Random(self.keys.seed)
        chance.shuffle(mixed)
        chance.shuffle(apart)
        return mixed, apart

    def _sound(self, source: Source) -> Iterator[Pair]:
        if not source.format.startswith("preference"):
            raise ValueError(
                f"datasets: {source.name}: {source.format}, and pairs have chosen and rejected; name them in "
                "`columns`, or state `judge`, `model_name_or_path` and `num_pairs` to make pairs of requests"
            )
        for part in source.split():
            for row in part.rows(strict=self.keys.faulty == "fail"):
                self.tally.rows += 1
                if self._is_sound(row) and self._fits(row):
                    sides = {name: row.values[name] for name in ("prompt", "chosen", "rejected")}
                    yield {**sides, "form": None, "made": source.name, "rejected_score": None}

    def _is_sound(self, row: Row) -> bool:
        fault = row.fault or fault_of(row.values, self._special)
        return not fault or self._goes_on(fault, row)

    def _goes_on(self, fault: str, row: Row, detail: str = "") -> bool:
        """Whether a pair with a fault is kept; counted in any case."""
        if self.keys.faulty == "fail":
            raise ValueError(refusal(fault, row.place) if fault in FAULTS else f"{row.place}: {fault}{detail}")
        keep = self.keys.faulty == "keep" and fault in KEPT
        self.tally.add(f"{'kept' if keep else 'dropped'}: {fault}", row.place)
        return keep

    def _fits(self, row: Row) -> bool:
        limit, policy = self.keys.max_length, self.keys.overlong
        if self.tokenizer is None or limit is None:
            return True
        try:
            prompt, chosen, rejected = encode(self.tokenizer, row.values)
        except TemplateError as error:  # a turn that this template does not know
            return self._goes_on("the chat template cannot render it", row, f" ({error})")
        length = len(prompt) + max(len(chosen), len(rejected))
        if length > limit and policy == "fail":
            raise ValueError(
                f"{row.place}: a pair of {length} tokens, and max_length is {limit}; raise max_length, or write "
                "`overlong: drop` or `overlong: truncate`"
            )
        if length > limit and policy == "drop":
            self.tally.add(f"dropped: longer than {limit} tokens", row.place)
            return False
        if fault := truncated_fault(prompt, chosen, rejected, limit):
            return self._goes_on(fault, row)
        if length > limit:
            self.tally.add(f"dpo cuts its end: longer than {limit} tokens", row.place)
        return True

    def _heldout_prompts(self, pairs: list[Pair]) -> set[str]:
        prompts = list(dict.fromkeys(map(_asked, pairs)))
        wanted = max(1, round(len(prompts) * self.keys.heldout_ratio))
        return set(random.Random(self.keys.seed).sample(prompts, min(wanted, len(prompts))))

    def _mixed(self, train: dict[str, list[Pair]], weights: dict[str, float | None]) -> list[Pair]:
        counts = {name: len(found) for name, found in train.items()}
        epochs = epochs_of(counts, weights, self.keys.max_repeats, unit="pairs")
        return [
            found[index]
            for name, found in train.items()
            for index in choose(np.ones(len(found), np.int64), epochs[name], self.keys.seed)
        ]


def by_source(pairs: list[Pair]) -> dict[str, int]:
    """How many pairs each set, or each way of making them, gave."""
    return dict(Counter(pair["made"] for pair in pairs))


def _asked(pair: Pair) -> str:
    return json.dumps([[turn["role"], turn["content"]] for turn in pair["prompt"]])
