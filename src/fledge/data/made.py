"""Pairs made of requests: chosen is the real answer, rejected the model's own or a real one of another form."""

import logging
import random
from collections.abc import Callable
from typing import Any


logger = logging.getLogger(__name__)


def on_policy_pairs(
    requests: list[dict[str, Any]], answers: list[str], judge: Callable[[dict[str, Any], str], float]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pairs whose rejected answer the model wrote and scored below the real one, and the requests that gave none."""
    pairs, unfit = [], []
    for request, answer in zip(requests, answers, strict=True):
        score = judge(request, answer)
        if answer and score < judge(request, request["reference"]):
            pairs.append(pair(request, answer, "on_policy", score))
        else:
            unfit.append(request)
    return pairs, unfit


def balanced(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many pairs whose rejected answer is longer than the chosen one as pairs whose is shorter, and all others."""
    by_sign: dict[int, list[dict[str, Any]]] = {1: [], 0: [], -1: []}
    for row in pairs:
        difference = len(row["rejected"][-1]["content"]) - len(row["chosen"][-1]["content"])
        by_sign[(difference > 0) - (difference < 0)].append(row)
    longer, same, shorter = by_sign.values()
    each = min(len(longer), len(shorter))
    logger.info(
        "%d are longer than the real one, %d shorter: %d of each are used, and %d as long",
        len(longer),
        len(shorter),
        each,
        len(same),
    )
    return longer[:each] + shorter[:each] + same


def wrong_form_pairs(
    requests: list[dict[str, Any]], pool: list[dict[str, Any]], count: int, seed: int
) -> list[dict[str, Any]]:
    """Pairs whose rejected answer is a real poem of another form than was asked for."""
    chance = random.Random(seed)
    by_form: dict[str, list[dict[str, Any]]] = {}
    for request in pool:
        by_form.setdefault(request["form"], []).append(request)
    pairs = []
    for request in requests[:count]:
        other = chance.choice([form for form in sorted(by_form) if form != request["form"]])
        pairs.append(pair(request, chance.choice(by_form[other])["reference"], "wrong_form", 0.0))
    return pairs


def pair(request: dict[str, Any], rejected: str, made: str, score: float) -> dict[str, Any]:
    """One row: the real answer is chosen."""
    return {
        "prompt": request["prompt"],
        "chosen": [{"role": "assistant", "content": request["reference"]}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "form": request["form"],
        "made": made,
        "rejected_score": score,
    }
