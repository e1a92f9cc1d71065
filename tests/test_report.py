"""The report: the figures of report.json, one page that asks nothing of anyone, and runs that are not whole."""

import json
import math
import re
from html import escape
from pathlib import Path
from typing import Any

import pytest

from fledge.cli import main
from fledge.results.charts import Chart, line_chart
from fledge.results.gather import gather
from fledge.results.numbers import plain
from fledge.results.report import write


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
    lines: list[dict[str, Any]] = []
    for step in range(1, 201):
        loss = 0.6931 * math.exp(-step / 90) if kind == "dpo" else 3.2 + 5.5 * math.exp(-step / 25)
        rate = 3e-3 * min(step / 20, 1, (201 - step) / 60)
        line = {"step": step, "epoch": step / 200, "loss": loss, "learning_rate": rate, "grad_norm": 1.0}
        line |= {"tokens_per_second": 9800 + 300 * math.sin(step), "tokens": 57_500 * step}
        if kind == "dpo":
            line |= {"rewards/accuracies": 1 - 0.5 * math.exp(-step / 40), "rewards/margins": step / 50}
        lines.append({"seconds": step * 6.0, **line})
        if step % 50 == 0:
            lines.append({"seconds": step * 6.0, "step": step, "eval_loss": loss + 0.05})
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
        {"model": model, "form": form, "title": f"{model}{form}{n}", "prompt": "写一首诗。", "text": poem(form, n)}
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
    assert json.loads((tmp_path / "report.json").read_text()) == {
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
    assert page.count("<svg") == page.count("</svg>") == 3 * 3 + 2
    assert "3.41 million parameters, trained from nothing on 11.5 million tokens from 35,002 poems" in page
    assert escape(COMMAND) in page and "14,908" in page and "2.13.0" in page


def test_everything_from_files_is_escaped(run: Path) -> None:
    samples = run / "evaluate" / "samples.jsonl"
    hostile = samples.read_text().replace("dpo五言绝句0", "<b>&").replace("春江花月夜，", "<script>alert(1)</script>")
    samples.write_text(hostile)
    summary = run / "corpus" / "summary.json"
    summary.write_text(summary.read_text().replace("duplicate", "<i>twice"))
    page = write(run).read_text()
    assert "&lt;b&gt;&amp;" in page and "&lt;i&gt;twice" in page
    assert not re.search("<b>&|<script|<i>twice", page)
    assert r"**\<b\>&** (五言绝句)" in (run / "report.md").read_text()


def test_samples_are_the_first_of_each_form(run: Path) -> None:
    expected = [f"dpo{form}{number}" for form in FORMS for number in range(3)]
    page = write(run).read_text()
    assert re.findall(r'<h4 lang="zh-Hans">(.*?)</h4>', page) == expected
    assert page.count("not perfect</small>") == 4 and page.count("did not stop</small>") == 1
    assert poem(FORMS[3], 1) in page
    assert "The first 3 answers of dpo to each form, 12 in all" in page
    markdown = (run / "report.md").read_text()
    assert re.findall(r"^\*\*(.*?)\*\*", markdown, re.MULTILINE) == expected
    assert f"```text\n{poem(FORMS[3], 1)}\n```" in markdown


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
