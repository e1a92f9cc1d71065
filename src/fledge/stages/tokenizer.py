"""A byte-level BPE tokenizer, learnt from text, or the vocabulary of another; special tokens and template go inside.

fledge tokenizer recipes/tang-poems/tokenizer.yaml
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fledge.arguments import TokenizerArguments
from fledge.data.checks import check_tokenizer
from fledge.data.load import load_tokenizer, read_template
from fledge.data.sources import read_rows
from fledge.recipe import Recipe
from fledge.results.record import Record


logger = logging.getLogger(__name__)


def main(recipe: Recipe) -> None:
    """Save a tokenizer that transformers loads by itself."""
    keys = recipe.own(TokenizerArguments)
    check_keys(keys)
    template = read_template(keys.chat_template, "chat_template") if keys.chat_template else None
    record = Record(recipe)
    special = list(dict.fromkeys([keys.pad_token, keys.bos_token, keys.eos_token, *keys.special_tokens]))

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=based(keys, special) if keys.base_tokenizer else learnt(keys, special),
        pad_token=keys.pad_token,
        bos_token=keys.bos_token,
        eos_token=keys.eos_token,
        extra_special_tokens=keys.special_tokens,
        model_max_length=keys.model_max_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",  # generation continues the right end of a batch
    )
    tokenizer.chat_template = template
    check_tokenizer(tokenizer, chat=template is not None)
    tokenizer.save_pretrained(recipe.output_dir)

    results = {}
    if sample := [text for text, _ in zip(texts(keys), range(2000), strict=False)]:
        tokens = sum(len(ids) for ids in tokenizer(sample, add_special_tokens=False, verbose=False)["input_ids"])
        results["characters_per_token"] = round(sum(map(len, sample)) / tokens, 4)
    record.finish(
        vocab_size=len(tokenizer),
        special_tokens={token: tokenizer.convert_tokens_to_ids(token) for token in special},
        **results,
    )


def check_keys(keys: TokenizerArguments) -> None:
    """Raise ValueError unless the keys say either what to learn a vocabulary from or which one to take."""
    if keys.base_tokenizer is None:
        if lacking := [name for name in ("datasets", "vocab_size") if not getattr(keys, name)]:
            raise ValueError(
                f"tokenizer.yaml: {lacking[0]}: missing; state it to learn a vocabulary, or name a base_tokenizer"
            )
    elif keys.isolate_characters:
        raise ValueError(
            "tokenizer.yaml: isolate_characters: a base_tokenizer's merges are made already; leave one of the two out"
        )


def learnt(keys: TokenizerArguments, special: list[str]) -> Tokenizer:
    """A byte-level BPE of `vocab_size` entries, the special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not keys.isolate_characters)
    if keys.isolate_characters:
        # Bytes merge up to a character and never past it: one token for each frequent character.
        byte_level = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), byte_level])
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=keys.vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # every byte: no text is ever unknown
        show_progress=True,
    )
    tokenizer.train_from_iterator(texts(keys), trainer)
    return tokenizer


def based(keys: TokenizerArguments, special: list[str]) -> Tokenizer:
    """The vocabulary of `base_tokenizer`, and behind it those special tokens that it lacks, `special_tokens` first.

    Raises:
        ValueError: there is no such tokenizer, or the vocabulary is not of the size that `vocab_size` states.
    """
    folder = Path(load_tokenizer(keys.base_tokenizer, "base_tokenizer").name_or_path)
    stated = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    # Documents and templates bring their own bos and eos, and a row is cut and filled where it is packed.
    tokenizer = Tokenizer.from_str(json.dumps(stated | {"post_processor": None, "truncation": None, "padding": None}))
    entries = tokenizer.get_vocab_size()
    special = list(dict.fromkeys([*keys.special_tokens, *special]))
    added = [token for token in special if tokenizer.token_to_id(token) is None]
    tokenizer.add_special_tokens(special)
    size = max(tokenizer.get_vocab().values()) + 1
    logger.info("%s has %d entries; added behind them: %s", keys.base_tokenizer, entries, " ".join(added) or "none")
    if keys.vocab_size not in (None, size):
        raise ValueError(
            f"vocab_size: {keys.vocab_size} is stated, and {keys.base_tokenizer} has {entries} entries, {size} with "
            f"{' '.join(added) or 'nothing'} added; write `vocab_size: {size}`, name its own bos, eos and pad tokens, "
            "or take another base_tokenizer"
        )
    return tokenizer


def texts(keys: TokenizerArguments) -> Iterator[str]:
    """Every text of the recipe's files: documents as they are, of conversations the turns."""
    for row in read_rows(keys.datasets):
        if isinstance(row.values.get("text"), str):
            yield row.values["text"]
        else:
            for message in row.values.get("messages") or ():
                yield message["content"]
