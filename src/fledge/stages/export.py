"""Write a folder that transformers loads by itself, fledge's models as plain Llama, and prove it is the same model.

fledge export recipes/tang-poems/export.yaml
"""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fledge.arguments import ExportArguments
from fledge.data.checks import preflight, require
from fledge.data.load import load_model, load_tokenizer
from fledge.model.configuration_fledge import FledgeConfig
from fledge.recipe import Recipe
from fledge.results.record import Record


OWN = ("qk_norm", "z_loss_weight", "scaled_residual_init")
"""Keys of FledgeConfig that Llama lacks; the last two matter in training only."""


def main(recipe: Recipe) -> None:
    """Copy the weights, reload them from disk and compare the logits to the bit."""
    keys = recipe.own(ExportArguments)
    record = Record(recipe)
    tokenizer = load_tokenizer(keys.model_name_or_path, "model_name_or_path")
    source = load_model(keys.model_name_or_path, "model_name_or_path").eval()
    require(preflight(tokenizer, source.config, source.generation_config, chat=False))

    plain = as_llama(source) if isinstance(source.config, FledgeConfig) else source
    plain.save_pretrained(recipe.output_dir)
    tokenizer.save_pretrained(recipe.output_dir)

    exported = AutoModelForCausalLM.from_pretrained(recipe.output_dir, trust_remote_code=False).eval()
    difference = largest_difference(source, exported)
    if difference != 0.0:
        raise RuntimeError(f"the exported logits differ by {difference}; {recipe.output_dir} is not the same model")
    record.finish(architecture=type(exported).__name__, max_logit_difference=difference)


def as_llama(source: PreTrainedModel) -> LlamaForCausalLM:
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
            "qk_norm is on and Llama has no such thing; load the model folder itself with fledge installed"
        )
    values = config.to_diff_dict()
    for name in ("model_type", "architectures", "auto_map", "transformers_version", *OWN):
        values.pop(name, None)
    return LlamaConfig(**values)


@torch.inference_mode()
def largest_difference(source: PreTrainedModel, exported: PreTrainedModel) -> float:
    """Of the logits over 4 x 64 random ids."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(source.config.vocab_size, (4, 64), generator=generator)
    return (source(input_ids).logits - exported(input_ids).logits).abs().max().item()
