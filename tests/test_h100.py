"""What one H100 took, as benchmarks/h100.json holds it, beside what `fledge plan` says of the same recipes."""

import json
from pathlib import Path
from typing import Any

import pytest

from fledge.planning.compute import flops_per_token
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
    job = job_of(RUNS[0])
    per_token = flops_per_token(job.shape, job.length)
    assert f"{compiled * per_token / 989e12:.0%} of the 989 TFLOP/s" in PAGE
    assert f"Not compiled it is {plain * per_token / 989e12:.0%}" in PAGE
    assert f"was {plain / masked:.2f} times as fast as `sdpa`" in PAGE
