"""LoRA: small matrices beside the model's own are trained, and the model stays as it is.

Hu et al. 2021, "LoRA: low-rank adaptation of large language models". The keys are those of trl.ModelConfig.
"""

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fledge.arguments import TuningKeys
from fledge.recipe import Recipe


ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer but the head."""


def lora_config(
    recipe: Recipe, keys: TuningKeys, model: PreTrainedModel, new_tokens: list[int] | None = None
) -> LoraConfig | None:
    """What the recipe's keys say to PEFT; None without `use_peft`.

    Args:
        new_tokens: ids whose rows are new; these rows are trained beside the adapter, or they would stay as they are.

    Raises:
        ValueError: a lora key without `use_peft`, a target that no layer answers to, or Muon, which trains whole
            matrices.
    """
    if not keys.use_peft:
        for key in recipe.values:
            if key.startswith("lora_"):
                raise ValueError(
                    f"{recipe.sources[key]}: {key}: has no effect here; add `use_peft: true`, or leave it out"
                )
        return None
    if keys.muon_learning_rate is not None:
        raise ValueError(
            f"{recipe.sources['muon_learning_rate']}: muon_learning_rate: Muon is for whole matrices and use_peft "
            "trains adapters; leave one of the two out"
        )
    targets = keys.lora_target_modules
    if targets != [ALL_LINEAR]:
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
        for target in targets:
            if not any(f".{name}".endswith(f".{target}") for name in linear):
                ends = sorted({name.rpartition(".")[2] for name in linear})
                raise ValueError(
                    f"{recipe.sources['lora_target_modules']}: lora_target_modules: no linear layer is called "
                    f"{target}; take some of {', '.join(ends)}, or [{ALL_LINEAR}]"
                )
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=keys.lora_r,
        lora_alpha=keys.lora_alpha,
        lora_dropout=keys.lora_dropout,
        target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # gpt2's are transposed
        trainable_token_indices=dict.fromkeys(_vocabulary(model), new_tokens) if new_tokens else None,
    )


def _vocabulary(model: PreTrainedModel) -> list[str]:
    """The last names of the modules with a row for each token: the embedding, and the head where it is not tied."""
    rows = {id(model.get_input_embeddings().weight): model.get_input_embeddings()}
    rows.setdefault(id(model.get_output_embeddings().weight), model.get_output_embeddings())
    return [
        name.rpartition(".")[2] for name, module in model.named_modules() if any(module is m for m in rows.values())
    ]
