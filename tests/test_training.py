"""Training: the loss is the documents' own, accumulation and resuming change nothing, and numbers known by theory hold."""

import copy
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import trl.kernels
import trl.trainer.utils
from conftest import CONVERSATIONS, TEXTS, TINY, packed_rows, places, recipe, write_lines
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase, TrainingArguments
from trl import SFTConfig

from fledge.data.collate import PackedCollator
from fledge.data.pairs import write_pairs
from fledge.files import read_json
from fledge.model.modeling_fledge import FledgeForCausalLM
from fledge.results.record import Record, read_metrics
from fledge.stages import dpo, prepare, pretrain, sft
from fledge.training import cpu_head
from fledge.training.arguments import accumulation
from fledge.training.checkpoints import newest_checkpoint
from fledge.training.muon import MuonWithAdamW, hidden_matrices
from fledge.training.trainer import Pretrainer


LENGTH = 80
STEPS = {"pretrain": pretrain, "sft": sft}
QUIET = {"bf16": False, "torch_compile": False, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
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


def log_prob_reference(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, upstream: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """log_probs, entropy, is_top1 and the gradients of hidden and weight, by full float32 logits."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = hidden @ weight.t()
    log_softmax = logits.log_softmax(-1)
    log_probs = log_softmax.gather(-1, targets[:, None])[:, 0]
    log_probs.backward(upstream)
    entropy = -(log_softmax.exp() * log_softmax).sum(-1)
    return log_probs.detach(), entropy.detach(), logits.argmax(-1) == targets, hidden.grad, weight.grad


def log_prob_inputs(tokens: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, 32), torch.randn(200, 32) / 4
    targets = torch.randint(200, (tokens,))
    targets[::3] = (hidden @ weight.t()).argmax(-1)[::3]  # so that is_top1 is often true
    return hidden, weight, targets, torch.rand(tokens) + 0.5


def cpu_head_results(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, upstream: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    log_probs, entropy, _, _, is_top1 = cpu_head.CpuLogProbFunction.apply(hidden, weight, None, targets, 1.0, 256)
    log_probs.backward(upstream)
    return log_probs.detach(), entropy, is_top1, hidden.grad, weight.grad


@pytest.mark.parametrize(
    "compiled",
    [False, pytest.param(True, marks=pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler"))],
)
def test_cpu_head_is_log_softmax(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_head, "TILE_TOKENS", 64)
    if compiled:
        cpu_head.compile_tiles()
    inputs = log_prob_inputs(64 + 64 + 21)
    for found, expected in zip(cpu_head_results(*inputs), log_prob_reference(*inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_cpu_head_under_bf16_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    # bfloat16 keeps 8 bits: a logit of up to 8 is off by 2^-6 at most. Sums over tiles are kept in float32, so that the
    # gradient of the weight, a sum over 32 tiles, is no worse than one of its terms.
    monkeypatch.setattr(cpu_head, "TILE_TOKENS", 64)
    inputs = log_prob_inputs(2048)
    with torch.autocast("cpu", torch.bfloat16):
        log_probs, entropy, _, *gradients = cpu_head_results(*inputs)
    expected_log_probs, expected_entropy, _, *expected_gradients = log_prob_reference(*inputs)
    torch.testing.assert_close(log_probs, expected_log_probs, rtol=0, atol=2**-5)
    torch.testing.assert_close(entropy, expected_entropy, rtol=0, atol=2**-5)
    for found, expected in zip(gradients, expected_gradients, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 2**-8 * expected.norm()


@pytest.mark.parametrize("head", ["trl", "cpu"])
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
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
    model = make_model().train()
    alone = torch.zeros(())
    for row, columns in places(rows):
        ids, labels = batch["input_ids"][row, columns], batch["labels"][row, columns]
        alone = alone + cross_entropy(model(ids[None]).logits[0, :-1], labels[1:], reduction="sum")
    alone.backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()

    common = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    dataset = datasets.Dataset.from_list(rows)
    if stage == "pretrain":
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


def test_accumulation_follows_from_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    assert accumulation(4096, 256, 4, "tokens") == 4
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert accumulation(4096, 256, 4, "tokens") == 2
    with pytest.raises(ValueError, match=r"tokens_per_step: 5000 .* multiple of 2048.* nearest: 4096 or 6144$"):
        accumulation(5000, 256, 4, "tokens")
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
    for step in (4, 8):
        shutil.copytree(pretrained / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    shutil.copytree(tmp_path / "checkpoint-4", tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-old").mkdir()
    assert newest_checkpoint(tmp_path).name == "checkpoint-10"
    for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt", "config.json", "model.safetensors"):
        hidden = (tmp_path / "checkpoint-10" / name).rename(tmp_path / name)
        caplog.clear()
        assert newest_checkpoint(tmp_path).name == "checkpoint-8"
        assert f"checkpoint-10 is incomplete ({name} missing) and is passed over" in caplog.text
        hidden.rename(tmp_path / "checkpoint-10" / name)


# --- DPO


@pytest.mark.parametrize("precompute", [True, False])
def test_dpo_begins_at_ln_2(pretrained: Path, tmp_path: Path, precompute: bool) -> None:
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
        "max_length": 128,
    }
    stated |= {"per_device_train_batch_size": 2, "precompute_ref_log_probs": precompute, "learning_rate": 0.01}
    made = recipe(tmp_path, "dpo", **QUIET, **stated)
    dpo.main(made)
    results = read_json(made.output_dir / "summary.json")["results"]
    assert results["step0_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert results["pairs"] == len(TEXTS)
    before, after = (load_file(folder / "model.safetensors") for folder in (pretrained, made.output_dir))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    tight = recipe(tmp_path, "dpo", **QUIET, **{**stated, "max_length": 16})
    with pytest.raises(ValueError, match=r"row 1: chosen has \d+ tokens with its prompt, and max_length is 16"):
        dpo.main(tight)


# --- optimizer and schedule


def test_decay_ratio_shapes_the_learning_rate(pretrained: Path) -> None:
    rates = [line["learning_rate"] for line in read_metrics(pretrained) if "loss" in line]
    down = [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]  # over the last half of eight steps
    assert rates[0] in (0.01, 0.02)
    assert [rate / max(rates) for rate in rates] == pytest.approx([0, 0.5, 1, 1, *down], abs=1e-6)


def stepped(optimizer: torch.optim.Optimizer, weights: dict[str, nn.Parameter], seed: int) -> None:
    """One step with random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for weight in weights.values():
        weight.grad = torch.randn(weight.shape, generator=generator)
    optimizer.step()
    optimizer.zero_grad()
    assert all(weight.grad is None for weight in weights.values())


def muon_of(model: FledgeForCausalLM) -> tuple[MuonWithAdamW, torch.optim.lr_scheduler.LambdaLR]:
    matrices = hidden_matrices(model)
    rest = [weight for weight in model.parameters() if not any(weight is matrix for matrix in matrices)]
    optimizer = MuonWithAdamW(matrices, torch.optim.AdamW(rest, lr=0.01), lr=0.02, weight_decay=0.1)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
