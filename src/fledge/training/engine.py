"""What the layout's engine is told before a trainer is built, so that it computes what one process would compute.

In bf16 a single process keeps weights, gradients and optimizer in float32 and multiplies in bfloat16 (autocast). Left
alone, FSDP2 under Accelerate would also reduce gradients and return log-probabilities in bfloat16, and DeepSpeed would
keep bfloat16 weights.
"""

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import Trainer, TrainingArguments

from fledge.layouts import FAMILIES, launched_engine
from fledge.machine import on_cpu


def set_up(args: TrainingArguments, bf16: bool) -> None:
    """Tell the engine of this launch its precision; `args.bf16` is false under ZeRO, which autocasts by itself.

    Args:
        bf16: whether the recipe trains in bfloat16.
    """
    family = FAMILIES[launched_engine()]
    if family == "fsdp":
        # Accelerate gives all three the parameters' type: DPO's first loss was 0.6914 instead of ln 2 = 0.6931.
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
        args.fsdp_plugin_args = {"mixed_precision_policy": policy} if bf16 else {}
        if on_cpu():
            # Accelerate has FSDP for GPUs only and would make DDP of it without a word. torch shards on CPUs too.
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    elif family == "zero":
        if bf16:
            # An empty list: no gradient is reduced in bfloat16.
            autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
            args.deepspeed_plugin.deepspeed_config["torch_autocast"] = autocast
        if on_cpu():
            import deepspeed

            # Accelerate does it on GPUs; without, a DPO reference under ZeRO-3 believes to be alone.
            deepspeed.init_distributed(dist_backend="gloo")


def in_bf16(args: TrainingArguments) -> bool:
    """Whether training multiplies in bfloat16, by whichever part of the library."""
    plugin = getattr(args, "deepspeed_plugin", None)
    return args.bf16 or bool(plugin and "torch_autocast" in plugin.deepspeed_config)


def refuse_other(trainer: Trainer) -> None:
    """Raise ValueError if Accelerate made another engine than the layout asks for."""
    asked = launched_engine()
    made = "zero" if trainer.is_deepspeed_enabled else "fsdp" if trainer.is_fsdp_enabled else "plain"
    if FAMILIES[asked] != made:
        raise ValueError(f"the layout asks for {asked}, and Accelerate made something else; use accelerate launch")
