"""The model card of a run: the README.md of its repository, all of it out of what the stages recorded.

The sections are those people look for in a card (huggingface.co's model card guide, "Model Cards for Model Reporting",
Mitchell et al. 2019): what it is, how to use it, what it was trained on and how, how good it is, what it cannot do.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from fledge.files import read_json

from .blocks import Block, Code, Section, Table, Text
from .data import sources
from .evaluated import results, sample_blocks
from .gather import Run, Stage, gather
from .markdown import markdown
from .numbers import duration, plain, worded
from .scores import SCORES
from .story import best_model, environment, lead


USE = """\
from transformers import pipeline

write = pipeline("text-generation", model="{repo}")
messages = [{{"role": "user", "content": {prompt}}}]
print(write(messages, max_new_tokens=128)[0]["generated_text"][-1]["content"])"""

DETAILS = {
    "architectures": "Architecture",
    "num_hidden_layers": "Layers",
    "hidden_size": "Hidden size",
    "intermediate_size": "Size of the MLP",
    "num_attention_heads": "Attention heads",
    "num_key_value_heads": "Key and value heads",
    "max_position_embeddings": "Longest context, tokens",
    "vocab_size": "Vocabulary",
    "tie_word_embeddings": "Head tied to the embedding",
    "dtype": "Weights stored as",
}
KEYS = (
    "tokens_per_step",
    "pairs_per_step",
    "learning_rate",
    "muon_learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "decay_ratio",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "weight_decay",
    "max_grad_norm",
    "beta",
    "loss_type",
    "use_peft",
    "bf16",
    "seed",
)
"""Hyperparameters that a reader compares with other models' first; recipe.json has them all."""

REACHED = ("steps", "tokens", "pairs", "final_loss", "step0_loss", "tokens_per_second", "mfu", "engine", "processes")

LIMITS = """\
It is a small model. It makes mistakes and makes things up, knows nothing after its training text, and may repeat what
is wrong or unkind in it. It was not tuned to refuse anything. What the tables above do not say was not measured."""


def card(folder: Path, export: Path, repo: str) -> str:
    """The card of the model in `export`, which the run in `folder` ended with.

    Args:
        repo: owner/name, for the metadata and the code that loads it.

    Raises:
        ValueError: `folder` holds no stage, or `export` no model.
    """
    if not (export / "config.json").is_file():
        raise ValueError(f"{export}: no model there; run the export stage, or name the folder of a run that did")
    run, config = gather(folder), read_json(export / "config.json")
    asked = (its["prompt"] for its in run.samples if its["model"] == best_model(run) and "prompt" in its)
    prompt = json.dumps(next(asked, "..."), ensure_ascii=False)
    use = USE.format(repo=repo, prompt=prompt)
    sections = [
        Section("", [Text(lead(run))]),
        Section("Use", [Text("With transformers alone, and no code out of a repository:"), Code(use)]),
        Section("Details", [Table(["", "Value"], details(run, config))]),
        Section("Data", sources(run)),
        Section("Training", training(run)),
        Section("Results", results(run)),
        Section("Samples", sample_blocks(run)),
        Section("Chat template", template(export)),
        Section("Limits", [Text(LIMITS)]),
        Section("Environment", environment(run)),
        Section("Reproduce", [Code(run.chain["command"])] if "command" in run.chain else []),
    ]
    name = repo.rpartition("/")[2]
    text = markdown(name, [section for section in sections if section.blocks])
    return f"---\n{metadata(run, name)}\n---\n\n{text}"


def metadata(run: Run, name: str) -> str:
    """The YAML at the head of the card, with the scores of the last model as a model-index."""
    last = best_model(run)
    scores = {key: value for key, value in run.models.get(last, {}).items() if key in SCORES}
    found = [
        EvalResult(
            "text-generation", "fledge-heldout", "held-out text of this run", key, value, metric_name=SCORES[key][0]
        )
        for key, value in scores.items()
        if isinstance(value, int | float) and key not in ("answers", "lines_compared", "choice_chance")
    ]
    keys: dict[str, Any] = {"eval_results": found, "model_name": name} if found else {}
    tags = ["fledge", *(stage.kind for stage in run.training)]
    values = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=tags, **keys)
    return yaml.safe_dump(values.to_dict(), sort_keys=False, allow_unicode=True).strip()


def details(run: Run, config: dict[str, Any]) -> list[list[str]]:
    """Size and shape."""
    parameters = run.results("dpo").get("parameters") or run.results("sft").get("parameters")
    parameters = parameters or run.results("pretrain").get("parameters")
    rows = [["Parameters", plain(parameters)]] if parameters else []
    return rows + [[label, plain(config[key])] for key, label in DETAILS.items() if key in config]


def training(run: Run) -> list[Block]:
    """The stages side by side: what they were told, and what came of it."""
    stages = [stage for stage in run.training if stage.summary]
    if not stages:
        return []
    told = {stage.name: read_json(stage.folder / "recipe.json") for stage in stages}
    rows = []
    for key in KEYS:
        values = [told[stage.name].get(key, {}).get("value") for stage in stages]
        if any(value is not None for value in values):
            rows.append([key, *map(plain, values)])
    rows += [
        [key, *(plain(stage.results.get(key)) for stage in stages)]
        for key in REACHED
        if any(stage.results.get(key) is not None for stage in stages)
    ]
    rows.append(["time", *(duration(stage.summary["seconds"]) for stage in stages)])
    blocks: list[Block] = [Table(["", *(stage.name for stage in stages)], rows)]
    if tokens := sum(stage.results.get("tokens", 0) for stage in stages):
        blocks.insert(0, Text(f"{worded(tokens)} tokens in all, {where(run, stages)}."))
    return blocks


def where(run: Run, stages: list[Stage]) -> str:
    """The machine, as far as it was recorded."""
    processes = max(stage.results.get("processes", 1) for stage in stages)
    hours = sum(stage.summary["seconds"] for stage in stages)
    machine = run.chain.get("machine", "a machine that was not recorded")
    return f"on {machine}, {processes} process(es), {duration(hours)}"


def template(export: Path) -> list[Block]:
    """The special tokens with their ids, and the template itself."""
    vocabulary = {its["content"]: its["id"] for its in read_json(export / "tokenizer.json")["added_tokens"]}
    rows = [[token, plain(number)] for token, number in sorted(vocabulary.items(), key=lambda its: its[1])]
    blocks: list[Block] = [Table(["Special token", "Id"], rows)] if rows else []
    path = export / "chat_template.jinja"
    return [*blocks, Code(path.read_text(encoding="utf-8").strip())] if path.is_file() else blocks
