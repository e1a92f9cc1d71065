"""smoke.yaml: declared overrides of the recipes beside it, checked like them, and never a path of the real run."""

from pathlib import Path

import pytest

from fledge import cli
from fledge.launching import chain
from fledge.launching.chain import say_what_shrank
from fledge.launching.plan import read_folder
from fledge.recipe import Recipe, RecipeError, load_recipe, resolved


PRETRAIN = """model_config:
  hidden_size: 2048
  num_hidden_layers: 22
  rope_parameters: {rope_type: default, rope_theta: 10000.0}
tokenizer: runs/big/tokenizer
prepared: runs/big/prepare
tokens_per_step: 1048576
max_steps: 19070
gradient_checkpointing: true
output_dir: runs/big/pretrain
"""
PREPARE = """datasets:
  - path: HuggingFaceFW/fineweb-edu
    subset: sample-10BT
  - path: runs/big/corpus/documents/*.parquet
tokenizer: runs/big/tokenizer
max_length: 2048
output_dir: runs/big/prepare
"""
SMOKE = """# shrinks
corpus:
  corpus: english
  output_dir: runs/big/corpus

prepare:
  datasets:
    - path: runs/big/corpus/documents/wiki/train.parquet
  max_length: 64

pretrain:
  model_config.num_hidden_layers: 2
  model_config.rope_parameters.rope_theta: 100.0
  tokens_per_step: 512
  max_steps: 3
  gradient_checkpointing: null
"""

# What smoke.yaml says of pretrain, and what has to follow "big/smoke.yaml:".
FAULTS = [
    ("max_stebs: 3", "2: max_stebs: unknown key; did you mean max_steps?"),
    ("max_steps: 2.5", "2: max_steps: expected an integer, not 2.5"),
    ("model_config.num_hidden_layrs: 2", "2: model_config.num_hidden_layrs: unknown key; did you mean num_hidden_la"),
    ("model_config.hidden_size: 0", "2: model_config.hidden_size: must be at least 1, not 0"),
    ("model_config.rope_parameters: {rope_thta: 1.0}", "2: model_config.rope_parameters.rope_thta: unknown key"),
    ("lr_scheduler_kwargs:\n    powr: 1", "3: lr_scheduler_kwargs.powr: unknown key; did you mean power?"),
    ("tokenizer: null", "2: tokenizer: missing; Folder of the tokenizer."),
    ("seed: null", "2: seed: null takes a key out, and the recipe does not state this one; leave it out"),
    ("model_config.qk_norm: null", "2: model_config.qk_norm: null takes a key out"),
    ("output_dir: /elsewhere", "2: output_dir: a smoke run writes below runs/smoke/ alone"),
    ("seed: 1\n  seed: 2", "3: pretrain.seed: stated twice, first on line 2"),
    ("seed: 1\npretran:\n  seed: 2", "3: pretran: begins with no stage; did you mean pretrain?"),
    ("seed: 1\nsft: 3", "3: sft: write `key: value` lines below it"),
    ("seed: 1\n\tx: 2", "3: not YAML: a tab"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe folder with a smoke.yaml, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    Path("big").mkdir()
    for name, text in (("pretrain", PRETRAIN), ("prepare", PREPARE), ("smoke", SMOKE)):
        Path(f"big/{name}.yaml").write_text(text, encoding="utf-8")
    return Path("big")


def test_a_smoke_run_changes_what_is_declared_and_nothing_else() -> None:
    plain = load_recipe("pretrain", "big/pretrain.yaml")
    small = load_recipe("pretrain", "big/pretrain.yaml", smoke=True)

    assert small.smoke and not plain.smoke
    assert small.values == {
        "model_config": {
            "hidden_size": 2048,
            "num_hidden_layers": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        },
        "tokenizer": "runs/smoke/big/tokenizer",
        "prepared": "runs/smoke/big/prepare",
        "tokens_per_step": 512,
        "max_steps": 3,
        "output_dir": "runs/smoke/big/pretrain",
    }
    assert plain.values["gradient_checkpointing"] is True and plain.output_dir == Path("runs/big/pretrain")
    assert load_recipe("prepare", "big/prepare.yaml", smoke=True).values["datasets"] == [
        {"path": "runs/smoke/big/corpus/documents/wiki/train.parquet"}
    ]


def test_every_value_says_that_it_is_from_smoke_yaml() -> None:
    small = load_recipe(
        "pretrain", "big/pretrain.yaml", ["--seed", "5", "--model_config.hidden_size", "8"], smoke=True
    )
    found = {key: entry["from"] for key, entry in resolved(small, {"gradient_checkpointing": False}).items()}

    assert found["max_steps"] == "big/smoke.yaml:15"
    assert found["model_config"] == "big/pretrain.yaml:1 and big/smoke.yaml:12 and command line"
    assert found["tokenizer"] == "big/pretrain.yaml:5, moved to runs/smoke/"
    assert found["gradient_checkpointing"] == "default"
    assert found["seed"] == "command line"


def test_a_stage_can_be_in_smoke_yaml_alone() -> None:
    corpus = load_recipe("corpus", "big/corpus.yaml", smoke=True)

    assert corpus.values == {"corpus": "english", "output_dir": "runs/smoke/big/corpus"}
    assert corpus.sources["corpus"] == "big/smoke.yaml:3"
    assert [recipe.name for recipe in read_folder(Path("big"), smoke=True)] == ["corpus", "prepare", "pretrain"]
    assert [recipe.name for recipe in read_folder(Path("big"))] == ["prepare", "pretrain"]
    with pytest.raises(RecipeError, match=r"big/corpus.yaml: no such file"):
        load_recipe("corpus", "big/corpus.yaml")


@pytest.mark.parametrize(("text", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_a_fault_names_its_line_in_smoke_yaml(text: str, message: str) -> None:
    Path("big/smoke.yaml").write_text(f"pretrain:\n  {text}\n", encoding="utf-8")

    with pytest.raises(RecipeError) as caught:
        load_recipe("pretrain", "big/pretrain.yaml", smoke=True)

    assert [line for line in str(caught.value).splitlines() if line.startswith(f"big/smoke.yaml:{message}")]


def test_faults_of_all_files_come_together_each_once() -> None:
    Path("big/smoke.yaml").write_text("corpus:\n  output_dir: runs/big/corpus\nprepare:\n  max_length: 1\n")
    Path("big/pretrain.yaml").write_text(PRETRAIN.replace("max_steps", "max_stebs"))

    with pytest.raises(RecipeError) as caught:
        read_folder(Path("big"), smoke=True)

    assert [line.split(": ")[:2] for line in str(caught.value).splitlines()] == [
        ["big/smoke.yaml:1", "corpus"],
        ["big/smoke.yaml:4", "max_length"],
        ["big/pretrain.yaml:8", "max_stebs"],
    ]


def test_a_folder_without_smoke_yaml_is_told_so() -> None:
    Path("big/smoke.yaml").unlink()

    with pytest.raises(RecipeError, match=r"big/smoke.yaml: no such file; --smoke needs one"):
        read_folder(Path("big"), smoke=True)


def test_a_real_run_is_never_written_to() -> None:
    with pytest.raises(RecipeError, match="command line: --output_dir: a smoke run writes below runs/smoke/ alone"):
        load_recipe("pretrain", "big/pretrain.yaml", ["--output_dir", "runs/big/pretrain"], smoke=True)
    there = load_recipe("pretrain", "big/pretrain.yaml", ["--output_dir", "runs/smoke/x"], smoke=True)
    assert there.sources["output_dir"] == "command line"


def test_a_stage_of_a_smoke_run_is_started_by_hand_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    class Stage:
        main = given.append

    monkeypatch.setattr(cli, "import_module", lambda _: Stage)
    assert cli.main(["corpus", "big/corpus.yaml", "--smoke", "--corpus", "tang"]) == 0
    assert given[0].values == {"corpus": "tang", "output_dir": "runs/smoke/big/corpus"}


def test_a_smoke_run_says_how_much_it_was_shrunk(capsys: pytest.CaptureFixture[str]) -> None:
    say_what_shrank(read_folder(Path("big"), smoke=True), Path("runs/smoke/big"))

    assert capsys.readouterr().out.splitlines()[1:] == [
        "  corpus: only in a smoke run",
        "  prepare: datasets 2 entries -> runs/smoke/big/corpus/documents/wiki/train.parquet, max_length 2,048 -> 64",
        "  pretrain: model_config.num_hidden_layers 22 -> 2, model_config.rope_parameters.rope_theta 10000.0 -> "
        "100.0, tokens_per_step 1,048,576 -> 512, max_steps 19,070 -> 3, gradient_checkpointing true -> nothing",
    ]


def sft(name: str) -> None:
    text = (
        f"model_name_or_path: runs/big/pretrain\nprepared: runs/big/prepare\ntokens_per_step: 64\noutput_dir: {name}\n"
    )
    Path(f"big/{Path(name).name}.yaml").write_text(text, encoding="utf-8")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`fledge run` starts no process; the names of the stages it would have started."""
    names: list[str] = []

    def run_stage(recipe: Recipe, *_: object) -> tuple[dict, int]:
        names.append(recipe.name)
        return {}, 0

    monkeypatch.setattr(chain, "run_stage", run_stage)
    monkeypatch.setattr(chain, "finish", lambda *_: None)
    for name in ("sft", "sft_lora", "sft_chat"):
        sft(f"runs/big/{name}")
    return names


def test_a_variant_runs_if_it_is_named_or_in_a_smoke_run(ran: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    chain.run(Path("big"), "cpu", None, None)
    assert ran == ["prepare", "pretrain", "sft", "sft_chat"]
    assert "variants, run by --only: sft_lora\n" in capsys.readouterr().out
    chain.run(Path("big"), "cpu", None, "pretrain")
    assert ran[4:] == ["pretrain", "sft", "sft_chat"]
    chain.run(Path("big"), "cpu", "sft_lora", None)
    assert ran[7:] == ["sft_lora"]
    chain.run(Path("big"), "cpu", None, None, smoke=True)
    assert ran[8:] == ["corpus", "prepare", "pretrain", "sft", "sft_chat", "sft_lora"]
    with pytest.raises(ValueError, match=r"sft_lor: no stage of big; .*; --only also takes sft_lora"):
        chain.run(Path("big"), "cpu", "sft_lor", None)
