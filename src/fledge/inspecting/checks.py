"""What has to hold for rows that are trained on, each with what was found."""

from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from fledge.data.checks import check_agreement, check_tokenizer

from .find import Subject
from .models import config_of
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
    checks = [_tokenizer(tokenizer)]
    config = config_of(subject, tokenizer)
    rule = "tokenizer, model and rows belong together"
    if config is None:
        checks.append(Check(rule, "note", "not checked: no recipe beside this one trains on these rows"))
    else:
        checks.append(_checked(rule, check_agreement, tokenizer, config, manifest))
    seen = "" if figures.rows_seen == figures.rows_total else f"in {figures.rows_seen:,} rows, evenly spaced"
    for name, (rule, state) in RULES.items():
        if times := figures.breaches[name]:
            message = f"not so {times:,} times {seen}".rstrip() + f", first in row {figures.places[name]:,}"
            checks.append(Check(rule, state, message))
        else:
            checks.append(Check(rule, "ok", seen))
    return checks


def check_pairs(tokenizer: PreTrainedTokenizerBase, figures: PairFigures) -> list[Check]:
    """The preflight of dpo, and the rules of its pairs."""
    checks = [_tokenizer(tokenizer), Check("neither side is empty, and the two differ", "ok")]
    rule = "no answer is cut at max_length"
    if figures.cut:
        checks.append(Check(rule, "fault", f"{figures.cut:,} sides are longer; raise max_length in dpo.yaml"))
    else:
        checks.append(
            Check(rule, "ok", "not stated" if figures.max_length is None else f"{figures.max_length} tokens")
        )
    return checks


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> Check:
    return _checked("the template teaches the stop token, and padding is another", check_tokenizer, tokenizer)


def _checked(rule: str, check: Any, *arguments: Any) -> Check:
    try:
        check(*arguments)
    except ValueError as error:
        return Check(rule, "fault", str(error))
    return Check(rule, "ok")
