"""A layout file: where a stage runs, and never what it learns. An Accelerate config, read strictly.

Accelerate checks the keys at the top and takes any nested key without a word; a misspelt one then has no effect.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fledge.recipe import messages, read_document
from fledge.schema.check import SKIP, Fault, faults, suggestion


FOLDER = "accelerate_configs"
Engine = Literal["single", "ddp", "fsdp2", "hsdp", "zero1", "zero2", "zero3"]
FAMILIES: dict[str, Literal["plain", "fsdp", "zero"]] = {
    **dict.fromkeys(("single", "ddp"), "plain"),
    **dict.fromkeys(("fsdp2", "hsdp"), "fsdp"),
    **dict.fromkeys(("zero1", "zero2", "zero3"), "zero"),
}
"""Whose wrapper an engine is, and with it the form of its checkpoints."""

_REPLICAS = "parallelism_config_dp_replicate_size"
_SHARDS = "parallelism_config_dp_shard_size"
_TEXT = {"type": "string", "minLength": 1}
_SWITCH = {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 1}

SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["distributed_type", "num_processes"],
    "properties": {
        "compute_environment": {"enum": ["LOCAL_MACHINE"]},
        "distributed_type": {"enum": ["NO", "MULTI_GPU", "FSDP", "DEEPSPEED"]},
        "use_cpu": _SWITCH,
        "mixed_precision": {"enum": ["no", "bf16", "fp16", "fp8"]},
        "num_machines": _COUNT,
        "num_processes": _COUNT,
        "machine_rank": {"type": "integer", "minimum": 0},
        "main_process_ip": _TEXT,
        "main_process_port": {"type": "integer", "minimum": 0, "maximum": 65535},
        "rdzv_backend": {"enum": ["static", "c10d"]},
        "same_network": _SWITCH,
        "gpu_ids": _TEXT,
        "main_training_function": _TEXT,
        "enable_cpu_affinity": _SWITCH,
        "debug": _SWITCH,
        "fsdp_config": {
            "type": "object",
            "additionalProperties": False,
            "required": ["fsdp_version", "fsdp_auto_wrap_policy", "fsdp_state_dict_type"],
            "properties": {
                "fsdp_version": {"enum": [2]},
                "fsdp_auto_wrap_policy": {"enum": ["TRANSFORMER_BASED_WRAP"]},
                "fsdp_transformer_layer_cls_to_wrap": _TEXT,
                "fsdp_reshard_after_forward": _SWITCH,
                "fsdp_offload_params": _SWITCH,
                "fsdp_state_dict_type": {"enum": ["FULL_STATE_DICT"]},
                "fsdp_cpu_ram_efficient_loading": _SWITCH,
            },
        },
        "parallelism_config": {
            "type": "object",
            "additionalProperties": False,
            "required": [_REPLICAS, _SHARDS],
            "properties": {_REPLICAS: _COUNT, _SHARDS: {"type": "integer", "minimum": 2}},
        },
        "deepspeed_config": {
            "type": "object",
            "additionalProperties": False,
            "required": ["zero_stage"],
            "properties": {
                "zero_stage": {"enum": [1, 2, 3]},
                "zero3_init_flag": _SWITCH,
                "zero3_save_16bit_model": _SWITCH,
                "offload_optimizer_device": {"enum": ["none", "cpu"]},
                "offload_param_device": {"enum": ["none", "cpu"]},
                "deepspeed_multinode_launcher": {"enum": ["standard"]},
            },
        },
    },
}
"""The keys of a layout, in the subset of JSON Schema that recipes use. What is not here has no use for fledge."""

_RECIPE = "is the recipe's word, so that hardware does not change the run; leave it out"
_ELSEWHERE = "fledge trains on GPUs or CPUs of its own machines; leave it out"

REFUSED: dict[tuple[str, ...], str] = {
    ("dynamo_config",): f"torch_compile {_RECIPE}",
    ("downcast_bf16",): f"bf16 {_RECIPE}",
    ("fp16",): f"precision {_RECIPE}",
    ("fp8_config",): f"precision {_RECIPE}",
    ("deepspeed_config", "gradient_accumulation_steps"): "follows from tokens_per_step and the layout; leave it out",
    ("deepspeed_config", "gradient_clipping"): f"max_grad_norm {_RECIPE}",
    ("deepspeed_config", "deepspeed_config_file"): "write the settings here, where they are checked",
    ("fsdp_config", "fsdp_activation_checkpointing"): f"activation_checkpointing {_RECIPE}",
    ("fsdp_config", "fsdp_activation_checkpointing_offload"): f"activation_checkpointing_kwargs {_RECIPE}",
    **{(name,): _ELSEWHERE for name in ("megatron_lm_config", "mpirun_config", "tpu_name", "tpu_zone", "tpu_vm")},
}
"""Keys that Accelerate knows and a layout may not state, each with the reason."""

VALUES: dict[tuple[str, ...], dict[Any, str]] = {
    ("distributed_type",): {
        "MULTI_CPU": "accelerate would run one process; write MULTI_GPU, torchrun's launcher, and use_cpu: true",
    },
    ("fsdp_config", "fsdp_version"): {1: "FSDP1 has no float32 reduction per layer; write 2"},
    ("fsdp_config", "fsdp_state_dict_type"): {
        "SHARDED_STATE_DICT": "checkpoints would hold no model that loads; write FULL_STATE_DICT",
    },
}
"""Values that Accelerate takes and that do something else than they say."""


@dataclass(frozen=True)
class Layout:
    """Where a stage runs. `settings` is the whole file; `mixed_precision` is always "no", bf16 is the recipe's."""

    name: str
    path: Path
    engine: Engine
    num_machines: int
    num_processes: int
    use_cpu: bool
    mixed_precision: str
    settings: dict[str, Any]


def find_layout(name_or_path: str | Path) -> Path:
    """A file, or the name of one in accelerate_configs/ here or in fledge's own checkout: `8xh100_ddp`.

    Raises:
        ValueError: there is no such layout; it lists those there are.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    folders = [folder for folder in (Path(FOLDER), Path(__file__).parents[2] / FOLDER) if folder.is_dir()]
    for folder in folders if len(path.parts) == 1 else ():
        if (named := folder / f"{path.name.removesuffix('.yaml')}.yaml").is_file():
            return named
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    near = suggestion(path.name.removesuffix(".yaml"), known) or f"; known are {', '.join(known)}, or give a path"
    raise ValueError(f"--on: no such layout: {path}{near}")


def read_layout(path: Path) -> Layout:
    """Read and check a layout.

    Raises:
        ValueError: everything that is wrong with it, each fault with its line and the fix.
    """
    document = read_document(path)
    values = document.value
    found = [*document.faults, *_refused(values), *faults(values, SCHEMA)]
    found = found or list(_contradictions(values))
    if found:
        raise ValueError("\n".join(messages(found, path, document.lines)))
    return Layout(
        name=path.stem,
        path=path,
        engine=_engine(values),
        num_machines=values.get("num_machines", 1),
        num_processes=values["num_processes"],
        use_cpu=values.get("use_cpu", False),
        mixed_precision=values.get("mixed_precision", "no"),
        settings=values,
    )


def launched_engine() -> Engine:
    """The engine of this launch, out of the environment in which accelerate launch starts its processes."""

    def is_set(name: str) -> bool:
        return os.environ.get(name, "false").lower() in ("true", "1")

    if is_set("ACCELERATE_USE_DEEPSPEED"):
        return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    if is_set("ACCELERATE_USE_FSDP"):
        replicas = int(os.environ.get("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", "1"))
        return "hsdp" if is_set("ACCELERATE_USE_PARALLELISM_CONFIG") and replicas > 1 else "fsdp2"
    return "ddp" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "single"


def _engine(values: dict[str, Any]) -> Engine:
    kind = values["distributed_type"]
    if kind == "DEEPSPEED":
        return f"zero{values['deepspeed_config']['zero_stage']}"
    if kind == "FSDP":
        return "hsdp" if values.get("parallelism_config", {}).get(_REPLICAS, 1) > 1 else "fsdp2"
    return "ddp" if values["num_processes"] > 1 else "single"


def _refused(values: dict[str, Any]) -> Iterator[Fault]:
    """Faults with a reason of their own; what they are about is taken out of `values`, so that each is one fault."""
    for path in (*REFUSED, *VALUES):
        holder = values
        for name in path[:-1]:
            holder = holder[name] if isinstance(holder.get(name), dict) else {}
        key, value = path[-1], holder.get(path[-1])
        if path in REFUSED and key in holder:
            del holder[key]
            yield Fault(path, REFUSED[path])
        elif path in VALUES and isinstance(value, str | int) and value in VALUES[path]:
            holder[key] = SKIP
            yield Fault(path, f"{value}: {VALUES[path][value]}")


def _contradictions(values: dict[str, Any]) -> Iterator[Fault]:
    """Faults of keys that are well-formed each and do not go together."""
    kind, machines, processes = values["distributed_type"], values.get("num_machines", 1), values["num_processes"]
    if values.get("mixed_precision", "no") != "no":
        yield Fault(("mixed_precision",), f"bf16 {_RECIPE}, or write 'no'")
    if processes % machines:
        yield Fault(("num_processes",), f"{processes} is no multiple of the {machines} machines (num_machines)")
    if values.get("machine_rank", 0) >= machines:
        yield Fault(("machine_rank",), f"counts from 0, and there are {machines} machines (num_machines)")
    if kind == "NO" and processes > 1:
        yield Fault(("num_processes",), "distributed_type 'NO' runs one process; write MULTI_GPU, FSDP or DEEPSPEED")
    for key, wanted in (("fsdp_config", "FSDP"), ("parallelism_config", "FSDP"), ("deepspeed_config", "DEEPSPEED")):
        if key in values and kind != wanted:
            yield Fault((key,), f"has no effect with distributed_type {kind}; write {wanted}, or leave it out")
        elif key not in values and kind == wanted and key != "parallelism_config":
            yield Fault(("distributed_type",), f"{kind} needs {key}")
    mesh = values.get("parallelism_config", {})
    if mesh and mesh[_REPLICAS] * mesh[_SHARDS] != processes:
        yield Fault(
            ("parallelism_config", _SHARDS),
            f"{mesh[_REPLICAS]} replicas x {mesh[_SHARDS]} shards are not the {processes} processes (num_processes)",
        )
    zero = values.get("deepspeed_config", {})
    if zero.get("zero_stage") == 3 and not zero.get("zero3_save_16bit_model"):
        yield Fault(("deepspeed_config", "zero3_save_16bit_model"), "write true: without it no whole model is saved")
    if zero and zero["zero_stage"] != 3 and zero.get("offload_param_device", "none") != "none":
        yield Fault(("deepspeed_config", "offload_param_device"), "weights are offloaded by zero_stage 3 only")
    if zero and machines > 1 and "deepspeed_multinode_launcher" not in zero:
        yield Fault(
            ("deepspeed_config", "deepspeed_multinode_launcher"),
            "missing; write standard: DeepSpeed's own launcher would want ssh and a host file",
        )
