"""Measure models side by side: likelihood against a trigram, answers to requests, choices, preferences, tasks.

fledge evaluate recipes/tang-poems/evaluate.yaml
"""

import functools
import gc
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.arguments import EvaluateArguments
from fledge.evaluation.cache import Cache, circumstances, digests
from fledge.evaluation.generate import load
from fledge.evaluation.heldout import Heldout, left_out
from fledge.evaluation.intervals import settled
from fledge.evaluation.likelihood import Measured, text_measures
from fledge.evaluation.measures import preference_measures
from fledge.evaluation.scores import Subject, likelihood, score
from fledge.evaluation.tasks import Asked, ask, load_tasks
from fledge.evaluation.trigram import Trigram
from fledge.files import write_json, write_text
from fledge.recipe import Recipe
from fledge.results.record import Record, read_metrics
from fledge.training.checkpoints import fault_of, made_from


SETTINGS = ("corpus", "temperature", "max_new_tokens", "batch_size", "seed")
"""Keys that decide what a model answers and how it is counted."""

logger = logging.getLogger(__name__)


def main(recipe: Recipe) -> None:
    """Write evaluation.json and every generated answer, samples.jsonl."""
    keys = recipe.own(EvaluateArguments)
    heldout, tasks = Heldout.read(keys), load_tasks(keys.tasks)
    files = {name: digests(folder, "models") for name, folder in keys.models.items()}
    record = Record(recipe)
    work = Work(keys, heldout, tasks, files, Cache(recipe.output_dir), circumstances(), heldout.digest())
    absent = left_out(keys)
    for key, figures in absent.items():
        logger.info("left out, for the recipe names no %s: %s", key, figures)

    found: dict[str, Any] = {}
    if heldout.train and heldout.sources:
        found["trigram"] = work.trigram()
    results = {name: work.model(name, folder) for name, folder in keys.models.items()}
    for name, own in results.items():
        found[name] = own["scores"]
        if keys.reference and name != keys.reference and name not in keys.base_models:
            measured = settled(preference_measures(own["margins"], results[keys.reference]["margins"]), keys.seed)
            intervals = found[name].get("intervals", {}) | measured.pop("intervals")
            found[name] |= {**measured, "intervals": intervals}
        record.log(model=name, **found[name])
    if keys.checkpoints:
        found["checkpoints"] = [point for name, folder in keys.models.items() for point in work.curve(name, folder)]
    samples = [json.dumps(sample, ensure_ascii=False) + "\n" for own in results.values() for sample in own["samples"]]
    write_text(recipe.output_dir / "samples.jsonl", "".join(samples))
    write_json(recipe.output_dir / "evaluation.json", found)
    work.cache.close()
    record.finish(**heldout.counts(), tasks=len(tasks), left_out=len(absent), from_cache=len(work.cache.taken))


@dataclass(frozen=True)
class Work:
    """Everything that figures are taken with, each of them once: what the cache has is not taken again."""

    keys: EvaluateArguments
    heldout: Heldout
    tasks: list[Asked]
    files: dict[str, dict[str, Any]]
    """Digests of the models' files."""
    cache: Cache
    shared: dict[str, Any]
    """What decides every figure."""
    rows: str
    """Digest of the held-out rows."""

    def trigram(self) -> dict[str, Any]:
        """The likelihood of the held-out text under the baseline."""

        def make() -> dict[str, Any]:
            model = Trigram(row["text"] for row in self.heldout.train)
            sources = self.heldout.sources
            found = {name: [Measured.of(model.bits(row["text"]), row) for row in sources[name]] for name in sources}
            return settled(text_measures(found), self.keys.seed)

        return self.cache.get("trigram", {**self.shared, "rows": self.rows, "seed": self.keys.seed}, make)

    def model(self, name: str, folder: str) -> dict[str, Any]:
        """`scores`, `margins` and `samples` of one model; its tasks are under scores["tasks"]."""
        loaded = functools.cache(lambda: self.subject(name, folder))  # once, and only where something is to be done
        key = {
            **self.shared,
            "model": self.files[name],
            "name": name,
            "is_base": name in self.keys.base_models,
        }
        own: dict[str, Any] = {"scores": {}, "margins": [], "samples": []}
        if self.heldout.counts():
            settings = {setting: getattr(self.keys, setting) for setting in SETTINGS}
            whole = {**key, **settings, "rows": self.rows}
            own = self.cache.get(name, whole, lambda: score(loaded(), self.heldout, self.keys))
        for asked in self.tasks:
            what = f"{name} on {asked.entry.name}"
            metrics = self.cache.get(what, {**key, "task": asked.key}, lambda asked=asked: ask(loaded(), asked))
            own["scores"]["tasks"] = {**own["scores"].get("tasks", {}), **metrics}
        return own

    def curve(self, name: str, folder: str) -> list[dict[str, Any]]:
        """The likelihood under each whole checkpoint of a training stage's folder, in the order of its steps.

        `tokens` are those trained on up to there, by what the stage logged; None where it logged none.
        """
        steps = [line for line in read_metrics(Path(folder)) if line.get("tokens") and line.get("step")]
        faults = {path: fault_of(path) for path in Path(folder).glob("checkpoint-*")}
        for path, fault in faults.items():
            if fault:
                logger.warning("%s: %s; it is left out of the curve", path, fault)
        whole = {made_from(path)["step"]: path for path, fault in faults.items() if not fault}
        logger.info("%s: %d whole checkpoints in %s", name, len(whole), folder)
        points = []
        for step, path in sorted(whole.items()):
            key = {**self.shared, "model": digests(str(path), "models"), "rows": self.rows, "seed": self.keys.seed}
            found = self.cache.get(f"{name} at {step}", key, functools.partial(self.likelihood, name, str(path)))
            tokens = round(step * steps[-1]["tokens"] / steps[-1]["step"]) if steps else None
            points.append({"model": name, "step": step, "tokens": tokens, **found})
        return points

    def likelihood(self, name: str, folder: str) -> dict[str, Any]:
        """How likely the held-out text is under one checkpoint."""
        return settled(likelihood(self.subject(name, folder), self.heldout.sources), self.keys.seed)

    def subject(self, name: str, folder: str) -> Subject:
        """The model in a folder, with its tokenizer."""
        gc.collect()  # the model before is part of reference cycles
        model, tokenizer = load(folder, "models")
        return Subject(name, model, tokenizer, name in self.keys.base_models)
