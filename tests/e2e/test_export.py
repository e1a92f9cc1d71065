"""The export in an environment where fledge is not: plain torch and transformers load it, and it is the same model."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from .hub import hub
from .stranger import NEW_TOKENS, SAMPLES
from .workspace import ROOT, TINY, Workspace


REQUEST = "写一首五言绝句，题为《春江》。"
STRANGER = Path(__file__).with_name("stranger.py")
WITH_FLEDGE = f"""
import runpy
from fledge.model import register
register()
runpy.run_path({str(STRANGER)!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Python of an environment with torch and transformers, of the versions that were tested, and nothing else."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    done = subprocess.run([*command, "torch", "transformers"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    yield folder / "bin" / "python"
    shutil.rmtree(folder)  # more than a gigabyte, which pytest would keep for three sessions


def look(workspace: Workspace, folder: str, target: Path, *python: str, **environment: str) -> dict[str, Any]:
    """What the stranger's script finds in a model folder."""
    workspace.run(*python, folder, REQUEST, str(target), **environment)
    found = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
    return {**found, "logits": np.load(target.with_suffix(".npy"))}


# `bare` comes first: another worker may be making the chain meanwhile.
@pytest.fixture(scope="module")
def seen(bare: Path, chain: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The export, where fledge is not installed."""
    return look(chain, "runs/tiny/export", tmp_path_factory.mktemp("seen") / "export", str(bare), "-I", str(STRANGER))


@pytest.fixture(scope="module")
def ours(chain: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The model that was exported, where fledge is."""
    return look(chain, "runs/tiny/dpo", tmp_path_factory.mktemp("seen") / "dpo", "python", "-c", WITH_FLEDGE)


def test_the_environments_are_what_they_should_be(seen: dict[str, Any], ours: dict[str, Any]) -> None:
    assert (seen["fledge_installed"], seen["model"]) == (False, "LlamaForCausalLM")
    assert (ours["fledge_installed"], ours["model"]) == (True, "FledgeForCausalLM")


def test_logits_are_those_of_the_trained_model_to_the_bit(seen: dict[str, Any], ours: dict[str, Any]) -> None:
    assert ours["logits"].std() > 0.1
    assert np.array_equal(seen["logits"], ours["logits"])


def test_pipeline_writes_what_the_trained_model_writes(seen: dict[str, Any], ours: dict[str, Any]) -> None:
    assert seen["greedy"] == ours["greedy"]
    assert seen["greedy"]["role"] == "assistant" and seen["greedy"]["content"].strip()
    assert seen["sampled"] == ours["sampled"]


def test_a_stranger_loads_it_from_the_hub(bare: Path, seen: dict[str, Any], chain: Workspace, tmp_path: Path) -> None:
    mine = chain.copy(tmp_path / "workspace")
    with hub() as loopback:
        environment = loopback.environment("hf_" + "Stranger" * 4)
        mine.fledge("publish", "runs/tiny", "--to", "bird/tiny", **environment)
        found = look(mine, "bird/tiny", tmp_path / "hub", str(bare), "-I", str(STRANGER), **environment)

    assert (found["fledge_installed"], found["model"]) == (False, "LlamaForCausalLM")
    assert np.array_equal(found["logits"], seen["logits"])
    assert {name: found[name] for name in ("greedy", "rendered", "special_ids")} == {
        name: seen[name] for name in ("greedy", "rendered", "special_ids")
    }


@pytest.mark.slow
def test_our_own_architecture_runs_where_its_code_is_trusted(
    bare: Path, ours: dict[str, Any], mine: Workspace, tmp_path: Path
) -> None:
    folder = "runs/tiny/remote"
    mine.fledge("export", f"{TINY}/export.yaml", "--to", "remote-code", "--output_dir", folder)
    refused = mine.run(str(bare), "-I", str(STRANGER), folder, REQUEST, str(tmp_path / "refused"), code=None)
    found = look(mine, folder, tmp_path / "trusted", str(bare), "-I", str(STRANGER), TRUST="yes")

    assert refused.code != 0 and "trust_remote_code" in refused.err
    assert (found["fledge_installed"], found["model"]) == (False, "FledgeForCausalLM")
    assert np.array_equal(found["logits"], ours["logits"])
    assert found["greedy"] == ours["greedy"]


def test_fledge_chat_answers_from_the_run_and_says_the_same(seen: dict[str, Any], chain: Workspace) -> None:
    chat = chain.fledge("chat", "runs/tiny", "-p", REQUEST, "--greedy", "--max_new_tokens", str(NEW_TOKENS))

    assert "runs/tiny/export" in chat.err
    assert chat.out.removesuffix("\n") == seen["greedy"]["content"]


def test_an_answer_ends_at_the_stop_token(seen: dict[str, Any]) -> None:
    pad, eos = seen["special_ids"]["pad"][0], seen["special_ids"]["eos"][0]
    # Barely trained as it is, the model says the stop token now and then.
    stopped = [row for row in seen["sampled"] if eos in row[: NEW_TOKENS - 1]]

    assert 0 < len(stopped) < SAMPLES
    for row in stopped:
        assert set(row[row.index(eos) + 1 :]) == {pad}


def test_special_tokens_agree_in_every_file(seen: dict[str, Any], chain: Workspace) -> None:
    learnt = chain.results("tokenizer")["special_tokens"]
    ids = {"pad": learnt["<|pad|>"], "bos": learnt["<|begin|>"], "eos": learnt["<|end|>"]}

    # Of the tokenizer, of the model's configuration and of its generation configuration.
    assert seen["special_ids"] == {name: [number] * 3 for name, number in ids.items()}
    assert len(set(ids.values())) == 3


def test_the_chat_template_travels(seen: dict[str, Any], chain: Workspace) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chain.run_folder / "tokenizer")
    messages = [{"role": "user", "content": REQUEST}]

    assert seen["rendered"] == tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert REQUEST in seen["rendered"] and "<|assistant|>" in seen["rendered"]


def test_the_folder_holds_no_code_and_asks_for_none(chain: Workspace) -> None:
    export = chain.run_folder / "export"

    assert not list(export.glob("*.py"))
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        assert "auto_map" not in json.loads((export / name).read_text(encoding="utf-8"))
