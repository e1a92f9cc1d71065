"""What pushing every save costs a step: the demo's pretraining beside itself with a hub on this machine.

python benchmarks/hub.py                    # after make demo; saves every 80 steps instead of the recipe's 155

no hub      `fledge pretrain`, 160 steps
pushing     the same with push_to_hub; each save and the final model arrive at the hub of the tests, which works on the
            same cores
hanging     the same, and the hub answers nothing; the run gives up three seconds after its last step

Tokens a second are those of the steps, after the first ones, which compile; a push runs beside them. `seconds` are
those of the whole process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from common import ROOT, Figures, compare, parser


WARM = 10


def pretrain(given: argparse.Namespace, mood: str = "") -> Figures:
    sys.path.insert(0, str(ROOT))
    from tests.e2e.hub import hub

    from fledge.results.record import read_metrics

    stated = {"tokenizer": given.run.resolve() / "tokenizer", "prepared": given.run.resolve() / "prepare"}
    stated |= {
        "max_steps": given.steps,
        "save_steps": given.save_steps,
        "logging_steps": WARM,
        "torch_compile": "true",
    }
    if mood:
        stated |= {"push_to_hub": "true", "hub_model_id": "bird/egg", "hub_timeout": 3 if mood == "hanging" else 120}
    with hub() as loopback, tempfile.TemporaryDirectory() as folder:
        loopback.mood = mood or "well"
        words = [str(word) for key, value in stated.items() for word in (f"--{key}", value)]
        command = ["-m", "fledge", "pretrain", "recipes/tang-poems/pretrain.yaml", *words]
        environment = {**os.environ, **loopback.environment("hf_" + "Benchmark" * 4)}
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *command, "--output_dir", f"{folder}/run"], cwd=ROOT, env=environment, stdout=sys.stderr
        )
        seconds = time.perf_counter() - began
        assert done.returncode == (69 if mood == "hanging" else 0)
        lines = [line for line in read_metrics(Path(folder) / "run") if "loss" in line]
        arrived = len(loopback.repos.get("bird/egg", ()))
    warm, last = next(line for line in lines if line["step"] >= WARM), lines[-1]
    rate = (last["tokens"] - warm["tokens"]) / (last["train_seconds"] - warm["train_seconds"])
    return {"tokens/s": rate, "seconds": seconds, "revisions": arrived}


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=160, help="160 if left out")
    options.add_argument("--save_steps", type=int, default=80, help="80 if left out")
    ways = {
        "no hub": pretrain,
        "pushing": partial(pretrain, mood="well"),
        "hanging": partial(pretrain, mood="hanging"),
    }
    compare(options, ways, "tokens/s")
