"""Write a model for those who use it, and prove it is the same: a folder for transformers or a file for llama.cpp.

fledge export recipes/tang-poems/export.yaml
fledge export recipes/tang-poems/export.yaml --to gguf --output_dir runs/tang-poems/gguf
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from fledge.arguments import ExportArguments
from fledge.data.checks import preflight, require
from fledge.data.load import is_adapter, load_model, load_tokenizer
from fledge.exporting.gguf import About, write_gguf
from fledge.exporting.modelfile import modelfile
from fledge.files import read_json, write_text
from fledge.model.configuration_fledge import FledgeConfig
from fledge.model.plain import as_plain
from fledge.recipe import Recipe
from fledge.results.data import licences
from fledge.results.gather import gather
from fledge.results.record import Record


MERGED_TOLERANCE = 1e-4
"""Of the largest logit: a thousand roundings of float32, where two layers of 32 differ by ten and an adapter that is
not merged at all by far more."""


def main(recipe: Recipe) -> None:
    """Write what `to` asks for, read it back from disk and compare: logits of a folder, weights of a GGUF file."""
    keys = recipe.own(ExportArguments)
    record = Record(recipe)
    tokenizer = load_tokenizer(keys.model_name_or_path, "model_name_or_path")
    source = load_model(keys.model_name_or_path, "model_name_or_path").eval()
    merged = check_merged(source, keys.model_name_or_path) if is_adapter(keys.model_name_or_path) else {}
    require(preflight(tokenizer, source.config, source.generation_config, chat=False))

    own = isinstance(source.config, FledgeConfig)
    if keys.to == "remote-code" and not own:
        raise ValueError(
            f"to: remote-code: {keys.model_name_or_path} is a {type(source).__name__}, whose code is in transformers; "
            "export it with `to: llama`"
        )
    plain = as_plain(source) if own and keys.to != "remote-code" else source
    if keys.to == "gguf":
        results = write_file(plain, tokenizer, recipe.output_dir, keys)
    else:
        results = write_folder(source, plain, tokenizer, recipe.output_dir)
    record.finish(**results, **merged)


def write_folder(
    source: PreTrainedModel, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> dict[str, Any]:
    """Save `model`, and compare the logits of what was saved with the source's to the bit."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    exported = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    difference = largest_difference(source, exported)
    if difference != 0.0:
        raise RuntimeError(f"the exported logits differ by {difference}; {folder} is not the same model")
    return {"architecture": type(exported).__name__, "max_logit_difference": difference}


def write_file(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, keys: ExportArguments
) -> dict[str, Any]:
    """Save model.gguf with all its weights compared, and a Modelfile beside it."""
    told = about(Path(keys.model_name_or_path))
    found = write_gguf(model, tokenizer, folder / "model.gguf", keys.gguf_type, told)
    write_text(folder / "Modelfile", modelfile(model, tokenizer, "model.gguf", told))
    for name, largest in found["max_weight_difference"].items():
        print(f"model.gguf: {found['tensors'][name]} tensors as {name}, no weight differs by more than {largest:g}")
    return {"architecture": type(model).__name__, **found}


def about(model: Path) -> About:
    """What the run that made `model` recorded; of a folder that no stage wrote, its name alone."""
    if not (model / "recipe.json").is_file():
        return About(model.name)
    run = gather(model.parent)
    texts = [f"{package} {version}: {licence}" for package, version, licence in licences(run.results("corpus"))]
    evaluations = [read_json(stage.folder / "recipe.json") for stage in run.finished if stage.kind == "evaluate"]
    temperature = evaluations[-1]["temperature"]["value"] if evaluations else None
    return About(run.name, f"of the text it was trained on: {', '.join(texts)}" if texts else "", temperature)


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
