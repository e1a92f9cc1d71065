"""Write a folder that transformers loads by itself, fledge's models as plain Llama, and prove it is the same model.

fledge export recipes/tang-poems/export.yaml
"""

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from fledge.arguments import ExportArguments
from fledge.data.checks import preflight, require
from fledge.data.load import is_adapter, load_model, load_tokenizer
from fledge.model.configuration_fledge import FledgeConfig
from fledge.model.llama import as_llama
from fledge.recipe import Recipe
from fledge.results.record import Record


MERGED_TOLERANCE = 1e-4
"""Of the largest logit: a thousand roundings of float32, where two layers of 32 differ by ten and an adapter that is
not merged at all by far more."""


def main(recipe: Recipe) -> None:
    """Copy the weights, reload them from disk and compare the logits to the bit."""
    keys = recipe.own(ExportArguments)
    record = Record(recipe)
    tokenizer = load_tokenizer(keys.model_name_or_path, "model_name_or_path")
    source = load_model(keys.model_name_or_path, "model_name_or_path").eval()
    merged = check_merged(source, keys.model_name_or_path) if is_adapter(keys.model_name_or_path) else {}
    require(preflight(tokenizer, source.config, source.generation_config, chat=False))

    plain = as_llama(source) if isinstance(source.config, FledgeConfig) else source
    plain.save_pretrained(recipe.output_dir)
    tokenizer.save_pretrained(recipe.output_dir)

    exported = AutoModelForCausalLM.from_pretrained(recipe.output_dir, trust_remote_code=False).eval()
    difference = largest_difference(source, exported)
    if difference != 0.0:
        raise RuntimeError(f"the exported logits differ by {difference}; {recipe.output_dir} is not the same model")
    record.finish(architecture=type(exported).__name__, max_logit_difference=difference, **merged)


def check_merged(merged: PreTrainedModel, folder: str) -> dict[str, float]:
    """Compare the logits of the merged weights with those of the adapter beside them.

    W x + s B (A x) and (W + s B A) x are the same sums in another order, so they agree up to rounding only.
    """
    from fledge.data.adapter import load_adapter  # PEFT takes seconds to import

    apart = load_adapter(folder, "model_name_or_path")
    difference, size = largest_difference(apart, merged), logits(apart).abs().max().item()
    if not difference <= MERGED_TOLERANCE * size:
        raise RuntimeError(f"the merged logits differ from the adapter's by {difference}, and the largest is {size}")
    return {"max_merged_difference": difference, "max_logit": size}


@torch.inference_mode()
def logits(model: nn.Module) -> torch.Tensor:
    """Of 4 x 64 random ids."""
    generator = torch.Generator().manual_seed(0)
    return model(torch.randint(model.config.vocab_size, (4, 64), generator=generator)).logits


def largest_difference(source: nn.Module, exported: nn.Module) -> float:
    """Between the logits of two models."""
    return (logits(source) - logits(exported)).abs().max().item()
