"""The figures a README states are those of the run whose report is committed beside it, and they keep the promises."""

import json
import math
from pathlib import Path

import pytest


RECIPE = Path(__file__).parent.parent / "recipes" / "tang-poems"
REPORT = json.loads((RECIPE / "report.json").read_text(encoding="utf-8"))


def figure(path: str) -> float:
    value = REPORT
    for name in path.split("."):
        value = value[name]
    return value


SHOWN = {
    "wall_seconds": lambda v: f"{v / 60:.1f} minutes",
    "peak_memory_gb": lambda v: f"{v:.1f} GB",
    "trigram.bits_per_char": lambda v: f"{v:.3f}",
    "base.bits_per_char": lambda v: f"{v:.3f}",
    "sft.bits_per_char": lambda v: f"{v:.3f}",
    "dpo.bits_per_char": lambda v: f"{v:.3f}",
    "base.form_perfect": lambda v: f"{v:.1%}",
    "sft.form_perfect": lambda v: f"{v:.1%}",
    "dpo.form_perfect": lambda v: f"{v:.1%}",
    "dpo.stop_rate": lambda v: f"{v:.1%}",
    "sft.distinct_2": lambda v: f"{v:.3f}",
    "dpo.distinct_2": lambda v: f"{v:.3f}",
    "dpo.copied_line_rate": lambda v: f"{v:.2%}",
    "dpo.preference_accuracy": lambda v: f"{v:.1%}",
    "dpo.step0_loss": lambda v: f"{v:.4f}",
    "tokens_per_second.pretrain": lambda v: f"{v:,.0f}",
    "tokens_per_second.sft": lambda v: f"{v:,.0f}",
    "tokens_per_second.dpo": lambda v: f"{v:,.0f}",
}


def shown(path: str) -> str:
    value = figure(path)
    return "not measured" if value is None else SHOWN[path](value)


@pytest.mark.parametrize("path", SHOWN)
def test_readme_states_what_was_measured(path: str) -> None:
    line = next(
        line for line in (RECIPE / "README.md").read_text(encoding="utf-8").splitlines() if f"`{path}`" in line
    )
    assert shown(path) in line


ENGLISH = RECIPE.with_name("pocket-english")
ENGLISH_SHOWN = {
    "wall_seconds": SHOWN["wall_seconds"],
    "peak_memory_gb": SHOWN["peak_memory_gb"],
    "trigram.bits_per_byte": SHOWN["trigram.bits_per_char"],
    "base.bits_per_byte": SHOWN["base.bits_per_char"],
    "sft.choice_accuracy": SHOWN["dpo.form_perfect"],
    "sft.stop_rate": SHOWN["dpo.stop_rate"],
    "dpo.stop_rate": SHOWN["dpo.stop_rate"],
    "dpo.preference_accuracy": SHOWN["dpo.preference_accuracy"],
    "dpo.step0_loss": SHOWN["dpo.step0_loss"],
}


@pytest.mark.parametrize("path", ENGLISH_SHOWN)
def test_pocket_english_states_what_was_measured(path: str) -> None:
    lines = (ENGLISH / "README.md").read_text(encoding="utf-8").splitlines()
    stage, _, name = path.rpartition(".")
    report = json.loads((ENGLISH / "report.json").read_text(encoding="utf-8"))
    found = (report[stage] if stage else report)[name]
    assert f"| {ENGLISH_SHOWN[path](found)} |" in next(line for line in lines if f"`{path}`" in line)


def test_front_page_states_what_was_measured() -> None:
    text = (RECIPE.parent.parent / "README.md").read_text(encoding="utf-8")
    for path in (
        "base.bits_per_char",
        "trigram.bits_per_char",
        "sft.form_perfect",
        "dpo.form_perfect",
    ):
        assert shown(path) in text, path


def test_each_form_is_stated() -> None:
    text = (RECIPE / "README.md").read_text(encoding="utf-8")
    for form, share in figure("dpo.form_perfect_by_form").items():
        assert f"{form} {share:.1%}" in text


def test_the_run_kept_every_promise() -> None:
    assert figure("wall_seconds") <= 15 * 60
    assert figure("peak_memory_gb") <= 6
    assert figure("base.bits_per_char") <= 0.9 * figure("trigram.bits_per_char")
    assert figure("sft.form_perfect") >= 0.95
    assert figure("dpo.form_perfect") >= 0.99
    assert len(figure("dpo.form_perfect_by_form")) == 4
    assert min(figure("dpo.form_perfect_by_form").values()) >= 0.97
    assert figure("dpo.stop_rate") == 1.0
    assert figure("dpo.distinct_2") >= 0.9 * figure("sft.distinct_2")
    assert figure("dpo.copied_line_rate") <= 0.01
    assert figure("dpo.bits_per_char") <= 1.05 * figure("sft.bits_per_char")
    assert figure("dpo.preference_accuracy") >= 0.8
    assert abs(figure("dpo.step0_loss") - math.log(2)) <= 1e-3
