"""Write the JSON Schema of every stage: `python -m fledge.schema [FOLDER]`, by default beside this file.

Own keys come from fledge.arguments, the others from the type annotations of the installed Hugging Face dataclasses.
"""

import inspect
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import torch
import transformers.optimization as optimization
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2CLS
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.trainer_pt_utils import AcceleratorConfig

from fledge.arguments import LIBRARY, STAGES
from fledge.model import register
from fledge.model.build import ARCHITECTURES
from fledge.schema.check import kinds
from fledge.schema.names import REFUSED


Schema = dict[str, Any]

NAMES = {
    bool: "boolean",
    dict: "object",
    float: "number",
    int: "integer",
    list: "array",
    NoneType: "null",
    str: "string",
}

OTHER_HEADS = ("summary_", "add_cross_attention")
"""Keys of GPT2Config that concern no causal language model begin so."""

BOUNDS: dict[str, Schema] = {
    name: limits
    for limits, names in (
        ({"minimum": -1, "not": {"const": 0}}, "max_steps"),
        (
            {"minimum": 1},
            "per_device_train_batch_size per_device_eval_batch_size precompute_ref_batch_size eval_accumulation_steps "
            "save_total_limit dataset_num_proc dataloader_prefetch_factor torch_empty_cache_steps ddp_timeout "
            "ddp_bucket_cap_mb max_length pad_to_multiple_of ref_model_sync_steps num_decay_steps timescale "
            "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
            "max_position_embeddings vocab_size n_positions n_embd n_layer n_head n_inner sliding_window",
        ),
        (
            {"minimum": 0},
            "learning_rate weight_decay max_grad_norm warmup_steps eval_delay dataloader_num_workers seed data_seed "
            "neftune_noise_alpha z_loss_weight min_lr max_lr lr_end num_stable_steps patience router_aux_loss_coef",
        ),
        (
            {"exclusiveMinimum": 0},
            "num_train_epochs save_steps logging_steps eval_steps adam_epsilon beta discopop_tau num_cycles "
            "rms_norm_eps layer_norm_epsilon initializer_range rope_theta original_max_position_embeddings",
        ),
        (
            {"minimum": 0, "maximum": 1},
            "adam_beta1 adam_beta2 label_smoothing label_smoothing_factor min_lr_rate min_lr_ratio warmup_lr_rate "
            "attention_dropout attn_pdrop embd_pdrop resid_pdrop ld_alpha ref_model_mixup_alpha partial_rotary_factor",
        ),
    )
    for name in names.split()
}
"""Ranges the libraries check late or never."""


def of_type(hint: Any) -> Schema:
    """The schema of a type annotation."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return of_union(arguments)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": of_type(arguments[0])}
    if origin is dict:
        return {"type": "object"} | ({"additionalProperties": values} if (values := of_type(arguments[1])) else {})
    if is_typeddict(hint):
        return closed({name: of_type(part) for name, part in get_type_hints(hint).items()})
    if is_dataclass(hint):
        return of_dataclass(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    return {"type": NAMES[hint]} if hint in NAMES else {}


def of_union(hints: Sequence[Any]) -> Schema:
    """The schema of a union, as one list of types: everything else in a schema speaks of one type only."""
    schemas = [of_type(hint) for hint in hints]
    # `SchedulerType | str` and `dict | str` take text for the sake of a command line; a recipe has better.
    if any(get_origin(hint) is dict or (inspect.isclass(hint) and issubclass(hint, Enum | dict)) for hint in hints):
        schemas = [schema for schema in schemas if schema != {"type": "string"}]
    options = [option for schema in schemas for option in schema.get("enum", ())]
    rest = [schema for schema in schemas if "enum" not in schema]
    if options and all(schema == {"type": "null"} for schema in rest):
        return {"enum": options + [None for _ in rest]}
    types = {NAMES[type(option)] for option in options}.union(*(kinds(schema) for schema in rest))
    types -= {"integer"} if "number" in types else set()
    merged = {name: part for schema in rest for name, part in schema.items()}
    return merged | {"type": sorted(types) if len(types) > 1 else types.pop()}


def closed(properties: dict[str, Schema], required: Iterable[str] = ()) -> Schema:
    """A mapping with these keys and no others."""
    properties = {name: part | bounds(name, part) for name, part in properties.items()}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": sorted(required)} if required else {})


def bounds(name: str, schema: Schema) -> Schema:
    """The limits of BOUNDS that a numeric key of this name lacks."""
    numeric = kinds(schema) & {"integer", "number"}
    return {bound: limit for bound, limit in BOUNDS.get(name, {}).items() if numeric and bound not in schema}


def of_dataclass(cls: type) -> Schema:
    """The keys of one of our own dataclasses, with help, bounds and defaults."""
    hints, properties, required = get_type_hints(cls), {}, []
    for field in fields(cls):
        limits = {name: limit for name, limit in field.metadata.items() if name != "help"}
        schema = of_type(hints[field.name]) | limits | {"description": field.metadata["help"]}
        if field.default is MISSING and field.default_factory is MISSING:
            required.append(field.name)
            schema |= {"array": {"minItems": 1}, "string": {"minLength": 1}}.get(schema.get("type"), {})
        properties[field.name] = schema | default_of(field)
    return closed(properties, required)


def of_library(name: str) -> dict[str, Schema]:
    """The keys of a Hugging Face dataclass that a recipe may state."""
    module, _, attribute = name.rpartition(".")
    cls = getattr(import_module(module), attribute)
    hints, properties = get_type_hints(cls), {}
    for field in fields(cls):
        if field.name in REFUSED or not field.init:
            continue
        schema = of_type(hints[field.name])
        if "choices" in field.metadata:
            schema = {"enum": [*field.metadata["choices"], *([None] if "null" in kinds(schema) else [])]}
        properties[field.name] = schema | default_of(field)
    for key in ("bf16", "torch_compile"):
        properties[key] |= {"enum": [True, False, "auto"]}
        properties[key].pop("type", None)
    properties["include_num_input_tokens_seen"] = {"enum": ["all", "non_padding", "no", True, False], "default": "no"}
    properties["output_dir"] = {
        "type": "string",
        "minLength": 1,
        "description": "Where the checkpoints and the model go.",
    }
    if name.endswith("DPOConfig"):
        # One loss is the common case, and DPOConfig itself makes a list of it.
        properties["loss_type"]["type"] = ["array", "string"]
    return properties | nested_kwargs()


def nested_kwargs() -> dict[str, Schema]:
    """Mappings whose keys are the parameters of what they end up in."""
    functions = inspect.getmembers(optimization, inspect.isfunction)
    schedules = [function for name, function in functions if name.startswith("get_")]
    schedules += [torch.optim.lr_scheduler.ReduceLROnPlateau.__init__, optimization.GreedyLR.__init__]
    given = {"self", "optimizer", "name", "num_warmup_steps", "num_training_steps", "last_epoch"}
    scheduler = parameters(schedules, given | {"scheduler_specific_kwargs"})
    for name in ("decay_type", "warmup_type"):
        scheduler[name] = {"enum": ["linear", "cosine", "1-sqrt"]}  # get_wsd_schedule would refuse another, late
    # The Trainer takes two keys out before the rest reaches torch.utils.checkpoint.
    checkpointing = parameters([checkpoint], {"function", "context_fn"})
    checkpointing |= {"every_n_layers": {"type": "integer", "minimum": 1}, "offload": {"type": "boolean"}}
    accelerator = {name: of_type(hint) for name, hint in get_type_hints(AcceleratorConfig).items()}
    named = {
        "accelerator_config": accelerator,
        "activation_checkpointing_kwargs": checkpointing,
        "gradient_checkpointing_kwargs": checkpointing,
        "lr_scheduler_kwargs": scheduler,
    }
    return {name: closed(keys) | {"type": ["null", "object"]} for name, keys in named.items()}


def parameters(functions: Iterable[Callable[..., Any]], without: set[str]) -> dict[str, Schema]:
    """The keyword parameters of all the functions together."""
    found: dict[str, list[Any]] = {}
    for function in functions:
        hints = get_type_hints(function, localns={"torch": torch})
        for name, parameter in inspect.signature(function).parameters.items():
            if name not in without and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(name, []).append(hints.get(name, type(parameter.default)))
    return {name: of_union(hints) for name, hints in found.items()}


def model_config() -> Schema:
    """The keys of every architecture together, and for each `model_type` which of them are its own."""
    owned = {name: architecture(type(AutoConfig.for_model(name))) for name in ARCHITECTURES}
    keys = {name: part for own in owned.values() for name, part in own.items()}
    keys["model_type"] = {"enum": list(ARCHITECTURES), "default": ARCHITECTURES[0]}
    return closed(keys) | {
        "allOf": [
            {
                # Of a missing key `properties` says nothing, so without `required` the first is the default.
                "if": {"properties": {"model_type": {"const": name}}}
                | ({"required": ["model_type"]} if name != ARCHITECTURES[0] else {}),
                "then": {"propertyNames": {"enum": ["model_type", *own]}},
            }
            for name, own in owned.items()
        ]
    }


def architecture(cls: type[PreTrainedConfig]) -> dict[str, Schema]:
    """The keys of a configuration class that make an architecture; the others are transformers' bookkeeping."""
    hints = get_type_hints(cls, localns={"torch": torch})
    classes = [base for base in cls.__mro__ if issubclass(base, PreTrainedConfig) and base is not PreTrainedConfig]
    names = [name for base in reversed(classes) for name in base.__annotations__ if not name.startswith(OTHER_HEADS)]
    keys = {name: of_type(hints[name]) for name in names if f"model_config.{name}" not in REFUSED}
    for name in keys.keys() & {"hidden_act", "activation_function"}:
        keys[name] = {"enum": sorted(ACT2CLS)}
    if "rope_parameters" in keys:
        # rope_theta moves into rope_parameters by itself; a plain key is how most recipes write it.
        keys["rope_theta"] = {"type": "number"}
        keys["rope_parameters"]["properties"]["rope_type"] = {"enum": ["default", *ROPE_INIT_FUNCTIONS]}
    return keys


def default_of(field: Any) -> Schema:
    """The default as the schema states it; none of null, which says nothing."""
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    default = default.value if isinstance(default, Enum) else default
    return {} if default is MISSING or default is None else {"default": default}


def of_stage(stage: str) -> Schema:
    """The schema of a stage's recipe."""
    schema = of_dataclass(STAGES[stage])
    if stage in LIBRARY:
        schema = closed(of_library(LIBRARY[stage]) | schema["properties"], {*schema["required"], "output_dir"})
    if "model_config" in schema["properties"]:
        schema["properties"]["model_config"] |= model_config()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"fledge {stage}"} | schema


def main(folder: Path) -> None:
    """Write `<stage>.json` of every stage into `folder`."""
    register()
    for stage in STAGES:
        text = json.dumps(of_stage(stage), indent=1, sort_keys=True, ensure_ascii=False)
        (folder / f"{stage}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
