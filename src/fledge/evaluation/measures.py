"""Figures about generated answers."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from .generate import Answer


def answer_measures(answers: Sequence[Answer], units: Callable[[str], Sequence[str]]) -> dict[str, Any]:
    """Of any answers, as shares between 0 and 1.

    stop_rate: answers that ended with a stop token. distinct_2: different pairs of neighbouring `units` (characters,
    words) among all pairs (Li et al. 2016).
    """
    return {
        "stop_rate": mean(answer.stopped for answer in answers),
        "distinct_2": distinct_2(units(answer.text) for answer in answers),
        "answers": len(answers),
    }


def form_measures(
    requests: Sequence[dict[str, Any]],
    answers: Sequence[Answer],
    judge: Callable[[dict[str, Any], str], float],
    lines: Callable[[str], list[str]],
    known_lines: set[str],
    line_length: int,
) -> dict[str, Any]:
    """Of answers that a judge can score, as shares between 0 and 1.

    form_perfect: answers the judge gives 1 that also ended by themselves; form_perfect_by_form: by request["form"].
    copied_line_rate: lines of `line_length` characters that stand in `known_lines`.
    """
    perfect = [is_perfect(judge, request, answer) for request, answer in zip(requests, answers, strict=True)]
    written = [line for answer in answers for line in lines(answer.text) if len(line) == line_length]
    return {
        "form_perfect": mean(perfect),
        "form_perfect_by_form": mean_by_form(requests, perfect),
        "copied_line_rate": mean(line in known_lines for line in written),
        "lines_compared": len(written),
    }


def choice_measures(rows: Sequence[dict[str, Any]], picked: Sequence[int]) -> dict[str, Any]:
    """Shares of multiple choices whose answer was picked, and the share that guessing reaches."""
    right = [index == row["answer"] for row, index in zip(rows, picked, strict=True)]
    return {
        "choice_accuracy": mean(right),
        "choice_accuracy_by_form": mean_by_form(rows, right),
        "choice_chance": sum(1 / len(row["choices"]) for row in rows) / len(rows),
    }


def is_perfect(judge: Callable[[dict[str, Any], str], float], request: dict[str, Any], answer: Answer) -> bool:
    """The judge finds no fault, and the answer ended by itself."""
    return answer.stopped and judge(request, answer.text) == 1.0


def distinct_2(texts: Iterable[Sequence[str]]) -> float:
    """Different pairs of neighbours over all pairs; no pair spans two texts."""
    pairs = [pair for text in texts for pair in pairwise(text)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def mean_by_form(rows: Sequence[dict[str, Any]], values: Sequence[bool]) -> dict[str, float]:
    """The share of true values of the rows of each form."""
    by_form: dict[str, list[bool]] = {}
    for row, value in zip(rows, values, strict=True):
        by_form.setdefault(row["form"], []).append(value)
    return {form: mean(found) for form, found in sorted(by_form.items())}


def mean(values: Iterable[bool]) -> float:
    """Share of true values; 0 if there are none."""
    found = list(values)
    return sum(found) / len(found) if found else 0.0
