"""Preference pairs: out of sets that hold both answers, or made of a model's own answers and a judge.

fledge pairs recipes/prem-1b/pairs.yaml       # three sets of the hub, screened and put together
fledge pairs recipes/tang-poems/pairs.yaml    # chosen is a real poem, rejected the model's own or one of another form
"""

import logging
import random
from typing import Any

from fledge.arguments import PairsArguments
from fledge.corpora import load_corpus
from fledge.data.given import Given, by_source
from fledge.data.load import load_tokenizer
from fledge.data.made import balanced, on_policy_pairs, wrong_form_pairs
from fledge.data.pairs import write_pairs
from fledge.data.sources import read_rows
from fledge.evaluation.generate import chat_prompt, load, sample
from fledge.recipe import Recipe
from fledge.results.record import Record


NEEDED = ("judge", "model_name_or_path", "num_pairs")
"""Keys that making pairs needs and given pairs do not take."""
MAKING = (
    *NEEDED,
    "on_policy_ratio",
    "balance_lengths",
    "num_requests",
    "temperature",
    "max_new_tokens",
    "batch_size",
)
GIVEN = ("faulty", "tokenizer", "max_length", "overlong", "max_repeats")

logger = logging.getLogger(__name__)


def main(recipe: Recipe) -> None:
    """Recipe -> train.parquet and heldout.parquet; `made` in each row says how the pair came about."""
    keys = recipe.own(PairsArguments)
    check_stated(recipe)
    record = Record(recipe)
    if keys.judge is None:
        given = Given(keys, load_tokenizer(keys.tokenizer, "tokenizer") if keys.tokenizer else None)
        train, heldout = given.split()
        counts = {"rows": given.tally.rows, "met": given.tally.to_json()}
    else:
        pairs, sampled = make(keys)
        count = round(len(pairs) * keys.heldout_ratio)
        train, heldout = pairs[count:], pairs[:count]
        counts = {"sampled": sampled}
    write_pairs(recipe.output_dir / "heldout.parquet", heldout)
    write_pairs(recipe.output_dir / "train.parquet", train)
    record.finish(pairs=len(train) + len(heldout), heldout=len(heldout), made=by_source(train + heldout), **counts)


def check_stated(recipe: Recipe) -> None:
    """Raise ValueError for a key that means nothing here, or one that is lacking."""
    stated = {key for key, value in recipe.values.items() if value is not None}
    judged = "judge" in stated
    useless = [key for key in (GIVEN if judged else MAKING) if key in stated]
    if useless:
        why = "pairs are made, since `judge` is stated" if judged else "`datasets` hold the pairs, without `judge`"
        raise ValueError(f"pairs.yaml: {', '.join(useless)}: {why}; leave it out")
    missing = [key for key in NEEDED if key not in stated]
    if judged and missing:
        raise ValueError(f"pairs.yaml: {', '.join(missing)}: needed to make pairs, since `judge` is stated")
    if "max_length" in stated and "tokenizer" not in stated:
        raise ValueError("pairs.yaml: max_length: lengths are counted in tokens; name the `tokenizer`")


def make(keys: PairsArguments) -> tuple[list[dict[str, Any]], int]:
    """Pairs out of requests, in random order, and how many answers were sampled for them."""
    assert keys.judge is not None and keys.num_pairs is not None
    judge = load_corpus(keys.judge).judge
    given = [row.values for row in read_rows(keys.datasets)]
    requests = [request for request in given if request["reference"]]
    if len(requests) < len(given):
        logger.warning(
            "%d of %d requests have no real answer and make no pair", len(given) - len(requests), len(given)
        )
    random.Random(keys.seed).shuffle(requests)
    wanted = round(keys.num_pairs * keys.on_policy_ratio)
    if len(requests) < keys.num_pairs:
        raise ValueError(f"num_pairs: {keys.num_pairs} are asked for and there are {len(requests)} requests")

    sampled = requests[: keys.num_requests]
    answers = sample_answers(keys, sampled)
    pairs, unfit = on_policy_pairs(sampled, answers, judge)
    empty = sum(not answer for answer in answers)
    logger.info("%d of %d answers scored below the real ones, %d are empty", len(pairs), len(answers), empty)
    if keys.balance_lengths:
        pairs = balanced(pairs)
    pairs = pairs[:wanted]
    if len(pairs) < wanted:
        logger.warning(
            "%d pairs of the model's own answers where %d were wanted; pairs of a wrong form take their place",
            len(pairs),
            wanted,
        )
    pairs += wrong_form_pairs(requests[keys.num_requests :] + unfit, requests, keys.num_pairs - len(pairs), keys.seed)
    random.Random(keys.seed + 1).shuffle(pairs)
    return pairs, len(answers)


def sample_answers(keys: PairsArguments, requests: list[dict[str, Any]]) -> list[str]:
    """One answer of the model to each request."""
    assert keys.model_name_or_path is not None
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
