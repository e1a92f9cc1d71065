"""Attention of packed rows, forward and backward: within documents beside a mask over the row.

python benchmarks/attention.py                          # rows of 512 to 16,384 tokens; the table and attention.svg
python benchmarks/attention.py --rows 512 --heads 4 --rounds 1

varlen   fledge.training.varlen: torch's varlen_attn on a GPU, documents of about one length side by side on a CPU,
         as in training that is long enough to compile
sdpa     torch's fused attention under a mask that keeps documents apart, as transformers makes it of position ids
eager    all scores of a row in memory, under the same mask; up to rows of 4,096

Rows of documents of 100 tokens, and rows that are one document. In bfloat16, 8 heads of 64, on a CPU at least 4,096
tokens at a time and on a GPU 65,536. Milliseconds for 1,000 tokens, medians, interleaved; the ratio is to varlen.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import drawn, outputs, show, write

from fledge.machine import on_cpu
from fledge.results.charts import Chart
from fledge.training.run import speed_up_cpu
from fledge.training.varlen import varlen_attention


DEVICE, TOKENS = ("cpu", 4096) if on_cpu() else ("cuda", 65_536)
WIDTH, MOST_FOR_EAGER = 64, 4096


def mask_of(lengths: list[int], length: int) -> torch.Tensor:
    """(1, 1, T, T): whether one token of a row sees another."""
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return ((ids[:, None] == ids[None]) & torch.ones(length, length, dtype=torch.bool).tril())[None, None]


def ways(length: int, document: int, heads: int) -> dict[str, Callable[[], None]]:
    """Each way's forward and backward pass over rows of `length` tokens."""
    rows = max(1, TOKENS // length)
    lengths = [document] * (length // document) + [length % document] * bool(length % document)
    begins = torch.tensor([0, *lengths * rows]).cumsum(0).int().to(DEVICE)
    mask = mask_of(lengths, length).to(DEVICE)
    shape = {"size": (rows, length, heads, WIDTH), "dtype": torch.bfloat16, "device": DEVICE}
    states = [torch.randn(**shape).transpose(1, 2).requires_grad_() for _ in range(3)]  # they lie as a model has them
    towards = torch.randn(**shape).transpose(1, 2)
    documents = {"cu_seq_lens_q": begins, "max_length_q": max(lengths)}

    def varlen() -> torch.Tensor:
        return varlen_attention(None, *states, None, WIDTH**-0.5, **documents)[0].transpose(1, 2)

    def sdpa() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(*states, attn_mask=mask)

    def eager() -> torch.Tensor:
        query, key, value = states
        scores = query @ key.transpose(2, 3) * WIDTH**-0.5 + torch.where(mask, 0.0, -torch.inf).to(query.dtype)
        return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value

    made = [varlen, sdpa, eager] if length <= MOST_FOR_EAGER else [varlen, sdpa]
    return {way.__name__: lambda way=way: torch.autograd.grad(way(), states, towards) for way in made}


def measure(length: int, document: int, given: argparse.Namespace) -> dict[str, float]:
    """Milliseconds for 1,000 tokens of each way."""
    tried = ways(length, document, given.heads)
    seconds: dict[str, list[float]] = {name: [] for name in tried}
    for _ in range(given.rounds + 1):  # the first warms up
        for name, run in tried.items():
            began = time.perf_counter()
            run()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    tokens = max(TOKENS, length)
    return {name: statistics.median(times[1:]) / tokens * 1e6 for name, times in seconds.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192, 16384], metavar="T")
    options.add_argument("--document", type=int, default=100, help="tokens of the short documents; 100 if left out")
    options.add_argument("--heads", type=int, default=8)
    options.add_argument("--svg", type=Path, metavar="PATH", help="draw them here")
    given = outputs(options, rounds=5).parse_args()
    speed_up_cpu(float("inf"))
    found = []
    for document in (given.document, None):
        for length in given.rows:
            times = measure(length, document or length, given)
            ratios = {f"{name} / varlen": times[name] / times["varlen"] for name in ("sdpa", "eager") if name in times}
            one = {"row": length, "document": document or length, "varlen": 0.0, "sdpa": 0.0, "eager": None}
            found.append(one | times | {"sdpa / varlen": None, "eager / varlen": None} | ratios)
            print(f"{length} tokens, documents of {document or length}: {times}", flush=True)
    show(given, "attention", found)
    write(given.json, {"torch": torch.__version__, "runs": found})
    if given.svg:
        given.svg.write_text(drawing(found, given.document), encoding="utf-8")


def drawing(found: list[dict[str, float]], document: int) -> str:
    """Cost against row length."""
    kinds = {f"documents of {document}": True, "whole rows": False}
    lines = {
        f"{way}, {kind}": [(one["row"], one[way]) for one in found if (one["document"] == document) == is_short]
        for way in ("varlen", "sdpa")
        for kind, is_short in kinds.items()
    }
    return drawn(Chart("attention", "ms for 1,000 tokens", lines, (0,), "tokens of a row", is_wide=True))


if __name__ == "__main__":
    main()
