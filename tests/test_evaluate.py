"""The evaluate stage: only what the recipe names is measured, and what is known is not measured again."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CONVERSATIONS, TEXTS, recipe, write_lines
from transformers import PreTrainedTokenizerBase

from fledge.data.pairs import write_pairs
from fledge.evaluation import cache
from fledge.evaluation.scores import Subject
from fledge.model.modeling_fledge import FledgeForCausalLM
from fledge.results.report import write as write_report
from fledge.stages import evaluate
from fledge.training.checkpoints import commit


PAIR = {
    "prompt": [{"role": "user", "content": "Hi"}],
    "chosen": [{"role": "assistant", "content": "Hello!"}],
    "rejected": [{"role": "assistant", "content": "x"}],
}
TASK = """task: letters
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


class Bench:
    """A run folder with two models and held-out rows."""

    def __init__(self, folder: Path, make: Callable[..., FledgeForCausalLM], tokenizer: PreTrainedTokenizerBase):
        self.folder, self.make, self.tokenizer = folder, make, tokenizer
        for seed, name in enumerate(("base", "sft")):
            self.save(folder / name, seed)
        texts = write_lines(folder / "texts.jsonl", [{"text": text} for text in TEXTS])
        chats = write_lines(folder / "chats.jsonl", CONVERSATIONS[1:2])
        asked = {"form": "a", "title": "t", "document": "Hi\n", **PAIR}
        requests = write_lines(folder / "requests.jsonl", [asked, {**asked, "document": "Ho\n"}])
        (folder / "pairs").mkdir()
        write_pairs(folder / "pairs" / "heldout.parquet", [{**PAIR, "form": "a", "made": "m", "rejected_score": 0.0}])
        self.keys = {
            "models": {"base": str(folder / "base"), "sft": str(folder / "sft")},
            "base_models": ["base"],
            "corpus": "english",
            "heldout_documents": [{"path": str(texts)}],
            "heldout_chats": [{"path": str(chats)}],
            "requests": [{"path": str(requests)}],
            "pairs": str(folder / "pairs"),
            "reference": "base",
            "max_new_tokens": 4,
        }

    def save(self, folder: Path, seed: int) -> None:
        self.make(seed=seed).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def run(self, **keys: Any) -> dict[str, Any]:
        """What the stage leaves in evaluation.json; a key that is None is left out of the recipe."""
        values = {key: value for key, value in {**self.keys, **keys}.items() if value is not None}
        evaluate.main(recipe(self.folder, "evaluate", **values))
        return json.loads((self.folder / "evaluate" / "evaluation.json").read_text(encoding="utf-8"))


@pytest.fixture
def bench(
    tmp_path: Path,
    make_model: Callable[..., FledgeForCausalLM],
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, make_model, tokenizer)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that would have been measured; their figures are made up, and no weights are read."""
    names: list[str] = []

    def score(subject: Any, *_: Any) -> dict[str, Any]:
        names.append(subject.name)
        return {"scores": {"loss": len(subject.name)}, "margins": [1.0], "samples": [{"model": subject.name}]}

    monkeypatch.setattr(evaluate.Work, "subject", lambda self, name, _: Subject(name, None, None, False))
    monkeypatch.setattr(evaluate, "score", score)
    return names


def test_every_figure_stands_beside_its_interval(bench: Bench) -> None:
    found = bench.run()

    for name in ("base", "sft"):
        scores = found[name]
        intervals = scores["intervals"]
        means = {"bits_per_char", "bits_per_byte", "loss", "perplexity", "answer_bits_per_char"}
        assert means | {"stop_rate", "mean_length", "seq_rep_4", "loop_rate"} <= intervals.keys()
        assert all(low <= scores[key] <= high for key, (low, high) in intervals.items())
    assert {"preference_accuracy", "preference_margin"} <= found["sft"]["intervals"].keys()
    assert not {"preference_accuracy"} & found["base"].keys()  # the reference
    samples = (bench.folder / "evaluate" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["model"] for line in samples] == ["base", "base", "sft", "sft"]


def test_only_what_the_recipe_names_is_measured(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    keys = dict.fromkeys(("corpus", "heldout_chats", "requests", "pairs", "reference"))
    found = bench.run(**keys)

    assert found["sft"].keys() == {"bits_per_char", "bits_per_byte", "loss", "perplexity", "intervals"}
    assert "left out, for the recipe names no pairs: preference accuracy" in caplog.text
    summary = json.loads((bench.folder / "evaluate" / "summary.json").read_text(encoding="utf-8"))["results"]
    assert summary == {"heldout_documents": len(TEXTS), "tasks": 0, "left_out": 5, "from_cache": 0}


def test_a_recipe_may_have_tasks_alone(bench: Bench) -> None:
    (bench.folder / "mine").mkdir()
    (bench.folder / "mine" / "letters.yaml").write_text(TASK, encoding="utf-8")
    rows = [{"question": f"{text}:", "choices": ["x", "y"], "answer": 0} for text in TEXTS]
    write_lines(bench.folder / "rows.jsonl", rows)
    others = dict.fromkeys(("corpus", "heldout_documents", "heldout_chats", "requests", "pairs", "reference"))
    entry = {"name": "letters", "include_path": "mine", "path": "rows.jsonl", "limit": 4}
    found = bench.run(**others, tasks=[entry])

    assert found["sft"].keys() == {"tasks"}
    metrics = found["sft"]["tasks"]["letters"]
    assert 0 <= metrics["acc"] <= 1 and (metrics["limit"], metrics["num_fewshot"]) == (4, 0)
    write_report(bench.folder)  # takes all of it


FAULTS = [
    (dict.fromkeys(("heldout_documents", "heldout_chats", "requests", "pairs", "reference")), "nothing to measure: "),
    ({"reference": None}, "pairs: needs `reference` too"),
    ({"pairs": None}, "reference: needs `pairs` too"),
    ({"reference": "dpo"}, "reference: dpo is none of `models`: base, sft"),
    ({"corpus": None}, "requests: needs `corpus`"),
    ({"heldout_documents": None, "checkpoints": True}, "checkpoints: needs `heldout_documents`"),
    ({"corpus": "tang"}, "train_documents: tang counts lines copied from them"),
    ({"models": {"base": "gone/base"}, "pairs": None, "reference": None}, "models: gone/base: no such folder"),
    ({"models": {"trigram": "runs/sft"}}, "models: trigram is what evaluation.json calls something else"),
]


@pytest.mark.parametrize(("keys", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_keys_that_do_not_go_together_are_refused(bench: Bench, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        bench.run(**keys)
    assert not (bench.folder / "evaluate").exists()


def test_what_has_not_changed_is_not_measured_again(
    bench: Bench, scored: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first = bench.run()
    assert scored == ["base", "sft"] and "taken from the cache" not in caplog.text
    assert bench.run() == first and scored == ["base", "sft"]
    assert "taken from the cache, nothing that decides them has changed: base, sft" in caplog.text

    # The chain sets the folder of an outdated evaluation aside.
    (bench.folder / "evaluate").rename(bench.folder / "evaluate.previous")
    assert bench.run() == first and scored == ["base", "sft"]


def longer(bench: Bench) -> None:
    write_lines(bench.folder / "texts.jsonl", [{"text": text} for text in [*TEXTS, "one more"]])


CHANGES = {
    "weights": (lambda bench: bench.save(bench.folder / "sft", 7), {}, ["sft"]),
    "tokenizer": (
        lambda bench: (bench.folder / "base" / "chat_template.jinja").open("a").write("{# #}"),
        {},
        ["base"],
    ),
    "rows": (longer, {}, ["base", "sft"]),
    "settings": (None, {"temperature": 0.5}, ["base", "sft"]),
    "seed": (None, {"seed": 1}, ["base", "sft"]),
    "how a model is asked": (None, {"base_models": []}, ["base"]),
    "what a stage logs of itself": (
        lambda bench: (bench.folder / "sft" / "summary.json").write_text("{}"),
        {},
        [],
    ),
    "damage": (
        lambda bench: [path.write_text("{") for path in (bench.folder / "evaluate" / "cache").glob("*")],
        {},
        ["base", "sft"],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides_a_figure_is_in_the_key(bench: Bench, scored: list[str], change: str) -> None:
    bench.run()
    scored.clear()
    make, keys, again = CHANGES[change]
    if make:
        make(bench)
    bench.run(**keys)

    assert scored == again
    assert len(list((bench.folder / "evaluate" / "cache").iterdir())) == 2  # what nothing uses any more is gone


@pytest.mark.parametrize("name", ["CODE", "LIBRARIES"])
def test_so_are_code_and_versions(bench: Bench, scored: list[str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    bench.run()
    scored.clear()
    monkeypatch.setattr(cache, name, getattr(cache, name)[1:])  # as if another part had changed
    bench.run()

    assert scored == ["base", "sft"]


def test_a_killed_evaluation_goes_on_after_the_last_model(bench: Bench, scored: list[str]) -> None:
    made_up = evaluate.score

    def killed(subject: Any, *arguments: Any) -> dict[str, Any]:
        if subject.name == "sft":
            os.kill(os.getpid(), signal.SIGKILL)
        return made_up(subject, *arguments)

    if (child := os.fork()) == 0:
        evaluate.score = killed
        try:
            bench.run()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not (bench.folder / "evaluate" / "evaluation.json").exists()

    found = bench.run()
    assert scored == ["sft"]
    samples = (bench.folder / "evaluate" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [found["base"]["loss"], found["sft"]["loss"], *map(json.loads, samples)] == [
        *(4, 3),
        *({"model": name} for name in ("base", "sft")),
    ]


def test_checkpoints_make_a_curve(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for step in (10, 2, 6):
        bench.save(bench.folder / "sft" / "unfinished" / f"checkpoint-{step}", seed=step)
        commit(bench.folder / "sft", f"checkpoint-{step}", {"step": step}, weights_only=True)
    (bench.folder / "sft" / "checkpoint-6" / "config.json").write_text("{}")
    write_lines(bench.folder / "sft" / "metrics.jsonl", [{"step": 4, "tokens": 400}, {"step": 8, "tokens": 800}])
    found = bench.run(checkpoints=True, heldout_chats=None, requests=None, pairs=None, reference=None, corpus=None)

    points = found["checkpoints"]
    assert [(point["model"], point["step"], point["tokens"]) for point in points] == [
        ("sft", 2, 200),
        ("sft", 10, 1000),
    ]
    assert all({"loss", "perplexity", "bits_per_byte", "intervals"} <= point.keys() for point in points)
    assert points[0]["loss"] != points[1]["loss"]
    assert "checkpoint-6: config.json has" in caplog.text and "left out of the curve" in caplog.text
    assert "base: 0 whole checkpoints" in caplog.text
