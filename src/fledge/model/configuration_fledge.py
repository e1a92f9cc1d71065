"""Configuration of the fledge model. Imports nothing but transformers: it is copied beside the weights."""

from huggingface_hub.dataclasses import strict
from transformers.models.llama.configuration_llama import LlamaConfig


@strict
class FledgeConfig(LlamaConfig):
    """LlamaConfig plus three switches, all off by default; with them off the model is Llama to the bit.

    Args:
        qk_norm (`bool`, *optional*, defaults to `False`):
            RMSNorm over the head dimension of queries and keys before RoPE, as in Qwen3 and Chameleon.
        z_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the squared log-partition added to the loss (PaLM, section 5; 1e-4 there).
        scaled_residual_init (`bool`, *optional*, defaults to `False`):
            Initialise o_proj and down_proj, which write into the residual stream, with
            initializer_range / sqrt(2 * num_hidden_layers) (GPT-2, section 2.3).
    """

    model_type = "fledge"

    qk_norm: bool = False
    z_loss_weight: float = 0.0
    scaled_residual_init: bool = False
