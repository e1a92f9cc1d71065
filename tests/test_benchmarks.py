"""The benchmarks can be run: that they start, the one for a GPU on a CPU, and (slow) each at its smallest size."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
FILES = sorted(path for path in ROOT.glob("benchmarks/*.py") if path.stem not in ("common", "nanogpt"))
OF_A_RUN = {
    "dpo": ("--steps", "2"),
    "generation": ("--requests", "4"),
    "hub": ("--steps", "20", "--save_steps", "10"),
    "overheads": ("--steps", "2"),
    "quality": ("--seconds", "1"),
    "same": ("--steps", "2", "--ways", "fledge", "logits twice", "another seed"),
    "sft": ("--steps", "1"),
    "step": ("--shape", "tang", "--steps", "1"),
}
"""Of the benchmarks that read a run of the demo, what makes them small."""
RUN = ROOT / "runs" / "tang-poems"


def benchmark(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(path), *words], cwd=ROOT, env=one_thread, capture_output=True, text=True
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_benchmark_says_what_it_measures(path: Path) -> None:
    done = benchmark(path, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python benchmarks/{path.name}" in done.stdout
    assert path.stem in {*OF_A_RUN, "prepare", "gpu", "attention", "loss"}


def test_without_a_run_a_benchmark_says_where_one_comes_from(tmp_path: Path) -> None:
    for name in OF_A_RUN:
        done = benchmark(ROOT / "benchmarks" / f"{name}.py", str(tmp_path / "none"))
        assert done.returncode == 2 and "no such folder; make demo makes it" in done.stderr


def test_the_path_of_the_gpu_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    tiny = ("--device", "cpu", "--tiny", "--recipes", "lillm", "--compile", "no", "--steps", "1")
    done = benchmark(
        ROOT / "benchmarks" / "gpu.py", *tiny, "--tokens_per_step", "256", "--json", str(tmp_path / "gpu.json")
    )
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["runs"]
    assert [run["checkpointing"] for run in runs] == [True, False]
    for run in runs:
        assert [run[key] for key in ("recipe", "vocabulary", "row", "attention")] == ["lillm", 1000, 64, "sdpa"]
        assert run["tokens/s"] > 0 and 0 < run["MFU"] < run["PaLM"] < 1
        assert f"| lillm | 1,000 | 64 | 2 | sdpa | no | {'yes' if run['checkpointing'] else 'no'} | " in done.stdout


def test_attention_is_measured_and_drawn(tmp_path: Path) -> None:
    words = ("--rows", "256", "--document", "50", "--heads", "1", "--rounds", "1", "--svg", str(tmp_path / "a.svg"))
    done = benchmark(ROOT / "benchmarks" / "attention.py", *words, "--json", str(tmp_path / "a.json"))
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["runs"]
    assert [run["document"] for run in runs] == [50, 256] and all(run["varlen"] > 0 for run in runs)
    assert "varlen, whole rows" in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_a_table_takes_the_place_of_the_one_before_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Before.\n\n<!-- one -->\nold\n<!-- end of one -->\n\nAfter.\n", encoding="utf-8")
    code = "import sys; from pathlib import Path; from common import put; put(Path(sys.argv[1]), *sys.argv[2:4])"
    for name, text in (("one", "new\n"), ("two", "more\n"), ("one", "newest\n")):
        subprocess.run([sys.executable, "-c", code, page, name, text], cwd=ROOT / "benchmarks", check=True)
    one, two = (
        f"<!-- {name} -->\n{text}\n<!-- end of {name} -->\n" for name, text in (("one", "newest"), ("two", "more"))
    )
    assert page.read_text(encoding="utf-8") == f"Before.\n\n{one}\nAfter.\n\n{two}"


def test_the_page_has_every_table_with_its_command_and_no_path_of_a_machine() -> None:
    tables = re.findall(r"<!-- (\w[\w ]*) -->\n(.*?)<!-- end of \1 -->", PAGE, re.DOTALL)
    several = {"step whole", "step short", "step tang", "same tang", "same lillm"}
    assert {name for name, _ in tables} == {*OF_A_RUN, "prepare", "attention", "loss", *several} - {"step", "same"}
    for name, text in tables:
        head, table = text.split("\n\n", 1)
        head = head.replace("\n", " ")
        assert re.match(r"\d{4}-\d\d-\d\d, ", head) and f"`python benchmarks/{name.split()[0]}.py" in head
        assert table.startswith("| ") and "/tmp" not in head and " /" not in head


@pytest.mark.slow
def test_the_loss_is_that_of_full_logits_in_every_way(tmp_path: Path) -> None:
    words = ("--vocabularies", "512", "--tokens", "64", "--rounds", "1", "--json", str(tmp_path / "loss.json"))
    done = benchmark(ROOT / "benchmarks" / "loss.py", *words)
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "loss.json").read_text(encoding="utf-8"))["runs"]
    assert [run["way"] for run in runs] == ["logits", "torch", "trl", "fledge"]
    for run in runs:
        assert run["gradients"] < 0.02  # bfloat16
        assert run["loss"] < (0.05 if run["way"] == "torch" else 2e-3), run  # torch's is rounded to bfloat16


@pytest.mark.slow
@pytest.mark.skipif(not RUN.is_dir(), reason="needs runs/tang-poems, which make demo makes")
@pytest.mark.parametrize("name", OF_A_RUN)
def test_each_runs_at_its_smallest(name: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    words = (str(RUN), "--rounds", "1", *OF_A_RUN[name], "--json", str(figures))
    done = benchmark(ROOT / "benchmarks" / f"{name}.py", *words)
    assert done.returncode == 0, done.stderr
    medians = json.loads(figures.read_text(encoding="utf-8"))["medians"]
    if name == "overheads":
        assert 0 < medians["help"] < medians["start"] and 0 < medians["saving"] < 1 and 0 < medians["data wait"] < 1
    else:
        ratios = [list(way.values())[-1] for way in medians]
        assert ratios[0] == 1 and min(ratios) > 0
    if name == "dpo":
        assert max(way["losses apart"] for way in medians) < 1e-3  # the same losses
    if name == "same":
        apart = {way["way"]: way["losses apart"] for way in medians}
        assert apart["logits twice"] < 1e-3 < apart["another seed"]
