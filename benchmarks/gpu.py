"""One GPU: speed, MFU and memory of the shipped shapes over micro-batch, attention, compiling and checkpointing.

python benchmarks/gpu.py                                # every combination; prints the table and writes gpu.json
python benchmarks/gpu.py --recipes tinyllama-1.1b --attention varlen --compile yes --checkpointing no
python benchmarks/gpu.py --device cpu --tiny            # the whole path, on the shapes of smoke.yaml

The model of each recipe, with new weights, goes through the trainer and the loss of the pretrain stage: fused head,
bf16 autocast, fused AdamW, gradients clipped at 1. A row is one document of random tokens as long as the recipe's
rows. The first steps warm up and compile, the others lie between two CUDA events. What does not fit is in the table.

MFU counts 6M + 6LdT FLOPs a token, as training does (fledge.training.throughput); the column PaLM counts 6N + 12LdT,
as PaLM, nanoGPT and lit-gpt do. Both are shares of the card's dense bf16 peak by its data sheet.
Planned, not measured yet: at least 50% by PaLM's count for the 1.1B shapes at 2,048.
"""

import argparse
import gc
import json
import logging
import os
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from common import ROOT, table, write


SYSTEMS = ("transformer-1b-chat", "lillm", "prem-1b", "tinyllama-1.1b", "tinylm-mistral-1b")
WARM = 3
TINY_LENGTH = 64
SETTINGS = {
    "optim": "adamw_torch_fused",
    "remove_unused_columns": False,
    "report_to": "none",
    "disable_tqdm": True,
    "logging_strategy": "no",
    "save_strategy": "no",
}
YES_NO = {"yes": True, "no": False}


def describe(name: str, tiny: bool) -> tuple[dict[str, Any], int, int]:
    """The recipe's model_config with a vocabulary, the tokens of its rows, and its micro-batch."""
    from fledge.planning.job import read_jobs
    from fledge.recipe import load_recipe

    path = ROOT / "recipes" / name / "pretrain.yaml"
    if tiny:
        values = load_recipe("pretrain", path, smoke=True).values
        return {"vocab_size": 512, **values["model_config"]}, TINY_LENGTH, 2
    job = read_jobs(path)[0]
    return {**job.recipe.values["model_config"], "vocab_size": job.shape.vocab_size}, job.length, job.micro_batch


def measure(keys: dict[str, Any], cell: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """The figures of one cell of the grid."""
    import torch
    from transformers import AutoConfig, PrinterCallback, TrainerCallback, TrainingArguments

    from fledge.data.collate import PackedCollator
    from fledge.machine import choose_bf16, on_cpu, peak_flops
    from fledge.model import register
    from fledge.model.build import build_model
    from fledge.planning.compute import flops_per_token, strict_flops_per_token
    from fledge.planning.shape import read_shape
    from fledge.training.run import speed_up
    from fledge.training.trainer import Pretrainer
    from fledge.training.varlen import VARLEN, choose_attention

    class Clock(TrainerCallback):
        marks: tuple[Any, ...] = ()

        def mark(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step in (WARM, WARM + given.steps):
                event = time.perf_counter() if on_cpu() else torch.cuda.Event(enable_timing=True)
                if not on_cpu():
                    event.record()
                self.marks += (event,)

        on_step_end = mark

        def seconds(self) -> float:
            begun, ended = self.marks
            if on_cpu():
                return ended - begun
            ended.synchronize()
            return begun.elapsed_time(ended) / 1000

    torch.compiler.reset()
    if not on_cpu():
        torch.cuda.reset_peak_memory_stats()
    register()
    keys = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **keys}
    config, bf16, clock = AutoConfig.for_model(keys.pop("model_type", "fledge"), **keys), choose_bf16("auto"), Clock()
    with torch.device("cpu" if on_cpu() else "cuda"):
        model = build_model(config)
    model.set_attn_implementation(choose_attention(cell["attention"], config, bf16))
    length, rows = cell["row"], cell["micro-batch"]
    ids = torch.randint(3, config.vocab_size, (length,)).numpy()
    accumulation = max(1, given.tokens_per_step // (rows * length))
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            max_steps=WARM + given.steps,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulation,
            activation_checkpointing=cell["checkpointing"],
            bf16=bf16,
            use_cpu=on_cpu(),
            **SETTINGS,
        )
        trainer = Pretrainer(
            model=model,
            args=args,
            train_dataset=[{"input_ids": ids, "labels": ids, "seq_lengths": [length]}] * (rows * accumulation),
            data_collator=PackedCollator(length, 0, cell["attention"] == VARLEN),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.use_fused_head()
        speed_up(model, cell["compiled"], 0, bf16)
        trainer.train()
    rate = given.steps * accumulation * rows * length / clock.seconds()
    shape, peak = read_shape(config.to_dict(), "config"), peak_flops(bf16)[0]
    strict, palm = (rate * count(shape, length) for count in (strict_flops_per_token, flops_per_token))
    memory = None if on_cpu() else round(torch.cuda.max_memory_allocated() / 2**30, 2)
    shares = {"MFU": peak and round(strict / peak, 4), "PaLM": peak and round(palm / peak, 4)}
    return {"tokens/s": round(rate, 1), "TFLOP/s": round(strict / 1e12, 4), **shares, "GiB": memory}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--tiny", action="store_true", help="the shapes of each recipe's smoke.yaml")
    options.add_argument("--recipes", nargs="+", default=SYSTEMS, metavar="NAME", help="folders of recipes/")
    options.add_argument(
        "--micro_batch", nargs="+", type=int, metavar="ROWS", help="the recipe's, its half and double"
    )
    options.add_argument(
        "--attention", nargs="+", metavar="A", help="varlen, sdpa, and flash_attention_2 if installed"
    )
    options.add_argument("--compile", nargs="+", choices=YES_NO, default=YES_NO)
    options.add_argument("--checkpointing", nargs="+", choices=YES_NO, default=YES_NO)
    options.add_argument("--vocab_size", type=int, help="in place of the recipe's")
    options.add_argument("--tokens_per_step", type=int, default=32_768, help="reached by accumulation")
    options.add_argument("--steps", type=int, default=5, help=f"timed ones, after {WARM}; 5 if left out")
    options.add_argument("--json", type=Path, metavar="PATH", help="gpu.json beside this file; of --tiny none")
    given = options.parse_args()
    cpu = given.device == "cpu"
    os.environ["ACCELERATE_USE_CPU"] = str(cpu).lower()
    import torch
    from transformers.utils import is_flash_attn_2_available

    logging.disable(logging.WARNING)
    if not cpu and not torch.cuda.is_available():
        options.error("no CUDA GPU here; --device cpu --tiny runs the whole path without one")
    flash = ("flash_attention_2",) if is_flash_attn_2_available() else ()
    backends = given.attention or (("sdpa",) if cpu else ("varlen", "sdpa", *flash))
    machine = "a CPU, for the path and not for figures" if cpu else torch.cuda.get_device_name()
    path = given.json or (None if given.tiny else Path(__file__).with_name("gpu.json"))
    found: list[dict[str, Any]] = []
    for name in given.recipes:
        keys, length, own = describe(name, given.tiny)
        keys["vocab_size"] = given.vocab_size or keys["vocab_size"]
        sizes = given.micro_batch or ([own] if given.tiny else sorted({max(1, own // 2), own, own * 2}))
        for size, attention, compiled, checkpointing in product(sizes, backends, given.compile, given.checkpointing):
            cell = {"recipe": name, "vocabulary": keys["vocab_size"], "row": length, "micro-batch": size}
            cell |= {"attention": attention, "compiled": YES_NO[compiled], "checkpointing": YES_NO[checkpointing]}
            try:
                cell |= measure(keys, cell, given)
            except torch.OutOfMemoryError:
                cell |= {"tokens/s": "out of memory", "TFLOP/s": None, "MFU": None, "PaLM": None, "GiB": None}
            found.append(cell)
            print(json.dumps(cell), flush=True)
            write(path, {"machine": machine, "torch": torch.__version__, "steps": given.steps, "runs": found})
            gc.collect()  # the model before this one, or it would count as memory of the next
            if not cpu:
                torch.cuda.empty_cache()
    print(f"\n{machine}, torch {torch.__version__}, {given.steps} steps\n\n{table(found)}")


if __name__ == "__main__":
    main()
