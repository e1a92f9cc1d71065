"""The dpo stage with the reference read once, before training, beside TRL's default, a reference at every step.

python benchmarks/dpo.py                    # after make demo

Both run the stage with its recipe and differ in `precompute_ref_log_probs` alone. Seconds are the stage's: loading the
model, reading the reference, training. TRL keeps what it has read in a cache; every run here begins with an empty one.
"""

import argparse
import os
import tempfile
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


def once(given: argparse.Namespace) -> Figures:
    return stage(given, "true")


def every_step(given: argparse.Namespace) -> Figures:
    return stage(given, "false")


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--steps", type=int, help="the recipe's if left out")
    found = compare(options, {"reference once": once, "every step": every_step}, "seconds")
    steps = zip(*(rounds[0]["losses"] for rounds in found.values()), strict=True)
    print(f"\nlargest difference of a step's loss: {max(max(losses) - min(losses) for losses in steps):.2g}")
