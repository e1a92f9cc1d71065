"""Figures about generated answers."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .generate import Answer


def answer_measures(
    requests: Sequence[dict[str, Any]],
    answers: Sequence[Answer],
    judge: Callable[[dict[str, Any], str], float],
    lines: Callable[[str], list[str]],
    known_lines: set[str],
    line_length: int,
) -> dict[str, Any]:
    """Shares between 0 and 1.

    form_perfect: answers the judge gives 1 that also ended by themselves; form_perfect_by_form: by request["form"].
    stop_rate: answers that ended with a stop token. distinct_2: different pairs of neighbouring characters among all
    pairs (Li et al. 2016). copied_line_rate: lines of `line_length` characters that stand in `known_lines`.
    """
    perfect = [is_perfect(judge, request, answer) for request, answer in zip(requests, answers, strict=True)]
    by_form: dict[str, list[bool]] = {}
    for request, fits in zip(requests, perfect, strict=True):
        by_form.setdefault(request["form"], []).append(fits)
    written = [line for answer in answers for line in lines(answer.text) if len(line) == line_length]
    return {
        "form_perfect": mean(perfect),
        "form_perfect_by_form": {form: mean(fits) for form, fits in sorted(by_form.items())},
        "stop_rate": mean(answer.stopped for answer in answers),
        "distinct_2": distinct_2(answer.text for answer in answers),
        "copied_line_rate": mean(line in known_lines for line in written),
        "answers": len(answers),
        "lines_compared": len(written),
    }


def is_perfect(judge: Callable[[dict[str, Any], str], float], request: dict[str, Any], answer: Answer) -> bool:
    """The judge finds no fault, and the answer ended by itself."""
    return answer.stopped and judge(request, answer.text) == 1.0


def distinct_2(texts: Iterable[str]) -> float:
    """Different pairs of neighbouring characters over all pairs."""
    pairs = [text[i : i + 2] for text in texts for i in range(len(text) - 1)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def mean(values: Iterable[bool]) -> float:
    """Share of true values; 0 if there are none."""
    found = list(values)
    return sum(found) / len(found) if found else 0.0
