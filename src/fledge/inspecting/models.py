"""The model that a set of rows is for: its configuration, and one to run."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fledge.arguments import PretrainArguments
from fledge.model import register
from fledge.model.configuration_fledge import FledgeConfig
from fledge.model.modeling_fledge import FledgeForCausalLM
from fledge.recipe import Recipe

from .find import Subject


MOST_PARAMETERS = 50_000_000
"""A larger model that is not trained yet is built smaller, with the same heads."""


def config_of(subject: Subject, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig | None:
    """The configuration of the model that trains on the subject; None if no recipe says."""
    register()
    return _config(subject.trainer, subject.siblings, tokenizer)


def _config(
    recipe: Recipe | None, siblings: list[Recipe], tokenizer: PreTrainedTokenizerBase
) -> PreTrainedConfig | None:
    if recipe is None:
        return None
    if recipe.stage == "pretrain":
        return FledgeConfig(
            vocab_size=len(tokenizer), **special_tokens(tokenizer), **recipe.own(PretrainArguments).model_config
        )
    folder = Path(recipe.values["model_name_or_path"])
    if (folder / "config.json").is_file():
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return _config(next((r for r in siblings if r.output_dir == folder), None), siblings, tokenizer)


def model_of(subject: Subject, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, str]:
    """A model in float32 with the heads of the subject's, and in words which one it is.

    The weights an sft recipe starts from if they are there; else random ones, seeded.
    """
    register()
    folder = Path(subject.trainer.values.get("model_name_or_path", "")) if subject.trainer else Path()
    if (folder / "config.json").is_file():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        return model.eval(), f"the model in {folder}"
    config, said = config_of(subject, tokenizer), "the recipe's model with random weights"
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
