"""What the tests share: a tokenizer trained by the real stage, tiny models, small data sets, recipes on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from fledge.data.prepared import load_prepared
from fledge.data.sources import Row
from fledge.data.tokenise import Document, Tokeniser
from fledge.model.configuration_fledge import FledgeConfig
from fledge.model.modeling_fledge import FledgeForCausalLM
from fledge.recipe import Recipe, load_recipe
from fledge.stages import prepare as prepare_stage
from fledge.stages import tokenizer as tokenizer_stage


TEMPLATES = Path(__file__).parents[1] / "chat_templates"
TEXTS = [
    "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。",
    "白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。",
    "春眠不觉晓，处处闻啼鸟。",
    "The sun beyond the mountains glows.",
    "红豆生南国，春来发几枝。\n愿君多采撷，此物最相思。",
    "The Yellow River seawards flows. You can enjoy a grander sight by climbing to a greater height.",
    "千山鸟飞绝，万径人踪灭。",
    "月",
]


def conversation(*turns: str, system: str | None = None) -> dict[str, Any]:
    """A row of `messages`: user and assistant in turn."""
    messages = [{"role": "system", "content": system}] if system else []
    return {"messages": messages + [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)]}


CONVERSATIONS = [
    conversation("写一首诗", TEXTS[0], system="你是诗人"),
    conversation("Hi", "Hello!", "A line?", TEXTS[6]),
    conversation("Say yes", "yes"),
    conversation(TEXTS[1], "好"),
    conversation("再来", TEXTS[4]),
    conversation("One", "1", "Two", "2", "Three", "3"),
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSON-lines file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe(folder: Path, stage: str, **values: Any) -> Recipe:
    """A recipe file in `folder`, read as the command reads it; it writes to folder/<stage> unless told otherwise."""
    values.setdefault("output_dir", str(folder / stage))
    values = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    path = folder / f"{stage}.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return load_recipe(stage, path)


def documents_of(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], max_length: int) -> list[Document]:
    """The rows tokenised as prepare does it."""
    tokenise = Tokeniser(tokenizer, max_length)
    found = tokenise.documents([Row(row, f"rows.jsonl:{number}") for number, row in enumerate(rows, 1)])
    return [document for documents in found for document in documents]


def prepared(folder: Path, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], **keys: Any) -> Path:
    """The folder that the real stage writes from these rows; text is a source of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    kinds = {"rows": [row for row in rows if "messages" in row], "texts": [row for row in rows if "text" in row]}
    files = [write_lines(folder / f"{name}.jsonl", some) for name, some in kinds.items() if some]
    entries = [{"path": str(path)} for path in files]
    made = recipe(folder, "prepare", datasets=entries, tokenizer=folder / "tokenizer", **keys)
    prepare_stage.main(made)
    return made.output_dir


def packed_rows(
    folder: Path, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], max_length: int
) -> list[dict[str, Any]]:
    """The rows tokenised, packed, written, and read back as a data loader hands them to the collator."""
    return list(load_prepared(prepared(folder, tokenizer, rows, max_length=max_length))[0])


def places(rows: list[dict[str, Any]]) -> list[tuple[int, slice]]:
    """Row and columns of every packed document."""
    found = []
    for index, row in enumerate(rows):
        end = 0
        for length in row["seq_lengths"]:
            found.append((index, slice(end, end + length)))
            end += length
    return found


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 320 entries with the shipped chat template, trained by its stage."""
    folder = tmp_path_factory.mktemp("tokenizer")
    stated = recipe(
        folder,
        "tokenizer",
        datasets=[{"path": str(write_lines(folder / "texts.jsonl", [{"text": text} for text in TEXTS]))}],
        vocab_size=320,
        chat_template=TEMPLATES / "fledge.jinja",
        special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
    )
    tokenizer_stage.main(stated)
    return stated.output_dir


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerBase:
    """A copy of its own for every test."""
    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture
def make_model(tokenizer: PreTrainedTokenizerBase) -> Callable[..., FledgeForCausalLM]:
    """Builds a tiny fledge model in float32, the same weights for the same keys; `attention` is sdpa or eager."""

    def make(attention: str = "sdpa", seed: int = 0, **keys: Any) -> FledgeForCausalLM:
        torch.manual_seed(seed)
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
        model = FledgeForCausalLM(tiny_config(**{"vocab_size": len(tokenizer), **special, **keys}))
        model.set_attn_implementation(attention)
        model.generation_config = GenerationConfig(**special)
        return model.eval()

    return make


def tiny_config(**keys: Any) -> FledgeConfig:
    """Two layers of 32; weights large enough (0.1) that logits and attention are far from uniform."""
    return FledgeConfig(**{**TINY, **keys})


TINY = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}
