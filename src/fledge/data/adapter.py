"""LoRA adapters from disk, checked before PEFT reads them."""

from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from transformers import GenerationConfig, PreTrainedModel

from .load import ADAPTER, MODEL_FILES, is_adapter, load_model, local_folder, read_object, reason, remedy, tensor_names


def load_adapter(folder: str | Path, key: str, attn_implementation: str | None = None) -> PeftModel:
    """The model that a LoRA adapter was trained on, in float32, with the adapter beside its weights.

    That model may be an adapter's folder itself, merged first. Nothing pickled is read and no code is run.

    Raises:
        ValueError: what `load_model` raises, or the adapter is of another kind, cut off, or of another model.
    """
    place = f"{key}: {folder}"
    local = local_folder(folder, key, MODEL_FILES)
    fix = f"; {remedy(folder, key)}"
    described = read_object(local / ADAPTER, place, fix)
    if described.get("peft_type") != "LORA":
        raise ValueError(
            f"{place}: {ADAPTER}: peft_type is {described.get('peft_type')!r}, and fledge takes LORA only"
        )
    if code := [name for name in ("auto_mapping", "megatron_config") if described.get(name)]:
        raise ValueError(f"{place}: {ADAPTER}: {code[0]} names code, and fledge runs none out of a model folder{fix}")
    stored = tensor_names(local / "adapter_model.safetensors", place, fix)
    base = described.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{place}: {ADAPTER}: base_model_name_or_path is {base!r}, no model to stand on{fix}")
    below, above = base, {Path(folder).resolve()}
    while is_adapter(below):
        if Path(below).resolve() in above:
            raise ValueError(f"{place}: {ADAPTER}: it stands on {below}, which stands on it{fix}")
        above.add(Path(below).resolve())
        below = str(read_object(Path(below) / ADAPTER, place, fix).get("base_model_name_or_path"))
    try:
        under = load_model(base, "the model that its adapter was trained on", attn_implementation).float()
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    try:
        config = LoraConfig.from_pretrained(local)
        model = PeftModel.from_pretrained(under, local, config=config)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{place}: the adapter cannot be loaded: {reason(error)}{fix}") from None
    if other := sorted(stored ^ set(get_peft_model_state_dict(model))):
        raise ValueError(f"{place}: the adapter is not one of {base}: {other[0]} is in one of the two only{fix}")
    if (local / "generation_config.json").is_file():
        model.generation_config = under.generation_config = GenerationConfig.from_pretrained(local)
    return model.eval()


def load_merged(folder: str | Path, key: str, attn_implementation: str | None = None) -> PreTrainedModel:
    """The same with the adapter added into the weights: a plain model, to be trained or saved like any other."""
    merged = load_adapter(folder, key, attn_implementation).merge_and_unload()
    merged.requires_grad_(True)  # PEFT had frozen it
    merged.name_or_path = merged.config._name_or_path = str(folder)
    return merged
