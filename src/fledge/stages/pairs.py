"""Make preference pairs: chosen is a real answer, rejected the model's own or a real one of another form.

fledge pairs recipes/tang-poems/pairs.yaml
"""

import logging
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from fledge.arguments import PairsArguments
from fledge.corpora import load_corpus
from fledge.data.pairs import write_pairs
from fledge.data.sources import read_rows
from fledge.evaluation.generate import chat_prompt, load, sample
from fledge.recipe import Recipe
from fledge.results.record import Record


logger = logging.getLogger(__name__)


def main(recipe: Recipe) -> None:
    """Sample from the model, judge, pair up; `made` in each row says how its rejected answer came about."""
    keys = recipe.own(PairsArguments)
    judge = load_corpus(keys.judge).judge
    record = Record(recipe)
    given = [row.values for row in read_rows(keys.datasets)]
    requests = [request for request in given if request["reference"]]
    if len(requests) < len(given):
        logger.warning(
            "%d of %d requests have no real answer and make no pair", len(given) - len(requests), len(given)
        )
    random.Random(keys.seed).shuffle(requests)
    wanted = {"on_policy": round(keys.num_pairs * keys.on_policy_ratio)}
    wanted["wrong_form"] = keys.num_pairs - wanted["on_policy"]
    if len(requests) < keys.num_pairs:
        raise ValueError(f"num_pairs: {keys.num_pairs} are asked for and there are {len(requests)} requests")

    sampled = requests[: keys.num_requests]
    answers = sample_answers(keys, sampled)
    pairs, unfit = on_policy_pairs(sampled, answers, judge)
    empty = sum(not answer for answer in answers)
    logger.info("%d of %d answers scored below the real ones, %d are empty", len(pairs), len(answers), empty)
    if keys.balance_lengths:
        pairs = balanced(pairs)
    pairs = pairs[: wanted["on_policy"]]
    if len(pairs) < wanted["on_policy"]:
        logger.warning(
            "%d pairs of the model's own answers where %d were wanted; pairs of a wrong form take their place",
            len(pairs),
            wanted["on_policy"],
        )
    pairs += wrong_form_pairs(requests[keys.num_requests :] + unfit, requests, keys.num_pairs - len(pairs), keys.seed)

    random.Random(keys.seed + 1).shuffle(pairs)
    heldout = round(len(pairs) * keys.heldout_ratio)
    write_pairs(recipe.output_dir / "heldout.parquet", pairs[:heldout])
    write_pairs(recipe.output_dir / "train.parquet", pairs[heldout:])
    made = Counter(pair["made"] for pair in pairs)
    record.finish(pairs=len(pairs), heldout=heldout, sampled=len(answers), made=dict(made))


def sample_answers(keys: PairsArguments, requests: list[dict[str, Any]]) -> list[str]:
    """One answer of the model to each request."""
    model, tokenizer = load(keys.model_name_or_path)
    answers = sample(
        model,
        tokenizer,
        [chat_prompt(tokenizer, request["prompt"]) for request in requests],
        temperature=keys.temperature,
        max_new_tokens=keys.max_new_tokens,
        batch_size=keys.batch_size,
        seed=keys.seed,
        label="pairs: sampling",
    )
    return [answer.text for answer in answers]


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
