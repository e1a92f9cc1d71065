"""The report: the figures of report.json, one page that asks nothing of anyone, and runs that are not whole."""

import json
import math
import re
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import recipe

from fledge.cli import main
from fledge.planning.job import read_jobs
from fledge.planning.memory import Place, peak
from fledge.recipe import load_recipe, resolved
from fledge.results.charts import BUCKETS, Chart, line_chart, thinned
from fledge.results.compare import differing, overlap
from fledge.results.curves import spans
from fledge.results.gather import gather
from fledge.results.numbers import plain
from fledge.results.record import MADE_ROOM, SPIKE, Record, read_lines, read_metrics
from fledge.results.report import compare, write


FORMS = ("五言绝句", "七言绝句", "五言律诗", "七言律诗")
VERSIONS = {"python": "3.11.2", "fledge": "0.1.0", "torch": "2.13.0"}
POEMS = {
    "read": 57607,
    "dropped": {"irregular form": 14908, "duplicate": 635},
    "kept": {"train": 35002, "heldout": 988},
}
COMMAND = "fledge run recipes/tang-poems --on accelerate_configs/cpu.yaml"


def training(parameters: int, tokens: int, rate: float, **more: float) -> dict[str, Any]:
    """Results of a training stage."""
    times = {"tokens_per_second": rate, "train_seconds": tokens / rate}
    return {"parameters": parameters, "tokens": tokens, "steps": 200, **times, "final_loss": 3.2, **more}


STAGES: dict[str, tuple[str, float, dict[str, Any]]] = {
    "corpus": ("corpus", 14.2, {"poems": POEMS, "forms": {"train": dict.fromkeys(FORMS, 9000)}}),
    "tokenizer": ("tokenizer", 3.1, {"vocab_size": 6144, "characters_per_token": 1.08}),
    "prepare": ("prepare", 6.0, {"rows": 9000, "tokens": 2_300_000, "fill": 0.997, "dropped": 3}),
    "pretrain": ("pretrain", 1210.5, training(3_412_345, 11_500_000, 9803.4)),
    "prepare_sft": ("prepare", 4.0, {"rows": 7000, "tokens": 1_800_000, "fill": 0.95, "dropped": {"overlong": 12}}),
    "sft": ("sft", 402.0, training(3_412_345, 3_600_000, 9100.0)),
    "pairs": ("pairs", 95.0, {"pairs": 4000, "kinds": {"real over sampled": 2000, "real over shuffled": 2000}}),
    "dpo": ("dpo", 350.7, training(3_412_345, 900_000, 2610.0, step0_loss=0.6931)),
    "evaluate": ("evaluate", 160.3, {"requests": 800}),
    "export": ("export", 2.0, {"max_logit_difference": 0.0}),
}


def scores(bits: float, perfect: float) -> dict[str, Any]:
    """Scores of one evaluated model."""
    by_form = {form: perfect * (1 - 0.01 * index) for index, form in enumerate(FORMS)}
    rates = {"stop_rate": 0.98, "distinct_2": 0.71, "copied_line_rate": 0.0213}
    return {"bits_per_char": bits, "form_perfect": perfect, "form_perfect_by_form": by_form, **rates}


EVALUATION = {
    "trigram": {"bits_per_char": 7.412},
    "base": scores(5.873, 0.001),
    "sft": scores(5.702, 0.6423),
    "dpo": {**scores(5.754, 0.9135), "preference_accuracy": 0.957},
}


def poem(form: str, number: int) -> str:
    """Text in the shape of the form, different for each number below 7."""
    characters = "春江花月夜明时"
    line = (characters[number:] + characters[:number])[: 5 if form[0] == "五" else 7]
    couplet = f"{line}，{line[::-1]}。"
    return "\n".join([couplet] * (2 if form.endswith("绝句") else 4))


def steps_of(kind: str) -> list[dict[str, Any]]:
    """Lines of a training stage's metrics.jsonl."""
    each = STAGES[kind][1] / 201
    lines: list[dict[str, Any]] = []
    for step in range(1, 201):
        loss = 0.6931 * math.exp(-step / 90) if kind == "dpo" else 3.2 + 5.5 * math.exp(-step / 25)
        rate = 3e-3 * min(step / 20, 1, (201 - step) / 60)
        line = {"step": step, "epoch": step / 200, "loss": loss, "learning_rate": rate, "grad_norm": 1.0}
        line |= {"tokens_per_second": 9800 + 300 * math.sin(step), "tokens": 57_500 * step}
        if kind == "dpo":
            line |= {"rewards/accuracies": 1 - 0.5 * math.exp(-step / 40), "rewards/margins": step / 50}
        lines.append({"seconds": step * each, **line})
        if step % 50 == 0:
            lines.append({"seconds": step * each, "step": step, "eval_loss": loss + 0.05})
    return lines


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def write_run(run: Path) -> Path:
    """A whole run: ten stages, an evaluation, samples."""
    for name, (stage, seconds, results) in STAGES.items():
        folder = run / name
        folder.mkdir(parents=True)
        summary = {"stage": stage, "name": name, "seconds": seconds, "peak_memory_gb": 1.5, "results": results}
        (folder / "recipe.json").write_text("{}")
        (folder / "versions.json").write_text(json.dumps(VERSIONS))
        (folder / "summary.json").write_text(json.dumps(summary))
        write_lines(folder / "metrics.jsonl", steps_of(stage) if "steps" in results else [])
    entries = [
        {"name": name, "stage": stage, "seconds": seconds, "peak_memory_gb": 1.5, "skipped": False}
        for name, (stage, seconds, _) in STAGES.items()
    ]
    chain = {"wall_seconds": 2251.4, "peak_memory_gb": 1.873, "layout": "cpu_2proc", "machine": "2 CPU cores"}
    chain |= {"command": COMMAND, "date": "2025-11-22", "stages": entries}
    (run / "chain.json").write_text(json.dumps(chain))
    (run / "evaluate" / "evaluation.json").write_text(json.dumps(EVALUATION))
    samples = [
        {"model": model, "form": form, "title": f"{model}{form}{n}", "prompt": f"写一首{form}，第{n}首。"}
        | {"text": poem(form, n)}
        for model in ("base", "sft", "dpo")
        for n in range(5)
        for form in FORMS
    ]
    for sample in samples:
        number = int(sample["title"][-1])
        sample |= {"perfect": number != 2, "stopped": number != 2 or sample["form"] != FORMS[0]}
    write_lines(run / "evaluate" / "samples.jsonl", samples)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "tang-poems")


def cells(markdown: str, row: str) -> list[str]:
    """The cells after the first of a Markdown table's row."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_json_has_exactly_the_figures(run: Path) -> None:
    assert write(run) == run / "report.html"
    report = json.loads((run / "report.json").read_text())
    assert {"plan", "faults"} <= report.keys() and report.pop("faults") == []
    its = report.pop("plan")["sft"]
    assert its["planned"] == {"steps": None, "tokens": None, "seconds": None, "gib": None}  # its recipe.json is empty
    assert its["measured"]["tokens"] == 3_600_000 and its["measured"]["gib"] == 1.5e9 / 2**30
    assert report == {
        "wall_seconds": 2251.4,
        "peak_memory_gb": 1.873,
        "trigram": EVALUATION["trigram"],
        "base": EVALUATION["base"],
        "sft": EVALUATION["sft"],
        "dpo": {**EVALUATION["dpo"], "step0_loss": 0.6931},
        "tokens_per_second": {"pretrain": 9803.4, "sft": 9100.0, "dpo": 2610.0},
    }


def test_what_was_not_measured_is_null(tmp_path: Path) -> None:
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "recipe.json").write_text("{}")
    page = write(tmp_path).read_text()
    nothing = dict.fromkeys(("steps", "tokens", "seconds", "gib"))
    assert json.loads((tmp_path / "report.json").read_text()) == {
        "plan": {"pretrain": {"planned": nothing, "measured": nothing}},
        "faults": [],
        "wall_seconds": None,
        "peak_memory_gb": None,
        "trigram": {"bits_per_char": None},
        "base": {"bits_per_char": None, "form_perfect": None},
        "sft": {"bits_per_char": None, "form_perfect": None, "distinct_2": None},
        "dpo": dict.fromkeys(
            [
                *("bits_per_char", "form_perfect", "form_perfect_by_form", "stop_rate", "distinct_2"),
                *("copied_line_rate", "preference_accuracy", "step0_loss"),
            ]
        ),
        "tokens_per_second": {"pretrain": None, "sft": None, "dpo": None},
    }
    assert "Not finished: pretrain." in page
    assert "Not in this run: corpus, tokenizer, prepare, sft, pairs, dpo, evaluate, export." in page
    assert "No chain.json" in page and "Nothing logged yet." in page


def test_other_models_and_scores_pass_through(run: Path) -> None:
    path = run / "evaluate" / "evaluation.json"
    path.write_text(json.dumps(EVALUATION | {"ipo": {"bits_per_char": 5.6, "novelty": 0.25}}))
    write(run)
    assert json.loads((run / "report.json").read_text())["ipo"] == {"bits_per_char": 5.6, "novelty": 0.25}
    assert cells((run / "report.md").read_text(), "novelty")[-1] == "0.25"


ENGLISH = {"bits_per_char": 2.2, "stop_rate": 0.9, "distinct_2": 0.4, "answers": 6, "choice_chance": 0.25}


def write_english_run(run: Path) -> Path:
    """A run whose corpus has no judge, holds the pairs itself and has several sources; no trigram was asked for."""
    run = write_run(run)
    for name in ("corpus", "evaluate"):
        path = run / name / "summary.json"
        summary = json.loads(path.read_text())
        sizes = {"train": {"rows": 9000, "characters": 5_000_000}, "heldout": {"rows": 400, "characters": 200_000}}
        documents = {"documents": {"wiki": sizes, "recipes": sizes}, "rows": {"pairs/train": {"steps": 7}}}
        path.write_text(json.dumps(summary | {"results": documents if name == "corpus" else {}}))
    for file in (run / "pairs").iterdir():
        file.unlink()
    (run / "pairs").rmdir()
    evaluation = {
        model: ENGLISH
        | {"bits_per_byte": bits, "bits_per_byte_by_source": {"wiki": bits, "recipes": bits / 2}}
        | {"choice_accuracy": right, "choice_accuracy_by_form": {"from the lead": right, "from the title": 0.25}}
        for model, bits, right in (("base", 2.125, 0.31), ("sft", 2.25, 0.42), ("dpo", 2.5, 0.53))
    }
    (run / "evaluate" / "evaluation.json").write_text(json.dumps(evaluation))
    samples = [
        {
            "model": "dpo",
            "form": "recipe",
            "title": "Pie",
            "prompt": f"How do I make Pie <{n}>?",
            "text": "You need:\n- 1",
        }
        | {"stopped": n > 0}
        for n in range(3)
    ]
    write_lines(run / "evaluate" / "samples.jsonl", samples)
    return run


def test_a_run_without_a_judge(tmp_path: Path) -> None:
    run = write_english_run(tmp_path / "pocket-english")
    page = write(run).read_text()
    report, markdown = json.loads((run / "report.json").read_text()), (run / "report.md").read_text()
    # Nothing of poems and their forms, not even as null; what was not measured and could have been stays null.
    assert "trigram" not in report and not any("form_perfect" in report[model] for model in ("base", "sft", "dpo"))
    assert "copied_line_rate" not in report["dpo"] and report["dpo"]["preference_accuracy"] is None
    for text in (page, markdown):
        told = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL).replace(COMMAND, "")
        assert "poem" not in told.lower()
        assert "by form" not in text and "miss the form" not in text and "Not in this run" not in text
        assert (
            "not perfect" not in text and "trained from nothing on 11.5 million tokens from 18,000 documents" in text
        )
    assert "zh-Hans" not in page and 'class="imperfect"' not in page
    assert page.count("did not stop</small>") == 1 and "<h4>How do I make Pie &lt;0&gt;?</h4>" in page
    assert cells(markdown, "Bits per byte") == ["2.125", "2.250", "2.500"]
    assert cells(markdown, "recipes") == ["1.062", "1.125", "1.250"]
    assert cells(markdown, "from the lead") == ["31.0%", "42.0%", "53.0%"]
    assert cells(markdown, "right choices after DPO") == ["53.0%", "chance is 25.0%"]
    assert cells(markdown, "bits per byte") == ["2.125", ""]


def test_page_asks_nothing_of_anyone(run: Path) -> None:
    page = write(run).read_text()
    assert not re.search(r"https?://|<script|<link|<img|@import|url\(| on\w+=", page)
    assert page.count("<svg") == page.count("</svg>") == 4 + 2
    assert "3.41 million parameters, trained from nothing on 11.5 million tokens from 35,002 poems" in page
    assert escape(COMMAND) in page and "14,908" in page and "2.13.0" in page


def test_everything_from_files_is_escaped(run: Path) -> None:
    samples = run / "evaluate" / "samples.jsonl"
    hostile = (
        samples.read_text()
        .replace("写一首五言绝句，第0首。", "<b>&")
        .replace("春江花月夜，", "<script>alert(1)</script>")
    )
    samples.write_text(hostile)
    summary = run / "corpus" / "summary.json"
    summary.write_text(summary.read_text().replace("duplicate", "<i>twice"))
    page = write(run).read_text()
    assert "&lt;b&gt;&amp;" in page and "&lt;i&gt;twice" in page
    assert not re.search("<b>&|<script|<i>twice", page)
    assert r"**\<b\>&** (五言绝句)" in (run / "report.md").read_text()


def test_samples_are_the_first_of_each_form_side_by_side(run: Path) -> None:
    expected = [f"写一首{form}，第{number}首。" for form in FORMS for number in range(3)]
    page = write(run).read_text()
    asked = re.sub(r"</?span[^>]*>", "", "".join(re.findall(r"<h4>.*?</h4>", page)))
    assert re.findall("<h4>(.*?)</h4>", asked) == expected
    assert re.findall("<h5>(.*?)</h5>", page) == ["base", "sft", "dpo"] * 12
    assert page.count("not perfect</small>") == 4 * 3 and page.count("did not stop</small>") == 3
    assert poem(FORMS[3], 1) in page
    said = "The first 3 prompts of each form, 12 in all, in the order of the file, answered by base, sft and dpo"
    assert said in page
    markdown = (run / "report.md").read_text()
    assert re.findall(r"^\*\*(.*?)\*\*", markdown, re.MULTILINE) == expected
    assert markdown.count(f"```text\n{poem(FORMS[3], 1)}\n```") == 3


def test_markdown_has_the_figures_of_the_json(run: Path) -> None:
    write(run)
    report, markdown = json.loads((run / "report.json").read_text()), (run / "report.md").read_text()
    models = ("trigram", "base", "sft", "dpo")
    assert cells(markdown, "Bits per character") == [f"{report[model]['bits_per_char']:.3f}" for model in models]
    assert cells(markdown, "Perfect poems")[1:] == [f"{report[model]['form_perfect']:.1%}" for model in models[1:]]
    for form, share in report["dpo"]["form_perfect_by_form"].items():
        assert cells(markdown, form)[-1] == f"{share:.1%}"
    for name, key in [("Stops", "stop_rate"), ("Distinct-2", "distinct_2"), ("Copied lines", "copied_line_rate")]:
        assert cells(markdown, name)[-1] == f"{report['dpo'][key]:.1%}"
    assert cells(markdown, "Preference accuracy") == ["–", "–", "–", f"{report['dpo']['preference_accuracy']:.1%}"]
    assert cells(markdown, "minutes")[0] == f"{report['wall_seconds'] / 60:.1f}"
    assert cells(markdown, "memory")[0] == f"{report['peak_memory_gb']:.2f} GB"
    assert f"loss at step 0: {report['dpo']['step0_loss']:.4f}" in markdown


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_without_one_stage(run: Path, stage: str) -> None:
    for file in (run / stage).iterdir():
        file.unlink()
    (run / stage).rmdir()
    page = write(run).read_text()
    kind, _, _ = STAGES[stage]
    others = [name for name, (other, _, _) in STAGES.items() if other == kind and name != stage]
    assert (f"Not in this run: {kind}." in page) == (not others)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_with_an_unfinished_stage(run: Path, stage: str) -> None:
    (run / stage / "summary.json").unlink()
    page = write(run).read_text()
    assert f"Not finished: {stage}." in page
    # The figures in the folder of an evaluation under way are those of the one before.
    assert ("Perfect, by form" in page) == (stage != "evaluate")


def test_stages_done_before_are_named(run: Path) -> None:
    chain = json.loads((run / "chain.json").read_text())
    chain["stages"][0]["skipped"] = True
    (run / "chain.json").write_text(json.dumps(chain))
    assert "Done before and not run again: corpus." in write(run).read_text()


def test_a_resumed_run_replaces_the_steps_it_repeats(run: Path) -> None:
    path = run / "sft" / "metrics.jsonl"
    write_lines(path, [{"step": step, "loss": loss} for step, loss in [(1, 9), (2, 8), (3, 7), (2, 6), (3, 5)]])
    sft = next(stage for stage in gather(run).stages if stage.name == "sft")
    assert sft.points("loss") == [(1, 9), (2, 6), (3, 5)]


def test_results_set_aside_are_not_the_run(run: Path) -> None:
    (run / "sft").rename(run / "sft.previous")
    assert "Not in this run: sft." in write(run).read_text()


def test_a_chart_draws_what_is_finite() -> None:
    chart = Chart("loss", "nats", {"train": [(1, 4.0), (2, math.nan), (3, 2.0)], "held out": []})
    drawn = line_chart(chart)
    assert chart.not_drawn == 1
    assert "nan" not in drawn and drawn.count("<circle") == 2
    assert line_chart(Chart("loss", "nats", {"train": [(7, 0.0)]})).count("<circle") == 1


@pytest.mark.parametrize(
    ("value", "written"),
    [
        *[(None, "–"), (True, "yes"), (35002, "35,002"), (9803.4, "9,803"), (123456.7, "123,457"), (0.0, "0")],
        *[(0.99731, "0.9973"), (1e-5, "1e-05"), (["a.parquet", 2], "a.parquet, 2"), (math.nan, "nan")],
    ],
)
def test_values_as_a_reader_wants_them(value: Any, written: str) -> None:
    assert plain(value) == written


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_stages(tmp_path: Path, make: bool, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "nothing"
    if make:
        (folder / "checkpoint-10").mkdir(parents=True)
    assert main(["report", str(folder)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"fledge: {folder}: no s")
    assert "name the folder" in message


def test_a_damaged_file_is_named(run: Path) -> None:
    (run / "dpo" / "summary.json").write_text('{"stage": "dpo"')
    with pytest.raises(ValueError, match=r"dpo/summary.json: not JSON .* run the stage"):
        write(run)


# --- the plan


PRETRAIN = """\
model_config: {vocab_size: 512, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 96}
tokenizer: runs/planned/tokenizer
prepared: runs/planned/prepare
output_dir: runs/planned/pretrain
tokens_per_step: 1024
per_device_train_batch_size: 2
max_steps: 5
bf16: false
"""


def write_planned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe, and what its run on two GPUs would have left; returns the run."""
    monkeypatch.chdir(folder)
    stated = folder / "recipes" / "planned" / "pretrain.yaml"
    stated.parent.mkdir(parents=True)
    stated.write_text(PRETRAIN)
    run = folder / "runs" / "planned"
    for name in ("prepare", "pretrain"):
        (run / name).mkdir(parents=True)
    train = {"rows": 100, "sources": [], "sha256": "0" * 64}
    (run / "prepare" / "manifest.json").write_text(json.dumps({"max_length": 128, "train": train}))
    (run / "prepare" / "recipe.json").write_text("{}")
    told = load_recipe("pretrain", stated)
    values = resolved(told, {"gradient_accumulation_steps": 2})
    (run / "pretrain" / "recipe.json").write_text(json.dumps(values))
    (run / "pretrain" / "config.json").write_text(json.dumps({"model_type": "llama", **told.values["model_config"]}))
    measured = {
        "steps": 5,
        "tokens": 5000,
        "train_seconds": 2.0,
        "processes": 2,
        "engine": "ddp",
        "peak_gpu_gib": 0.25,
    }
    summary = {"stage": "pretrain", "name": "pretrain", "seconds": 3.0, "peak_memory_gb": 1.0, "results": measured}
    (run / "pretrain" / "summary.json").write_text(json.dumps(summary))
    return run


def test_the_plan_is_that_of_fledge_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_planned(tmp_path, monkeypatch)
    write(run)
    its = json.loads((run / "report.json").read_text())["plan"]["pretrain"]
    (job,) = read_jobs(Path("recipes/planned"))
    bytes_held = peak(job, Place("ddp", 2, 1), 2, 2, False)["peak"]
    # Attention: 4 matrices of 64 x 64; the MLP: 3 of 64 x 96; norms: 2 a layer and one at the end; head and embedding.
    parameters = 2 * (4 * 64 * 64 + 3 * 64 * 96 + 2 * 64) + 64 + 2 * 512 * 64
    flops = 5 * 1024 * (6 * parameters + 12 * 2 * 64 * 128)
    assert its["planned"]["steps"] == 5 and its["planned"]["tokens"] == 5 * 1024
    assert its["planned"]["seconds"] == pytest.approx(flops / (2 * 0.4 * 989e12))
    assert its["planned"]["gib"] == pytest.approx(bytes_held / 2**30)
    assert its["measured"] == {"steps": 5, "tokens": 5000, "seconds": 2.0, "gib": 0.25}
    markdown = (run / "report.md").read_text()
    assert cells(markdown, "pretrain: tokens") == ["5,120", "5,000", "97.7%"]
    assert cells(markdown, "pretrain: memory")[1] == "0.25 GiB"


# --- time, and what was met


def test_all_stages_lie_on_one_axis_of_time(run: Path) -> None:
    its = gather(run)
    placed = spans(its)
    assert [span.begin for span in placed[1:]] == [span.end for span in placed[:-1]]
    assert placed[-1].end == pytest.approx(sum(seconds for _, seconds, _ in STAGES.values()))
    page = write(run).read_text()
    loss = page[page.index("loss over minutes of the run") :].split("</svg>")[0]
    assert re.findall(r'class="band".*?<title>(\w+)</title>', loss) == ["pretrain", "sft", "dpo"]
    # Held-out losses of a stage stand where its training losses stand, and stages do not overlap.
    lines = re.findall(r'class="line s(\d)" d="M([\d.]+) .*?L([\d.]+) [\d.]+"', loss)
    train = [(float(first), float(last)) for tone, first, last in lines if tone == "0"]
    assert len(lines) == 6 and len(train) == 3
    assert all(before[1] <= after[0] for before, after in pairwise(train))


def test_a_line_of_very_many_points_keeps_its_peaks() -> None:
    points = [(float(step), math.sin(step)) for step in range(10 * BUCKETS)]
    points[1234] = (1234.0, 50.0)
    points[777] = (777.0, -50.0)
    drawn = thinned(points)
    assert {(1234.0, 50.0), (777.0, -50.0), points[0], points[-1]} <= set(drawn)
    assert drawn == sorted(drawn) and len(drawn) <= 2 * BUCKETS + 2
    assert thinned(points[: 2 * BUCKETS]) == points[: 2 * BUCKETS]


def test_efficiency_is_drawn_where_it_was_logged(run: Path) -> None:
    assert "MFU" not in write(run).read_text()
    path = run / "sft" / "metrics.jsonl"
    write_lines(
        path, [{**line, "mfu": 0.41, "flops_per_second": 4.1e14} for line in steps_of("sft") if "loss" in line]
    )
    page = write(run).read_text()
    assert "MFU over minutes of the run: sft from 0.41 to 0.41" in page
    assert "arithmetic over minutes of the run: sft from 410T to 410T" in page


def attempt(run: Path, begin: int, end: int) -> Record:
    """An attempt at the stage `sft` of a run that logs the steps after `begin` up to `end`."""
    record = Record(
        recipe(run, "sft", output_dir=run / "sft", model_name_or_path="m", prepared="p", tokens_per_step=8)
    )
    record.began -= 60.0
    record.begin_at(begin)
    for step in range(begin + 1, end + 1):
        record.log(step=step, loss=9.0 - step)
    return record


def test_a_resumed_stage_says_so(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 7)  # killed; its newest checkpoint is that of step 4
    attempt(tmp_path, 4, 6).note(SPIKE, step=6, loss=40.5, left_out=True)
    third = attempt(tmp_path, 6, 8)  # made room after step 6
    third.note(MADE_ROOM, step=8)
    attempt(tmp_path, 8, 9).finish(steps=9)
    (tmp_path / "sft" / "damaged-checkpoint-8").mkdir()
    lines = list(read_metrics(tmp_path / "sft"))
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    assert lines[-1]["seconds"] == pytest.approx(240, abs=20)  # four attempts of a minute
    page = write(tmp_path).read_text()
    faults = json.loads((tmp_path / "report.json").read_text())["faults"]
    told = [(its["what"], its.get("step"), its.get("steps_redone")) for its in faults]
    assert told == [
        ("resumed", 4, 3),
        ("loss spike, update left out", 6, None),
        ("resumed", 6, 0),
        ("asked to make room", 8, None),
        ("resumed", 8, 0),
        ("checkpoint set aside", None, None),
    ]
    assert "3 logged steps done again" in page and "loss 40.5000" in page and "damaged-checkpoint-8" in page
    marks = re.findall(r'<path class="mark"[^>]*><title>([^<]*)</title>', page.split("</svg>")[0])
    assert marks == ["resumed at step 4", "resumed at step 6", "resumed at step 8"]


def test_a_stage_done_once_more_begins_with_nothing(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 7).finish(steps=7)
    again = attempt(tmp_path, 0, 2)
    assert again.seconds == pytest.approx(60, abs=20)
    assert [event["step"] for event in read_lines(tmp_path / "sft" / "events.jsonl")] == [0]
    again.finish(steps=2)
    page = write(tmp_path).read_text()
    assert "sft: no resumption, no request to make room, no loss spike, no damaged checkpoint." in page


def test_what_nobody_recorded_is_not_called_quiet(run: Path) -> None:
    markdown = write(run).with_suffix(".md").read_text()
    assert "pretrain, sft, dpo: no events.jsonl, so what was met on the way is not known." in markdown
    assert cells(markdown, "prepare_sft: overlong") == ["12"]


# --- what other evaluations find


def test_intervals_tasks_and_checkpoints_are_shown(run: Path) -> None:
    task = {"acc": 0.2513, "acc_stderr": 0.0126, "num_fewshot": 5, "version": 1.0, "limit": 1000}
    dpo = EVALUATION["dpo"] | {"intervals": {"bits_per_char": [5.7, 5.81]}, "tasks": {"<piqa>": task}}
    points = [{"model": "base", "step": step, "tokens": step * 1000} for step in (10, 20)]
    for point, bits in zip(points, (2.5, 2.25), strict=True):
        point |= {"bits_per_byte": bits, "loss": bits * 2, "perplexity": math.exp(bits * 2)}
    evaluation = EVALUATION | {"dpo": dpo, "checkpoints": points}
    (run / "evaluate" / "evaluation.json").write_text(json.dumps(evaluation))
    page = write(run).read_text()
    markdown = (run / "report.md").read_text()
    assert "5.754\n[5.700, 5.810]" in page
    assert cells(markdown, r"\<piqa\>") == ["1", "5", "1,000", "25.1% ± 1.3%"] and "<piqa>" not in page
    assert "bits per byte of checkpoints over tokens: base from 2.5 to 2.25" in page
    assert ["20", "20,000", "2.250", "4.500", "90.017"] in [
        [cell.strip() for cell in line.split("|")[2:-1]]
        for line in markdown.splitlines()
        if line.startswith("| base |")
    ]


# --- several runs


def told(run: Path, **values: Any) -> None:
    """Give every stage of a run a recipe.json of these keys and of paths below the run."""
    for name in STAGES:
        if (run / name).is_dir():
            keys = {
                "output_dir": str(run / name),
                "corpora": [{"path": str(run / "corpus" / "a"), "weight": 1}],
                **values,
            }
            content = {key: {"value": value, "from": "default"} for key, value in keys.items()}
            (run / name / "recipe.json").write_text(json.dumps(content))


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """The same run twice, in folders of their own."""
    runs = [write_run(tmp_path / "a" / "poems"), write_run(tmp_path / "b" / "poems")]
    for each in runs:
        told(each, seed=1, model_config={"hidden_size": 64, "layers": 2})
    return runs


def test_runs_that_are_the_same_differ_in_nothing(two: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *map(str, two)]) == 0
    html = two[0] / "comparison.html"
    assert capsys.readouterr().out == f"{html}\n"
    assert (
        "No key of any stage differs." in html.read_text() and "Versions: the same in all of them" in html.read_text()
    )
    assert json.loads(html.with_suffix(".json").read_text())["recipe_keys_that_differ"] == {}
    assert cells(html.with_suffix(".md").read_text(), "dpo: Perfect poems") == ["91.3%", "91.3%", "–"]


def test_a_comparison_names_exactly_the_keys_that_differ(two: list[Path], tmp_path: Path) -> None:
    told(two[1], seed=2, model_config={"hidden_size": 96, "layers": 2}, note="<script>")
    path = two[1] / "dpo" / "versions.json"
    path.write_text(json.dumps(VERSIONS | {"torch": "2.14.0"}))
    html = compare(two, tmp_path / "page" / "c.html")
    keys = ("model_config.hidden_size", "note", "seed")
    runs = [gather(each) for each in two]
    assert list(differing(runs)) == [f"{stage}: {key}" for stage in STAGES for key in keys]
    page, markdown = html.read_text(), html.with_suffix(".md").read_text()
    assert cells(markdown, "sft: model_config.hidden_size") == ["64", "96"]
    assert cells(markdown, "sft: note") == ["–", r"\<script\>"] and "<script" not in page
    assert cells(markdown, "torch") == ["2.13.0", "2.13.0 and 2.14.0"]
    assert not re.search(r"https?://|<link|<img|@import|url\(| on\w+=", page)
    assert page.count('class="line s1"') == page.count('class="line s0"') == 3 * 3
    assert "poems (1)" in page and "poems (2)" in page


def test_a_comparison_says_whether_intervals_overlap(two: list[Path]) -> None:
    for each, (low, high) in zip(two, [(5.6, 5.8), (5.7, 5.9)], strict=True):
        models = {
            name: EVALUATION[name] | {"intervals": {"bits_per_char": [low + shift, high + shift]}}
            for name, shift in (("sft", 0.0), ("dpo", low))
        }
        (each / "evaluate" / "evaluation.json").write_text(json.dumps(EVALUATION | models))
    html = compare(two)
    found = json.loads(html.with_suffix(".json").read_text())["intervals_overlap"]
    assert found["sft: bits_per_char"] is True and found["base: bits_per_char"] is None
    assert cells(html.with_suffix(".md").read_text(), "sft: Bits per character")[-1] == "yes"
    assert overlap([[0, 1], [2, 3]]) is False and overlap([[0, 2], [1, 4], [3, 5]]) is False
    assert overlap([[0, 1], [1, 2]]) is True and overlap([[0, 1], None]) is None


def test_a_comparison_says_what_a_run_lacks(two: list[Path]) -> None:
    for file in (two[1] / "dpo").iterdir():
        file.unlink()
    (two[1] / "dpo").rmdir()
    (two[1] / "sft" / "summary.json").unlink()
    page = compare(two).read_text()
    assert "poems (2) has no dpo." in page and "poems (2) has not finished sft." in page
    assert "poems (1) has no" not in page


@pytest.mark.parametrize(
    "argv", [["nowhere"], ["a/poems", "nowhere"], ["a/poems", "--html", "page.txt"], ["a/poems"] * 7]
)
def test_a_report_that_cannot_be(
    two: list[Path], argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(two[0].parents[1])
    assert main(["report", *argv]) == 2
    assert re.match(
        r"fledge: (nowhere: no such folder|--html page.txt: the page ends with .html|report: 7 runs; )",
        capsys.readouterr().err,
    )
