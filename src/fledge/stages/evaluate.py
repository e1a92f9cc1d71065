"""Measure models side by side: likelihood against a trigram, answers to held-out requests, preference accuracy.

fledge evaluate recipes/tang-poems/evaluate.yaml
"""

import gc
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fledge.arguments import DatasetEntry, EvaluateArguments
from fledge.corpora import load_corpus
from fledge.data.pairs import read_pairs
from fledge.data.sources import read_rows
from fledge.evaluation.generate import Answer, chat_prompt, load, sample
from fledge.evaluation.likelihood import bits, preference_margins
from fledge.evaluation.measures import answer_measures, is_perfect, mean
from fledge.evaluation.trigram import Trigram, bits_per_character
from fledge.files import write_json
from fledge.recipe import Recipe
from fledge.results.record import Record


def main(recipe: Recipe) -> None:
    """Write evaluation.json and every generated answer, samples.jsonl."""
    keys = recipe.own(EvaluateArguments)
    check_names(keys)
    corpus = load_corpus(keys.judge)
    record = Record(recipe)
    train, heldout = read_values(keys.train_documents), read_values(keys.heldout_documents)
    requests, chats = read_values(keys.requests), read_values(keys.heldout_chats)
    pairs = list(read_pairs(Path(keys.pairs) / "heldout.parquet"))
    known_lines = {line for row in train for line in corpus.lines(row["body"])}

    trigram = Trigram(row["text"] for row in train)
    found: dict[str, Any] = {
        "trigram": {"bits_per_char": bits_per_character(trigram, [row["text"] for row in heldout])}
    }
    del trigram
    margins: dict[str, list[float]] = {}
    with (recipe.output_dir / "samples.jsonl").open("w", encoding="utf-8") as samples:
        for name, folder in keys.models.items():
            model, tokenizer = load(folder, "models")
            answers = answer(name, model, tokenizer, requests, corpus, keys)
            measures = answer_measures(
                requests, answers, corpus.judge, corpus.lines, known_lines, corpus.COPIED_LINE_LENGTH
            )
            found[name] = {
                "bits_per_char": bits(name, model, tokenizer, [{"text": row["text"]} for row in heldout]),
                "answer_bits_per_char": bits(name, model, tokenizer, chats),
                **measures,
            }
            margins[name] = preference_margins(name, model, tokenizer, pairs)
            record.log(model=name, **found[name])
            for request, given in zip(requests, answers, strict=True):
                samples.write(json.dumps(sample_row(name, request, given, corpus), ensure_ascii=False) + "\n")
            del model
            gc.collect()
    for name in keys.models:
        if name != keys.reference and name not in keys.base_models:
            pairs_margins = zip(margins[name], margins[keys.reference], strict=True)
            found[name]["preference_accuracy"] = mean(policy > reference for policy, reference in pairs_margins)
    write_json(recipe.output_dir / "evaluation.json", found)
    record.finish(requests=len(requests), heldout_documents=len(heldout), heldout_pairs=len(pairs))


def check_names(keys: EvaluateArguments) -> None:
    """Raise ValueError if a key names a model that `models` lacks."""
    for key, names in (("base_models", keys.base_models), ("reference", [keys.reference])):
        for name in names:
            if name not in keys.models:
                raise ValueError(f"{key}: {name} is none of `models`: {', '.join(keys.models)}")


def read_values(entries: list[DatasetEntry]) -> list[dict[str, Any]]:
    """The rows of a recipe's list."""
    return [row.values for row in read_rows(entries)]


def answer(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: list[dict[str, Any]],
    corpus: ModuleType,
    keys: EvaluateArguments,
) -> list[Answer]:
    """What the model makes of every request: as a chat, or of a base model as the beginning of a document."""
    base = name in keys.base_models
    if base:
        prompts = [tokenizer.bos_token + corpus.document_prompt(request) for request in requests]
    else:
        prompts = [chat_prompt(tokenizer, request["prompt"]) for request in requests]
    answers = sample(
        model,
        tokenizer,
        prompts,
        temperature=keys.temperature,
        max_new_tokens=keys.max_new_tokens,
        batch_size=keys.batch_size,
        seed=keys.seed,
        label=f"{name}: answers",
    )
    return [Answer(corpus.document_answer(given.text), given.stopped) for given in answers] if base else answers


def sample_row(name: str, request: dict[str, Any], given: Answer, corpus: ModuleType) -> dict[str, Any]:
    """One line of samples.jsonl."""
    return {
        "model": name,
        "form": request["form"],
        "title": request["title"],
        "prompt": request["prompt"][-1]["content"],
        "text": given.text,
        "perfect": is_perfect(corpus.judge, request, given),
        "stopped": given.stopped,
    }
