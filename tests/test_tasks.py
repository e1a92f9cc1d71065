"""Tasks of lm-evaluation-harness: they agree with our own figures, and no code out of a recipe is run."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import pytest
import torch
from conftest import TEXTS, write_lines
from lm_eval import utils
from transformers import PreTrainedTokenizerBase

from fledge.arguments import TaskEntry
from fledge.evaluation import tasks
from fledge.evaluation.likelihood import measure, picked
from fledge.evaluation.scores import Subject
from fledge.model.modeling_fledge import FledgeForCausalLM


Make = Callable[..., FledgeForCausalLM]

CHOICES = """task: letters
output_type: multiple_choice
doc_to_text: question
doc_to_choice: '{{ (choices | join("\\n|") ~ "\\n").split("|") }}'
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {metric: acc_bytes, aggregation: mean, higher_is_better: true}
metadata:
  version: 2.5
"""
"""Each choice with the end of line that our own measure counts."""

TEXT = """task: text
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list:
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and float32 wherever the tests run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "choose_bf16", lambda _: False)
    Path("mine").mkdir()


def entry(text: str, rows: list[dict[str, Any]], **keys: Any) -> TaskEntry:
    """A task of the recipe's own."""
    Path("mine/task.yaml").write_text(text, encoding="utf-8")
    path = str(write_lines(Path("rows.jsonl"), rows))
    return TaskEntry(**{"name": text.split()[1], "include_path": "mine", "path": path, **keys})


def rows_of(count: int) -> list[dict[str, Any]]:
    """Questions that end with a mark, so that the tokenizer splits there, and four choices each."""
    words = ["sun", "moon", "river", "a", "green hills", "x", "snow falls", "no"]
    return [
        {"question": f"{TEXTS[i % len(TEXTS)]} {i}:", "choices": words[i % 5 : i % 5 + 4], "answer": i % 4}
        for i in range(count)
    ]


def test_multiple_choice_agrees_with_our_own(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> None:
    model, rows = make_model(), rows_of(24)
    own = picked("m", model, tokenizer, [{**row, "prompt": []} for row in rows], lambda row: row["question"])
    right = [index == row["answer"] for index, row in zip(own, rows, strict=True)]
    assert 0 < sum(right) < len(rows)

    (asked,) = tasks.load_tasks([entry(CHOICES, rows)])
    found = tasks.ask(Subject("m", model, tokenizer, True), asked)["letters"]
    mean = sum(right) / len(rows)
    assert found == {
        "acc_bytes": pytest.approx(mean),
        "acc_bytes_stderr": pytest.approx(math.sqrt(mean * (1 - mean) / (len(rows) - 1))),
        "num_fewshot": 0,
        "version": 2.5,
        "questions": 24,
        "limit": None,
        "cut": 0,
    }

    (some,) = tasks.load_tasks([entry(CHOICES, rows, limit=10)])
    found = tasks.ask(Subject("m", model, tokenizer, True), some)["letters"]
    assert (found["acc_bytes"], found["limit"], found["questions"]) == (pytest.approx(sum(right[:10]) / 10), 10, 10)
    assert asked.key != some.key

    (shown,) = tasks.load_tasks([entry(CHOICES, rows, limit=4, num_fewshot=2)])
    subject = Subject("m", model, tokenizer, True)
    first, again = (tasks.ask(subject, shown)["letters"] for _ in range(2))
    assert first == again and first["num_fewshot"] == 2


def test_text_takes_the_bits_that_we_count(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> None:
    model, rows = make_model(), [{"text": text} for text in TEXTS]
    (asked,) = tasks.load_tasks([entry(TEXT, rows)])
    found = tasks.ask(Subject("m", model, tokenizer, True), asked)["text"]["bits_per_byte"]

    # The harness does not count the end of a document; ours does, as a token and as a byte.
    ours = measure("m", model, tokenizer, rows)
    ends = []
    for text in TEXTS:
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            ends.append(-model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[tokenizer.eos_token_id].item())
    bits = sum(each.bits for each in ours) - sum(ends) / math.log(2)
    assert found == pytest.approx(bits / sum(len(text.encode()) for text in TEXTS), rel=1e-5)


def test_what_does_not_fit_the_context_is_counted(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [*rows_of(2), {**rows_of(1)[0], "question": "so long a question " * 20 + ":"}]
    (asked,) = tasks.load_tasks([entry(CHOICES, rows)])
    found = tasks.ask(Subject("m", make_model(max_position_embeddings=128), tokenizer, True), asked)

    assert found["letters"]["cut"] == 4  # its four choices


def test_the_digest_covers_settings_and_rows() -> None:
    same, again = (tasks.load_tasks([entry(CHOICES, rows_of(6))])[0].key for _ in range(2))
    other_rows = tasks.load_tasks([entry(CHOICES, rows_of(7))])[0].key
    other_task = tasks.load_tasks([entry(CHOICES.replace("2.5", "2.6"), rows_of(6))])[0].key

    assert same == again
    assert len({str(key) for key in (same, other_rows, other_task)}) == 3


ATTACKS = {
    "function": (CHOICES + "process_docs: !function evil.run\n", "task.yaml:11: !function: a tag has no place"),
    "a template that leaves the sandbox": (
        CHOICES.replace(
            "doc_to_text: question", 'doc_to_text: "{{ question.__class__.__mro__[1].__subclasses__() }}"'
        ),
        "SecurityError",
    ),
    "a metric of the hub": (CHOICES.replace("acc_bytes", "./evil"), "the metric ./evil is not the harness's own"),
    "rows of another reader": (CHOICES + "dataset_path: pandas\n", "dataset_path: the recipe names the rows"),
    "an include": (CHOICES + "include: ../evil.yaml\n", "the harness cannot load it: TypeError"),
    "code of a model's": (CHOICES + "unsafe_code: true\n", "runs code that a model wrote"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_task_of_a_recipe_runs_no_code(attack: str) -> None:
    text, message = ATTACKS[attack]
    Path("mine/evil.py").write_text("open('ran', 'w')\ndef run(rows): return rows\n")
    for name in ("evil", "mine/evil"):
        Path(name).mkdir(exist_ok=True)
        Path(name, "evil.py").write_text("open('ran', 'w')\n")
    plain, load = utils.env, evaluate.load
    with pytest.raises(ValueError, match=message.replace("(", "\\(")):
        tasks.load_tasks([entry(text, rows_of(2))])

    assert not Path("ran").exists()
    assert (utils.env, evaluate.load) == (plain, load)  # others in this process get them back


FAULTS = [
    ({"name": "lettres"}, "tasks: lettres: include_path: mine has no such task; it has letters"),
    ({"include_path": "../mine"}, r"tasks: letters: include_path: \.\./mine: no folder below the working directory"),
    ({"include_path": "/tmp"}, "include_path: /tmp: no folder below"),
    ({"path": "gone.jsonl"}, r"tasks: letters: path: gone\.jsonl: name the task's rows, a \.parquet or \.jsonl file"),
    ({"path": None}, "tasks: letters: path: None: name the task's rows"),
]


@pytest.mark.parametrize(("keys", "message"), FAULTS)
def test_faults_of_an_entry_have_one_message(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.load_tasks([entry(CHOICES, rows_of(2), **keys)])


class Known:
    """The harness's list of tasks, without the seconds that reading it takes."""

    all_tasks = ("hellaswag", "arc_easy")

    def __init__(self, include_defaults: bool) -> None:
        assert include_defaults

    def load(self, names: list[str]) -> dict[str, Any]:
        raise ConnectionError(f"Couldn't reach the rows of {names[0]} on the hub")


def test_a_task_that_cannot_be_had_ends_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager", Known)
    with pytest.raises(ValueError, match=r"^tasks: helaswag: .* has no such task; did you mean hellaswag\?$"):
        tasks.load_tasks([TaskEntry(name="helaswag")])
    with pytest.raises(
        ValueError, match=r"^tasks: arc_easy: cannot be loaded \(ConnectionError: .* run the stage once"
    ):
        tasks.load_tasks([TaskEntry(name="arc_easy")])
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ValueError, match=r"^tasks: needs lm-evaluation-harness: pip install 'fledge-lm\[eval\]'$"):
        tasks.load_tasks([TaskEntry(name="arc_easy")])
