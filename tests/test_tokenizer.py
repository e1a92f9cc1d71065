"""The tokenizer stage on the vocabulary of another tokenizer: nothing lost, and the size that is stated."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TEMPLATES, TEXTS, recipe, write_lines
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fledge.data.checks import stop_tokens
from fledge.files import read_json
from fledge.recipe import load_recipe
from fledge.stages import tokenizer as stage


ENTRIES = 500
RECIPES = TEMPLATES.parent / "recipes"
LLAMA = {"pad_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
CHAT = {
    "chat_template": TEMPLATES / "transformer-1b-chat.jinja",
    "special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer built like Llama's: words begin with ▁, unknown characters fall back to bytes, <s> is prepended."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fallback = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(fallback)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=ENTRIES, special_tokens=special))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    stated = json.loads(backend.to_str())
    stated["added_tokens"] = stated["added_tokens"][:3]  # the bytes are entries like any other
    folder = tmp_path_factory.mktemp("base")
    whole = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(stated)))
    whole.add_special_tokens({"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"})
    whole.save_pretrained(folder)
    assert len(whole) == ENTRIES
    return folder


def made(folder: Path, **keys: Any) -> Path:
    stated = recipe(folder, "tokenizer", **keys)
    stage.main(stated)
    return stated.output_dir


def test_the_base_s_ids_stay_and_the_chat_s_tokens_follow(base: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, base_tokenizer=base, vocab_size=ENTRIES + 3, **LLAMA, **CHAT)
    before, after = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(folder)
    assert len(after) == ENTRIES + 3 and before.get_vocab().items() <= after.get_vocab().items()
    assert after.convert_tokens_to_ids(CHAT["special_tokens"]) == [ENTRIES, ENTRIES + 1, ENTRIES + 2]
    assert [after.pad_token_id, after.bos_token_id, after.eos_token_id] == [0, 1, 2]
    for text in [*TEXTS, "\n  naïve 🜁"]:
        ids = before(text)["input_ids"]
        assert ids[0] == 1 and after(text)["input_ids"] == ids[1:]  # documents bring their own <s>
        assert after.decode(ids[1:]) == text
    results = read_json(folder / "summary.json")["results"]
    assert results["vocab_size"] == ENTRIES + 3 and results["special_tokens"]["<|end|>"] == ENTRIES + 2


def test_prem_s_chat_tokens_follow_a_tokenizer_without_a_template(base: Path, tmp_path: Path) -> None:
    plain = made(tmp_path, base_tokenizer=base, vocab_size=ENTRIES, **LLAMA)
    assert AutoTokenizer.from_pretrained(plain).chat_template is None
    chat = load_recipe("tokenizer", RECIPES / "prem-1b" / "tokenizer_chat.yaml").values
    own = {name: chat[name] for name in ("special_tokens", "pad_token", "bos_token", "eos_token")}
    (tmp_path / "chat").mkdir()
    template = TEMPLATES / "prem-1b.jinja"
    folder = made(tmp_path / "chat", base_tokenizer=plain, vocab_size=ENTRIES + 4, chat_template=template, **own)
    after = AutoTokenizer.from_pretrained(folder)
    added = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[PAD]"]
    assert after.convert_tokens_to_ids(added) == [*range(ENTRIES, ENTRIES + 4)]  # in the source 32000 to 32003
    assert (after.pad_token, stop_tokens(after)) == ("[PAD]", [2, ENTRIES + 2])


def test_tinyllama_s_headers_are_text(base: Path, tmp_path: Path) -> None:
    template = TEMPLATES / "tinyllama-chat.jinja"
    folder = made(tmp_path, base_tokenizer=base, vocab_size=ENTRIES, chat_template=template, **LLAMA)
    assert stop_tokens(AutoTokenizer.from_pretrained(folder)) == [2]


def test_text_is_measured_where_there_is_any(base: Path, tmp_path: Path) -> None:
    entry = {"path": str(write_lines(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS]))}
    folder = made(tmp_path, base_tokenizer=base, datasets=[entry], **LLAMA, **CHAT)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = sum(map(len, TEXTS)) / sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)
    results = read_json(folder / "summary.json")["results"]
    assert results["characters_per_token"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"vocab_size": 700},
            r"^vocab_size: 700 is stated, and .* has 500 entries, 503 with <\|user\|> .* added; write",
        ),
        ({"pad_token": "<pad>", "vocab_size": 503}, r"504 with <\|user\|> <\|assistant\|> <\|end\|> <pad> added"),
        ({"base_tokenizer": "nowhere"}, r"^base_tokenizer: nowhere: no such folder"),
        ({"isolate_characters": True}, r"^tokenizer.yaml: isolate_characters: .*; leave one of the two out$"),
        ({"base_tokenizer": None}, r"^tokenizer.yaml: datasets: missing; .* or name a base_tokenizer$"),
        ({"pad_token": "</s>"}, "pad_token and eos_token are both </s>"),
    ],
)
def test_what_does_not_fit_is_named(base: Path, tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(tmp_path, **{"base_tokenizer": base, **LLAMA, **CHAT, **keys})
