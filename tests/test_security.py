"""What no file of fledge does, and what it never leaves behind. SECURITY.md says why."""

import ast
import json
import os
import pickle
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fledge
from fledge.arguments import DatasetEntry
from fledge.data.load import load_model
from fledge.data.locate import files_of
from fledge.data.prepared import load_prepared
from fledge.training.checkpoints import newest_checkpoint


FILES = sorted(Path(fledge.__file__).parent.rglob("*.py"))
NEVER_IMPORTED = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
NEVER_CALLED = {"eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "torch.load"}
CODE_ASKED_FOR = {
    "AutoConfig.from_pretrained",
    "AutoModelForCausalLM.from_config",
    "AutoModelForCausalLM.from_pretrained",
    "AutoTokenizer.from_pretrained",
    "PreTrainedTokenizerFast.from_pretrained",
}
"""Calls that run code out of a model's folder where they are told to, and ask at a terminal where they are not."""


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(Path(fledge.__file__).parent)))
def test_no_file_loads_pickles_or_runs_code_that_it_was_given(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {node.module or ""} if isinstance(node, ast.ImportFrom) else {each.name for each in node.names}
            assert not {name.split(".")[0] for name in names} & NEVER_IMPORTED, node.lineno
    for name, call in calls(path):
        stated = {word.arg: word.value for word in call.keywords}
        assert name not in NEVER_CALLED, call.lineno
        assert "shell" not in stated, call.lineno  # programs get lists of words
        if name in CODE_ASKED_FOR:
            trust = stated.get("trust_remote_code")
            assert isinstance(trust, ast.Constant) and trust.value is False, f"{path}:{call.lineno}"


def test_the_calls_that_are_looked_for_are_made() -> None:
    made = {name for path in FILES for name, _ in calls(path)}
    assert made >= CODE_ASKED_FOR  # or the test above looks for names that nobody writes any more


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("name", ["optimizer.pt", "global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_a_poisoned_checkpoint_is_set_aside_unread(checkpoint: Path, tmp_path: Path, name: str) -> None:
    assert newest_checkpoint(checkpoint.parent) == checkpoint
    canary = tmp_path / "canary"
    (checkpoint / name).write_bytes(pickle.dumps(Payload(canary)))
    assert newest_checkpoint(checkpoint.parent) is None
    assert (checkpoint.parent / f"damaged-{checkpoint.name}").is_dir() and not canary.exists()


def test_every_package_that_is_installed_is_pinned() -> None:
    """constraints.txt is the lock file: all that fledge and its extras bring, each at the version that runs here."""
    text = Path(fledge.__file__).parents[2].joinpath("constraints.txt").read_text(encoding="utf-8")
    pinned = dict(line.split("==") for line in text.splitlines() if not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    found, waiting = set(), {("fledge-lm", "")}
    while waiting:
        name, extra = waiting.pop()
        found.add((name, extra))
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of an extra that is not installed here
            continue
        for each in map(Requirement, requires):
            extras = ["", "dev", "deepspeed", "docs"] if name == "fledge-lm" else [extra]
            if each.marker is None or any(each.marker.evaluate({"extra": it}) for it in extras):
                waiting |= {(canonicalize_name(each.name), it) for it in ("", *each.extras)} - found
    names = {name for name, _ in found} - {"fledge-lm", "setuptools", "pip"}
    assert len(names) > 50
    assert {name for name in names if not is_as_pinned(name, pinned)} == set()


def is_as_pinned(name: str, pinned: dict[str, str]) -> bool:
    try:
        return metadata.version(name).partition("+")[0] == pinned.get(name)
    except metadata.PackageNotFoundError:
        return True


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "", 7])
def test_a_folder_names_only_files_of_its_own(tmp_path: Path, name: object) -> None:
    """A model's shards, a saved data set's files and splits, the shards of prepared rows."""
    folder = tmp_path / "given"
    folder.mkdir()
    (tmp_path / "secret").write_text("not for you")

    def holds(file: str, value: object) -> None:
        (folder / file).write_text(json.dumps(value))

    refused = pytest.raises(ValueError, match="is no file of this folder")
    holds("config.json", {"model_type": "llama"})
    holds("model.safetensors.index.json", {"weight_map": {"lm_head.weight": name}})
    with refused:
        load_model(folder, "model_name_or_path")
    holds("state.json", {"_data_files": [{"filename": name}]})
    with refused:
        files_of(DatasetEntry(path=str(folder)), "datasets: 1")
    holds("manifest.json", {"id_type": "uint16", "train": {"index": {name: {"bytes": 11}}, "shards": []}})
    if name != 7:  # a name in JSON is text there
        with refused:
            load_prepared(folder)


def test_a_split_is_no_way_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["../other"]}))
    with pytest.raises(ValueError, match="is no file of this folder"):
        files_of(DatasetEntry(path=str(tmp_path), split="../other"), "datasets: 1")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole checkpoint as ZeRO-2 writes it beside what the Trainer does."""
    from fledge.training.checkpoints import commit, staged

    output = tmp_path / "run"
    unfinished = staged(output) / "checkpoint-4"
    names = ["trainer_state.json", "scheduler.pt", "config.json", "model.safetensors", "optimizer.pt", "rng_state.pth"]
    for each in [*names, "global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt"]:
        (unfinished / each).parent.mkdir(parents=True, exist_ok=True)
        (unfinished / each).write_text("{}")
    return commit(output, "checkpoint-4", {"step": 4})
