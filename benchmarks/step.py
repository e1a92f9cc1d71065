"""A pretraining step on a CPU: the pretrain stage beside transformers' Trainer and nanoGPT.

python benchmarks/step.py                                # lilLM's shape, 8 rows of 512 tokens, each one document
python benchmarks/step.py --documents short              # the same rows, packed with documents of 64 to 128 tokens
python benchmarks/step.py --shape tang                   # the demo's model, and 21 rows of 192 tokens of its poems
python benchmarks/step.py --nanogpt PATH                 # nanoGPT too; PATH is a checkout of it

fledge          `fledge pretrain` as `fledge run` starts it: launcher, data, logging, clipping, the recipe's optimizer
trainer         Trainer and LlamaForCausalLM with their defaults, which on a CPU means float32
trainer, tuned  the same with bf16 and torch_compile
nanogpt         train.py with its README's settings for a CPU: float32, not compiled
nanogpt, tuned  with torch.compile, and with the bfloat16 autocast that train.py leaves out on a CPU

Tokens, layers, width, heads and vocabulary are alike; AdamW everywhere but in the demo's recipe, which has Muon. Only
fledge keeps the documents of a row apart. `share` is that of the rate of bf16 matrix products, which every process
measures for itself, by 6M + 6LdT FLOPs a token: M is the contender's own, T its documents, of all but fledge its rows.
The first steps compile and are not timed. `MB` is resident memory at its fullest, of fledge with its launcher.
"""

import argparse
import contextlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from common import ROOT, Figures, compare, parsed, parser, tokens_of


WARM = 5
SHAPES = {"lillm": ("lillm", 8, 512), "tang": ("tang-poems", 21, 192)}
"""The recipe, rows of a step, tokens of a row."""
DOCUMENTS = {"whole": (50_000, 60_000), "short": (64, 128)}
"""Tokens of the documents that are made; those longer than a row are cut into rows."""
VOCABULARY, MEGABYTES = 8192, 3


def make_rows(folder: Path, documents: str) -> None:
    """lilLM's tokenizer, trained on English text, and the text in documents of such lengths, packed into rows."""
    from prepare import make_text, make_tokenizer

    from fledge.data.load import load_tokenizer

    text, chance, at = folder / "text.jsonl", random.Random(0), 0
    make_text(text, MEGABYTES)
    make_tokenizer(folder, text, VOCABULARY)
    tokenizer = load_tokenizer(str(folder / "tokenizer"), "tokenizer")
    texts = [json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()]
    ids = [token for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in ids]
    with text.open("w", encoding="utf-8") as file:
        while at < len(ids):
            size = chance.randint(*DOCUMENTS[documents])
            file.write(json.dumps({"text": tokenizer.decode(ids[at : at + size])}) + "\n")
            at += size
    (folder / "prepare.yaml").write_text(
        f"datasets: [{{path: {text}}}]\ntokenizer: {folder}/tokenizer\nmax_length: {SHAPES['lillm'][2]}\n"
        f"repeats: 'off'\noutput_dir: {folder}/prepare\n"
    )
    subprocess.run([sys.executable, "-m", "fledge", "prepare", folder / "prepare.yaml"], check=True)


def source(given: argparse.Namespace) -> Path:
    """The folder with the tokenizer and the prepared rows."""
    return given.work or given.run.resolve()


def recipe_of(given: argparse.Namespace, words: tuple[str, ...] = ()) -> Any:
    from fledge.recipe import load_recipe

    return load_recipe("pretrain", ROOT / "recipes" / SHAPES[given.shape][0] / "pretrain.yaml", words)


def figures(given: argparse.Namespace, ends: list[float], shape: dict[str, Any]) -> Figures:
    """What a step that ended at each of these seconds means; `shape` is a configuration."""
    import torch

    from fledge.machine import matmul_rate
    from fledge.planning.compute import strict_flops_per_token
    from fledge.planning.shape import read_shape

    _, rows, length = SHAPES[given.shape]
    rate = rows * length * (len(ends) - WARM) / (ends[-1] - ends[WARM - 1])
    share = rate * strict_flops_per_token(read_shape(shape, "config"), length) / matmul_rate(torch.bfloat16)
    return {"tokens/s": rate, "share": share, "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def fledge(given: argparse.Namespace) -> Figures:
    from fledge.files import read_json
    from fledge.launching.process import launch
    from fledge.results.record import read_metrics

    _, rows, length = SHAPES[given.shape]
    with tempfile.TemporaryDirectory() as folder:
        stated = {"tokenizer": source(given) / "tokenizer", "prepared": source(given) / "prepare"}
        stated |= {"output_dir": f"{folder}/pretrain", "max_steps": given.steps + WARM, "logging_steps": 1}
        stated |= {"per_device_train_batch_size": rows, "tokens_per_step": rows * length, "torch_compile": "true"}
        stated |= {"save_strategy": "no", "eval_strategy": "no", "warmup_steps": 1}
        words = tuple(str(word) for key, value in stated.items() for word in (f"--{key}", value))
        outcome = launch(recipe_of(given, words), ROOT / "accelerate_configs" / "cpu.yaml", words)
        if outcome.exit_code:
            raise SystemExit(outcome.exit_code)
        lines = [line for line in read_metrics(Path(folder) / "pretrain") if "loss" in line]
        results = read_json(Path(folder) / "pretrain" / "summary.json")["results"]
    warm, last = lines[WARM - 1], lines[-1]
    rate = (last["tokens"] - warm["tokens"]) / (last["train_seconds"] - warm["train_seconds"])
    share = rate * results["flops_per_second"] / results["tokens_per_second"] / results["peak_flops"]
    return {"tokens/s": rate, "share": share, "MB": outcome.peak_memory_gb * 1e9 / 2**20}


def trainer(given: argparse.Namespace, **tuned: Any) -> Figures:
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from fledge.data.load import load_tokenizer

    _, rows, length = SHAPES[given.shape]
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    vocabulary = len(load_tokenizer(str(source(given) / "tokenizer"), "tokenizer"))
    keys = {"vocab_size": vocabulary, **recipe_of(given).values["model_config"]}
    keys.pop("scaled_residual_init")
    ids, count = tokens_of(source(given) / "prepare"), rows * (given.steps + WARM)
    data = [
        {"input_ids": ids[at : at + length], "labels": ids[at : at + length]}
        for at in range(0, count * length, length)
    ]
    config = LlamaConfig(**keys)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            max_steps=given.steps + WARM,
            per_device_train_batch_size=rows,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            **tuned,
        )
        Trainer(LlamaForCausalLM(config), args, train_dataset=data, callbacks=[Clock()]).train()
    return figures(given, ends, config.to_dict())


def nanogpt(given: argparse.Namespace, tuned: bool = False) -> Figures:
    from nanogpt import train

    from fledge.data.load import load_tokenizer

    _, rows, length = SHAPES[given.shape]
    model = recipe_of(given).values["model_config"]
    vocabulary = len(load_tokenizer(str(source(given) / "tokenizer"), "tokenizer"))
    named = {"n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_embd": "hidden_size"}
    shape = {short: model[name] for short, name in named.items()}
    settings = {"block_size": length, "batch_size": rows, "max_iters": given.steps + WARM - 1}
    ends, _ = train(given.nanogpt, tokens_of(source(given) / "prepare"), vocabulary, tuned, **shape, **settings)
    return figures(given, ends, {"model_type": "gpt2", "vocab_size": vocabulary, "n_positions": length, **shape})


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shape", choices=SHAPES, default="lillm")
    options.add_argument("--documents", choices=DOCUMENTS, default="whole", help="of lilLM's rows")
    # Fewer than 25, and the pretrain stage would find that compiling its head does not pay.
    options.add_argument("--steps", type=int, default=25, help=f"timed ones, after {WARM}; 25 if left out")
    options.add_argument("--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT")
    options.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parsed(options)
    ways = {"fledge": fledge, "trainer": trainer, "trainer, tuned": partial(trainer, bf16=True, torch_compile=True)}
    if given.nanogpt:
        ways |= {"nanogpt": nanogpt, "nanogpt, tuned": partial(nanogpt, tuned=True)}
    with contextlib.ExitStack() as stack:
        if given.shape == "lillm" and not given.work:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            make_rows(Path(folder), given.documents)
            sys.argv += ["--work", folder]
        table = given.shape if given.shape == "tang" else given.documents
        compare(options, ways, "tokens/s", rate=True, name=f"step {table}")


if __name__ == "__main__":
    main()
