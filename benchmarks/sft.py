"""Supervised tokens a second in fine-tuning on the demo's conversations: packed rows beside TRL's defaults.

python benchmarks/sft.py                    # after make demo

fledge       the sft stage with its recipe, packed rows of 192 tokens
trl          SFTTrainer with its defaults: 8 conversations at once, padded, activation checkpointing
trl, alike   SFTTrainer with as many conversations at once and a step as fledge's rows hold, nothing computed again,
             and on a CPU with fledge's head, which TRL's own is far slower than: what is left is the padding

The same model, conversations, loss on the assistant's tokens only, optimizer AdamW and no compiling in all three;
TRL tokenises before the clock starts. Seconds are those from the end of the first steps, which warm up, to that of
the last. Supervised tokens are those that a loss is taken of: what a model learns from, whatever the layout.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, Figures, compare, parser


WARM = 2
ROWS_AT_ONCE, ROWS_A_STEP = 21, 42


def fledge(given: argparse.Namespace) -> Figures:
    from fledge.files import read_json
    from fledge.recipe import load_recipe
    from fledge.results.record import read_metrics
    from fledge.stages import sft

    prepared = given.run / "prepare_sft"
    with tempfile.TemporaryDirectory() as folder:
        stated = {"model_name_or_path": given.run / "pretrain", "prepared": prepared, "output_dir": folder}
        stated |= {"max_steps": given.steps + WARM, "logging_steps": 1, "save_strategy": "no", "warmup_steps": 1}
        stated |= {"torch_compile": "false", "muon_learning_rate": "null", "disable_tqdm": "true"}
        words = [str(word) for key, value in stated.items() for word in (f"--{key}", value)]
        sft.main(load_recipe("sft", ROOT / "recipes/tang-poems/sft.yaml", words))
        seconds = [line["train_seconds"] for line in read_metrics(Path(folder)) if "loss" in line]
    rows = read_json(prepared / "manifest.json")["train"]
    supervised = ROWS_A_STEP * rows["supervised_tokens"] / rows["rows"] * given.steps
    taken = seconds[-1] - seconds[WARM - 1]
    return {"supervised tokens a second": supervised / taken, "conversations at once": per_row(given) * ROWS_AT_ONCE}


def per_row(given: argparse.Namespace) -> float:
    """Conversations in a packed row, in the mean."""
    from fledge.files import read_json

    rows = read_json(given.run / "prepare_sft" / "manifest.json")["train"]
    return rows["documents"] / rows["rows"]


def trl(given: argparse.Namespace, at_once: int = 8, **keys: Any) -> Figures:
    import datasets
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from fledge.data.load import load_model, load_tokenizer
    from fledge.machine import choose_bf16, on_cpu

    ends: list[float] = []
    supervised: list[int] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    class Counting(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            supervised.append(int((inputs["labels"] != -100).sum()))
            return super().training_step(model, inputs, *args, **kwargs)

    steps, micro = given.steps + WARM, keys.get("gradient_accumulation_steps", 1)
    folder = str(given.run / "pretrain")
    rows = datasets.Dataset.from_parquet(str(given.run / "corpus/chat/train.parquet")).select_columns("messages")
    rows = rows.shuffle(seed=0).select(range(min(len(rows), steps * micro * at_once)))
    with tempfile.TemporaryDirectory() as output:
        args = SFTConfig(
            output_dir=output,
            max_steps=steps,
            per_device_train_batch_size=at_once,
            assistant_only_loss=True,
            bf16=choose_bf16("auto"),
            use_cpu=on_cpu(),
            report_to="none",
            save_strategy="no",
            **keys,
        )
        Counting(
            model=load_model(folder, "run"),
            args=args,
            train_dataset=rows,
            processing_class=load_tokenizer(folder, "run"),
            callbacks=[Clock()],
        ).train()
    tokens = sum(supervised[WARM * micro :])
    return {"supervised tokens a second": tokens / (ends[-1] - ends[WARM - 1]), "conversations at once": at_once}


def trl_alike(given: argparse.Namespace) -> Figures:
    from fledge.machine import on_cpu
    from fledge.training import cpu_head

    if on_cpu():
        cpu_head.install()
    at_once = round(per_row(given) * ROWS_AT_ONCE)
    return trl(given, at_once, gradient_accumulation_steps=ROWS_A_STEP // ROWS_AT_ONCE, gradient_checkpointing=False)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=20, help="timed ones; 20 if left out")
    compare(options, {"fledge": fledge, "trl": trl, "trl, alike": trl_alike}, "supervised tokens a second", rate=True)
