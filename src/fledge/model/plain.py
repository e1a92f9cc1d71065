"""A fledge model in words every tool reads: Llama's, or Qwen3's with `qk_norm`; the same weights by the same names."""

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from .configuration_fledge import FledgeConfig
from .modeling_fledge import FledgeForCausalLM


OWN = ("qk_norm", "z_loss_weight", "scaled_residual_init")
"""Keys of FledgeConfig alone; Qwen3 always has the first, the other two matter in training only."""

OF_LLAMA = ("mlp_bias", "pretraining_tp")
"""Keys that Qwen3 lacks."""


def as_plain(source: FledgeForCausalLM) -> PreTrainedModel:
    """A fledge model's weights under the configuration of `plain_config`."""
    config = plain_config(source.config)
    plain = (Qwen3ForCausalLM if source.config.qk_norm else LlamaForCausalLM)(config).to(source.dtype)
    plain.load_state_dict(source.state_dict())
    plain.generation_config = source.generation_config
    return plain


def plain_config(config: FledgeConfig) -> LlamaConfig | Qwen3Config:
    """The same architecture in Llama's words, or with `qk_norm` in Qwen3's, which has it and is else a Llama.

    Raises:
        ValueError: neither has both of two switches that are on.
    """
    values = config.to_dict() if config.qk_norm else config.to_diff_dict()
    for name in ("model_type", "architectures", "auto_map", "transformers_version", *OWN):
        values.pop(name, None)
    made = LlamaConfig
    if config.qk_norm:
        if config.mlp_bias:
            raise ValueError(
                "qk_norm and mlp_bias are both on, and neither Llama nor Qwen3 has both; load the model folder itself "
                "with fledge installed, or export it with `to: remote-code`"
            )
        made = Qwen3Config
        values = {name: value for name, value in values.items() if name not in OF_LLAMA}
    plain = made(**values)
    plain.architectures = [f"{made.__name__.removesuffix('Config')}ForCausalLM"]
    return plain
