"""The model that a recipe describes: fledge's own architecture, or one that transformers has."""

from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from . import register
from .configuration_fledge import FledgeConfig


ARCHITECTURES: tuple[str, ...] = (FledgeConfig.model_type, "gpt2", "llama", "mistral")
"""What `model_type` of a recipe's model_config may be; the first if left out. Each keeps packed documents apart."""

LAYERS = ("layers", "h")
"""What the list of decoder layers is called: in Llama's line, and in GPT-2."""


def build_config(model_config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The configuration of a recipe's `model_config`; the special tokens are the tokenizer's.

    `vocab_size` is the tokenizer's too where the recipe does not state it; the preflight compares them.

    Raises:
        ValueError: an unknown `model_type`, or a value that the configuration class refuses.
    """
    keys = {"vocab_size": len(tokenizer), **special_tokens(tokenizer), **model_config}
    model_type = keys.pop("model_type", ARCHITECTURES[0])
    if model_type not in ARCHITECTURES:
        raise ValueError(f"model_config.model_type: {model_type!r} is not one of {', '.join(ARCHITECTURES)}")
    register()
    return AutoConfig.for_model(model_type, **keys)


def build_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A causal language model with new weights, in float32."""
    register()
    return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The ids that a configuration takes from the tokenizer."""
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers, in order, whatever the architecture calls them.

    Raises:
        ValueError: an architecture that names them otherwise.
    """
    for name in LAYERS:
        if isinstance(layers := getattr(model.base_model, name, None), nn.ModuleList):
            return layers
    raise ValueError(f"{type(model).__name__}: its decoder layers are named none of {', '.join(LAYERS)}")
