"""Figures about answers, choices and preferences. A Ratio is a figure that gets an interval."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .generate import Answer
from .intervals import Ratio


def answer_measures(answers: Sequence[Answer], units: Callable[[str], Sequence[str]]) -> dict[str, Any]:
    """Of any answers, in `units` (characters, words).

    stop_rate: share that ended with a stop token. mean_length: units of an answer. distinct_1, distinct_2: different
    units, or pairs of neighbours, of all (Li et al. 2016, A diversity-promoting objective function); they have no
    interval, since drawing an answer twice makes repeats by itself. seq_rep_4: repeated 4-grams (`repeated`).
    loop_rate: share that ends in a loop (`is_loop`).
    """
    written = [units(answer.text) for answer in answers]
    return {
        "stop_rate": Ratio([answer.stopped for answer in answers]),
        "mean_length": Ratio([len(text) for text in written]),
        "distinct_1": distinct(written, 1),
        "distinct_2": distinct(written, 2),
        "seq_rep_4": Ratio([repeated(text, 4) for text in written]),
        "loop_rate": Ratio([is_loop(text) for text in written]),
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
    written = [[line for line in lines(answer.text) if len(line) == line_length] for answer in answers]
    return {
        "form_perfect": Ratio(perfect),
        "form_perfect_by_form": mean_by_form(requests, perfect),
        "copied_line_rate": Ratio(
            [sum(line in known_lines for line in found) for found in written], [len(found) for found in written]
        ),
        "lines_compared": sum(map(len, written)),
    }


def choice_measures(rows: Sequence[dict[str, Any]], picked: Sequence[int]) -> dict[str, Any]:
    """Shares of multiple choices whose answer was picked, and the share that guessing reaches."""
    right = [index == row["answer"] for row, index in zip(rows, picked, strict=True)]
    return {
        "choice_accuracy": Ratio(right),
        "choice_accuracy_by_form": mean_by_form(rows, right),
        "choice_chance": sum(1 / len(row["choices"]) for row in rows) / len(rows),
    }


def preference_measures(margins: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """How log p(chosen) - log p(rejected) of each pair moved since the reference model.

    preference_accuracy: share of pairs in which it grew. preference_margin: by how many nats, on average; DPO's reward
    margin divided by beta (Rafailov et al. 2023).
    """
    grown = [policy - before for policy, before in zip(margins, reference, strict=True)]
    return {"preference_accuracy": Ratio([change > 0 for change in grown]), "preference_margin": Ratio(grown)}


def is_perfect(judge: Callable[[dict[str, Any], str], float], request: dict[str, Any], answer: Answer) -> bool:
    """The judge finds no fault, and the answer ended by itself."""
    return answer.stopped and judge(request, answer.text) == 1.0


def distinct(texts: Iterable[Sequence[str]], length: int) -> float:
    """Different n-grams of `length` units over all of them; none spans two texts."""
    found = [gram for text in texts for gram in grams(text, length)]
    return len(set(found)) / len(found) if found else 0.0


def repeated(text: Sequence[str], length: int) -> float:
    """1 - different n-grams over all of one text: seq-rep-n of Welleck et al. 2020, Neural text generation with
    unlikelihood training; 0 of a text shorter than `length`."""
    found = list(grams(text, length))
    return 1 - len(set(found)) / len(found) if found else 0.0


def is_loop(text: Sequence[str]) -> bool:
    """Whether a text ends with a phrase of at least two units, three times in a row.

    The repetition of Holtzman et al. 2020, The curious case of neural text degeneration, where units are tokens.
    """
    ends = (text[len(text) - 3 * size :] for size in range(2, len(text) // 3 + 1))
    return any(list(end) == 3 * list(end[: len(end) // 3]) for end in ends)


def grams(text: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    """The n-grams of `length` units, in order."""
    return zip(*(text[start:] for start in range(length)), strict=False)


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
