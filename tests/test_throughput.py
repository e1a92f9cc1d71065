"""Tokens and FLOPs a second, share of the peak, wait for data and time to the end: by theory, and in real runs."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import CONVERSATIONS, TEXTS, TINY, prepared, recipe, tiny_config
from transformers import AutoTokenizer, LlamaConfig, TrainerControl, TrainerState, TrainingArguments

from fledge import machine
from fledge.data.pairs import write_pairs
from fledge.data.prepared import load_prepared
from fledge.files import read_json
from fledge.planning.compute import Prices, strict_flops_per_token
from fledge.planning.job import read_jobs
from fledge.planning.plan import plan
from fledge.planning.shape import read_shape
from fledge.results.record import Record, read_metrics
from fledge.stages import dpo, pretrain, sft
from fledge.training import throughput
from fledge.training.guard import Guard
from fledge.training.throughput import Bar, Throughput, model_flops_per_token


ROOT = Path(__file__).parents[1]
LENGTH = 80
SHAPE = read_shape(TINY, "here")
QUIET = {"bf16": False, "torch_compile": False, "logging_steps": 1, "save_strategy": "no", "max_steps": 2}


# --- theory


def test_flops_are_the_plans_to_the_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    def planned(name: str) -> tuple[float, Any]:
        path = Path("recipes/tinyllama-1.1b") / f"{name}.yaml"
        return plan(path, (), "1xh100", Prices(), 80.0)["flops"]["strict_per_token"], read_jobs(path)[0]

    config = LlamaConfig(**read_jobs(Path("recipes/tinyllama-1.1b/pretrain.yaml"))[0].recipe.values["model_config"])
    whole, job = planned("pretrain")
    # 22 layers of 44,040,192 weights in matrices and a head of 32,000 x 2,048; 6 x 22 x 2,048 x 2,048 in attention.
    assert whole == 6 * (22 * 44_040_192 + 32_000 * 2_048) + 6 * 22 * 2_048 * 2_048
    assert model_flops_per_token(config, job.length, 0, reference=False) == whole
    lora, job = planned("sft_lora")
    config.vocab_size = job.shape.vocab_size
    assert model_flops_per_token(config, job.length, job.total - job.trainable, reference=False) == lora
    aligned, job = planned("dpo")
    assert model_flops_per_token(config, job.length, 0, reference=True) == pytest.approx(aligned, rel=1e-12)


def test_an_unknown_architecture_has_no_flops_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fledge"):
        assert model_flops_per_token(SimpleNamespace(model_type="mamba"), 8, 0, reference=False) is None
    assert "the plan knows no model_type mamba" in caplog.text


@pytest.mark.parametrize(
    ("name", "bf16", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", True, 989),
        ("NVIDIA H100 PCIe", True, 756),
        ("NVIDIA A100-SXM4-40GB", True, 312),
        ("NVIDIA H100 80GB HBM3", False, None),  # the table is of bfloat16
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", True, None),  # a slice of a card
        ("NVIDIA GeForce RTX 4090 Laptop GPU", True, None),  # another chip
    ],
)
def test_the_peak_of_a_card_is_its_data_sheets(
    name: str, bf16: bool, tflops: float | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machine, "on_cpu", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(throughput, "peak_flops", machine.peak_flops.__wrapped__)
    two = SimpleNamespace(
        wait_for_everyone=lambda: None, reduce=lambda value, how: 2 * value, device="cpu", num_processes=2
    )
    with caplog.at_level(logging.INFO, "fledge"):
        peak, source = throughput.peak_of_all(two, bf16)
    assert source == name.removeprefix("NVIDIA ")
    if tflops is None:
        assert peak is None and f"no peak of {source} is known" in caplog.text
    else:
        assert peak == pytest.approx(2 * tflops * 1e12)


class Clock:
    """Seconds that pass only where a test says so, and the events of a Trainer's loop."""

    def __init__(self, callback: Throughput, at: int = 0, steps: int = 10) -> None:
        self.callback, self.now = callback, 0.0
        self.state, self.control = TrainerState(max_steps=steps, global_step=at), TrainerControl()

    def after(self, seconds: float, event: str, **more: Any) -> None:
        self.now += seconds
        self.state.global_step += event == "on_step_end"
        getattr(self.callback, event)(None, self.state, self.control, **more)

    def step(self, wait: float, seconds: float) -> None:
        self.after(wait, "on_step_begin")
        self.after(seconds, "on_step_end")


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Clock]:
    """A run of 10 steps, 100 tokens each, at 6 FLOPs a token on a peak of 1,200 FLOP/s; goes on at the step `at`."""
    stated = recipe(tmp_path, "pretrain", tokenizer="t", prepared="p", tokens_per_step=100, model_config=TINY)

    def made(at: int = 0) -> Clock:
        callback = Throughput(Record(stated), Guard(), 100, 6.0, 1200.0, "measured")
        clock = Clock(callback, at)
        monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock.now)
        callback.begin_at(at)
        clock.after(0, "on_train_begin")
        return clock

    return made


def test_every_second_is_counted_where_it_belongs(begin: Callable[..., Clock]) -> None:
    clock = begin()
    clock.step(3.0, 7.0)  # the first compiles
    clock.after(0, "on_log", logs={"loss": 2.0})
    assert clock.callback.seconds_left(clock.state) is None  # one step, which compiled, tells nothing
    clock.step(1.0, 3.0)
    clock.after(0, "on_log", logs={"loss": 1.0})
    clock.after(5.0, "on_log", logs={"eval_loss": 1.0})
    clock.after(0, "on_evaluate")
    clock.after(2.0, "on_save")
    clock.step(1.0, 3.0)

    first, second, evaluated = read_metrics(clock.callback.record.folder)
    assert (first["tokens_per_second"], first["data_wait"], first["train_seconds"]) == (10.0, 0.3, 10.0)
    assert "seconds_left" not in first
    assert (second["tokens_per_second"], second["flops_per_second"], second["mfu"]) == (25.0, 150.0, 0.125)
    assert (second["data_wait"], second["seconds_left"], second["tokens"]) == (0.25, 8 * 4.0, 200)
    assert "tokens_per_second" not in evaluated
    # Since the first step: two steps of 4 s, one evaluation of 5 s, one save of 2 s; seven steps are to come.
    assert clock.callback.seconds_left(clock.state) == 7 * 15 / 2
    found = clock.callback.results()
    assert (found["train_seconds"], found["save_seconds"], found["data_wait"]) == (
        18.0,
        2.0,
        pytest.approx(5 / 18, 1e-4),
    )
    assert found["tokens_per_second"] == pytest.approx(300 / 18, abs=0.05)
    assert found["mfu"] == pytest.approx(found["flops_per_second"] / found["peak_flops"], rel=1e-3)
    assert (found["peak_flops"], found["peak_source"]) == (1200.0, "measured")


def test_a_resumed_run_does_not_count_the_gap(begin: Callable[..., Clock]) -> None:
    clock = begin()
    for _ in range(6):
        clock.step(0.0, 4.0)
        clock.after(0, "on_log", logs={"loss": 1.0})
    clock = begin(at=5)  # its own clock; the sixth step is taken again
    clock.after(1000.0, "on_epoch_begin")
    clock.step(2.0, 10.0)
    clock.after(0, "on_log", logs={"loss": 1.0})
    clock.step(0.0, 2.0)
    clock.after(0, "on_log", logs={"loss": 1.0})

    lines = list(read_metrics(clock.callback.record.folder))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["tokens_per_second"] for line in lines[4:]] == [25.0, pytest.approx(100 / 12, abs=0.05), 50.0]
    assert lines[-1]["seconds_left"] == 3 * 2.0  # at this process's pace
    found = clock.callback.results()
    assert found["train_seconds"] == 5 * 4.0 + 12.0 + 2.0
    assert found["tokens_per_second"] == pytest.approx(700 / 34, abs=0.05)
    assert found["data_wait"] == pytest.approx(2 / 14, rel=1e-4)


def test_the_bar_of_a_resumed_run_begins_where_the_run_does(begin: Callable[..., Clock]) -> None:
    clock = begin(at=5)
    bar, args = Bar(clock.callback), TrainingArguments("unused", use_cpu=True)
    bar.on_train_begin(args, clock.state, clock.control)
    assert (bar.training_bar.n, bar.training_bar.initial, bar.training_bar.total) == (5, 5, 10)
    for seconds in (9.0, 90.0):
        clock.step(0.0, seconds)
        clock.after(0, "on_log", logs={"loss": 1.0})
        bar.on_step_end(args, clock.state, clock.control)
    # 100 tokens in 90 s are 1.1 a second and 6.7 of 1,200 FLOP/s; three steps of 90 s are to come.
    assert str(bar.training_bar).endswith(", 1 tokens/s, MFU 0.6%, 04:30 left]")
    assert " 7/10 [" in str(bar.training_bar)
    bar.on_train_end(args, clock.state, clock.control)


# --- real runs


@pytest.fixture(scope="module", autouse=True)
def cpu() -> Iterator[None]:
    """Train on the CPU, wherever the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """Packed texts of several lengths."""
    texts = [{"text": text} for text in TEXTS] * 8
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    return prepared(tmp_path_factory.mktemp("rows"), tokenizer, texts, max_length=LENGTH)


@pytest.fixture(scope="module")
def run(rows: Path, tokenizer_folder: Path) -> Callable[..., dict[str, Any]]:
    """Pretrains in `folder` and returns the results of the summary."""

    def run(folder: Path, at_once: int = 2, **keys: Any) -> dict[str, Any]:
        own = {"tokenizer": tokenizer_folder, "prepared": rows, "tokens_per_step": 8 * LENGTH}
        own |= {"per_device_train_batch_size": at_once, "model_config": {**TINY, "vocab_size": 320}}
        stated = recipe(folder, "pretrain", **QUIET | own | keys)
        pretrain.main(stated)
        return read_json(stated.output_dir / "summary.json")["results"]

    return run


@pytest.fixture(scope="module")
def both(run: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[Path, dict[str, Any]]:
    """Folders and results of the same run, eight rows a step: one at a time, and all at once."""
    one, eight = (tmp_path_factory.mktemp(name) for name in ("one", "eight"))
    return {one: run(one, 1, disable_tqdm=True), eight: run(eight, 8, disable_tqdm=True)}


def test_accumulation_changes_no_count(both: dict[Path, dict[str, Any]], rows: Path) -> None:
    lengths = [int(length) for row in load_prepared(rows)[0] for length in row["seq_lengths"]]
    # 8 rows a step, two steps, and of the rows only what is filled.
    tokens = 16 * LENGTH * read_json(rows / "manifest.json")["train"]["fill"]
    per_token = strict_flops_per_token(SHAPE, sum(length**2 for length in lengths) / sum(lengths))
    assert min(lengths) < max(lengths) < LENGTH
    for folder, results in both.items():
        assert results["tokens"] == round(tokens)
        assert results["train_seconds"] == pytest.approx(tokens / results["tokens_per_second"], abs=0.006)
        assert results["flops_per_second"] / results["tokens_per_second"] == pytest.approx(per_token, rel=1e-3)
        assert 0 < results["mfu"] < 1 and results["peak_source"] == "measured"
        assert results["mfu"] == pytest.approx(results["flops_per_second"] / results["peak_flops"], rel=1e-3)
        assert 0 < results["data_wait"] < 1 and results["save_seconds"] == 0 and results["start_seconds"] > 0
        lines = [line for line in read_metrics(folder / "pretrain") if "loss" in line]
        assert all(0 < line["mfu"] < 1 and 0 < line["data_wait"] < 1 for line in lines)
        assert [line["tokens"] for line in lines] == [round(tokens / 2), round(tokens)]
        assert lines[-1]["seconds_left"] == 0


def test_a_run_that_was_resumed_counts_its_own_seconds(
    run: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = run(tmp_path, **keys)
    assert whole["save_seconds"] > 0 and whole["tokens"] == 2 * run_tokens(tmp_path, 2)
    shutil.rmtree(tmp_path / "pretrain" / "checkpoint-4")
    lines = list(read_metrics(tmp_path / "pretrain"))
    until = next(line["train_seconds"] for line in lines if line["step"] == 2 and "loss" in line)
    began = time.perf_counter()
    capsys.readouterr()
    resumed = run(tmp_path, **keys)
    bar = capsys.readouterr().err
    assert all(part in bar for part in ("| 2/4 [", "| 4/4 [", " tokens/s, MFU ", "00:00 left]")) and "| 1/4" not in bar
    assert resumed["tokens"] == whole["tokens"]
    assert until < resumed["train_seconds"] < until + time.perf_counter() - began
    assert resumed["train_seconds"] == pytest.approx(resumed["tokens"] / resumed["tokens_per_second"], abs=0.006)


def run_tokens(folder: Path, step: int) -> int:
    """What metrics.jsonl says were trained on up to a step."""
    return next(line["tokens"] for line in read_metrics(folder / "pretrain") if line["step"] == step)


def test_a_reference_counts_once_where_every_step_reads_it(both: dict[Path, dict[str, Any]], tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": text}] for text in TEXTS]
    answers = [[{"role": "assistant", "content": text[::-1]}] for text in TEXTS]
    made = {"form": "any", "made": "here", "rejected_score": 0.0}
    pairs = [{"prompt": turns[i], "chosen": answers[i], "rejected": answers[i - 1], **made} for i in range(len(TEXTS))]
    write_pairs(tmp_path / "train.parquet", pairs)
    own = {"model_name_or_path": next(iter(both)) / "pretrain", "pairs": tmp_path, "pairs_per_step": 2}
    own |= {"per_device_train_batch_size": 2, "max_length": 160, "max_steps": 1, "disable_tqdm": True}
    per_token = []
    for precompute in (True, False):
        stated = recipe(tmp_path, "dpo", **QUIET | own, precompute_ref_log_probs=precompute)
        dpo.main(stated)
        results = read_json(stated.output_dir / "summary.json")["results"]
        assert 0 < results["mfu"] < 1
        per_token.append(results["flops_per_second"] / results["tokens_per_second"])
    assert per_token[1] / per_token[0] == pytest.approx(4 / 3, rel=1e-3)


def test_frozen_weights_save_their_gradients(
    both: dict[Path, dict[str, Any]], tmp_path: Path, tokenizer_folder: Path
) -> None:
    model, pretrained = next(iter(both.items()))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    chats = prepared(tmp_path / "chats", tokenizer, CONVERSATIONS * 4, max_length=LENGTH)
    own = {"model_name_or_path": model / "pretrain", "prepared": chats, "max_length": LENGTH, "packing": True}
    own |= {"assistant_only_loss": True, "tokens_per_step": 2 * LENGTH, "per_device_train_batch_size": 2}
    stated = recipe(tmp_path, "sft", **QUIET | own, use_peft=True, disable_tqdm=True)
    sft.main(stated)
    results = read_json(stated.output_dir / "summary.json")["results"]
    length = load_prepared(chats)[0].mean_length
    frozen = pretrained["parameters"]
    expected = strict_flops_per_token(SHAPE, length) - 2 * frozen
    assert results["flops_per_second"] / results["tokens_per_second"] == pytest.approx(expected, rel=1e-3)
    assert model_flops_per_token(tiny_config(), length, frozen, reference=False) == pytest.approx(expected)
