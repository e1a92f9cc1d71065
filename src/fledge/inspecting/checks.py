"""What has to hold for rows that are trained on, each with what was found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from fledge.data.checks import Check as Looked
from fledge.data.checks import preflight

from .find import Subject
from .models import configs_of
from .pairs import PairFigures
from .rows import Figures


# Rule: what holds, and whether a breach is a fault or only worth knowing.
RULES: dict[str, tuple[str, Literal["fault", "note"]]] = {
    "lengths": ("documents fill a row exactly, within max_length", "fault"),
    "labels": ("a label is the token itself, or none", "fault"),
    "first": ("the first token of a document carries no loss: nothing stands before it", "fault"),
    "known": ("every token is in the vocabulary", "fault"),
    "padding": ("no padding between documents", "fault"),
    "learnt": ("every document has tokens that carry loss", "note"),
    "stop": ("every document ends with the stop token", "note"),
}


@dataclass(frozen=True)
class Check:
    """A rule, and whether it holds; `message` says what was found."""

    rule: str
    state: Literal["ok", "note", "fault"]
    message: str = ""


def check_rows(
    subject: Subject, tokenizer: PreTrainedTokenizerBase, manifest: dict[str, Any], figures: Figures
) -> list[Check]:
    """The preflight of a training stage, and the rules of its rows."""
    config, generation = configs_of(subject, tokenizer)
    are_conversations = any(n < length - 1 for n, length in zip(figures.supervised, figures.lengths, strict=True))
    checks = _preflight(preflight(tokenizer, config, generation, manifest, chat=are_conversations))
    if config is None:
        checks.append(Check("the model fits", "note", "not checked: no recipe here says which model trains on these"))
    seen = "" if figures.rows_seen == figures.rows_total else f"in {figures.rows_seen:,} rows, evenly spaced"
    for name, (rule, state) in RULES.items():
        if times := figures.breaches[name]:
            message = f"not so {times:,} times {seen}".rstrip() + f", first in row {figures.places[name]:,}"
            checks.append(Check(rule, state, message))
        else:
            checks.append(Check(rule, "ok", seen))
    return checks


def check_pairs(subject: Subject, tokenizer: PreTrainedTokenizerBase, figures: PairFigures) -> list[Check]:
    """The preflight of dpo, and the rules of its pairs."""
    config, generation = configs_of(subject, tokenizer)
    checks = _preflight(preflight(tokenizer, config, generation, max_length=figures.max_length))
    checks.append(Check("neither side is empty, and the two differ", "ok"))
    rule = "no answer is cut at max_length"
    if figures.cut:
        checks.append(Check(rule, "fault", f"{figures.cut:,} sides are longer; raise max_length in dpo.yaml"))
    else:
        checks.append(
            Check(rule, "ok", "not stated" if figures.max_length is None else f"{figures.max_length} tokens")
        )
    return checks


def _preflight(found: Sequence[Looked]) -> list[Check]:
    return [
        Check(check.name, "fault", f"{check.problem}; {check.fix}")
        if check.problem
        else Check(check.name, "ok", check.found)
        for check in found
    ]
