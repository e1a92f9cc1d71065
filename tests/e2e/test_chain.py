"""`fledge run`: the whole chain for real, what it leaves behind, and what it does not do twice."""

import json
import math
import time
from importlib.metadata import version

import pytest
import yaml

from .workspace import STAGES, TINY, Workspace, keep_only, losses, sha256


TRAINING = ["pretrain", "sft", "dpo"]
SKIPPED = "unchanged, skipped"
MEASURED = [
    "wall_seconds",
    "peak_memory_gb",
    "trigram.bits_per_char",
    *(f"{model}.{score}" for model in ("base", "sft", "dpo") for score in ("bits_per_char", "form_perfect")),
    *(f"dpo.{score}" for score in ("stop_rate", "distinct_2", "copied_line_rate", "preference_accuracy")),
    "sft.distinct_2",
    "dpo.step0_loss",
    *(f"tokens_per_second.{stage}" for stage in TRAINING),
]


def path_of(stage: str) -> str:
    return f"{TINY}/{stage}.yaml"


@pytest.mark.parametrize("name", MEASURED)
def test_report_has_every_promised_number(chain: Workspace, name: str) -> None:
    value = chain.json("report.json")
    for part in name.split("."):
        value = value[part]

    assert isinstance(value, int | float) and math.isfinite(value) and value >= 0
    assert value <= 1 or not name.endswith(("_rate", "_perfect", "_accuracy", "distinct_2"))
    assert value > 0 or not name.startswith(("tokens_per_second", "wall", "peak", "trigram"))


def test_report_scores_every_form_a_user_can_ask_for(chain: Workspace) -> None:
    assert sorted(chain.json("report.json")["dpo"]["form_perfect_by_form"]) == [
        "七言律诗",
        "七言绝句",
        "五言律诗",
        "五言绝句",
    ]


def test_preference_tuning_begins_where_the_reference_is(chain: Workspace) -> None:
    # In float32 and before the first update both log-ratios are 0: the loss is -log sigmoid(0).
    assert chain.json("report.json")["dpo"]["step0_loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_report_is_there_for_eyes_and_for_text(chain: Workspace) -> None:
    html = (chain.run_folder / "report.html").read_text(encoding="utf-8")
    text = (chain.run_folder / "report.md").read_text(encoding="utf-8")
    shown = f"{chain.json('report.json')['trigram']['bits_per_char']:.3f}"

    assert html.lower().startswith("<!doctype html>") and shown in html
    assert shown in text


def test_wall_time_covers_every_stage(chain: Workspace) -> None:
    record = chain.json("chain.json")

    assert [stage["name"] for stage in record["stages"]] == STAGES
    assert record["wall_seconds"] >= sum(stage["seconds"] for stage in record["stages"])
    assert record["peak_memory_gb"] == max(stage["peak_memory_gb"] for stage in record["stages"])


def test_output_ends_with_where_to_look_and_how_to_chat(chain: Workspace) -> None:
    lines = (chain.folder / "output.txt").read_text(encoding="utf-8").splitlines()

    assert "report: runs/tiny/report.html" in lines
    # test_export.py runs this command.
    assert "chat:   fledge chat runs/tiny" in lines


@pytest.mark.parametrize("stage", STAGES)
def test_recipe_json_says_where_every_value_is_from(chain: Workspace, stage: str) -> None:
    lines = (chain.folder / path_of(stage)).read_text(encoding="utf-8").splitlines()
    recorded = chain.json(stage, "recipe.json")

    assert all(set(entry) == {"value", "from"} for entry in recorded.values())
    for key, value in yaml.safe_load("\n".join(lines)).items():
        file, _, line = recorded[key]["from"].partition(":")
        assert file == path_of(stage)
        assert lines[int(line) - 1].startswith(f"{key}:")
        if isinstance(value, str | int):
            assert recorded[key]["value"] == value
    origins = {entry["from"].partition(":")[0] for entry in recorded.values()}
    assert origins <= {path_of(stage), "default", "derived"}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_leaves_versions_and_a_summary(chain: Workspace, stage: str) -> None:
    versions = chain.json(stage, "versions.json")

    assert {name: versions[name] for name in ("torch", "transformers", "trl")} == {
        name: version(name) for name in ("torch", "transformers", "trl")
    }
    assert versions["fledge"] == version("fledge-lm")
    assert chain.json(stage, "summary.json")["name"] == stage


def test_losses_fall(chain: Workspace) -> None:
    pretrain = losses(chain.run_folder / "pretrain")
    report = chain.json("report.json")

    assert len(pretrain) == 12
    assert pretrain[0] > math.log(1000) and pretrain[-1] < pretrain[0] - 0.2
    assert losses(chain.run_folder / "sft", "eval_loss")
    # SFT is for the answers; DPO's loss starts at ln 2.
    assert report["sft"]["answer_bits_per_char"] < report["base"]["answer_bits_per_char"]
    assert losses(chain.run_folder / "dpo", "train_loss")[0] < math.log(2)


def test_accumulation_follows_from_tokens_per_step(chain: Workspace) -> None:
    # 1,536 tokens a step in rows of 192, four rows at once.
    assert chain.json("pretrain", "recipe.json")["gradient_accumulation_steps"] == {"value": 2, "from": "derived"}


def test_nothing_published_is_a_pickle(chain: Workspace) -> None:
    pickles = [
        path.relative_to(chain.run_folder)
        for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle")
        for path in chain.run_folder.rglob(pattern)
    ]

    # The optimizer's state is the Trainer's own file, read back only to resume.
    assert pickles
    assert all(path.parts[1].startswith("checkpoint-") for path in pickles)
    assert "training_args.bin" not in {path.name for path in pickles}


def test_the_same_command_again_does_nothing(mine: Workspace) -> None:
    before, results = mine.weights(), {stage: mine.json(stage, "chain.json") for stage in STAGES}
    began = time.perf_counter()

    again = mine.fledge("run", TINY)

    assert again.steps() == dict.fromkeys(STAGES, SKIPPED)
    assert time.perf_counter() - began < 15
    assert mine.weights() == before and len(before) == 4
    assert {stage: mine.json(stage, "chain.json") for stage in STAGES} == results


def test_a_changed_key_redoes_its_stage_and_all_that_read_it(mine: Workspace) -> None:
    before = mine.weights()
    mine.edit(path_of("sft"), "learning_rate: 1.0e-3", "learning_rate: 2.0e-3")

    changed = mine.fledge("run", TINY)

    above = ["tokenizer", "prepare", "prepare_sft", "pretrain"]
    below = ["sft", "pairs", "dpo", "evaluate", "export"]
    assert changed.steps() == dict.fromkeys(above, SKIPPED) | {stage: path_of(stage) for stage in below}
    after = mine.weights()
    assert after["pretrain"] == before["pretrain"]
    assert all(after[stage] != before[stage] for stage in ("sft", "dpo", "export"))
    for stage in below:
        assert f"runs/tiny/{stage} holds an older result; it is now runs/tiny/{stage}.previous" in changed.out
    assert sha256(mine.run_folder / "sft.previous" / "model.safetensors") == before["sft"]
    assert mine.json("sft", "recipe.json")["learning_rate"]["value"] == 2.0e-3


def test_changed_data_redo_the_stages_that_read_them(mine: Workspace) -> None:
    # No recipe of this folder makes the corpus: it is the user's own, and changes under the same name.
    heldout = mine.run_folder / "corpus" / "chat" / "heldout.parquet"
    heldout.write_bytes((mine.run_folder / "corpus" / "chat" / "train.parquet").read_bytes())
    keep_only(mine, "tokenizer", "prepare", "prepare_sft")

    changed = mine.fledge("run", TINY)

    assert changed.steps() == {"tokenizer": SKIPPED, "prepare": SKIPPED, "prepare_sft": path_of("prepare_sft")}
    manifest = mine.json("prepare_sft", "manifest.json")
    assert manifest["eval"]["sha256"] == manifest["train"]["sha256"]


def test_damaged_weights_are_made_again(mine: Workspace) -> None:
    before, damaged = mine.weights(), mine.run_folder / "export" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])

    again = mine.fledge("run", TINY)

    assert again.steps() == dict.fromkeys(STAGES, SKIPPED) | {"export": path_of("export")}
    assert mine.weights() == before


def test_only_runs_one_stage_and_from_the_rest(mine: Workspace) -> None:
    keep_only(mine, "tokenizer", "prepare", "prepare_sft")
    left_out = dict.fromkeys(("tokenizer", "prepare", "prepare_sft"), "left out")

    only = mine.fledge("run", TINY, "--only", "prepare")
    assert only.steps() == left_out | {"prepare": path_of("prepare")}
    assert (mine.run_folder / "prepare.previous").is_dir()
    assert not (mine.run_folder / "prepare_sft.previous").exists()

    rest = mine.fledge("run", TINY, "--from", "prepare")
    assert rest.steps() == left_out | {stage: path_of(stage) for stage in ("prepare", "prepare_sft")}
    assert (mine.run_folder / "prepare_sft.previous").is_dir()
    # What was left out is still part of the run that the report tells about.
    assert [stage["name"] for stage in mine.json("chain.json")["stages"]] == ["tokenizer", "prepare", "prepare_sft"]
    assert mine.json("report.json")["tokens_per_second"]["pretrain"] > 0


@pytest.mark.parametrize("option", ["--only", "--from"])
def test_an_unknown_stage_is_named_with_those_there_are(fresh: Workspace, option: str) -> None:
    before = fresh.files()

    wrong = fresh.fledge("run", TINY, option, "pretraining", code=2)

    assert "pretraining" in wrong.err and "Traceback" not in wrong.err
    assert all(stage in wrong.err for stage in STAGES)
    assert fresh.files() == before


def test_samples_stand_beside_the_scores(chain: Workspace) -> None:
    lines = (chain.run_folder / "evaluate" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]

    assert {sample["model"] for sample in samples} == {"base", "sft", "dpo"}
    stopped = [sample["stopped"] for sample in samples if sample["model"] == "dpo"]
    assert sum(stopped) / len(stopped) == chain.json("report.json")["dpo"]["stop_rate"]
