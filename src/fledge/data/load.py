"""Tokenizers and models from disk or the hub, checked before transformers reads them.

Models, and the tokenizers of other models, are imported where they are loaded: that takes seconds, and the stages that
make data need neither.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, __version__

from fledge.files import read_json, stays_inside
from fledge.model import register


if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Tokenizer classes that are all in tokenizer.json, as fledge writes them."""

TOKENIZER_FILES = ("*.json", "*.jinja")
MODEL_FILES = (*TOKENIZER_FILES, "*.safetensors")
"""What is ever fetched from the hub: no code and no pickle."""

ADAPTER = "adapter_config.json"
"""A folder with this file holds an adapter of PEFT's."""

MODEL_WRITERS = ("pretrain", "sft", "dpo", "export")
WRITERS = {"tokenizer": ("tokenizer",), "model_name_or_path": MODEL_WRITERS, "models": MODEL_WRITERS}
"""The stages whose folders a recipe key names."""


def read_template(path: str | Path, key: str) -> str:
    """The text of a chat template.

    Raises:
        ValueError: there is no such file, or it holds something else than text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ValueError(f"{key}: {path}: {reason}; name one of the .jinja files of chat_templates/") from None


def load_tokenizer(folder: str | Path, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, or of a hub id.

    Args:
        key: the recipe key that names `folder`, for the message.

    Raises:
        ValueError: there is no such folder, tokenizer.json is missing or broken, or it needs code of its own.
    """
    place = f"{key}: {folder}"
    local = local_folder(folder, key, TOKENIZER_FILES)
    fix = f"; {remedy(folder, key)}"
    if not (local / "tokenizer.json").is_file():
        old = [path.name for path in local.glob("*.model")]
        raise ValueError(f"{place}: holds no tokenizer.json{f', only {old[0]}, an older format' if old else ''}{fix}")
    read_object(local / "tokenizer.json", place, fix)
    known = read_object(local / "tokenizer_config.json", place, fix).get("tokenizer_class") in PLAIN
    try:
        Tokenizer.from_file(str(local / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing more special
        raise ValueError(f"{place}: tokenizer.json is no tokenizer: {reason(error)}{fix}") from None
    try:
        if known:
            return PreTrainedTokenizerFast.from_pretrained(local, trust_remote_code=False, local_files_only=True)
        from transformers import AutoTokenizer

        register()  # of a model folder it reads config.json too
        return AutoTokenizer.from_pretrained(local, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place}: the tokenizer cannot be loaded: {reason(error)}{fix}") from None


def load_model(folder: str | Path, key: str, attn_implementation: str | None = None) -> PreTrainedModel:
    """The causal language model of a folder, or of a hub id, with all of its weights; an adapter comes merged.

    Args:
        key: the recipe key that names `folder`, for the message.
        attn_implementation: sdpa or eager; the model's own choice if None.

    Raises:
        ValueError: there is no such folder, a file is missing or broken, a tensor is missing or of another shape, the
            weights are pickled, or the model needs code of its own.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    register()
    place = f"{key}: {folder}"
    local = local_folder(folder, key, MODEL_FILES)
    fix = f"; {remedy(folder, key)}"
    if is_adapter(local):
        from .adapter import load_merged  # PEFT takes seconds to import, and most folders need none of it

        return load_merged(folder, key, attn_implementation)
    if not (local / "config.json").is_file():
        raise ValueError(f"{place}: holds no config.json{fix}")
    config = read_object(local / "config.json", place, fix)
    read_object(local / "generation_config.json", place, fix)
    known = config.get("model_type")
    if known not in CONFIG_MAPPING:
        if "auto_map" in config:
            raise ValueError(
                f"{place}: model_type {known!r} needs code of its own (auto_map in config.json), and fledge runs no "
                "code out of a model folder; take a model of an architecture that transformers knows"
            )
        raise ValueError(f"{place}: config.json: transformers {__version__} knows no model_type {known!r}{fix}")
    _check_weights(local, place, fix)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            local,
            attn_implementation=attn_implementation,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # the report below names them
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, StrictDataclassError) as error:
        raise ValueError(f"{place}: the model cannot be loaded: {reason(error)}{fix}") from None
    if other := sorted(report["mismatched_keys"]):
        name, stored, wanted = other[0]
        raise ValueError(
            f"{place}: {len(other)} tensors have another shape than config.json says, such as {name}, stored as "
            f"{list(stored)} where {list(wanted)} is wanted{fix}"
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{place}: the weights lack {len(missing)} tensors that config.json asks for, such as {missing[0]}, and "
            f"would be random there{fix}"
        )
    return model


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds a LoRA adapter and not a whole model."""
    return (Path(folder) / ADAPTER).is_file()


def local_folder(folder: str | Path, key: str, wanted: tuple[str, ...]) -> Path:
    """`folder` if it is one, else the snapshot of the hub id it may be."""
    path = Path(folder)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{key}: {folder}: is no folder; {remedy(folder, key)}")
    # runs/x/sft, ./sft and x/sft beside a folder x are paths; owner/name may be on the hub.
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(folder)) or path.parent.exists():
        raise ValueError(f"{key}: {folder}: no such folder; {remedy(folder, key)}")
    try:
        return Path(snapshot_download(str(folder), allow_patterns=list(wanted), ignore_patterns="*/*"))
    except (OSError, HFValidationError) as error:
        raise ValueError(
            f"{key}: {folder}: no such folder here, and the model hub does not give it ({reason(error)}); "
            f"correct the name, download it while online, or {remedy(folder, key)}"
        ) from None


def remedy(folder: str | Path, key: str) -> str:
    """The stage to run: the one the folder is named after, or those whose folders the key takes."""
    if key not in WRITERS:
        return "give a model folder that save_pretrained wrote, its tokenizer inside"
    stage = Path(folder).name.split("_")[0]  # sft_long.yaml is a recipe of the stage sft
    writers = (stage,) if stage in WRITERS[key] else WRITERS[key]
    return f"run the stage that writes it ({', '.join(writers)})"


def read_object(path: Path, place: str, fix: str) -> dict[str, Any]:
    """The object in `path`; an empty one if there is no such file."""
    try:
        value = read_json(path) if path.is_file() else {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{place}: {path.name} is not whole: {error}{fix}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{place}: {path.name} holds no JSON object{fix}")
    return value


def _check_weights(folder: Path, place: str, fix: str) -> None:
    """Refuse a folder whose weights are missing, pickled, or cut off."""
    index = read_object(folder / "model.safetensors.index.json", place, fix)
    names = index.get("weight_map", {})
    names = list(names.values()) if isinstance(names, dict) else [names]
    if outside := [name for name in names if not stays_inside(name)]:
        raise ValueError(f"{place}: model.safetensors.index.json: {outside[0]!r} is no file of this folder{fix}")
    shards = sorted(set(names)) or ["model.safetensors"]
    for name in shards:
        path = folder / name
        if not path.is_file():
            pickled = sorted(other.name for other in folder.glob("*.bin") if other.name != "training_args.bin")
            if pickled and not index:
                raise ValueError(
                    f"{place}: holds pickled weights only ({pickled[0]}), which can run code when loaded; save them "
                    "as safetensors where you trust them"
                )
            raise ValueError(f"{place}: holds no {name}{fix}")
        tensor_names(path, place, fix)


def tensor_names(path: Path, place: str, fix: str) -> set[str]:
    """The names of the tensors in a file of weights; refused if it is missing or cut off."""
    if not path.is_file():
        raise ValueError(f"{place}: holds no {path.name}{fix}")
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{place}: {path.name} is not whole: {reason(error)}{fix}") from None


def reason(error: Exception) -> str:
    """The first two lines of a library's message, as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
