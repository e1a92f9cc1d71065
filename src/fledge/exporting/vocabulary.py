"""A byte-level BPE tokenizer in GGUF's words, such that llama.cpp turns text into the same ids."""

import json
from typing import Any

import gguf
from gguf import TokenType
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode


WORDS = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
"""GPT-2's splitting into words; trim_offsets decides no id."""

CHARACTERS = (
    {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False},
    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
)
"""The tokenizer stage's isolate_characters."""

BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
"""Which byte each character of a byte-level vocabulary stands for."""

PLAIN_MODEL = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Add tokens, merges, special tokens and chat template.

    Raises:
        ValueError: llama.cpp has no such tokenizer, or no place for so many stop tokens.
    """
    stated = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(stated))
    added = {its["id"]: its for its in stated["added_tokens"]}
    if odd := [its["content"] for its in added.values() if its["lstrip"] or its["rstrip"] or its["single_word"]]:
        raise _no_place(f"the added token {odd[0]} has lstrip, rstrip or single_word")
    entries = {id: token for token, id in tokenizer.get_vocab().items()}
    ids = range(model.config.vocab_size)
    # Rows of the embedding that no token has, where vocab_size was rounded up.
    writer.add_token_list([entries.get(id, f"[PAD{id}]") for id in ids])
    writer.add_token_types([_type(id, entries, added) for id in ids])
    writer.add_token_merges([" ".join(pair) for pair in stated["model"]["merges"]])

    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    for id in other_stops(tokenizer, model):
        writer.add_eot_token_id(id)
    given = tokenizer("")["input_ids"]
    if given not in ([], [tokenizer.bos_token_id]):
        raise _no_place(f"every text gets the tokens {tokenizer.convert_ids_to_tokens(given)}")
    writer.add_add_bos_token(bool(given))
    writer.add_add_eos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def pre_tokenizer(stated: dict[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer.json splits text before it merges.

    Raises:
        ValueError: it is no byte-level BPE, or splits in another way than fledge's own tokenizers and GPT-2's.
    """
    model = {key: value for key, value in stated["model"].items() if key not in ("vocab", "merges")}
    if model != PLAIN_MODEL or stated["normalizer"] is not None:
        raise _no_place("this one is not a plain byte-level BPE")
    split = stated["pre_tokenizer"]
    parts = (split or {}).get("pretokenizers", [split])
    parts = [{key: value for key, value in (part or {}).items() if key != "trim_offsets"} for part in parts]
    merges = stated["model"]["merges"]
    if parts == [WORDS] or (parts == list(CHARACTERS) and all(_inside_a_character(pair) for pair in merges)):
        return "gpt-2"
    raise _no_place(f"this one splits text by {json.dumps(split, ensure_ascii=False)}")


def _inside_a_character(pair: list[str]) -> bool:
    """Whether the right half of a merge begins within a character of UTF-8, with a byte 10xxxxxx.

    If all merges are such, none ever joins two characters, and it is the same whether text is split before.
    """
    return BYTES[pair[1][0]] & 0b11000000 == 0b10000000


def _type(id: int, entries: dict[int, str], added: dict[int, dict[str, Any]]) -> TokenType:
    if id not in entries:
        return TokenType.UNUSED
    if id not in added:
        return TokenType.NORMAL
    return TokenType.CONTROL if added[id]["special"] else TokenType.USER_DEFINED


def stop_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """The tokens at which the model stops, eos first."""
    stated = model.generation_config.eos_token_id
    stated = stated if isinstance(stated, list) else [stated]
    return list(dict.fromkeys([tokenizer.eos_token_id, *(id for id in stated if id is not None)]))


def other_stops(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """The token that ends a turn, where that is not eos."""
    stops = stop_ids(tokenizer, model)[1:]
    if len(stops) > 1:
        tokens = tokenizer.convert_ids_to_tokens(stops)
        raise _no_place(f"generation_config.json stops at {tokenizer.eos_token} and at {', '.join(tokens)}")
    return stops


def _no_place(what: str) -> ValueError:
    return ValueError(
        "to: gguf: llama.cpp has a name for the byte-level BPE of fledge and of GPT-2 with at most two stop tokens, "
        f"and {what}; export it with `to: llama`"
    )
