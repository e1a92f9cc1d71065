"""Measure models side by side: likelihood against a trigram, answers to held-out requests, choices, preferences.

fledge evaluate recipes/tang-poems/evaluate.yaml
"""

import gc
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fledge.arguments import DatasetEntry, EvaluateArguments
from fledge.corpora import load_corpus
from fledge.data.pairs import read_pairs
from fledge.data.sources import read_rows
from fledge.evaluation.generate import Answer, chat_prompt, load, sample
from fledge.evaluation.likelihood import bits_per, code_lengths, picked, preference_margins, text_measures
from fledge.evaluation.measures import answer_measures, choice_measures, form_measures, is_perfect, mean
from fledge.evaluation.trigram import Trigram
from fledge.files import write_json
from fledge.machine import choose_bf16
from fledge.recipe import Recipe
from fledge.results.record import Record


Rows = list[dict[str, Any]]


def main(recipe: Recipe) -> None:
    """Write evaluation.json and every generated answer, samples.jsonl."""
    keys = recipe.own(EvaluateArguments)
    corpus = load_corpus(keys.corpus)
    check_keys(keys, corpus)
    record = Record(recipe)
    train, chats, requests, choices = map(
        read_values, (keys.train_documents, keys.heldout_chats, keys.requests, keys.choices)
    )
    sources = {entry.name or entry.path: read_values([entry]) for entry in keys.heldout_documents}
    pairs = list(read_pairs(Path(keys.pairs) / "heldout.parquet"))
    is_judged = hasattr(corpus, "judge")
    known_lines = {line for row in train for line in corpus.lines(row["body"])} if is_judged else set()

    found: dict[str, Any] = {}
    if train:
        trigram = Trigram(row["text"] for row in train)
        lengths = {source: [trigram.bits(row["text"]) for row in rows] for source, rows in sources.items()}
        found["trigram"] = text_measures(lengths, sources)
        del trigram
    margins: dict[str, list[float]] = {}
    with (recipe.output_dir / "samples.jsonl").open("w", encoding="utf-8") as samples:
        for name, folder in keys.models.items():
            model, tokenizer = load(folder, "models")
            answers = answer(name, model, tokenizer, requests, corpus, keys)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=choose_bf16("auto")):  # as training reads
                lengths = {source: code_lengths(name, model, tokenizer, rows) for source, rows in sources.items()}
                found[name] = {
                    **text_measures(lengths, sources),
                    "answer_bits_per_char": bits_per(len, code_lengths(name, model, tokenizer, chats), chats),
                    **answer_measures(answers, corpus.units),
                }
                if choices:
                    prompt = corpus.document_prompt if name in keys.base_models else None
                    found[name] |= choice_measures(choices, picked(name, model, tokenizer, choices, prompt))
                margins[name] = preference_margins(name, model, tokenizer, pairs)
            if is_judged:
                found[name] |= form_measures(
                    requests, answers, corpus.judge, corpus.lines, known_lines, corpus.COPIED_LINE_LENGTH
                )
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
    counts = {
        "requests": len(requests),
        "heldout_documents": sum(map(len, sources.values())),
        "heldout_pairs": len(pairs),
    }
    record.finish(**counts, **({"choices": len(choices)} if choices else {}))


def check_keys(keys: EvaluateArguments, corpus: ModuleType) -> None:
    """Raise ValueError if a key names a model that `models` lacks, or if the judge lacks the text it compares with."""
    for key, names in (("base_models", keys.base_models), ("reference", [keys.reference])):
        for name in names:
            if name not in keys.models:
                raise ValueError(f"{key}: {name} is none of `models`: {', '.join(keys.models)}")
    if hasattr(corpus, "judge") and not keys.train_documents:
        raise ValueError(f"train_documents: {keys.corpus} counts lines copied from them; name the training text")


def read_values(entries: list[DatasetEntry]) -> Rows:
    """The rows of a recipe's list."""
    return [row.values for row in read_rows(entries)]


def answer(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Rows,
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
    """One line of samples.jsonl; `perfect` only where the corpus has a judge."""
    judged = {"perfect": is_perfect(corpus.judge, request, given)} if hasattr(corpus, "judge") else {}
    return {
        "model": name,
        "form": request["form"],
        "title": request["title"],
        "prompt": request["prompt"][-1]["content"],
        "text": given.text,
        **judged,
        "stopped": given.stopped,
    }
