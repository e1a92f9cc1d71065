"""Loading: whatever is wrong with a folder is one message that names the key, the folder and what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase
from transformers import __version__ as VERSION

from fledge.data.load import load_model, load_tokenizer, read_template
from fledge.evaluation.generate import load
from fledge.model.modeling_fledge import FledgeForCausalLM


Damage = Callable[[Path], None]
KEY = "model_name_or_path"


@pytest.fixture
def folder(make_model: Callable[..., FledgeForCausalLM], tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """A model folder as the sft stage leaves it: its config.json names code beside it."""
    made = tmp_path / "runs" / "x" / "sft"
    make_model().save_pretrained(made)
    tokenizer.save_pretrained(made)
    assert "auto_map" in json.loads((made / "config.json").read_text())
    return made


def test_a_stages_folder_loads_as_it_was_saved(folder: Path, make_model: Callable[..., FledgeForCausalLM]) -> None:
    model = load_model(folder, KEY, "eager")
    assert type(model) is FledgeForCausalLM and model.config._attn_implementation == "eager"
    assert model.config.name_or_path == str(folder)  # TRL loads the reference from there
    for name, weight in make_model().state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    assert load_tokenizer(str(folder), KEY).get_vocab() == load_tokenizer(folder, "tokenizer").get_vocab()


def test_sharded_weights_load(folder: Path, make_model: Callable[..., FledgeForCausalLM]) -> None:
    (folder / "model.safetensors").unlink()
    make_model().save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(load_model(folder, KEY).lm_head.weight, make_model().lm_head.weight)
    shards[0].unlink()
    with pytest.raises(ValueError, match=f"sft: holds no {shards[0].name}; run the stage that writes it"):
        load_model(folder, KEY)


def without(*names: str) -> Damage:
    """The folder lacks these files."""
    return lambda folder: [folder.joinpath(name).unlink() for name in names][:0] and None


def holding(name: str, content: bytes | str) -> Damage:
    """A file of the folder is another."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: folder.joinpath(name).write_bytes(data) and None


def cut(name: str, share: float) -> Damage:
    """A file of the folder ends early."""

    def damage(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])

    return damage


def stating(**values: Any) -> Damage:
    """config.json says something else."""

    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return damage


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def fewer_tensors(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


TOKENIZER = {
    "no folder": (shutil.rmtree, "no such folder; run the stage that writes it (sft)"),
    "no tokenizer": (without("tokenizer.json"), "holds no tokenizer.json; run the stage that writes it (sft)"),
    "cut": (cut("tokenizer.json", 0.5), "tokenizer.json is not whole: "),
    "cut config": (cut("tokenizer_config.json", 0.5), "tokenizer_config.json is not whole: "),
    "no text": (holding("tokenizer.json", b"\xff\xfe"), "tokenizer.json is not whole: "),
    "no object": (holding("tokenizer.json", "[]"), "tokenizer.json holds no JSON object"),
    "something else": (holding("tokenizer.json", "{}"), "tokenizer.json is no tokenizer: "),
}
MODEL = {
    "no folder": (shutil.rmtree, "no such folder; run the stage that writes it (sft)"),
    "no config": (without("config.json"), "holds no config.json; run the stage that writes it (sft)"),
    "cut config": (cut("config.json", 0.5), "config.json is not whole: "),
    "cut generation config": (cut("generation_config.json", 0.5), "generation_config.json is not whole: "),
    "no weights": (without("model.safetensors"), "holds no model.safetensors; run the stage that writes it (sft)"),
    "cut weights": (cut("model.safetensors", 0.9), "model.safetensors is not whole: "),
    "empty weights": (cut("model.safetensors", 0), "model.safetensors is not whole: "),
    "pickled": (
        pickled,
        "holds pickled weights only (pytorch_model.bin), which can run code when loaded; save",
    ),
    "code of its own": (
        stating(model_type="mine"),
        "model_type 'mine' needs code of its own (auto_map in config.json)",
    ),
    "no causal model": (stating(model_type="vit"), "the model cannot be loaded: "),
    "no type": (holding("config.json", "{}"), f"config.json: transformers {VERSION} knows no model_type None; run"),
    "other sizes": (
        stating(vocab_size=300),
        "2 tensors have another shape than config.json says, such as lm_head.weight",
    ),
    "a wrong value": (stating(num_hidden_layers="two"), "the model cannot be loaded: "),
    "a tensor missing": (
        fewer_tensors,
        "the weights lack 1 tensors that config.json asks for, such as model.norm",
    ),
    "a layer missing": (stating(num_hidden_layers=3), "the weights lack 9 tensors that config.json asks for, such as"),
}


@pytest.mark.parametrize("fault", TOKENIZER)
def test_a_broken_tokenizer_folder(folder: Path, fault: str) -> None:
    damage, message = TOKENIZER[fault]
    damage(folder)
    refused(load_tokenizer, folder, message)


@pytest.mark.parametrize("fault", MODEL)
def test_a_broken_model_folder(folder: Path, fault: str) -> None:
    damage, message = MODEL[fault]
    damage(folder)
    refused(load_model, folder, message)


def refused(loader: Callable[[Path, str], Any], folder: Path, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        loader(folder, KEY)
    text = str(raised.value)
    assert text.startswith(f"{KEY}: {folder}: {message}")
    assert "\n" not in text and "; " in text


def test_code_beside_the_weights_is_never_run(folder: Path) -> None:
    for path in folder.glob("*.py"):
        path.write_text("raise SystemExit('run')")
    assert type(load_model(folder, KEY)) is FledgeForCausalLM
    stating(model_type="mine")(folder)
    with pytest.raises(ValueError, match="fledge runs no code out of a model folder"):
        load_model(folder, KEY)


def test_a_name_that_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "runs").mkdir()
    (tmp_path / "file").touch()
    models = "(pretrain, sft, dpo, export)"
    for name, key, message in (
        ("runs/x/sft", KEY, "no such folder; run the stage that writes it (sft)"),
        ("runs/x/sft_long", KEY, "no such folder; run the stage that writes it (sft)"),
        ("runs/other", KEY, f"no such folder; run the stage that writes it {models}"),
        ("runs/x/prepare", "tokenizer", "no such folder; run the stage that writes it (tokenizer)"),
        ("../x", "models", f"no such folder; run the stage that writes it {models}"),
        ("x", "chat", "no such folder; give a model folder that save_pretrained wrote, its tokenizer inside"),
        ("file", "tokenizer", "is no folder; run the stage that writes it (tokenizer)"),
        ("nobody/nothing", KEY, "no such folder here, and the model hub does not give it ("),
        ("nobody/a--b", "tokenizer", "no such folder here, and the model hub does not give it ("),
    ):
        for loader in (load_tokenizer, load_model):
            with pytest.raises(ValueError) as raised:
                loader(name, key)
            assert str(raised.value).startswith(f"{key}: {name}: {message}")
    with pytest.raises(ValueError, match=r"^models: runs/x: no such folder"):
        load("runs/x", "models")


def test_a_hub_id_is_fetched_without_code_and_pickles(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def fetch(name: str, **patterns: Any) -> str:
        asked.append({"name": name, **patterns})
        return str(folder)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fledge.data.load.snapshot_download", fetch)
    load_tokenizer("someone/model", "tokenizer")
    load_model("someone/model", KEY)
    small = ["*.json", "*.jinja"]
    assert asked == [
        {"name": "someone/model", "allow_patterns": small, "ignore_patterns": "*/*"},
        {"name": "someone/model", "allow_patterns": [*small, "*.safetensors"], "ignore_patterns": "*/*"},
    ]


def test_a_missing_template(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff")
    for name, reason in (("none.jinja", "No such file or directory"), ("bytes", "not UTF-8 text")):
        with pytest.raises(ValueError) as raised:
            read_template(tmp_path / name, "chat_template")
        assert str(raised.value).startswith(f"chat_template: {tmp_path / name}: {reason}; name one of")
