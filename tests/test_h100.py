"""What one H100 took, as benchmarks/h100.json holds it, beside what `fledge plan` says of the same recipes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fledge.planning.compute import flops_per_token, strict_flops_per_token
from fledge.planning.job import Job, read_jobs
from fledge.planning.memory import Place, peak


ROOT = Path(__file__).parents[1]
RUNS = json.loads((ROOT / "benchmarks" / "h100.json").read_text(encoding="utf-8"))["runs"]
PAGE = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


def job_of(run: dict[str, Any]) -> Job:
    return read_jobs(ROOT / "recipes" / f"{run['recipe']}.yaml", ["--attn_implementation", run["attention"]])[0]


@pytest.mark.parametrize("run", [run for run in RUNS if not run["torch_compile"]], ids=lambda run: run["recipe"])
def test_memory_was_within_five_percent_of_the_plan(run: dict[str, Any]) -> None:
    job = job_of(run)
    planned = peak(job, Place(run["engine"], 1, 1), job.micro_batch, 2, job.checkpointing)["peak"] / 2**30
    assert planned == pytest.approx(run["peak_gpu_gib"], rel=0.05)


def test_the_page_states_the_figures() -> None:
    for run in RUNS:
        compiled = "yes" if run["torch_compile"] else "no"
        cells = [run["recipe"], run["engine"], run["attention"], compiled, f"{run['length']:,}"]
        cells += [f"{run['tokens_per_second']:,}", f"{run['peak_gpu_gib']:.1f}"]
        assert f"| {' | '.join(cells)} |" in PAGE
    compiled, plain, masked = (run["tokens_per_second"] for run in RUNS[:3])
    products = strict_flops_per_token(job_of(RUNS[0]).shape, 0)
    shares = [f"{tokens * products / 989e12:.0%}" for tokens in (compiled, plain)]
    assert f"reaches {shares[0]} of the 989 TFLOP/s that the card is sold with, and {shares[1]} not compiled" in PAGE
    assert f"was {plain / masked:.2f} times as fast as `sdpa`" in PAGE


def test_the_page_states_what_every_shape_reached() -> None:
    runs = json.loads((ROOT / "benchmarks" / "gpu.json").read_text(encoding="utf-8"))["runs"]
    for run in runs:
        yes_no = [{True: "yes", False: "no"}[run[key]] for key in ("compiled", "checkpointing")]
        cells = [run["recipe"], f"{run['vocabulary']:,}", f"{run['row']:,}", str(run["micro-batch"]), run["attention"]]
        cells += [*yes_no, f"{run['tokens/s']:,.0f}"]
        assert f"| {' | '.join(cells)} | " in PAGE
        job = read_jobs(ROOT / "recipes" / run["recipe"] / "pretrain.yaml")[0]
        shape = replace(job.shape, vocab_size=run["vocabulary"])
        for key, per_token in (("MFU", strict_flops_per_token), ("PaLM", flops_per_token)):
            assert run[key] == pytest.approx(run["tokens/s"] * per_token(shape, run["row"]) / 989e12, abs=1e-3)
    narrow, wide = (
        run["tokens/s"] for run in runs if (run["recipe"], run["micro-batch"]) == ("transformer-1b-chat", 8)
    )
    assert f"{wide / narrow:.2f} times as\n  fast" in PAGE
