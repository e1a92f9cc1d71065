"""The plan: parameters, FLOPs and memory are what the libraries count, and a plan that cannot work says what would."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen3Config, Qwen3ForCausalLM

from fledge import cli
from fledge.files import write_json
from fledge.layouts import read_layout
from fledge.model.build import build_config, build_model
from fledge.model.configuration_fledge import FledgeConfig
from fledge.model.plain import plain_config
from fledge.planning.activations import Batch, layer_bytes
from fledge.planning.compute import Prices, flops_per_token, hours, strict_flops_per_token
from fledge.planning.fit import USABLE, accumulation, largest, micro_batches, refusal
from fledge.planning.job import Job, read_jobs
from fledge.planning.memory import PARTS, Place, full_logits, moments, peak, states
from fledge.planning.plan import plan
from fledge.planning.shape import DEFAULTS, adapter_parameters, read_shape


ARIA = {
    "vocab_size": 32003,
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
TINYLLAMA = ARIA | {"vocab_size": 32000, "intermediate_size": 5632, "num_key_value_heads": 4}
LILLM = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
LILLM_300M = LILLM | {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 2816}
MISTRAL = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 14336,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 50304, "n_positions": 256, "n_embd": 384, "n_layer": 6, "n_head": 6}
TINY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
TINY_GPT2 = {"vocab_size": 128, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 8}
TOKENIZER = type("Tokenizer", (), {"__len__": lambda _: 8, **dict.fromkeys(("pad_token_id", "bos_token_id"))})
TOKENIZER.eos_token_id = None


def model_of(config: dict[str, Any]) -> torch.nn.Module:
    return build_model(build_config(config, TOKENIZER()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe folder of the 1.1B shape with all three training stages, and two layouts."""
    return recipes(tmp_path / "recipes" / "aria")


def recipes(folder: Path, **changes: dict[str, Any]) -> Path:
    """The folder; `changes` are keys by stage, None to leave one out."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = folder.parents[1] / "runs"
    stages: dict[str, dict[str, Any]] = {
        "prepare": {"datasets": [{"path": "a.parquet"}], "tokenizer": f"{runs}/tok", "max_length": 2048},
        "prepare_sft": {"datasets": [{"path": "b.parquet"}], "tokenizer": f"{runs}/tok", "max_length": 2048},
        "pretrain": {
            "model_config": ARIA,
            "tokenizer": f"{runs}/tok",
            "prepared": f"{runs}/prepare",
            "tokens_per_step": 2**20,
            "per_device_train_batch_size": 8,
            "max_steps": 19070,
            "save_strategy": "steps",
            "save_steps": 1000,
            "save_total_limit": 2,
        },
        "sft": {
            "model_name_or_path": f"{runs}/pretrain",
            "prepared": f"{runs}/prepare_sft",
            "tokens_per_step": 2**18,
            "per_device_train_batch_size": 8,
            "num_train_epochs": 2,
            "activation_checkpointing": False,
        },
        "dpo": {
            "model_name_or_path": f"{runs}/sft",
            "pairs": f"{runs}/pairs",
            "pairs_per_step": 64,
            "per_device_train_batch_size": 4,
            "max_steps": 952,
            "max_length": 1024,
            "activation_checkpointing": False,
        },
    }
    for name, values in stages.items():
        values = values | {"output_dir": f"{runs}/{name}"} | changes.get(name, {})
        values = {key: value for key, value in values.items() if value is not None}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


def layout(folder: Path, name: str, **values: Any):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"distributed_type": "MULTI_GPU", "num_processes": 8, **values}))
    return read_layout(path)


def zero(stage: int) -> dict[str, Any]:
    more = {"zero3_save_16bit_model": True} if stage == 3 else {}
    return {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": stage, **more}}


FSDP = {
    "distributed_type": "FSDP",
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_state_dict_type": "FULL_STATE_DICT",
    },
}


def job_of(folder: Path, stage: str, *overrides: str) -> Job:
    return read_jobs(folder / f"{stage}.yaml", overrides)[0]


def changed(job: Job, **values: Any) -> Job:
    return replace(job, recipe=replace(job.recipe, values=job.recipe.values | values))


@pytest.mark.parametrize(
    ("config", "total"),
    [
        (ARIA, 1_105_827_840),
        (ARIA | {"tie_word_embeddings": True}, 1_040_285_696),
        (TINYLLAMA | {"model_type": "llama"}, 1_100_048_384),
        (LILLM, 39_596_544),
        (LILLM_300M, 291_554_304),
        (MISTRAL | {"tie_word_embeddings": True}, 904_431_616),
        (MISTRAL, 969_967_616),
        (MISTRAL | {"intermediate_size": 4096}, 466_651_136),
        (GPT2, 30_062_592),
        (GPT2 | {"n_embd": 1536, "n_layer": 24, "n_head": 24}, 757_619_712),
        (TINY | {"qk_norm": True, "attention_bias": True, "mlp_bias": True, "head_dim": 16}, None),
        (TINY_GPT2 | {"model_type": "gpt2", "n_inner": 100, "tie_word_embeddings": False}, None),
    ],
)
def test_parameters_are_those_of_the_model_to_the_digit(config: dict[str, Any], total: int | None) -> None:
    with torch.device("meta"):
        model = model_of(config)
    shape = read_shape(config, "here")

    assert shape.total == model.num_parameters() == (total or shape.total)
    assert shape.embedding + shape.body == shape.total
    embedding = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    embedding |= {model.base_model.wpe.weight} if shape.is_gpt2 else set()
    assert shape.embedding == sum(weight.numel() for weight in embedding)


def test_a_qwen3_has_as_many_as_the_model_it_was_exported_from() -> None:
    config = TINY | {"qk_norm": True, "head_dim": 16}
    with torch.device("meta"):
        model = Qwen3ForCausalLM(plain_config(FledgeConfig(**config)))
    shape = read_shape(model.config.to_dict(), "here")
    assert shape.total == model.num_parameters() == read_shape(config, "here").total


def test_what_a_recipe_leaves_out_is_what_transformers_takes() -> None:
    for name, cls in (
        ("fledge", FledgeConfig),
        ("llama", LlamaConfig),
        ("mistral", MistralConfig),
        ("qwen3", Qwen3Config),
        ("gpt2", GPT2Config),
    ):
        config = cls()
        for key, value in DEFAULTS[name].items():
            if (name, key) == ("qwen3", "qk_norm"):  # Qwen3 always has it
                assert value
            elif hasattr(config, key):
                taken = getattr(config, key)
                same = {"num_key_value_heads": config.num_attention_heads, "head_dim": 128}.get(key, value)
                assert taken in (value, same), f"{name}.{key}"
            else:
                assert not value, f"{name}.{key}: no such key, so nothing may be the default"


@pytest.mark.parametrize(
    ("config", "length", "tokens", "total", "strict", "on_8"),
    [
        (ARIA, 2048, 19_996_344_320, 1.548e20, 1.359e20, 13.59),
        (LILLM, 512, 7.864e9, 2.17e18, 2.02e18, 0.19),
        (LILLM_300M, 512, 9.5e9, 1.81e19, None, 1.59),
        (TINYLLAMA, 8192, 1.2e12, 1.32e22, 1.01e22, 1162),
        (TINYLLAMA, 2048, 1_430_512 * 2_097_152, 2.31e22, 2.03e22, 2030),
    ],
)
def test_flops_and_hours_are_those_of_the_systems(
    config: dict[str, Any], length: int, tokens: float, total: float, strict: float | None, on_8: float
) -> None:
    shape = read_shape(config, "here")

    assert flops_per_token(shape, length) * tokens == pytest.approx(total, rel=0.005)
    assert strict is None or strict_flops_per_token(shape, length) * tokens == pytest.approx(strict, rel=0.005)
    assert hours(flops_per_token(shape, length) * tokens, 8, Prices()) == pytest.approx(on_8, rel=0.03)


@pytest.mark.parametrize(
    ("config", "gigabytes"),
    [
        (ARIA, (17.69, 6.08, 4.15, 2.21, 5.25, 3.18, 1.11)),
        (TINYLLAMA, (17.60, 6.05, 4.13, 2.20, 5.23, 3.16, 1.10)),
        (MISTRAL, (15.52, 5.33, 3.64, 1.94, 4.61, 2.79, 0.97)),
    ],
)
def test_states_are_those_of_zero(config: dict[str, Any], gigabytes: tuple[float, ...]) -> None:
    total = read_shape(config, "here").total
    found = [sum(states(total, total, "ddp", 1).values())]
    found += [sum(states(total, total, f"zero{z}", g, 2).values()) for g in (8, 16) for z in (1, 2, 3)]

    assert [round(size / 1e9, 2) for size in found] == list(gigabytes)
    assert sum(states(total, total, "fsdp2", 8).values()) == 16 * total / 8


@pytest.mark.parametrize("gpus", [8, 16])
def test_states_are_those_of_deepspeeds_estimators(gpus: int) -> None:
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    total = read_shape(TINYLLAMA, "here").total
    flat = 4 * total / gpus  # the gradients of the partition in float32, while the optimizer steps
    _, second = estimate_zero2_model_states_mem_needs(total, gpus, 1, cpu_offload=False)
    _, third, _ = estimate_zero3_model_states_mem_needs(total, 0, gpus, 1, cpu_offload=False, cpu_offload_params=False)

    assert sum(states(total, total, "zero2", gpus, 2).values()) + flat == pytest.approx(second, abs=1)
    # Of ZeRO-3 the estimator counts the gradients once, in float32.
    sharded = states(total, total, "zero3", gpus, 2)
    assert sharded["weights"] + sharded["optimizer"] + flat == pytest.approx(third, abs=1)


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "config",
    [
        TINY,
        TINY | {"qk_norm": True, "head_dim": 16},
        TINY | {"model_type": "mistral", "num_key_value_heads": 8},
        TINY_GPT2 | {"model_type": "gpt2", "resid_pdrop": 0.1, "attn_pdrop": 0.0},
        TINY_GPT2
        | {"model_type": "gpt2", "activation_function": "gelu_pytorch_tanh", "resid_pdrop": 0.0, "attn_pdrop": 0.0},
    ],
    ids=["fledge", "qk_norm", "mistral", "gpt2", "gpt2-fused"],
)
def test_a_layer_keeps_what_torch_saves(config: dict[str, Any], attention: str, precision: str) -> None:
    # Two layers less one: what the model keeps once is left out. Autocast's copies of the weights count elsewhere.
    batch = Batch(2, 64)
    name = "n_layer" if config.get("model_type") == "gpt2" else "num_hidden_layers"
    one, two = (saved_bytes(config | {name: layers}, attention, precision, batch) for layers in (1, 2))
    shape = read_shape(config, "here")
    copies = 2 * shape.layer_matrices if precision == "autocast" else 0

    expected = layer_bytes(shape, batch, precision, attention, on_gpu=False) + copies
    assert two - one == pytest.approx(expected, rel=0.002)  # LayerNorm's statistics


def saved_bytes(config: dict[str, Any], attention: str, precision: str, batch: Batch) -> int:
    """Bytes of the storages that torch keeps for the backward pass of the decoder, parameters left out."""
    model = model_of(config).train()
    model.set_attn_implementation(attention)
    model = model.bfloat16() if precision == "bfloat16" else model
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            kept[place] = tensor
        return tensor

    half = torch.arange(batch.length // 2)
    positions = torch.cat([half, half])[None].repeat(batch.sequences, 1)  # two documents a row, as packed
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"),
    ):
        out = model.base_model(torch.randint(0, 100, positions.shape), position_ids=positions, use_cache=False)
    assert out.last_hidden_state.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_a_plan_of_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(folder), "--on", "cpu", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)

    assert made["parameters"] == {
        "total": 1_105_827_840,
        "embedding": 131_084_288,
        "body": 974_743_552,
        "adapters": 0,
        "trainable": 1_105_827_840,
    }
    assert (made["tokens_per_step"], made["steps"], made["total_tokens"]) == (1_048_576, 19_070, 19_996_344_320)
    assert made["flops"]["total"] == pytest.approx(1.548e20, rel=0.001)
    assert [stage["stage"] for stage in made["stages"]] == ["pretrain", "sft", "dpo"]
    assert made["checkpoints"]["checkpoint_gb"] == pytest.approx(13.27, abs=0.01)
    assert made["checkpoints"]["saved"] == 20 and made["checkpoints"]["kept"] == 2
    assert made["checkpoints"]["disk_gb"] == pytest.approx(4.42 + 3 * 13.27, abs=0.01)  # one more while it is written
    dpo = made["stages"][2]
    assert dpo["tokens_per_step"] == 131_072
    assert dpo["flops"]["per_token"] == pytest.approx(9.58e9, rel=0.001)
    assert dpo["flops"]["total"] == pytest.approx(1.20e18, rel=0.005)
    assert made["stages"][1]["steps"] is None, "no rows are counted yet"
    assert "planned by arithmetic" in made["basis"]


def test_a_plan_to_read(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = layout(tmp_path, "8xh100_ddp")

    assert cli.main(["plan", str(folder / "pretrain.yaml"), "--on", str(place.path), "--price", "3"]) == 0
    text = capsys.readouterr().out

    assert "1,105,827,840 = embedding 131,084,288 + body 974,743,552" in text
    assert "19,070 steps, 19,996,344,320 tokens" in text
    assert "6N + 12LdT" in text and "6M + 6LdT" in text
    assert "no multiple of 64 is slow on a GPU; model_config.vocab_size: 32064 is not" in text  # its own is 32,003
    assert "13.6 h" in text and "326" in text  # 13.588 h x 8 GPUs x 3 dollars
    assert "Planned by arithmetic" in text
    assert max(map(len, text.splitlines())) <= 140


def test_planning_imports_nothing_heavy(folder: Path) -> None:
    code = (
        "import sys; from fledge import cli; "
        f"cli.main(['plan', {str(folder)!r}, '--on', 'cpu', '--json']); "
        "print([name for name in ('torch', 'transformers', 'accelerate', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.splitlines()[-1] == "[]"


def test_epochs_follow_from_the_manifest(folder: Path) -> None:
    rows = 19070 * 512 // 2
    source = {"name": "web", "tokens": rows * 2000, "epochs": 1.5}
    prepared = folder.parents[1] / "runs" / "prepare"
    prepared.mkdir(parents=True)
    write_json(prepared / "manifest.json", {"max_length": 2048, "train": {"rows": rows, "sources": [source]}})
    job = job_of(folder, "pretrain")

    assert job.epochs == 2
    made = plan(folder / "pretrain.yaml", [], "cpu", Prices(), 80)
    assert made["sources"] == [{"name": "web", "tokens": rows * 2000, "epochs": 3.0}]
    # Rows of another length are not those that this recipe asks for.
    write_json(prepared / "manifest.json", {"max_length": 1024, "train": {"rows": rows, "sources": [source]}})
    assert job_of(folder, "pretrain").epochs is None
    # The Trainer rounds every epoch up to whole steps.
    write_json(prepared / "manifest.json", {"max_length": 2048, "train": {"rows": 513, "sources": []}})
    assert job_of(folder, "pretrain", "--max_steps", "-1", "--num_train_epochs", "3").steps == 6


def test_fine_tuning_plans_the_model_it_starts_from(folder: Path, tmp_path: Path) -> None:
    assert job_of(folder, "dpo").shape == job_of(folder, "pretrain").shape

    recipes(folder, pretrain={"output_dir": f"{tmp_path}/elsewhere"})
    with pytest.raises(ValueError, match=r"sft.yaml: model_name_or_path: .*a plan downloads nothing"):
        job_of(folder, "sft")
    model = tmp_path / "runs" / "pretrain"
    model.mkdir(parents=True)
    write_json(model / "config.json", LILLM | {"model_type": "llama"})
    assert job_of(folder, "sft").shape.total == 39_596_544


@pytest.mark.parametrize(
    ("name", "values"),
    [("ddp", {}), ("fsdp2", FSDP), ("zero1", zero(1)), ("zero2", zero(2)), ("zero3", zero(3))],
)
def test_memory_of_an_engine(folder: Path, tmp_path: Path, name: str, values: dict[str, Any]) -> None:
    job, place = job_of(folder, "pretrain"), Place.of(layout(tmp_path, name, **values))
    held = peak(job, place, 8, 8, False)

    assert place.engine == name
    assert held["peak"] == sum(held[part] for part in PARTS)
    assert peak(job, place, 4, 16, False)["peak"] < held["peak"], "a smaller micro-batch takes less"
    assert peak(job, place, 8, 8, True)["activations"] < held["activations"] / 4, "checkpointing keeps little"
    assert full_logits(job, 8) > 5 * held["logits_and_loss"]
    more = Place.of(layout(tmp_path, f"{name}16", **values, num_processes=16))
    assert peak(job, more, 8, 4, False)["optimizer"] == held["optimizer"] / (1 if name == "ddp" else 2)
    if name == "fsdp2":
        # The Trainer reduces gradients once a step, and FSDP2 holds them whole until then.
        assert held["gradients"] == 4 * job.total
        each = changed(job, accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}})
        assert peak(each, place, 8, 8, False)["gradients"] == 4 * job.total / 8


def test_eager_attention_takes_the_square_of_the_row(folder: Path, tmp_path: Path) -> None:
    place = Place.of(layout(tmp_path, "ddp"))
    job = job_of(folder, "pretrain")
    eager = changed(job, attn_implementation="eager")

    more = peak(eager, place, 8, 8, False)["activations"] - peak(job, place, 8, 8, False)["activations"]
    assert more == pytest.approx(22 * 8 * 32 * 2048**2 * 6, rel=0.05)


def test_the_reference_of_dpo(folder: Path, tmp_path: Path) -> None:
    job = job_of(folder, "dpo")
    for values, wanted in (({}, 4.0), (zero(2), 4.0), (zero(3), 0.5), (FSDP, 0.5)):
        place = Place.of(layout(tmp_path, "here", **values))
        assert peak(job, place, 4, 2, False)["reference"] == wanted * job.total
        frozen = changed(job, precompute_ref_log_probs=True)
        assert peak(frozen, place, 4, 2, False)["reference"] == 0


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest(folder: Path, tmp_path: Path) -> None:
    job = job_of(folder, "pretrain", "--tokens_per_step", str(2048 * 8 * 12))

    assert accumulation(job, 4, 8) == 3
    assert micro_batches(job, 8) == [1, 2, 3, 4, 6, 12]
    assert "nearest: 6 or 12" in refusal(job, layout(tmp_path, "8"))
    assert "96 rows a step do not divide by 5 processes; 4 do" in refusal(job, layout(tmp_path, "5", num_processes=5))
    muon = changed(job, muon_learning_rate=0.02, per_device_train_batch_size=4)
    assert "Muon" in refusal(muon, layout(tmp_path, "z", **zero(2)))
    assert refusal(muon, layout(tmp_path, "8")) is None
    with pytest.raises(
        ValueError, match=r"tokens_per_step: 5000 is no multiple of the 2048 tokens of a row; nearest: 4096"
    ):
        job_of(folder, "pretrain", "--tokens_per_step", "5000")


def test_what_exceeds_a_card_is_told_what_to_change(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = layout(tmp_path, "8xh100_ddp")
    words = ["plan", str(folder / "dpo.yaml"), "--on", str(place.path), "--card", "40"]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "8xh100_ddp does not fit 40 GB" in text
    for change in (
        "per_device_train_batch_size: 1",
        "activation_checkpointing: true",
        "precompute_ref_log_probs: true",
    ):
        assert change in text

    # Each piece of advice holds: with it, the plan fits.
    for change in (["--per_device_train_batch_size", "1"], ["--activation_checkpointing", "true"]):
        assert cli.main([*words, "--json", *change]) == 0
        made = json.loads(capsys.readouterr().out)
        assert not made["layouts"][0]["exceeds"]
        assert made["layouts"][0]["memory_gib_per_gpu"]["peak"] <= USABLE * 40
    job = job_of(folder, "dpo")
    size = largest(job, Place.of(place), 40, False)
    assert size == 1 and made["layouts"][0]["largest_micro_batch"]["80"] >= 4


def test_lora_trains_the_adapters_alone() -> None:
    shape = read_shape(TINYLLAMA, "here")

    assert adapter_parameters(shape, 8, ["q_proj", "v_proj"]) == 1_126_400  # 22 x 8 x (2048 + 2048 + 2048 + 256)
    assert adapter_parameters(shape, 16, "all-linear") == 12_615_680
    assert adapter_parameters(read_shape(GPT2, "here"), 8, ["c_attn"]) == 6 * 8 * (384 + 3 * 384)
    with pytest.raises(ValueError, match="lora_target_modules: wq: no matrix of a layer"):
        adapter_parameters(shape, 8, ["wq"])


def test_lora_needs_no_reference_and_little_memory(folder: Path, tmp_path: Path) -> None:
    whole, place = job_of(folder, "dpo"), Place.of(layout(tmp_path, "ddp"))
    lora = replace(whole, adapters=12_615_680)

    assert not lora.has_reference
    held = peak(lora, place, 4, 2, False)
    assert held["gradients"] == 4 * 12_615_680 and held["optimizer"] == 8 * 12_615_680
    assert held["weights"] == 4 * (whole.total + 12_615_680)


def test_mistakes_name_the_fix(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        ([str(tmp_path / "none")], "no such file"),
        ([str(folder / "prepare.yaml")], "a plan is of pretrain, sft, dpo recipes"),
        ([str(folder), "--on", "8xh100_dpd"], "no such layout"),
        ([str(folder), "--max_steps", "3"], "a key belongs to one recipe"),
        ([str(folder / "sft.yaml"), "--max_stebs", "3"], "did you mean max_steps"),
        ([str(folder), "--mfu", "40"], "a share of the peak"),
    ):
        assert cli.main(["plan", *words]) == 2
        assert message in capsys.readouterr().err


def test_every_moment_counts_every_part(folder: Path, tmp_path: Path) -> None:
    job, place = job_of(folder, "pretrain"), Place.of(layout(tmp_path, "ddp"))
    found = moments(job, place, 8, 1, False)

    assert found["loss"]["gradients"] == 0, "with one micro-batch a step there are none yet"
    assert found["optimizer step"]["gradients"] == 4 * job.total
    assert found["loss"]["communication"] == 4 * job.total, "DDP's buckets are as large as the gradients"
