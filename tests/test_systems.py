"""The systems' recipes as numbers: parameters, tokens, steps and learning rates to the digit. Nothing is trained.

A recipe of a system is a row of SYSTEMS and its folder a line of CHAINS; the folder's README states the same numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments
from trl import DPOConfig, SFTConfig

from fledge.arguments import STAGES
from fledge.launching.plan import read_folder
from fledge.model import register
from fledge.recipe import Recipe, load_recipe
from fledge.training.arguments import accumulation, library_arguments
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

CHAINS = {
    "transformer-1b-chat": "tokenizer prepare prepare_sft pretrain sft pairs dpo export",
    "lillm": "tokenizer prepare prepare_hard_coded prepare_sft pretrain sft sft_hard_coded export",
    "lillm-300m": "tokenizer prepare pretrain export",
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
def test_the_learning_rate_is_drawn_as_stated(stage: Stage) -> None:
    recipe = read(stage)
    unit = "pairs" if recipe.stage == "dpo" else "tokens"
    args = library_arguments(recipe, LIBRARY[recipe.stage], stage.per_step, 1, unit)[0]
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


@pytest.mark.parametrize("folder", CHAINS)
def test_the_stages_of_a_system_follow_each_other(folder: str) -> None:
    assert [recipe.name for recipe in read_folder(Path("recipes", folder))] == CHAINS[folder].split()


@stages
def test_the_readme_states_the_same_numbers(stage: Stage) -> None:
    text = Path("recipes", stage.recipe).with_name("README.md").read_text(encoding="utf-8")
    for number in (stage.parameters, stage.per_step, stage.steps, stage.total):
        assert number is None or f"{number:,}" in text, f"{number:,}"


def test_the_special_tokens_of_lillm_have_the_ids_of_the_source() -> None:
    for folder in ("lillm", "lillm-300m"):
        keys = load_recipe("tokenizer", Path("recipes", folder, "tokenizer.yaml")).values
        ids = [keys["pad_token"], keys["bos_token"], keys["eos_token"], *keys["special_tokens"]]
        assert ids == ["<unk>", "<s>", "</s>", *(f"<r{number}>" for number in range(13))]
