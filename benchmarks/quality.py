"""Quality for the same time: the demo's pretraining beside nanoGPT, on its poems, and a trigram on the same text.

python benchmarks/quality.py --nanogpt PATH              # after make demo; PATH is a checkout of nanoGPT
python benchmarks/quality.py --steps 310 --change "--muon_learning_rate null" --change "--model_config.qk_norm false"

nanogpt, tuned  train.py with the demo's layers, heads, width, rows, and settings of its shakespeare_char; bfloat16 and
                torch.compile
nanogpt         train.py with its README's settings for a CPU: 4 layers, 128 wide, context 64, float32, not compiled
trigram         interpolated Kneser-Ney, counted on the same poems; its seconds are those of counting and reading
fledge          `fledge pretrain` with the demo's recipe
--change        the same with other keys, one table row each

Everyone trains for `--seconds`, from the first step on, which compiles; as many steps as fit are found beforehand, so
that schedules end with the time; or for `--steps`. The same tokens and held-out poems; a round has its own seed. The
ratio is to nanoGPT tuned, or to fledge where it is not asked for.
"""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from common import ROOT, Figures, compare, parsed, parser, tokens_of


TRIED, WARM = 100, 8
"""Steps that say how long a step takes, and those of them that compile."""
ROWS, ROW = 21, 192
CHARACTERS = {"learning_rate": 1e-3, "min_lr": 1e-4, "beta2": 0.99, "warmup_iters": 100}
TUNED = CHARACTERS | {"n_layer": 6, "n_head": 4, "n_embd": 256, "block_size": ROW, "batch_size": ROWS}
README = CHARACTERS | {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12}


def steps_for(seconds: float, ends: list[float]) -> int:
    """How many fit, by when each of the first ones ended."""
    each = (ends[-1] - ends[WARM - 1]) / (len(ends) - WARM)
    return WARM + max(1, math.floor((seconds - ends[WARM - 1]) / each))


def poems(run: Path, part: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(run / f"corpus/poems/{part}.parquet").to_pylist()


def bits_per_character(run: Path, model: Any) -> float:
    """Of whole held-out documents, as the evaluate stage counts."""
    from fledge.data.load import load_tokenizer
    from fledge.evaluation.scores import Subject, likelihood

    subject = Subject("model", model.eval(), load_tokenizer(str(run / "tokenizer"), "tokenizer"), True)
    return likelihood(subject, {"poems": poems(run, "heldout")})["bits_per_char"].value


def fledge(given: argparse.Namespace, change: str = "") -> Figures:
    from fledge.data.load import load_model
    from fledge.results.record import read_metrics

    stated = {"tokenizer": given.run.resolve() / "tokenizer", "prepared": given.run.resolve() / "prepare"}
    stated |= {"save_strategy": "no", "logging_steps": 1, "torch_compile": "true", "seed": given.round + 1}

    def train(folder: str, steps: int) -> list[float]:
        own = stated | {"max_steps": steps, "output_dir": folder}
        told = [str(word) for key, value in own.items() for word in (f"--{key}", value)]
        command = ["-m", "fledge", "pretrain", "recipes/tang-poems/pretrain.yaml", *told, *change.split()]
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=sys.stderr)
        return [line["train_seconds"] for line in read_metrics(Path(folder)) if "loss" in line]

    with tempfile.TemporaryDirectory() as folder:
        steps = given.steps or steps_for(given.seconds, train(f"{folder}/tried", TRIED))
        ends = train(f"{folder}/model", steps)
        bits = bits_per_character(given.run, load_model(f"{folder}/model", "model"))
    return {"steps": steps, "seconds": ends[-1], "tokens": steps * ROWS * ROW, "bits per character": bits}


def nanogpt(given: argparse.Namespace, tuned: bool, settings: dict[str, Any]) -> Figures:
    import torch
    from nanogpt import train

    from fledge.data.load import load_tokenizer

    ids = tokens_of(given.run / "prepare")
    vocabulary = len(load_tokenizer(str(given.run / "tokenizer"), "tokenizer"))
    seeded = partial(train, given.nanogpt.resolve(), ids, vocabulary, tuned, given.round + 1, **settings)
    steps = given.steps
    if not steps:
        steps = steps_for(given.seconds, seeded(max_iters=TRIED - 1)[0])
        torch.compiler.reset()
    ends, model = seeded(max_iters=steps - 1, lr_decay_iters=steps)
    bits = bits_per_character(given.run, as_gpt2(model))
    tokens = steps * settings["batch_size"] * settings["block_size"]
    return {"steps": steps, "seconds": ends[-1], "tokens": tokens, "bits per character": bits}


def as_gpt2(model: Any) -> Any:
    """The same model as transformers has it, whose linear layers lie the other way round and have biases."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    own = model.config
    sizes = {"n_positions": own.block_size, "n_layer": own.n_layer, "n_head": own.n_head, "n_embd": own.n_embd}
    made = GPT2LMHeadModel(GPT2Config(vocab_size=own.vocab_size, activation_function="gelu", **sizes)).eval()
    weights, theirs = model.state_dict(), made.state_dict()
    with torch.no_grad():
        for name, weight in theirs.items():
            weight.copy_((weights[name].t() if ".c_" in name else weights[name]) if name in weights else 0)
        ids = torch.arange(own.block_size)[None]
        torch.testing.assert_close(made(ids).logits, model.eval()(ids, ids)[0], rtol=1e-4, atol=1e-4)
    return made


def trigram(given: argparse.Namespace) -> Figures:
    from fledge.evaluation.likelihood import Measured, bits_per
    from fledge.evaluation.trigram import Trigram

    began = time.perf_counter()
    model = Trigram(row["text"] for row in poems(given.run, "train"))
    found = [Measured.of(model.bits(row["text"]), row) for row in poems(given.run, "heldout")]
    bits = bits_per("characters", found).value
    return {"steps": 0, "seconds": time.perf_counter() - began, "tokens": 0, "bits per character": bits}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=300.0, help="of training; 300 if left out")
    options.add_argument("--steps", type=int, help="of each, in place of --seconds")
    options.add_argument("--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT")
    options.add_argument("--change", action="append", default=[], metavar="KEYS", help="of the recipe, for a row more")
    given = parsed(options)
    ways: dict[str, Any] = {}
    if given.nanogpt:
        ways["nanogpt, tuned"] = partial(nanogpt, tuned=True, settings=TUNED)
        ways["nanogpt"] = partial(nanogpt, tuned=False, settings=README)
    ways["fledge"] = fledge
    for change in given.change:
        ways[change] = partial(fledge, change=change)
    name = "quality of changes" if given.steps else "quality"
    compare(options, ways | {"trigram": trigram}, "bits per character", name=name)


if __name__ == "__main__":
    main()
