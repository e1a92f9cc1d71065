"""Train a byte-level BPE tokenizer; the special tokens and the chat template go inside it.

fledge tokenizer recipes/tang-poems/tokenizer.yaml
"""

from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fledge.arguments import TokenizerArguments
from fledge.data.checks import check_tokenizer
from fledge.data.load import read_template
from fledge.data.sources import read_rows
from fledge.recipe import Recipe
from fledge.results.record import Record


def main(recipe: Recipe) -> None:
    """Learn the vocabulary from the recipe's files and save a tokenizer that transformers loads by itself."""
    keys = recipe.own(TokenizerArguments)
    template = read_template(keys.chat_template, "chat_template")
    record = Record(recipe)
    special = list(dict.fromkeys([keys.pad_token, keys.bos_token, keys.eos_token, *keys.special_tokens]))

    learnt = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not keys.isolate_characters)
    if keys.isolate_characters:
        # Bytes merge up to a character and never past it: one token for each frequent character.
        byte_level = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), byte_level])
    learnt.pre_tokenizer = byte_level
    learnt.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=keys.vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # every byte: no text is ever unknown
        show_progress=True,
    )
    learnt.train_from_iterator(texts(keys), trainer)

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learnt,
        pad_token=keys.pad_token,
        bos_token=keys.bos_token,
        eos_token=keys.eos_token,
        extra_special_tokens=keys.special_tokens,
        model_max_length=keys.model_max_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",  # generation continues the right end of a batch
    )
    tokenizer.chat_template = template
    check_tokenizer(tokenizer)
    tokenizer.save_pretrained(recipe.output_dir)

    sample = [text for text, _ in zip(texts(keys), range(2000), strict=False)]
    tokens = sum(len(ids) for ids in tokenizer(sample, add_special_tokens=False)["input_ids"])
    record.finish(
        vocab_size=len(tokenizer),
        special_tokens={token: tokenizer.convert_tokens_to_ids(token) for token in special},
        characters_per_token=round(sum(map(len, sample)) / tokens, 4),
    )


def texts(keys: TokenizerArguments) -> Iterator[str]:
    """Every text of the recipe's files: documents as they are, of conversations the turns."""
    for row in read_rows(keys.datasets):
        if isinstance(row.values.get("text"), str):
            yield row.values["text"]
        else:
            for message in row.values.get("messages") or ():
                yield message["content"]
