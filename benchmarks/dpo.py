"""The dpo stage with the reference read once, before training, beside a reference at every step, and TRL's DPOTrainer.

python benchmarks/dpo.py                    # after make demo

reference once  the dpo stage with its recipe, `precompute_ref_log_probs: true`
every step      the same with TRL's default, `false`
trl             DPOTrainer with the recipe's pairs, batches, schedule and seed, and else with its defaults: a reference
                at every step, activation checkpointing, its own head

Seconds are those of loading the model, reading the reference and training; the stage's write the model too. TRL keeps
what it has read of a reference in a cache; every run here begins with an empty one.
"""

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path

from common import ROOT, Figures, compare, parser


def stage(given: argparse.Namespace, precompute: str) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = f"{folder}/cache"  # before datasets is imported
        from fledge.files import read_json
        from fledge.recipe import load_recipe
        from fledge.results.record import read_metrics
        from fledge.stages import dpo

        stated = {"model_name_or_path": given.run / "sft", "pairs": given.run / "pairs", "output_dir": f"{folder}/dpo"}
        stated |= {"precompute_ref_log_probs": precompute, "logging_steps": 1, "disable_tqdm": "true"}
        stated |= {"max_steps": given.steps} if given.steps else {}
        words = [str(word) for key, value in stated.items() for word in (f"--{key}", value)]
        dpo.main(load_recipe("dpo", ROOT / "recipes/tang-poems/dpo.yaml", words))
        made = Path(folder) / "dpo"
        losses = [line["loss"] for line in read_metrics(made) if "loss" in line]
        summary = read_json(made / "summary.json")
    trained = summary["results"]["train_seconds"]
    return {"seconds": summary["seconds"], "of it training": trained, "last loss": losses[-1], "losses": losses}


def trl(given: argparse.Namespace) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = f"{folder}/cache"
        from trl import DPOConfig, DPOTrainer

        from fledge.data.load import load_model, load_tokenizer
        from fledge.data.pairs import read_pairs
        from fledge.machine import choose_bf16, on_cpu
        from fledge.recipe import load_recipe

        recipe = load_recipe("dpo", ROOT / "recipes/tang-poems/dpo.yaml").values
        same = (
            "beta",
            "max_length",
            "per_device_train_batch_size",
            "num_train_epochs",
            "learning_rate",
            "weight_decay",
        )
        keys = {key: recipe[key] for key in (*same, "lr_scheduler_type", "warmup_steps", "seed")}
        keys |= {"max_steps": given.steps} if given.steps else {}
        keys |= {"logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
        began, start = time.perf_counter(), str(given.run / "sft")
        trainer = DPOTrainer(
            model=load_model(start, "sft"),
            args=DPOConfig(folder, use_cpu=on_cpu(), bf16=choose_bf16("auto"), **keys),
            train_dataset=read_pairs(given.run / "pairs/train.parquet"),
            processing_class=load_tokenizer(start, "sft"),
        )
        trained = trainer.train().metrics["train_runtime"]
        seconds = time.perf_counter() - began
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"seconds": seconds, "of it training": trained, "last loss": losses[-1], "losses": losses}


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--steps", type=int, help="the recipe's if left out")
    stages = {"reference once": partial(stage, precompute="true"), "every step": partial(stage, precompute="false")}
    compare(options, stages | {"trl": trl}, "seconds")
