"""Training: the loss is the documents' own, accumulating and resuming change nothing, and theory's numbers hold."""

import json
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import trl.kernels
import trl.trainer.utils
from conftest import CONVERSATIONS, TEXTS, TINY, packed_rows, places, recipe, write_lines
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase, TrainingArguments
from trl import SFTConfig

from fledge.data.collate import PackedCollator
from fledge.data.pairs import write_pairs
from fledge.data.prepared import load_prepared
from fledge.files import read_json
from fledge.model.configuration_fledge import FledgeConfig
from fledge.model.modeling_fledge import FledgeForCausalLM
from fledge.results.record import EVENTS, Record, read_lines, read_metrics
from fledge.stages import dpo, prepare, pretrain, sft
from fledge.training import cpu_head, run
from fledge.training.arguments import accumulation, set_up_trackers
from fledge.training.checkpoints import newest_checkpoint
from fledge.training.trainer import Pretrainer


LENGTH = 80
STEPS = {"pretrain": pretrain, "sft": sft}
QUIET = {"bf16": False, "torch_compile": False, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
FAULTS = """
import resource, sys, torch
from fledge.machine import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    torch.ones(16 << 20)  # 64 MiB, 16,384 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
SGD = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant"}


@pytest.fixture(scope="module", autouse=True)
def cpu() -> Iterator[None]:
    """Train on the CPU, wherever the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield


@pytest.fixture(autouse=True)
def fresh_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with TRL's own head, and leave it so."""
    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", trl.kernels.ChunkedLogProbFunction)
    monkeypatch.setattr(trl.trainer.utils, "_use_triton", trl.kernels.chunked_logprob._use_triton)
    monkeypatch.setattr(cpu_head, "_compiled", {})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> dict[str, Path]:
    """What the prepare stage makes of texts and of conversations: at least 24 rows each."""
    found = {}
    for stage, rows in (("pretrain", [{"text": text} for text in TEXTS]), ("sft", CONVERSATIONS)):
        folder = tmp_path_factory.mktemp("prepared")
        files = {"datasets": rows * 8, "eval_datasets": rows}
        entries = {key: [{"path": str(write_lines(folder / f"{key}.jsonl", many))}] for key, many in files.items()}
        prepare.main(recipe(folder, "prepare", **entries, tokenizer=tokenizer_folder, max_length=LENGTH))
        found[stage] = folder / "prepare"
        assert read_json(found[stage] / "manifest.json")["train"]["rows"] >= 24
    return found


@pytest.fixture(scope="module")
def run_stage(
    prepared: dict[str, Path], tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Runs pretrain or sft from a recipe, `rows` a step in micro-batches of `at_once`; returns its output_dir."""

    def run(stage: str, rows: int, at_once: int, **values: Any) -> Path:
        own = {"prepared": prepared[stage], "tokens_per_step": rows * LENGTH, "per_device_train_batch_size": at_once}
        if stage == "pretrain":
            keys = {key: value for key, value in TINY.items() if key != "vocab_size"}
            own |= {"model_config": {**keys, "initializer_range": 0.1}, "tokenizer": tokenizer_folder}
        else:
            own |= {"max_length": LENGTH, "packing": True, "assistant_only_loss": True}
        stated = recipe(tmp_path_factory.mktemp(stage), stage, **QUIET | own | values)
        STEPS[stage].main(stated)
        return stated.output_dir

    return run


@pytest.fixture(scope="module")
def pretrained(run_stage: Callable[..., Path]) -> Path:
    """Eight steps with Muon, a checkpoint every four."""
    return run_stage("pretrain", 2, 2, **PRETRAIN)


PRETRAIN = {
    "max_steps": 8,
    "save_strategy": "steps",
    "save_steps": 4,
    "learning_rate": 0.01,
    "muon_learning_rate": 0.02,
    "weight_decay": 0.1,
    "lr_scheduler_type": "warmup_stable_decay",
    "warmup_steps": 2,
    "decay_ratio": 0.5,
    "eval_strategy": "steps",
    "eval_steps": 4,
}


def losses(folder: Path) -> list[float]:
    """Training losses of a run, in order."""
    return [line["loss"] for line in read_metrics(folder) if "loss" in line]


def assert_equal_weights(a: Path, b: Path, tolerance: float) -> None:
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(
            second[name], weight, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


# --- the loss


@pytest.mark.parametrize("head", ["trl", "cpu"])
@pytest.mark.parametrize("stage", ["pretrain", "z_loss", "sft"])
def test_a_packed_batch_trains_on_the_documents_own_losses(
    stage: str,
    head: str,
    make_model: Callable[..., FledgeForCausalLM],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    if head == "cpu":
        cpu_head.install()
    rows = packed_rows(tmp_path / "rows", tokenizer, [*CONVERSATIONS, *({"text": text} for text in TEXTS)], LENGTH)
    batch = PackedCollator(LENGTH, tokenizer.pad_token_id)(rows)
    model = make_model(z_loss_weight=0.01 if stage == "z_loss" else 0.0).train()
    alone = torch.zeros(())
    for row, columns in places(rows):
        ids, labels = batch["input_ids"][row, columns], batch["labels"][row, columns]
        logits = model(ids[None]).logits[0, :-1]
        z_loss = logits.logsumexp(-1).square()[labels[1:] != -100].sum()
        alone = alone + cross_entropy(logits, labels[1:], reduction="sum") + model.config.z_loss_weight * z_loss
    alone.backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()

    common = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    dataset = datasets.Dataset.from_list(rows)
    if stage != "sft":
        trainer = Pretrainer(model, TrainingArguments(**common), train_dataset=dataset, processing_class=tokenizer)
        trainer.use_fused_head()
    else:
        args = SFTConfig(**common, max_length=LENGTH, packing=True, dataset_kwargs={"skip_prepare_dataset": True})
        trainer = sft.SftTrainer(model, args, train_dataset=dataset, processing_class=tokenizer)
    loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=torch.tensor(1))
    loss.backward()
    assert loss.item() == pytest.approx(alone.item(), rel=1e-6)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(
            weight.grad, expected[name], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    mean = trainer.compute_loss(model, dict(batch)).item()
    assert mean == pytest.approx(alone.item() / (batch["labels"] != -100).sum().item(), rel=1e-6)


# --- a step is a step, however it is cut up


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
@pytest.mark.parametrize("steps", [1, 3])
def test_accumulation_changes_nothing(
    run_stage: Callable[..., Path], pretrained: Path, stage: str, steps: int
) -> None:
    values = {**SGD, "max_steps": steps} | ({"model_name_or_path": pretrained} if stage == "sft" else {})
    at_once, one_by_one = (run_stage(stage, 8, size, **values) for size in (8, 1))
    assert losses(one_by_one) == pytest.approx(losses(at_once), abs=1e-5)
    assert len(losses(at_once)) == steps
    assert_equal_weights(at_once, one_by_one, 1e-5)
    assert read_json(one_by_one / "recipe.json")["gradient_accumulation_steps"] == {"value": 8, "from": "derived"}


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_eval_loss_is_the_mean_over_held_out_tokens(
    stage: str,
    run_stage: Callable[..., Path],
    pretrained: Path,
    prepared: dict[str, Path],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    found = []
    for batch in (2, 3):  # the rows divide by neither, so that there are empty ones
        start = {} if stage == "pretrain" else {"model_name_or_path": pretrained}
        steps = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": batch}
        folder = run_stage(stage, 2, 2, **start, **steps, **SGD)
        found += [line["eval_loss"] for line in read_metrics(folder) if "eval_loss" in line]
    heldout = load_prepared(prepared[stage])[1]
    batch = PackedCollator(LENGTH, tokenizer.pad_token_id)(list(heldout))
    model = FledgeForCausalLM.from_pretrained(folder)
    ids = {key: batch[key] for key in ("input_ids", "position_ids")}
    with torch.inference_mode():
        logits = model(**ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    expected = cross_entropy(logits, batch["labels"][:, 1:].flatten()).item()
    assert found == pytest.approx([expected] * 2, abs=1e-5)


def test_accumulation_follows_from_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    assert accumulation(4096, 256, 4, "tokens") == 4
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert accumulation(4096, 256, 4, "tokens") == 2
    with pytest.raises(ValueError, match=r"tokens_per_step: 5000 .* multiple of 2048.* nearest: 4096 or 6144$"):
        accumulation(5000, 256, 4, "tokens")
    # 4096 are 8 rows for each of the two processes: 3 does not divide them, 2 and 4 do.
    with pytest.raises(ValueError, match=r"nearest: 3072 or 4608; or keep it and write per_device.*_size: 2 or 4$"):
        accumulation(4096, 256, 3, "tokens")
    with pytest.raises(ValueError, match=r"nearest: 9216; or keep it and write per_device.*_size: 8$"):
        accumulation(4096, 256, 18, "tokens")
    with pytest.raises(ValueError, match=r"pairs_per_step: 3 is no multiple of 8.*; nearest: 8$"):
        accumulation(3, 1, 4, "pairs")


# --- resuming


def test_resuming_continues_to_the_bit(run_stage: Callable[..., Path], pretrained: Path, tmp_path: Path) -> None:
    shutil.copytree(pretrained / "checkpoint-4", tmp_path / "checkpoint-4")
    resumed = run_stage("pretrain", 2, 2, **PRETRAIN, output_dir=tmp_path)
    assert losses(resumed) == losses(pretrained)[4:]
    assert_equal_weights(pretrained, resumed, 0.0)
    assert not list(pretrained.rglob("training_args.bin")) + list(resumed.rglob("training_args.bin"))


def test_only_whole_checkpoints_are_resumed_from(
    pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(pretrained) == pretrained / "checkpoint-8"
    shutil.copytree(pretrained / "checkpoint-4", tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-old").mkdir()
    files = sorted(path.name for path in (tmp_path / "checkpoint-4").iterdir())
    assert {"COMPLETE.json", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"} <= {*files}
    for number, name in enumerate(files * 2):
        newest = shutil.copytree(pretrained / "checkpoint-8", tmp_path / "checkpoint-8") / name
        if number < len(files):
            newest.unlink()
            said = f"{name} is missing"
        else:  # as long as before, and another
            data = bytearray(newest.read_bytes())
            data[len(data) // 2] ^= 255
            newest.write_bytes(data)
            said = "COMPLETE.json is cut off" if name == "COMPLETE.json" else f"{name} has changed"
        caplog.clear()
        assert newest_checkpoint(tmp_path).name == "checkpoint-4"
        assert len(caplog.messages) == 1 and said in caplog.text and "is passed over" in caplog.text
    assert len(list(tmp_path.glob("damaged-checkpoint-8*"))) == 2 * len(files)  # set aside, never deleted
    assert newest_checkpoint(tmp_path).name == "checkpoint-4"


def test_a_loss_that_is_no_number_stops_before_the_update(
    run_stage: Callable[..., Path], pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Pretrainer.compute_loss

    def poisoned(self: Pretrainer, *args: Any, **kwargs: Any) -> Any:
        bad = self.model.training and self.state.global_step == 5
        found = loss(self, *args, **kwargs)
        return found * float("nan") if bad else found

    monkeypatch.setattr(Pretrainer, "compute_loss", poisoned)
    with pytest.raises(ValueError, match=r"step 6: process 0: loss nan on the prepared rows \d+, \d+, "):
        run_stage("pretrain", 2, 2, **PRETRAIN, output_dir=tmp_path)
    newest = newest_checkpoint(tmp_path)
    assert newest == tmp_path / "checkpoint-4"
    assert_equal_weights(pretrained / "checkpoint-4", newest, 0.0)


@pytest.fixture(scope="module")
def spiking(run_stage: Callable[..., Path]) -> Callable[..., Path]:
    """Pretrains 38 steps, a checkpoint at each from the 34th on; the loss of the 36th is fifty times what it is."""

    def run(**values: Any) -> Path:
        loss = Pretrainer.compute_loss

        def spiked(self: Pretrainer, *args: Any, **kwargs: Any) -> Any:
            return loss(self, *args, **kwargs) * (50.0 if self.state.global_step == 35 else 1.0)

        keys = {"max_steps": 38, "save_steps": 1, "save_total_limit": 5, "eval_strategy": "no", "max_grad_norm": 0.0}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Pretrainer, "compute_loss", spiked)
            return run_stage("pretrain", 2, 1, **PRETRAIN | keys | values)

    return run


def step(folder: Path, number: int) -> Path:
    return folder / f"checkpoint-{number}"


def test_a_spike_is_told(spiking: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = spiking()
    assert [text for text in caplog.messages if "+-" in text and text.startswith("step 36: loss ")]
    with pytest.raises(AssertionError):
        assert_equal_weights(step(folder, 35), step(folder, 36), 0.0)


def test_a_spike_is_left_out_before_and_after_a_resumption(
    spiking: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = spiking(loss_spike="skip")
    assert "its update is left out" in caplog.text
    began, spike = read_lines(folder / EVENTS)
    (line,) = (line for line in read_metrics(folder) if line["step"] == 36 and "loss" in line)
    assert (began["event"], began["step"]) == ("began", 0)
    assert (spike["event"], spike["step"], spike["left_out"]) == ("loss spike", 36, True)
    assert spike["loss"] == pytest.approx(line["loss"])
    assert_equal_weights(step(folder, 35), step(folder, 36), 0.0)
    with pytest.raises(AssertionError):
        assert_equal_weights(step(folder, 36), step(folder, 37), 0.0)

    shutil.copytree(step(folder, 35), step(tmp_path, 35))  # whose 35 losses have to be known there
    assert_equal_weights(folder, spiking(loss_spike="skip", output_dir=tmp_path), 0.0)


def test_a_spike_stops_the_run_before_the_update(spiking: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"step 36: loss [\d.]+ on the prepared rows \d+, \d+, and the 35 before "):
        spiking(loss_spike="stop", output_dir=tmp_path)
    assert newest_checkpoint(tmp_path) == step(tmp_path, 35)


def test_a_save_that_was_interrupted_is_set_aside(
    pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(pretrained / "checkpoint-4", tmp_path / "checkpoint-4")
    shutil.copytree(pretrained / "checkpoint-8", tmp_path / "unfinished" / "checkpoint-8")
    assert newest_checkpoint(tmp_path).name == "checkpoint-4"
    assert "checkpoint-8: its save was interrupted; it is now damaged-checkpoint-8 and is passed over" in caplog.text


# --- DPO


@pytest.mark.parametrize(("precompute", "bf16"), [(True, False), (False, False), (True, True)])
def test_dpo_begins_at_ln_2(pretrained: Path, tmp_path: Path, precompute: bool, bf16: bool) -> None:
    turns = [[{"role": "user", "content": text}] for text in TEXTS]
    answers = [[{"role": "assistant", "content": text[::-1]}] for text in TEXTS]
    made = {"form": "any", "made": "here", "rejected_score": 0.0}
    pairs = [{"prompt": turns[i], "chosen": answers[i], "rejected": answers[i - 1], **made} for i in range(len(TEXTS))]
    write_pairs(tmp_path / "train.parquet", pairs)
    stated = {
        "model_name_or_path": pretrained,
        "pairs": tmp_path,
        "pairs_per_step": 4,
        "max_steps": 1,
        "max_length": 160,
    }
    stated |= {"per_device_train_batch_size": 2, "precompute_ref_log_probs": precompute, "learning_rate": 0.01}
    stated |= QUIET | {"bf16": bf16, "attn_implementation": "eager"}
    made = recipe(tmp_path, "dpo", **stated)
    dpo.main(made)
    results = read_json(made.output_dir / "summary.json")["results"]
    assert results["step0_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert results["pairs"] == len(TEXTS)
    before, after = (load_file(folder / "model.safetensors") for folder in (pretrained, made.output_dir))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    tight = recipe(tmp_path, "dpo", **stated | {"max_length": 16})
    with pytest.raises(ValueError, match=r"row 1: chosen has \d+ tokens with its prompt, and max_length is 16"):
        dpo.main(tight)


# --- schedule and record


def test_decay_ratio_shapes_the_learning_rate(pretrained: Path) -> None:
    rates = [line["learning_rate"] for line in read_metrics(pretrained) if "loss" in line]
    down = [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]  # over the last half of eight steps
    assert [rate / 0.02 for rate in rates] == pytest.approx([0, 0.5, 1, 1, *down], abs=1e-6)


def test_metrics_and_summary(pretrained: Path) -> None:
    lines = list(read_metrics(pretrained))
    training = [line for line in lines if "loss" in line]
    fill = read_json(Path(read_json(pretrained / "recipe.json")["prepared"]["value"]) / "manifest.json")["train"][
        "fill"
    ]
    for step, line in enumerate(training, 1):
        assert line["step"] == step and line["tokens_per_second"] > 0
        assert line["tokens"] == round(step * 2 * LENGTH * fill)
    assert [line["step"] for line in lines if "eval_loss" in line] == [4, 8]
    results = read_json(pretrained / "summary.json")["results"]
    assert results["steps"] == 8 and results["final_loss"] == training[-1]["loss"] < training[0]["loss"]
    assert results["tokens"] == training[-1]["tokens"]
    assert results["parameters"] == sum(
        weight.numel() for weight in load_file(pretrained / "model.safetensors").values()
    )
    assert read_json(pretrained / "config.json")["use_cache"] is True


def test_only_finish_writes_the_summary(tmp_path: Path) -> None:
    stated = recipe(tmp_path, "export", model_name_or_path="m")
    Record(stated).finish(steps=1)
    summary = stated.output_dir / "summary.json"
    assert read_json(summary)["results"] == {"steps": 1}
    record = Record(stated)  # the stage begins anew
    assert not summary.exists()
    record.log(step=1, loss=2.0)
    assert not summary.exists()
    record.finish(steps=2)
    assert read_json(summary)["results"] == {"steps": 2}
    assert [(line["step"], line["loss"]) for line in read_metrics(stated.output_dir)] == [(1, 2.0)]
    silent = recipe(tmp_path, "export", model_name_or_path="m", output_dir=tmp_path / "other")
    Record(silent, is_main=False).finish()
    assert not (tmp_path / "other").exists()


# --- trackers

SAID = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "tokens")


def test_tensorboard_gets_what_the_metrics_say(run_stage: Callable[..., Path]) -> None:
    folder = run_stage("pretrain", 2, 2, **PRETRAIN | {"report_to": "tensorboard"})
    (events,) = folder.rglob("events.out.tfevents.*")
    told = EventAccumulator(str(events.parent)).Reload()
    lines = list(read_metrics(folder))
    for key, tag in [*((key, f"train/{key}") for key in SAID), ("eval_loss", "eval/loss")]:
        wanted = [(line["step"], line[key]) for line in lines if key in line]
        found = [(point.step, point.value) for point in told.Scalars(tag)]
        assert wanted and found == [(step, pytest.approx(value, rel=1e-6)) for step, value in wanted], key


@pytest.mark.slow  # it starts a process of its own
def test_trackio_gets_what_the_metrics_say(
    run_stage: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip("trackio")
    folder = run_stage("pretrain", 2, 2, **PRETRAIN | {"report_to": ["trackio"]})
    (database,) = tmp_path.glob(f"{folder.parent.name}*.db")  # the project is the run's folder
    with closing(sqlite3.connect(database)) as opened:
        rows = opened.execute("select run_name, metrics from metrics order by id").fetchall()
    told = [json.loads(metrics) for _, metrics in rows]
    assert {name for name, _ in rows} == {"pretrain"}
    for key in SAID:
        wanted = [line[key] for line in read_metrics(folder) if key in line]
        assert wanted == [pytest.approx(its[f"train/{key}"]) for its in told if f"train/{key}" in its], key


@pytest.mark.slow  # it starts a process of its own
def test_wandb_stays_on_this_machine(run_stage: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for key in ("MODE", "DIR", "PROJECT", "ERROR_REPORTING"):  # set_up_trackers sets what is not set
        monkeypatch.setenv(f"WANDB_{key}", "")
        monkeypatch.delenv(f"WANDB_{key}")
    folder = run_stage("pretrain", 2, 2, **PRETRAIN | {"report_to": ["wandb"]})
    assert (os.environ["WANDB_MODE"], os.environ["WANDB_ERROR_REPORTING"]) == ("offline", "false")
    wandb.finish()
    (written,) = folder.parent.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60
    while b"train/loss" not in written.read_bytes():  # a process of its own writes it
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("report_to", "message"),
    [
        ("comet_ml", "report_to: comet_ml is not installed; run: pip install 'fledge-lm"),
        (["tensorboard", "tensorbord"], "report_to: tensorbord is no tracker; they are "),
        ("all", "report_to: all is whatever happens to be installed; name the trackers"),
    ],
)
def test_trackers_that_cannot_be_told(tmp_path: Path, report_to: str | list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        set_up_trackers(recipe(tmp_path, "export", model_name_or_path="m"), {"report_to": report_to})


def test_freed_memory_is_kept_and_its_pages_are_not_faulted_in_again() -> None:
    def faults(what: str) -> int:
        return int(subprocess.run([sys.executable, "-c", FAULTS, what], check=True, capture_output=True).stdout)

    assert faults("given back") > 60 * 16_000  # all pages every time
    assert faults("kept") < 15 * 16_384


def test_compiled_layers_compute_what_is_cheap_again_in_place_of_keeping_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "max_position_embeddings": 256}
    rows = torch.randint(0, TINY["vocab_size"], (4, 256), generator=torch.Generator().manual_seed(0))
    loss, gradients, kept = {}, {}, {}
    for share in (1.0, run.KEPT_OF_LAYERS):
        torch.compiler.reset()
        monkeypatch.setattr(run, "KEPT_OF_LAYERS", share)
        monkeypatch.setattr(torch._functorch.config, "activation_memory_budget", 1.0)
        torch.manual_seed(0)
        model = FledgeForCausalLM(FledgeConfig(**TINY | shape))
        run.speed_up(model, True, tokens=0, bf16=True)
        blocks: dict[int, int] = {}

        def keep(tensor: torch.Tensor, blocks: dict[int, int] = blocks) -> torch.Tensor:
            blocks[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with (
            torch.autocast("cpu", torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            loss[share] = model(rows, labels=rows).loss
        loss[share].backward()
        gradients[share] = torch.cat([weight.grad.flatten() for weight in model.parameters()])
        kept[share] = sum(blocks.values())
    less = 2 * rows.numel() * shape["intermediate_size"] * 2  # silu(gate) * up of each layer, in bfloat16
    assert kept[run.KEPT_OF_LAYERS] <= kept[1.0] - less
    assert torch.equal(loss[1.0], loss[run.KEPT_OF_LAYERS])
    torch.testing.assert_close(*gradients.values(), rtol=1e-2, atol=1e-5)
