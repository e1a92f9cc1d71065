"""The model that a set of rows is for: its configuration, and one to run."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fledge.arguments import PretrainArguments
from fledge.data.load import load_model
from fledge.model import register
from fledge.model.configuration_fledge import FledgeConfig
from fledge.model.modeling_fledge import FledgeForCausalLM
from fledge.recipe import Recipe

from .find import Subject


MOST_PARAMETERS = 50_000_000
"""A larger model that is not trained yet is built smaller, with the same heads."""


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
        return FledgeConfig(
            vocab_size=len(tokenizer), **special_tokens(tokenizer), **recipe.own(PretrainArguments).model_config
        )
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
        config, said = _small(tokenizer, 4, 2, 32), "no recipe says which model: a small one with random weights"
    with torch.device("meta"):
        parameters = FledgeForCausalLM(config).num_parameters()
    if parameters > MOST_PARAMETERS:
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        config = _small(tokenizer, heads, kv_heads, config.head_dim, qk_norm=config.qk_norm)
        said = f"a small model with random weights and the recipe's heads ({heads} and {kv_heads})"
    torch.manual_seed(0)
    return FledgeForCausalLM(config).eval(), said


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The ids that a configuration takes from the tokenizer."""
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}


def _small(tokenizer: PreTrainedTokenizerBase, heads: int, kv_heads: int, head_dim: int, **keys: Any) -> FledgeConfig:
    return FledgeConfig(
        vocab_size=len(tokenizer),
        hidden_size=heads * -(-128 // heads),
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max(tokenizer.model_max_length, 2048) if tokenizer.model_max_length < 1e9 else 131_072,
        initializer_range=0.1,
        **special_tokens(tokenizer),
        **keys,
    )
