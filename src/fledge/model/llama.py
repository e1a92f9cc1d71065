"""A fledge model in Llama's words: the same weights by the same names, under a configuration every tool reads."""

from transformers import LlamaConfig, LlamaForCausalLM

from .configuration_fledge import FledgeConfig
from .modeling_fledge import FledgeForCausalLM


OWN = ("qk_norm", "z_loss_weight", "scaled_residual_init")
"""Keys of FledgeConfig that Llama lacks; the last two matter in training only."""


def as_llama(source: FledgeForCausalLM) -> LlamaForCausalLM:
    """A fledge model's weights under Llama's configuration."""
    llama = LlamaForCausalLM(llama_config(source.config)).to(source.dtype)
    llama.load_state_dict(source.state_dict())
    llama.generation_config = source.generation_config
    return llama


def llama_config(config: FledgeConfig) -> LlamaConfig:
    """The same architecture in Llama's words.

    Raises:
        ValueError: a switch is on that Llama does not have.
    """
    if config.qk_norm:
        raise ValueError(
            "qk_norm is on and Llama has no such thing; load the model folder itself with fledge installed, or export "
            "it with `to: remote-code`"
        )
    values = config.to_diff_dict()
    for name in ("model_type", "architectures", "auto_map", "transformers_version", *OWN):
        values.pop(name, None)
    return LlamaConfig(**values)
