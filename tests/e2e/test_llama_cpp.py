"""llama.cpp itself reads the GGUF export: the same ids, the same logits, the same answers, and it stops.

Of the demo's model if runs/tang-poems is there, else of the tiny chain's. `make interop` compiles llama.cpp and prints
the figures.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from fledge.exporting.gguf import About, write_gguf
from fledge.model.configuration_fledge import FledgeConfig
from fledge.model.modeling_fledge import FledgeForCausalLM
from fledge.model.plain import as_plain

from .workspace import ROOT, TINY, Workspace


llama_cpp = pytest.importorskip("llama_cpp", reason="pip install 'fledge-lm[llamacpp]'")
pytestmark = pytest.mark.slow

DEMO = ROOT / "runs" / "tang-poems"
STRINGS = 1000
PROMPTS = 40
NEW_TOKENS = 96
TIE = 1e-3
"""Two logits closer than this may change places where sums are taken in another order."""


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest) -> Path:
    """A run folder with a corpus and an aligned model."""
    if (DEMO / "export" / "summary.json").is_file():
        return DEMO
    return request.getfixturevalue("chain").run_folder


@pytest.fixture(scope="module")
def exported(run: Path, fresh: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The GGUF files of each type, written by the command."""
    folder = tmp_path_factory.mktemp("gguf")
    for type in ("F32", "F16", "Q8_0"):
        keys = ["--model_name_or_path", str(run / "dpo"), "--to", "gguf", "--gguf_type", type]
        fresh.fledge("export", f"{TINY}/export.yaml", *keys, "--output_dir", str(folder / type))
    return {path.parent.name: path for path in folder.glob("*/model.gguf")}


@pytest.fixture(scope="module")
def model(run: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(run / "export").eval()


@pytest.fixture(scope="module")
def tokenizer(run: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(run / "export")


@pytest.fixture(autouse=True)
def _without_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp of 0.3.36 crashed in ggml_backend_amx_mul_mat with Q8_0 on a machine with AMX: not there, then."""
    default = llama_cpp.llama_cpp.llama_model_default_params

    def plain() -> Any:
        options = default()
        options.use_extra_bufts = False
        return options

    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", plain)


def load(path: Path, **options: Any) -> "llama_cpp.Llama":
    """All in float32, the cache too: what differs then is the order of sums."""
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    return llama_cpp.Llama(str(path), n_ctx=512, n_threads=1, verbose=False, **exact, **options)


def column(run: Path, name: str) -> list[Any]:
    file, _, key = name.partition(":")
    return pq.read_table(run / "corpus" / file / "heldout.parquet")[key].to_pylist()


def prompts(run: Path) -> list[list[dict[str, str]]]:
    """Held-out requests, evenly spread over the file."""
    found = column(run, "requests:prompt")
    return found[:: max(1, len(found) // PROMPTS)][:PROMPTS]


def wild(count: int) -> Iterator[str]:
    """Words, numbers, spaces, marks and any character of Unicode, in any order."""
    rng = random.Random(0)
    pieces = [
        "the",
        "don't",
        "WE'LL",
        " ",
        "  ",
        "\n",
        "\t\n ",
        "2026",
        "3.14",
        "!?",
        "春江",
        "ﬁ",
        "é",
        "<|end|>",
        "'s",
    ]
    for _ in range(count):
        any_character = [chr(rng.choice([*range(0x20, 0xD800), *range(0xE000, 0x20000)])) for _ in range(3)]
        yield "".join(rng.choices([*pieces, *any_character], k=12))


def differing(path: Path, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[str]:
    """The texts whose ids are not those of the tokenizer."""
    other = load(path, vocab_only=True)
    return [
        text
        for text in texts
        if other.tokenize(text.encode(), add_bos=True, special=True) != tokenizer(text)["input_ids"]
    ]


def test_ids_are_equal_on_held_out_text(
    run: Path, exported: dict[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    chats = [tokenizer.apply_chat_template(its, tokenize=False) for its in column(run, "chat:messages")]
    texts = [*column(run, "poems:text"), *chats, *wild(STRINGS)]
    texts = texts[:STRINGS] if len(chats) > STRINGS // 2 else texts
    print(f"\n{len(texts)} held-out texts, {sum(len(tokenizer(text)['input_ids']) for text in texts)} ids")

    assert len(texts) >= STRINGS
    assert differing(exported["F16"], tokenizer, texts) == []


def test_ids_of_words_are_equal(model: PreTrainedModel, tokenizer_folder: Path, tmp_path: Path) -> None:
    """GPT-2's splitting, on English out of the documents and on anything else."""
    words = AutoTokenizer.from_pretrained(tokenizer_folder)
    write_gguf(model, words, tmp_path / "model.gguf", "F16", About("words"))
    lines = [line for path in sorted(ROOT.rglob("*.md")) for line in re.split(r"(?<=\n\n)", path.read_text("utf-8"))]
    lines = [line for line in lines if line.strip()][:STRINGS]
    found, wildly = (differing(tmp_path / "model.gguf", words, its) for its in (lines, list(wild(STRINGS))))
    print(f"\n{len(found)} of {len(lines)} paragraphs differ, {len(wildly)} of {STRINGS} wild strings: {wildly[:3]}")

    assert len(lines) > 300 and not found
    assert not wildly


@pytest.mark.parametrize(("type", "allowed"), [("F32", 1e-4), ("F16", 0.02), ("Q8_0", 0.1)])
def test_logits_are_those_of_transformers(
    type: str,
    allowed: float,
    run: Path,
    exported: dict[str, Path],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    texts = column(run, "poems:text")[:PROMPTS]
    largest, size = difference(exported[type], model, [tokenizer(text)["input_ids"] for text in texts])
    print(f"\n{type}: logits differ by at most {largest:.3g}; the largest is {size:.3g}")

    assert largest <= allowed * size


def test_a_model_with_qk_norm_is_a_qwen3_there_too(
    run: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """One of random weights, its norms among them: what is read in another order gives other logits."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = FledgeForCausalLM(
        FledgeConfig(vocab_size=len(tokenizer), num_hidden_layers=3, initializer_range=0.3, qk_norm=True, **sizes)
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.2, 3.0)
    write_gguf(as_plain(model), tokenizer, tmp_path / "model.gguf", "F32", About("qwen3"))
    ids = [tokenizer(text)["input_ids"] for text in column(run, "poems:text")[:5]]
    largest, size = difference(tmp_path / "model.gguf", model, ids)
    print(f"\nqwen3: logits differ by at most {largest:.3g}; the largest is {size:.3g}")

    assert largest <= 1e-4 * size


def difference(path: Path, model: PreTrainedModel, texts: list[list[int]]) -> tuple[float, float]:
    """The largest difference of a logit of the file to the model's, and the largest of its logits."""
    other = load(path, logits_all=True)
    largest, size = 0.0, 0.0
    for ids in texts:
        other.reset()
        other.eval(ids)
        with torch.inference_mode():
            wanted = model(torch.tensor([ids])).logits[0].numpy()
        largest = max(largest, float(np.abs(other.scores[: len(ids)] - wanted).max()))
        size = max(size, float(np.abs(wanted).max()))
    return largest, size


@pytest.mark.parametrize(("type", "share"), [("F32", 1.0), ("F16", 0.9), ("Q8_0", 0.5)])
def test_greedy_answers_are_those_of_transformers(
    type: str,
    share: float,
    run: Path,
    exported: dict[str, Path],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    other = load(exported[type])
    answers = tokens = agreed = ties = 0
    for messages in (asked := prompts(run)):
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        told = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "output_logits": True}
        made = model.generate(torch.tensor([ids]), return_dict_in_generate=True, **told)
        wanted = made.sequences[0, len(ids) :].tolist()
        other.reset()
        found = answer(other, ids)
        first = next((at for at, pair in enumerate(zip(wanted, found, strict=False)) if len(set(pair)) == 2), None)
        if first is None:
            # Neither went on where the other had stopped.
            assert wanted == found
        elif type == "F32":
            logits = made.logits[first][0]
            assert abs(logits[wanted[first]] - logits[found[first]]) < TIE
            ties += 1
        answers += wanted == found
        tokens += len(wanted)
        agreed += len(wanted) if first is None else first
    print(
        f"\n{type}: {answers} of {len(asked)} answers equal, {agreed} of {tokens} tokens till they part, {ties} ties"
    )

    assert answers + ties >= share * len(asked)


def answer(other: "llama_cpp.Llama", ids: list[int]) -> list[int]:
    """The likeliest tokens, the stop token last if it came."""
    found: list[int] = []
    for token in other.generate(ids, temp=0.0):
        found.append(token)
        if token == other.token_eos() or len(found) == NEW_TOKENS:
            break
    return found


def test_a_chat_stops_at_the_stop_token(
    run: Path, exported: dict[str, Path], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """By the template and the stop token that are in the file: nothing is told to llama.cpp."""
    other, stopped = load(exported["F32"]), 0
    for messages in (asked := prompts(run)[:10]):
        reply = other.create_chat_completion(messages, temperature=0.0, max_tokens=NEW_TOKENS)["choices"][0]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        made = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=NEW_TOKENS)[0, len(ids) :]
        stops = tokenizer.eos_token_id in made.tolist()
        assert reply["finish_reason"] == ("stop" if stops else "length")
        assert reply["message"]["content"] == tokenizer.decode(made, skip_special_tokens=True)
        stopped += stops
    print(f"\n{stopped} of {len(asked)} answers end by themselves")

    assert stopped == len(asked) or run != DEMO
