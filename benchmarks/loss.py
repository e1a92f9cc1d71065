"""The loss of the next token: full logits, torch's chunks, TRL's and the CPU's, over vocabularies.

python benchmarks/loss.py                               # vocabularies of 8k to 128k; prints the table
python benchmarks/loss.py --vocabularies 8192 --tokens 1024 --rounds 1

logits        cross_entropy of all logits, in float32 as transformers takes it
torch         torch.nn.functional.linear_cross_entropy, in chunks as it chooses them
trl           trl.kernels.ChunkedLogProbFunction, what TRL's fused head takes where there is no Triton
fledge        fledge.training.cpu_head, which stands in for it on a CPU, its loops compiled

Forward and backward in bfloat16, 512 wide, each way and vocabulary in a process of its own. `ms` are for 1,000 tokens;
`MB` is what the process took at its fullest beyond the inputs; `loss` and `gradients` are the differences to
full logits in float32: of the loss, and of both gradients in the norm, relative.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import child, drawn, outputs, show, write
from torch.nn.functional import cross_entropy, linear_cross_entropy

from fledge.results.charts import Chart


WIDTH = 512
TRL_CHUNK = 32_768
"""Entries of the vocabulary at a time, TRL's own choice."""

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def logits(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy((hidden @ weight.t()).float(), targets)


def torch_chunks(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets, options=options).float()


def log_probs(function: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    outputs = ("entropy", "mean_logits", "is_top1")
    return -function.apply(hidden, weight, None, targets, 1.0, TRL_CHUNK, None, 1.0, outputs)[0].mean()


def ways() -> dict[str, Loss]:
    from trl.kernels import ChunkedLogProbFunction

    from fledge.training.cpu_head import CpuLogProbFunction

    trl, fledge = (partial(log_probs, function) for function in (ChunkedLogProbFunction, CpuLogProbFunction))
    return {"logits": logits, "torch": torch_chunks, "trl": trl, "fledge": fledge}


def memory(what: str) -> float:
    """MB of this process: VmRSS, or VmHWM, the most since it was last reset (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


def measure(way: str, vocabulary: int, given: argparse.Namespace) -> dict[str, Any]:
    """The figures of one way at one vocabulary."""
    from fledge.training.cpu_head import compile_tiles

    loss_of = ways()[way]
    if way == "fledge":
        compile_tiles()
        with torch.autocast("cpu", torch.bfloat16):  # compiles
            small = [torch.randn(2, WIDTH, requires_grad=True), torch.randn(vocabulary, WIDTH, requires_grad=True)]
            loss_of(*small, torch.zeros(2, dtype=torch.long)).backward()
        del small
    torch.manual_seed(0)
    hidden = torch.randn(given.tokens, WIDTH, requires_grad=True)
    weight = (torch.randn(vocabulary, WIDTH) / WIDTH**0.5).requires_grad_()
    targets = torch.randint(vocabulary, (given.tokens,))
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, seconds = memory("VmRSS"), []
    for _ in range(given.rounds + 1):  # the first warms up
        hidden.grad, weight.grad = None, None
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(hidden, weight, targets)
        loss.backward()
        seconds.append(time.perf_counter() - began)
    took, found = memory("VmHWM") - before, [hidden.grad, weight.grad]
    hidden.grad, weight.grad = None, None
    exact = logits(hidden, weight, targets)
    exact.backward()
    apart = [(one - other).norm() / other.norm() for one, other in zip(found, (hidden.grad, weight.grad), strict=True)]
    return {
        "ms": statistics.median(seconds[1:]) / given.tokens * 1e6,
        "MB": took,
        "loss": abs(loss.item() - exact.item()),
        "gradients": max(apart).item(),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--vocabularies", type=int, nargs="+", default=[8192, 32_768, 131_072], metavar="V")
    options.add_argument("--tokens", type=int, default=2048)
    options.add_argument("--svg", type=Path, metavar="PATH", help="draw memory against the vocabulary here")
    options.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = outputs(options).parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], int(given.one[1]), given)))
        raise SystemExit
    found = []
    for vocabulary in given.vocabularies:
        for way in ways():
            one = {"vocabulary": vocabulary, "way": way} | child([*sys.argv, "--one", way, str(vocabulary)])
            found.append(one)
            print(json.dumps(one), flush=True)
    show(given, "loss", found)
    write(given.json, {"torch": torch.__version__, "tokens": given.tokens, "runs": found})
    if given.svg:
        lines = {way: [(one["vocabulary"], one["MB"]) for one in found if one["way"] == way] for way in ways()}
        chart = Chart(
            "loss", "MB", lines, (0,), f"entries of the vocabulary; MB, {given.tokens:,} tokens", is_wide=True
        )
        given.svg.write_text(drawn(chart), encoding="utf-8")


if __name__ == "__main__":
    main()
