"""The fledge architecture: Llama, and the few switches Llama lacks. `register()` makes the Auto classes know it."""


def register() -> None:
    """Register `model_type: fledge` with transformers' Auto classes; calling it twice is harmless."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from .configuration_fledge import FledgeConfig
    from .modeling_fledge import FledgeForCausalLM

    AutoConfig.register(FledgeConfig.model_type, FledgeConfig, exist_ok=True)
    AutoModelForCausalLM.register(FledgeConfig, FledgeForCausalLM, exist_ok=True)
