"""Recipes: every mistake is found before anything runs, and says its line, its key and the fix."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fledge.schema
from fledge.arguments import LIBRARY, STAGES, DatasetEntry
from fledge.recipe import RecipeError, load_recipe, resolved
from fledge.schema.names import REFUSED, RETIRED


TOKEN = "hf_" + "aB3" * 11

VALID = {
    "corpus": "corpus: tang\noutput_dir: runs/corpus\n",
    "tokenizer": "datasets: [{path: a.parquet}]\nvocab_size: 300\nchat_template: chat.jinja\noutput_dir: runs/tok\n",
    "prepare": "datasets: [{path: a.parquet, name: a}]\ntokenizer: runs/tok\nmax_length: 64\noutput_dir: runs/rows\n",
    "pretrain": """model_config: {hidden_size: 64, rope_theta: 500, rope_parameters: {factor: 2.0}, qk_norm: true}
tokenizer: runs/tok
prepared: runs/rows
tokens_per_step: 1_024
output_dir: runs/pretrain
""",
    "sft": "model_name_or_path: runs/a\nprepared: runs/rows\ntokens_per_step: 1024\noutput_dir: runs/sft\n",
    "pairs": """model_name_or_path: runs/a
datasets: [{path: a.parquet}]
judge: tang
num_pairs: 10
output_dir: runs/pairs
""",
    "dpo": """model_name_or_path: runs/sft
pairs: runs/pairs
pairs_per_step: 16
output_dir: runs/dpo
loss_type: sigmoid
beta: 0.1
bf16: auto
torch_compile: auto
""",
    "evaluate": """models: {sft: runs/sft}
train_documents: [{path: a.parquet}]
heldout_documents: [{path: b.parquet}]
heldout_chats: [{path: e.parquet}]
reference: sft
requests: [{path: c.parquet}]
corpus: tang
pairs: runs/pairs
output_dir: runs/eval
""",
    "export": "model_name_or_path: runs/dpo\noutput_dir: runs/export\n",
}

# stage, lines added to the valid recipe, and what has to follow "<file>:<line of the last added line>: ".
FAULTS = [
    ("pretrain", "learning_rat: 0.1", "learning_rat: unknown key; did you mean learning_rate?"),
    ("pretrain", "zzz: 0.1", "zzz: unknown key; fledge pretrain --help lists the keys"),
    ("pretrain", "packing: true", "packing: no key of this stage; it belongs in sft.yaml"),
    ("sft", "datasets: []", "datasets: no key of this stage; it belongs in tokenizer.yaml or prepare.yaml"),
    ("pretrain", "lr_scheduler_kwargs: {powr: 1}", "lr_scheduler_kwargs.powr: unknown key; did you mean power?"),
    (
        "pretrain",
        "lr_scheduler_kwargs: {decay_type: 1-sqr}",
        'lr_scheduler_kwargs.decay_type: "1-sqr" is not one of linear, cosine, 1-sqrt; did you mean 1-sqrt?',
    ),
    ("prepare", "eval_datasets:\n  - pth: a", "eval_datasets[0].pth: unknown key; did you mean path?"),
    (
        "prepare",
        "eval_datasets:\n  - path: a\n    w: 2",
        "eval_datasets[0].w: unknown key; known are columns, filter, name, path, split, subset, weight",
    ),
    (
        "sft",
        "accelerator_config:\n  even_batch: 1",
        "accelerator_config.even_batch: unknown key; did you mean even_batches",
    ),
    (
        "sft",
        "activation_checkpointing_kwargs: {debg: 1}",
        "activation_checkpointing_kwargs.debg: unknown key; did you",
    ),
    ("sft", "max_steps: 100.5", "max_steps: expected an integer, not 100.5"),
    ("sft", "max_steps: 100.0", "max_steps: expected an integer, not 100.0; write 100"),
    ("sft", "max_steps: true", "max_steps: expected an integer, not true"),
    ("sft", "packing: 3", "packing: expected true or false, not 3"),
    ("sft", "packing: 1", "packing: expected true or false, not 1; write true"),
    ("sft", 'packing: "true"', 'packing: expected true or false, not "true"; write true'),
    ("sft", "bf16: 1", "bf16: 1 is not one of true, false, auto"),
    ("sft", "per_device_train_batch_size: [4, 8]", "per_device_train_batch_size: expected an integer, not [4, 8]"),
    ("sft", "logging_steps:", "logging_steps: expected a number, not null; give a value or delete the key"),
    ("sft", "lr_scheduler_kwargs: cosine", 'lr_scheduler_kwargs: expected a mapping, not "cosine"'),
    ("corpus", "from_file: 12", "from_file: expected text, not 12; put it in quotes"),
    ("evaluate", "base_models: sft", 'base_models: expected a list, not "sft"'),
    ("sft", "learning_rate: .nan", "learning_rate: nan is not a finite number"),
    ("sft", "learning_rate: -.inf", "learning_rate: -inf is not a finite number"),
    ("sft", "learning_rate: -1", "learning_rate: must be at least 0, not -1"),
    ("sft", "per_device_train_batch_size: 0", "per_device_train_batch_size: must be at least 1, not 0"),
    ("sft", "max_steps: 0", "max_steps: must not be 0"),
    ("sft", "max_steps: -2", "max_steps: must be at least -1, not -2"),
    ("sft", "num_train_epochs: 0", "num_train_epochs: must be above 0, not 0"),
    ("pairs", "heldout_ratio: 0.6", "heldout_ratio: must be at most 0.5, not 0.6"),
    ("sft", "learning_rate: 1e-4", "learning_rate: 1e-4 is text to YAML; write 1.0e-4"),
    ("sft", "learning_rate: 2.5E4", "learning_rate: 2.5E4 is text to YAML; write 2.5e+4"),
    ("sft", "max_steps: 1e4", "max_steps: 1e4 is text to YAML; write 10000"),
    ("sft", 'max_steps: "100"', "max_steps: 100 is text to YAML; write 100"),
    ("sft", "lr_scheduler_kwargs: {min_lr: 1e-5}", "lr_scheduler_kwargs.min_lr: 1e-5 is text to YAML; write 1.0e-5"),
    ("sft", "model_init_kwargs: {x: {y: 1e5}}", "model_init_kwargs.x.y: 1e5 is text to YAML; write 1.0e+5"),
    ("sft", "max_steps: 010", "max_steps: YAML reads 010 as 8; write 8, or quote it as text"),
    ("sft", "ddp_timeout: 1:30", "ddp_timeout: YAML reads 1:30 as 90; write 90, or quote it as text"),
    ("sft", "eval_strategy: step", 'eval_strategy: "step" is not one of no, steps, epoch; did you mean steps?'),
    ("sft", "eval_strategy: no", 'eval_strategy: YAML reads a plain no or off as false; write "no" in quotes'),
    ("sft", "lr_scheduler_type: cosin", 'lr_scheduler_type: "cosin" is not one of linear, cosine,'),
    ("sft", "optim: adamw_fused", 'optim: "adamw_fused" is not a known value; did you mean adamw_torch_fused?'),
    ("prepare", "overlong: skip", 'overlong: "skip" is not one of split, drop, truncate, split-at-a-turn, fail'),
    ("sft", "seed: 1\nseed: 2", "seed: stated twice, first on line 5; keep one"),
    (
        "sft",
        "lr_scheduler_kwargs:\n  power: 1\n  power: 2",
        "lr_scheduler_kwargs.power: stated twice, first on line 6",
    ),
    ("sft", "run_name: !!python/object:os.system {}", "!!python/object:os.system: a tag has no place in a recipe"),
    ("sft", "run_name: &a x", "&a: an anchor has no place in a recipe; write the plain value"),
    ("sft", "debug: &a []\nreport_to: *a", "*a: an alias has no place in a recipe; write the value out"),
    ("sft", "<<: {seed: 1}", "<<: unknown key"),
    ("sft", "? [a]\n: 1", "a key is one word of text"),
    ("sft", "warmup_ratio: 0.1", "warmup_ratio: retired; write it as `warmup_steps`, where a value below 1"),
    ("sft", "max_seq_length: 64", "max_seq_length: renamed to max_length"),
    ("sft", "evaluation_strategy: steps", "evaluation_strategy: renamed to eval_strategy; the values are the same"),
    ("sft", "env: {LD_PRELOAD: x.so}", "env: a recipe does not set environment variables"),
    ("sft", "deepspeed: zero3.json", "deepspeed: placement belongs in the layout"),
    ("sft", "use_cpu: true", "use_cpu: placement belongs in the layout"),
    ("sft", "gradient_accumulation_steps: 4", "gradient_accumulation_steps: follows from tokens_per_step"),
    ("sft", "resume_from_checkpoint: x", "resume_from_checkpoint: a stage resumes by itself"),
    ("sft", "trust_remote_code: true", "trust_remote_code: code out of a model folder is never run"),
    ("sft", "model_init_kwargs: {trust_remote_code: true}", "model_init_kwargs.trust_remote_code: code out of a"),
    ("sft", f"hub_token: {TOKEN}", "hub_token: a token never stands in a recipe; log in with `hf auth login`"),
    ("sft", f"run_name: x-{TOKEN}", "run_name: a token never stands in a recipe"),
    ("sft", f"model_init_kwargs: {{{TOKEN}: 1}}", "model_init_kwargs: a token never stands in a recipe"),
    ("sft", f"max_steps: [{'x' * 40}, {TOKEN}]", "max_steps: expected an integer, not "),
    ("corpus", "from_file: recpe.tar", "from_file: no such file: recpe.tar; did you mean recipe.tar?"),
    ("sft", "a: [1", "not YAML: "),
    ("sft", "seed: 1\n\tmax_steps: 2", "not YAML: a tab where YAML takes only spaces"),
    ("sft", "a: " + "[" * 30, "not YAML: nested deeper than 20 levels"),
    ("sft", "a: \x01", "a control character; remove it"),
]

# What the whole text of a recipe is, and the message.
TEXTS = [
    (b"", "1: the file is empty"),
    (b"# nothing yet\n", "1: the file is empty"),
    (b"- a\n- b\n", "1: the top level has to be a mapping"),
    (b"seed: 1\nrun_name: \xe9\n", "2: not UTF-8"),
    (b"#" * 100_001, " larger than 100,000 bytes"),
    (b"seed: 1\n---\nseed: 2\n", "2: not YAML: but found another document"),
    (b"output_dir: x\nprepared: x\ntokens_per_step: 5\n", "1: model_name_or_path: missing; Folder of the"),
    (b"output_dir: ''\nprepared: x\ntokens_per_step: 5\nmodel_name_or_path: x\n", "1: output_dir: the text is empty"),
]

PRETRAIN_FAULTS = [
    ("hidden_sizes: 64", "hidden_sizes: unknown key; did you mean hidden_size?"),
    ("vocab_size: 0", "vocab_size: must be at least 1, not 0"),
    ("eos_token_id: 1", "eos_token_id: comes from the tokenizer; leave it out"),
    ("torch_dtype: bfloat16", "torch_dtype: weights are kept in float32"),
    ("rope_parameters: {rope_thta: 1.0}", "rope_parameters.rope_thta: unknown key; did you mean rope_theta?"),
    ("rope_theta: 1e6", "rope_theta: 1e6 is text to YAML; write 1.0e+6"),
    ("num_hidden_layers: 0", "num_hidden_layers: must be at least 1, not 0"),
    ("hidden_act: sily", 'hidden_act: "sily" is not a known value; did you mean silu?'),
]

OVERRIDE_FAULTS = [
    ("--max_steps 100.5", "--max_steps: expected an integer, not 100.5"),
    ("--max_step 3", "--max_step: unknown key; did you mean max_steps?"),
    ("--learning-rate 1", "--learning-rate: unknown key; did you mean learning_rate?"),
    ("--max_steps", "--max_steps: needs a value: an integer"),
    ("--seed 1 --seed=2", "--seed: given twice; keep one"),
    ("seed=1", "seed: not understood; options are written --key value"),
    ("--lr_scheduler_kwargs {min_lrs:", "--lr_scheduler_kwargs: not YAML: "),
    ("--lr_scheduler_kwargs.min_lrs 1", "--lr_scheduler_kwargs.min_lrs: unknown key; did you mean min_lr?"),
    ("--learning_rate nan", "--learning_rate: nan is not a finite number"),
    (f"--hub_token {TOKEN}", "--hub_token: a token never stands in a recipe"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the input files of the valid recipes."""
    monkeypatch.chdir(tmp_path)
    for name in ("chat.jinja", "recipe.tar"):
        (tmp_path / name).touch()
    return tmp_path


def write(stage: str, more: str = "") -> str:
    text = VALID[stage] + more
    Path(f"{stage}.yaml").write_text(text, encoding="utf-8")
    return text


def messages(stage: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(stage, Path(f"{stage}.yaml"), overrides)
    assert TOKEN[:6] not in str(caught.value)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(("stage", "more", "message"), FAULTS, ids=[message[:40] for *_, message in FAULTS])
def test_a_fault_names_its_line_its_key_and_the_fix(stage: str, more: str, message: str) -> None:
    text = write(stage, more)
    # The faults of a mapping written over several lines stand on the last of them, unless it is `? key`.
    line = text.count("\n") + (not more.startswith("?"))
    assert any(found.startswith(f"{stage}.yaml:{line}: {message}") for found in messages(stage)), messages(stage)


@pytest.mark.parametrize(("more", "message"), PRETRAIN_FAULTS)
def test_model_config_is_checked_against_the_configuration_class(more: str, message: str) -> None:
    Path("pretrain.yaml").write_text(VALID["pretrain"].partition("\n")[2] + f"model_config:\n  {more}\n")
    assert messages("pretrain")[0].startswith(f"pretrain.yaml:6: model_config.{message}")


@pytest.mark.parametrize(("text", "message"), TEXTS)
def test_a_file_that_is_no_recipe(text: bytes, message: str) -> None:
    Path("sft.yaml").write_bytes(text)
    assert messages("sft")[0].startswith(f"sft.yaml:{message}")


@pytest.mark.parametrize(("arguments", "message"), OVERRIDE_FAULTS)
def test_the_command_line_is_checked_alike(arguments: str, message: str) -> None:
    write("sft")
    assert messages("sft", *arguments.split(maxsplit=3))[0].startswith(f"command line: {message}")


def test_all_faults_come_together_in_the_order_of_lines() -> None:
    write("sft", "max_steps: 100.5\nlearning_rat: 1\nseed: 1\nseed: 2\nwarmup_ratio: 0.1\n")
    found = [message.split(": ")[:2] for message in messages("sft", "--beta", "1")]
    assert found == [
        ["sft.yaml:5", "max_steps"],
        ["sft.yaml:6", "learning_rat"],
        ["sft.yaml:8", "seed"],
        ["sft.yaml:9", "warmup_ratio"],
        ["command line", "--beta"],
    ]


def test_a_misspelt_required_key_is_one_fault() -> None:
    Path("sft.yaml").write_text(VALID["sft"].replace("prepared", "prepard"))
    assert messages("sft") == ["sft.yaml:2: prepard: unknown key; did you mean prepared?"]


def test_the_name_of_the_file_says_its_stage() -> None:
    Path("prepare_sft.yaml").write_text(VALID["prepare"])
    Path("mine.yaml").touch()
    assert load_recipe("prepare", "prepare_sft.yaml").name == "prepare_sft"
    with pytest.raises(RecipeError, match=r"prepare_sft.yaml: a recipe of prepare, not of sft; write fledge prepare"):
        load_recipe("sft", "prepare_sft.yaml")
    with pytest.raises(RecipeError, match=r"mine.yaml: a recipe's name begins with its stage; rename it to sft.yaml"):
        load_recipe("sft", "mine.yaml")
    with pytest.raises(RecipeError, match=r"prepare_stf.yaml: no such file; did you mean prepare_sft.yaml\?"):
        load_recipe("prepare", "prepare_stf.yaml")
    with pytest.raises(RecipeError, match="a folder; name one of its files"):
        load_recipe("sft", ".")


@pytest.mark.parametrize("stage", STAGES)
def test_a_minimal_recipe_loads(stage: str) -> None:
    write(stage)
    recipe = load_recipe(stage, f"{stage}.yaml")
    own = recipe.own(STAGES[stage])
    assert isinstance(own, STAGES[stage])
    assert set(recipe.library()) | set(recipe.values) & set(vars(own)) == set(recipe.values)
    assert stage in LIBRARY or not recipe.library()
    assert recipe.output_dir.parent == Path("runs")


def test_messages_cannot_drive_a_terminal() -> None:
    write("sft", '"\\e[31m\\n": 1\nrun_name: ["\\x9b31m"]\n')
    assert messages("sft")[0].startswith(r"sft.yaml:5: \x1b[31m\n: unknown key")
    assert messages("sft")[1].startswith(r"""sft.yaml:6: run_name: expected text, not ["\x9b31m"]""")


def test_own_makes_instances_of_entries() -> None:
    write("prepare")
    own = load_recipe("prepare", "prepare.yaml").own(STAGES["prepare"])
    assert own.datasets == [DatasetEntry(path="a.parquet", name="a")]
    assert own.eval_datasets == []


def test_the_command_line_beats_the_file() -> None:
    write(
        "pretrain", "learning_rate: 0.5\nlr_scheduler_kwargs: {power: 2, lr_end: 0.1}\nreport_to: none\nmax_steps: 7\n"
    )
    overrides = ["--learning_rate", "1e-4", "--bf16", "--max_steps=-1", "--lr_scheduler_kwargs.power", "3"]
    overrides += [
        "--model_config.hidden_size",
        "32",
        "--report_to",
        "[trackio]",
        "--accelerator_config.even_batches=false",
    ]
    values = load_recipe("pretrain", "pretrain.yaml", overrides).values
    assert values["learning_rate"] == 1e-4
    assert values["bf16"] is True
    assert values["max_steps"] == -1
    assert values["lr_scheduler_kwargs"] == {"power": 3, "lr_end": 0.1}
    assert values["model_config"]["hidden_size"] == 32
    assert values["model_config"]["qk_norm"] is True
    assert values["report_to"] == ["trackio"]
    assert values["accelerator_config"] == {"even_batches": False}
    assert values["tokens_per_step"] == 1024


def test_resolved_says_where_each_value_is_from() -> None:
    write("pretrain", "seed: 7\n")
    recipe = load_recipe("pretrain", "pretrain.yaml", ["--max_steps", "5", "--model_config.hidden_size=8"])
    library = {
        "seed": 7,
        "max_steps": 5,
        "weight_decay": 0.0,
        "gradient_accumulation_steps": 4,
        "hub_token": TOKEN,
        "run_name": f"x {TOKEN}",
        "logging_dir": Path("runs"),
    }
    found = resolved(recipe, library)
    assert found["seed"] == {"value": 7, "from": "pretrain.yaml:6"}
    assert found["max_steps"] == {"value": 5, "from": "command line"}
    assert found["model_config"]["from"] == "pretrain.yaml:1 and command line"
    assert found["weight_decay"] == {"value": 0.0, "from": "default"}
    assert found["decay_ratio"] == {"value": None, "from": "default"}
    assert found["gradient_accumulation_steps"] == {"value": 4, "from": "derived"}
    assert "hub_token" not in found
    assert TOKEN not in json.dumps(found)
    assert set(resolved(recipe, None)) == set(recipe.values) | set(STAGES["pretrain"].__dataclass_fields__)


@pytest.mark.parametrize("stage", LIBRARY)
def test_no_retired_or_refused_name_is_a_key(stage: str) -> None:
    keys = set(fledge.schema.load(stage)["properties"])
    assert not keys & set(REFUSED)
    assert keys & set(RETIRED) <= {"tokenizer"}


def test_the_committed_schemas_are_those_of_the_installed_libraries(folder: Path) -> None:
    source = Path(fledge.schema.__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(source.parents[1])}
    subprocess.run([sys.executable, "-m", "fledge.schema", str(folder)], env=environment, check=True)
    assert {path.stem for path in source.glob("*.json")} == set(STAGES)
    for stage in STAGES:
        assert (folder / f"{stage}.json").read_text() == (source / f"{stage}.json").read_text(), "run make schema"
