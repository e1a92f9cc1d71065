"""The model that a set of rows is for: its configuration, and one to run."""

import copy
from pathlib import Path

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fledge.arguments import PretrainArguments
from fledge.data.load import load_model
from fledge.model import register
from fledge.model.build import build_config, build_model
from fledge.recipe import Recipe

from .find import Subject


MOST_PARAMETERS = 50_000_000
"""A larger model that is not trained yet is built smaller, with the same heads."""

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
"""Of the model where no recipe says which."""


def configs_of(
    subject: Subject, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedConfig | None, GenerationConfig | None]:
    """The configurations of the model that trains on the subject; None if no recipe says, or it is not made yet."""
    register()
    folder = _start(subject.trainer)
    has_generation = folder is not None and (folder / "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(folder) if has_generation else None
    return _config(subject.trainer, subject.siblings, tokenizer), generation


def _start(trainer: Recipe | None) -> Path | None:
    """The folder of the model that a recipe starts from, if it is there."""
    folder = Path(trainer.values.get("model_name_or_path", "")) if trainer else Path()
    return folder if (folder / "config.json").is_file() else None


def _config(
    recipe: Recipe | None, siblings: list[Recipe], tokenizer: PreTrainedTokenizerBase
) -> PreTrainedConfig | None:
    if recipe is None:
        return None
    if recipe.stage == "pretrain":
        return build_config(recipe.own(PretrainArguments).model_config, tokenizer)
    if folder := _start(recipe):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    folder = Path(recipe.values["model_name_or_path"])
    return _config(next((r for r in siblings if r.output_dir == folder), None), siblings, tokenizer)


def model_of(subject: Subject, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, str]:
    """A model in float32 with the heads of the subject's, and in words which one it is.

    The weights an sft recipe starts from if they are there; else random ones, seeded.
    """
    if folder := _start(subject.trainer):
        return load_model(folder, "model_name_or_path").float().eval(), f"the model in {folder}"
    config, said = configs_of(subject, tokenizer)[0], "the recipe's model with random weights"
    if config is None:
        longest = max(tokenizer.model_max_length, 2048) if tokenizer.model_max_length < 1e9 else 131_072
        config = _small(build_config({**HEADS, "max_position_embeddings": longest}, tokenizer))
        said = "no recipe says which model: a small one with random weights"
    with torch.device("meta"):
        parameters = build_model(config).num_parameters()
    if parameters > MOST_PARAMETERS:
        config = _small(config)
        heads = config.num_attention_heads
        heads = f"{heads} and {getattr(config, 'num_key_value_heads', heads)}"
        said = f"a small model with random weights and the recipe's heads ({heads})"
    torch.manual_seed(0)
    return build_model(config).eval(), said


def _small(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same architecture and heads, two narrow layers of it, weights large enough to tell inputs apart."""
    small = copy.deepcopy(config)
    small.num_hidden_layers = 2
    small.hidden_size = config.num_attention_heads * -(-128 // config.num_attention_heads)
    if getattr(config, "intermediate_size", None):  # gpt2 derives it
        small.intermediate_size = 256
    small.initializer_range = 0.1
    return small
