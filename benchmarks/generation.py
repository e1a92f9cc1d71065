"""Answers to held-out requests: `sample` of fledge.evaluation.generate beside transformers' pipeline.

python benchmarks/generation.py                      # after make demo: 800 requests to the exported model
python benchmarks/generation.py RUN --requests 40    # another run's, or fewer of them

fledge         as the evaluate stage asks: batches of 400, finished answers leave the batch
pipeline       pipeline("text-generation"), one request after another, which is its default
pipeline 400   the same with batch_size=400

All sample at temperature 0.8, 100 tokens at most, from the same exported model. Loading is not timed. Each draws
numbers of its own, so the answers differ; their mean length says whether the work was the same.
"""

import argparse
import time

from common import Figures, compare, parser


TEMPERATURE, TOKENS, BATCH = 0.8, 100, 400


def requests(given: argparse.Namespace) -> list[list[dict[str, str]]]:
    import pyarrow.parquet as pq

    rows = pq.read_table(given.run / "corpus/requests/heldout.parquet").to_pylist()
    return [row["prompt"] for row in rows[: given.requests]]


def figures(seconds: float, texts: list[str]) -> Figures:
    mean = sum(map(len, texts)) / len(texts)
    return {"requests": len(texts), "seconds": seconds, "characters an answer": mean}


def fledge(given: argparse.Namespace) -> Figures:
    from fledge.evaluation.generate import chat_prompt, load, sample

    model, tokenizer = load(str(given.run / "export"))
    asked = requests(given)
    began = time.perf_counter()
    prompts = [chat_prompt(tokenizer, messages) for messages in asked]
    how = {"temperature": TEMPERATURE, "max_new_tokens": TOKENS, "batch_size": BATCH, "seed": 0, "label": "answers"}
    answers = sample(model, tokenizer, prompts, **how)
    return figures(time.perf_counter() - began, [answer.text for answer in answers])


def pipeline(given: argparse.Namespace, **batch: int) -> Figures:
    import transformers

    made = transformers.pipeline("text-generation", model=str(given.run / "export"))
    made.tokenizer.padding_side = "left"
    asked = requests(given)
    began = time.perf_counter()
    answers = made(asked, do_sample=True, temperature=TEMPERATURE, max_new_tokens=TOKENS, **batch)
    texts = [answer[0]["generated_text"][-1]["content"] for answer in answers]
    return figures(time.perf_counter() - began, texts)


def pipeline_in_batches(given: argparse.Namespace) -> Figures:
    return pipeline(given, batch_size=BATCH)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--requests", type=int, default=800, help="how many; 800, all there are, if left out")
    compare(options, {"fledge": fledge, "pipeline": pipeline, "pipeline 400": pipeline_in_batches}, "seconds")
