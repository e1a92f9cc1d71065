"""The systems' recipes as numbers: parameters, tokens, steps and learning rates to the digit. Nothing is trained.

A recipe of a system is a row of SYSTEMS and its folder a line of CHAINS; the folder's README states the same numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments
from trl import DPOConfig, SFTConfig

from fledge.arguments import STAGES
from fledge.launching.plan import read_folder
from fledge.model import register
from fledge.recipe import Recipe, load_recipe
from fledge.training.arguments import accumulation, library_arguments
from fledge.training.lora import lora_config
from fledge.training.trainer import StageTrainer


ROOT = Path(__file__).parents[1]
LIBRARY = {"pretrain": TrainingArguments, "sft": SFTConfig, "dpo": DPOConfig}


@dataclass(frozen=True)
class Stage:
    """What a training recipe comes to.

    Args:
        rates: step, counted from 0 -> learning rate of its update; `steps` is the one after the last.
        per_step: tokens of an optimizer step; pairs in dpo.yaml.
        total: tokens, or pairs, of the whole stage.
        worlds: numbers of processes it has to divide over.
    """

    recipe: str
    per_step: int
    steps: int
    total: int
    rates: dict[int, float] = field(hash=False)
    parameters: int | None = None
    worlds: tuple[int, ...] = (1, 8, 16)


SYSTEMS = [
    Stage(
        "transformer-1b-chat/pretrain",
        parameters=1_105_827_840,
        per_step=1_048_576,
        steps=19_070,
        total=19_996_344_320,
        # Warm-up begins at the floor, a tenth of the peak; the decay takes the last 1,907 steps.
        rates={0: 3e-5, 500: 1.65e-4, 1000: 3e-4, 17_163: 3e-4, 17_640: 1.64965e-4, 19_070: 3e-5},
    ),
    Stage(
        "transformer-1b-chat/sft",
        per_step=262_144,
        steps=2_180,
        total=571_473_920,
        rates={0: 0.0, 33: 1e-5, 66: 2e-5, 1123: 1e-5, 2180: 0.0},
    ),
    Stage(
        "transformer-1b-chat/dpo",
        per_step=64,
        steps=952,
        total=60_928,
        rates={0: 0.0, 48: 2.5e-7, 96: 5e-7, 524: 2.5e-7, 952: 0.0},
    ),
    Stage(
        "transformer-1b-chat/sft_lora",
        per_step=262_144,
        steps=2_180,
        total=571_473_920,
        rates={0: 0.0, 33: 1e-4, 66: 2e-4, 1123: 1e-4, 2180: 0.0},
    ),
    Stage(
        "transformer-1b-chat/dpo_lora",
        per_step=64,
        steps=952,
        total=60_928,
        rates={0: 0.0, 48: 2.5e-6, 96: 5e-6, 524: 2.5e-6, 952: 0.0},
    ),
    Stage(
        "lillm/pretrain",
        parameters=39_596_544,
        per_step=524_288,
        steps=15_259,
        total=8_000_110_592,
        rates={0: 0.0, 1000: 3e-4, 2000: 6e-4, 6420: 4.64982e-4, 15_259: 6e-5},
    ),
    Stage("lillm/sft", per_step=262_144, steps=1_200, total=314_572_800, rates={0: 3e-4, 1200: 3e-4}),
    Stage("lillm/sft_hard_coded", per_step=262_144, steps=25, total=6_553_600, rates={0: 3e-4, 25: 3e-4}),
    Stage(
        "lillm-300m/pretrain",
        parameters=291_554_304,
        per_step=524_288,
        steps=18_120,
        total=9_500_098_560,
        rates={0: 0.0, 1000: 3e-4, 2000: 6e-4, 10_060: 3.3e-4, 18_120: 6e-5},
    ),
    Stage(
        "prem-1b/pretrain",
        parameters=1_100_048_384,
        per_step=4_194_304,
        steps=286_102,
        total=1_199_998_763_008,
        rates={0: 0.0, 14_305: 2e-4, 28_610: 4e-4, 157_356: 2.2e-4, 286_102: 4e-5},
    ),
    Stage(
        "tinyllama-1.1b/pretrain",
        parameters=1_100_048_384,
        per_step=2_097_152,
        steps=1_430_512,
        total=3_000_001_101_824,
        rates={0: 0.0, 1000: 2e-4, 2000: 4e-4, 716_256: 2.2e-4, 1_430_512: 4e-5},
    ),
    Stage(
        "tinylm-nanogpt-30m/pretrain",
        parameters=30_062_592,
        per_step=16_384,
        steps=5_000,
        total=81_920_000,
        rates={0: 0.0, 50: 5e-4, 100: 1e-3, 2550: 5.5e-4, 5000: 1e-4},
    ),
    Stage(
        "tinylm-nanogpt-124m/pretrain",
        parameters=123_886_080,
        per_step=16_384,
        steps=5_000,
        total=81_920_000,
        rates={0: 0.0, 50: 5e-4, 100: 1e-3, 2550: 5.5e-4, 5000: 1e-4},
    ),
    Stage(
        "tinylm-nanogpt-757m/pretrain",
        parameters=757_619_712,
        per_step=16_384,
        steps=5_000,
        total=81_920_000,
        rates={0: 0.0, 125: 1.25e-4, 250: 2.5e-4, 2625: 1.375e-4, 5000: 2.5e-5},
    ),
    Stage(
        "tinylm-mistral-0.4b/pretrain",
        parameters=401_115_136,
        per_step=32_768,
        steps=1_000,
        total=32_768_000,
        rates={0: 0.0, 25: 1.5e-4, 50: 3e-4, 525: 1.5e-4, 1000: 0.0},
    ),
    Stage(
        "tinylm-mistral-1b/pretrain",
        parameters=904_431_616,
        per_step=32_768,
        steps=1_000,
        total=32_768_000,
        rates={0: 0.0, 25: 1.5e-4, 50: 3e-4, 525: 1.5e-4, 1000: 0.0},
    ),
]

TINYLM = [f"tinylm-{name}" for name in ("nanogpt-30m", "nanogpt-124m", "nanogpt-757m", "mistral-0.4b", "mistral-1b")]

TUNING = "sft sft_lora pairs dpo dpo_lora export export_lora"
MEASURED = "sft sft_lora pairs dpo dpo_lora evaluate export export_lora"

CHAINS = {
    "transformer-1b-chat": "tokenizer prepare prepare_sft pretrain " + TUNING,
    "lillm": "tokenizer prepare prepare_hard_coded prepare_sft pretrain sft sft_hard_coded export",
    "lillm-300m": "tokenizer prepare pretrain export",
    "prem-1b": "tokenizer tokenizer_chat prepare prepare_sft pretrain " + MEASURED,
    "tinyllama-1.1b": "tokenizer prepare prepare_sft pretrain " + MEASURED,
    **dict.fromkeys(TINYLM, "corpus tokenizer prepare pretrain export"),
}
"""The stages of a system in the order `fledge run` takes them."""

stages = pytest.mark.parametrize("stage", SYSTEMS, ids=lambda stage: stage.recipe)


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def read(stage: Stage) -> Recipe:
    path = Path("recipes", stage.recipe).with_suffix(".yaml")
    return load_recipe(path.stem.partition("_")[0], path)


def folder_of(stage: Stage) -> dict[str, Recipe]:
    """The recipes beside it, by the folder each writes."""
    return {str(recipe.output_dir): recipe for recipe in read_folder(Path("recipes", stage.recipe).parent)}


@stages
def test_steps_and_tokens_are_the_same_on_any_number_of_processes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read(stage)
    unit, per_row = ("pairs", 1) if recipe.stage == "dpo" else ("tokens", 0)
    if unit == "tokens":
        per_row = folder_of(stage)[recipe.values["prepared"]].values["max_length"]
        assert recipe.values.get("max_length", per_row) == per_row
    at_once = recipe.values["per_device_train_batch_size"] * per_row
    for world in stage.worlds:
        monkeypatch.setenv("WORLD_SIZE", str(world))
        times = accumulation(recipe.values[f"{unit}_per_step"], per_row, at_once // per_row, unit)
        assert at_once * times * world == stage.per_step
    assert recipe.values["max_steps"] == stage.steps  # stated, so that a plan needs no data
    assert stage.steps * stage.per_step == stage.total


@stages
def test_the_learning_rate_is_drawn_as_stated(stage: Stage, tmp_path: Path) -> None:
    recipe = read(stage)
    unit = "pairs" if recipe.stage == "dpo" else "tokens"
    args = library_arguments(recipe, LIBRARY[recipe.stage], stage.per_step, 1, unit)[0]
    args.output_dir = str(tmp_path)  # the Trainer makes it
    model = torch.nn.Linear(1, 1)
    trainer = StageTrainer(model=model, args=args, eval_dataset=[])
    trainer.apply(recipe.own(STAGES[recipe.stage]))
    scheduler = trainer.create_scheduler(stage.steps, torch.optim.SGD(model.parameters(), args.learning_rate))
    rate: Callable[[int], float] = lambda step: args.learning_rate * scheduler.lr_lambdas[0](step)  # noqa: E731
    for step, expected in stage.rates.items():
        assert rate(step) == pytest.approx(expected, rel=1e-5, abs=1e-12), step

    warmup = args.get_warmup_steps(stage.steps)
    every = max(1, stage.steps // 20_000)
    curve = [rate(step) for step in range(warmup, stage.steps + 1, every)]
    assert max(curve) == curve[0] == args.learning_rate == max(stage.rates.values())
    assert curve == sorted(curve, reverse=True)  # it never rises again


@pytest.mark.parametrize("stage", [stage for stage in SYSTEMS if stage.parameters], ids=lambda stage: stage.recipe)
def test_the_model_has_the_parameters_of_the_system(stage: Stage) -> None:
    recipe = read(stage)
    stated = dict(recipe.values["model_config"])
    register()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(stated.pop("model_type", "fledge"), **stated))
    assert model.num_parameters() == stage.parameters
    entries = folder_of(stage)[recipe.values["tokenizer"]].values.get("vocab_size", stated["vocab_size"])
    assert entries <= stated["vocab_size"]


@pytest.mark.parametrize(("folder", "parameters"), [("mistral-0.4b", 466_651_136), ("mistral-1b", 969_967_616)])
def test_tinylms_mistrals_have_the_other_count_of_the_source_untied(folder: str, parameters: int) -> None:
    stated = dict(load_recipe("pretrain", Path("recipes", f"tinylm-{folder}", "pretrain.yaml")).values["model_config"])
    with torch.device("meta"):
        config = AutoConfig.for_model(stated.pop("model_type"), **stated | {"tie_word_embeddings": False})
        assert AutoModelForCausalLM.from_config(config).num_parameters() == parameters
    readmes = "".join(path.read_text(encoding="utf-8") for path in Path("recipes").glob("tinylm-mistral*/README.md"))
    assert f"{parameters:,}" in readmes


@pytest.mark.parametrize(
    ("folder", "parameters"),
    [("transformer-1b-chat", 12_660_736), ("tinyllama-1.1b", 12_615_680), ("prem-1b", 12_615_680)],
)
def test_adapters_have_the_parameters_they_state(folder: str, parameters: int) -> None:
    for name in ("sft_lora", "dpo_lora"):
        path = Path("recipes", folder, f"{name}.yaml")
        recipe = load_recipe(name.partition("_")[0], path)
        stated = load_recipe("pretrain", path.with_name("pretrain.yaml")).values["model_config"]
        register()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model("fledge", **stated))
            adapted = get_peft_model(model, lora_config(recipe, recipe.own(STAGES[recipe.stage]), model))
        assert adapted.num_parameters(only_trainable=True) == parameters
        for document in (path, path.with_name("README.md")):
            assert f"{parameters:,}" in document.read_text(encoding="utf-8")
        # A variant differs from its stage in the adapter, the rate, and where it reads and writes.
        own = load_recipe(recipe.stage, path.with_name(f"{recipe.stage}.yaml")).values
        keys = {"use_peft", "learning_rate", "model_name_or_path", "output_dir"}
        differs = {key for key in recipe.values.keys() | own.keys() if recipe.values.get(key) != own.get(key)}
        assert {key for key in differs if not key.startswith("lora_")} <= keys


@pytest.mark.parametrize("folder", CHAINS)
def test_the_stages_of_a_system_follow_each_other(folder: str) -> None:
    assert [recipe.name for recipe in read_folder(Path("recipes", folder))] == CHAINS[folder].split()


@stages
def test_the_readme_states_the_same_numbers(stage: Stage) -> None:
    text = Path("recipes", stage.recipe).with_name("README.md").read_text(encoding="utf-8")
    for number in (stage.parameters, stage.per_step, stage.steps, stage.total):
        assert number is None or f"{number:,}" in text, f"{number:,}"


def test_the_tables_of_all_systems_state_the_same_numbers() -> None:
    tables = [Path(name).read_text(encoding="utf-8") for name in ("README.md", "recipes/README.md")]
    for folder in {stage.recipe.partition("/")[0] for stage in SYSTEMS}:
        [parameters] = {it.parameters for it in SYSTEMS if it.recipe == f"{folder}/pretrain"}
        [row] = [line for line in tables[1].splitlines() if line.startswith(f"| [{folder}]")]
        assert f" {parameters:,} " in row
        if not folder.startswith("tinylm") and folder != "lillm-300m":  # the main one names only their ends
            [row] = [line for line in tables[0].splitlines() if line.startswith(f"| [{folder}]")]
        assert f" {parameters:,} " in row and "planned" in row
    tinylm = [it.parameters for it in SYSTEMS if it.recipe.startswith("tinylm")]
    assert f"| {min(tinylm):,} to {max(tinylm):,} |" in tables[0]


def test_the_special_tokens_of_lillm_have_the_ids_of_the_source() -> None:
    for folder in ("lillm", "lillm-300m"):
        keys = load_recipe("tokenizer", Path("recipes", folder, "tokenizer.yaml")).values
        ids = [keys["pad_token"], keys["bos_token"], keys["eos_token"], *keys["special_tokens"]]
        assert ids == ["<unk>", "<s>", "</s>", *(f"<r{number}>" for number in range(13))]


def test_lillm_begins_where_its_initialisation_says() -> None:
    keys = load_recipe("pretrain", Path("recipes/lillm/pretrain.yaml")).values["model_config"]
    register()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("fledge", **keys))
    ids = torch.randint(keys["vocab_size"], (1, 512))
    with torch.inference_mode():
        loss = model(ids, labels=ids).loss.item()
    # Hidden states of unit variance and embeddings of std 512 ** -0.5 give logits of unit variance.
    assert loss == pytest.approx(math.log(8192) + 512 * 0.0442**2 / 2, abs=0.1)


def test_prem_s_chat_model_has_four_tokens_more() -> None:
    folder = {recipe.name: recipe for recipe in read_folder(Path("recipes/prem-1b"))}
    assert folder["sft"].values["tokenizer"] == str(folder["tokenizer_chat"].output_dir)
    register()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("fledge", **folder["pretrain"].values["model_config"])
        )
        model.resize_token_embeddings(folder["tokenizer_chat"].values["vocab_size"], mean_resizing=False)
    assert model.num_parameters() == 1_100_064_768


@pytest.mark.parametrize(("name", "world"), [("prem-1b", 1), ("prem-1b", 8), ("prem-1b", 16), ("tinyllama-1.1b", 16)])
def test_sft_and_dpo_divide_over_all_layouts(name: str, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    folder = {recipe.name: recipe for recipe in read_folder(Path("recipes", name))}
    for stage, key, per_row in (("sft", "tokens_per_step", "max_length"), ("dpo", "pairs_per_step", None)):
        values = folder[stage].values
        rows = values[per_row] if per_row else 1
        accumulated = accumulation(values[key], rows, values["per_device_train_batch_size"], "rows")
        assert accumulated * world * values["per_device_train_batch_size"] * rows == values[key]


@pytest.mark.parametrize("name", ["prem-1b", "tinyllama-1.1b"])
def test_slimpajama_is_read_without_its_code(name: str) -> None:
    prepare = load_recipe("prepare", Path("recipes", name, "prepare.yaml")).values
    kept = [
        entry["filter"]["meta.redpajama_set_name"] for entry in [prepare["datasets"][0], *prepare["eval_datasets"]]
    ]
    assert kept[0] == kept[1] and len(kept[0]) == 6 and "RedPajamaGithub" not in kept[0]
    weights = [entry["weight"] for entry in prepare["datasets"] if "weight" in entry]
    assert weights in ([], [0.693584, 0.306416]) and sum(weights) in (0, pytest.approx(1))
