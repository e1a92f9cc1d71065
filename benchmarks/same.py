"""What each of the means to be fast does to the losses: a pretraining with all of them beside itself without one.

python benchmarks/same.py                   # after make demo: 200 steps of its recipe
python benchmarks/same.py --shape lillm     # lilLM's, 8 rows of 512 tokens, each one document

fledge             the pretrain stage with all of them: compiled layers, head and attention
not compiled       `torch_compile: false`; the head is compiled all the same
all kept           compiled layers keep all that their backward pass needs
logits twice       the head computes the logits once more for the gradients, as DPO's loss has it do
TRL's head         in place of the one for CPUs
sdpa, varlen       `attn_implementation`, where the demo's recipe has eager and lilLM's takes varlen
torch's backward   of attention, in place of blocks of keys; only lilLM's documents are long enough
memory returned    glibc gives blocks that are freed back to the system
AdamW's loop       `optim: adamw_torch`, one weight after another
float32            `bf16: false`: what bfloat16 itself does
another seed       how far runs lie apart that differ in initialisation and order

All but the last have one seed. `losses apart` is the largest difference of a step's loss to fledge's, `last 50` the
mean loss of the last fifty steps.
"""

import argparse
import contextlib
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

from common import Figures, compare, parsed, parser
from step import SHAPES, make_rows, recipe_of, source


PATCHES = {
    "all kept": ("run.KEPT_OF_LAYERS", 1.0),
    "logits twice": ("cpu_head.CpuLogProbFunction.alike", False),
    "TRL's head": ("cpu_head.install", lambda: None),
    "torch's backward": ("blocked.compile_loop", lambda: None),
    "memory returned": ("run.keep_freed_memory", lambda: None),
}
"""What stands in for a part of fledge.training."""

KEYS = {
    "fledge": {},
    "not compiled": {"torch_compile": "false"},
    "sdpa": {"attn_implementation": "sdpa"},
    "varlen": {"attn_implementation": "varlen"},
    "AdamW's loop": {"optim": "adamw_torch"},
    "float32": {"bf16": "false"},
    "another seed": {"seed": 7},
}
NOT_FOR = {"tang": ("torch's backward",), "lillm": ("varlen",)}


def stage(given: argparse.Namespace, keys: dict[str, Any], name: str = "", instead: Any = None) -> Figures:
    import fledge.training.run  # noqa: F401  # so that there is something to patch
    from fledge.results.record import read_metrics
    from fledge.stages import pretrain

    _, rows, length = SHAPES[given.shape]
    patched = patch(f"fledge.training.{name}", instead) if name else contextlib.nullcontext()
    with tempfile.TemporaryDirectory() as folder, patched:
        stated = {"tokenizer": source(given) / "tokenizer", "prepared": source(given) / "prepare"}
        stated |= {"output_dir": folder, "max_steps": given.steps, "logging_steps": 1, "torch_compile": "true"}
        stated |= {"per_device_train_batch_size": rows, "tokens_per_step": rows * length, "disable_tqdm": "true"}
        stated |= {"save_strategy": "no", "eval_strategy": "no", "warmup_steps": 10} | keys
        words = tuple(str(word) for key, value in stated.items() for word in (f"--{key}", value))
        pretrain.main(recipe_of(given, words))
        lines = [line for line in read_metrics(Path(folder)) if "loss" in line]
    losses = [line["loss"] for line in lines]
    return {"seconds": lines[-1]["train_seconds"], "last 50": mean(losses[-50:]), "losses": losses}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shape", choices=SHAPES, default="tang")
    options.add_argument("--steps", type=int, default=200, help="200 if left out")
    options.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options.set_defaults(rounds=1)
    given = parsed(options)
    ways = {way: partial(stage, keys=keys) for way, keys in KEYS.items()}
    ways |= {way: partial(stage, keys={}, name=name, instead=other) for way, (name, other) in PATCHES.items()}
    ways = {way: run for way, run in ways.items() if way not in NOT_FOR[given.shape]}
    with contextlib.ExitStack() as stack:
        if given.shape == "lillm" and not given.work:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            make_rows(Path(folder), "whole")
            sys.argv += ["--work", folder]
        compare(options, ways, "last 50", name=f"same {given.shape}")


if __name__ == "__main__":
    main()
