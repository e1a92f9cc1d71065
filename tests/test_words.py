"""Words out of a table: the very ids that tokenizers gives, whatever the text."""

import pickle
import random

import pytest
from conftest import TEXTS
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fledge.data import words
from fledge.data.words import WordTable


def learnt(isolate: bool = False, size: int = 600) -> Tokenizer:
    """As the tokenizer stage learns one."""
    backend = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not isolate)
    if isolate:
        byte_level = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), byte_level])
    backend.pre_tokenizer, backend.decoder = byte_level, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<|pad|>", "<|end|>"], initial_alphabet=alphabet)
    backend.train_from_iterator([*TEXTS, *HARD], trainer)
    return backend


HARD = [
    "",
    " ",
    "\n\n x\t\ty \r\n",
    "it's we'll I'm they're you'd he've can't 's 'S ''s ' s",
    "a<|end|>b <|pad|><|end|>",
    "12 345,678.90 ½ ² Ⅷ ٣٤ 一二三",
    "落日照大旗，馬鳴風蕭蕭。平沙列萬幕，部伍各見招。",
    "naïve café — ‘quoted’… e\u0301 \u200b zero\u00a0width\u3000wide",
    "\x00\x01\x1c\x1d\x1e\x1f\x85\x7f\ufeff\ufffd",
    "👩‍👩‍👧 🇩🇪 \U0001fae8 \U00031350 \u0870 \U00010d40",
]


def texts() -> list[str]:
    """Real text, hard cases, and strings drawn from all of Unicode, the rare planes and white space above all."""
    chance = random.Random(1)
    ranges = [(9, 14), (28, 33), (32, 127), (0x80, 0x600), (0x600, 0x3400), (0x4E00, 0x4E80), (0xA000, 0xD7FF)]
    ranges += [(0xE000, 0xFFFF), (0x10000, 0x32000), (0x32000, 0x10FFFF)]
    drawn = []
    for _ in range(3000):
        its = chance.sample(ranges, 3)
        drawn.append("".join(chr(chance.randrange(*chance.choice(its))) for _ in range(chance.randrange(1, 30))))
    return [*TEXTS, *HARD, *drawn]


@pytest.mark.parametrize("isolate", [False, True])
def test_a_table_gives_the_ids_that_tokenizers_gives(isolate: bool) -> None:
    backend, given = learnt(isolate), texts()
    table = WordTable.of(backend)
    wanted = [encoding.ids for encoding in backend.encode_batch(given, add_special_tokens=False)]
    for _ in range(2):  # words that are new, and words that were met
        assert [ids.tolist() for ids in table.encode(given)] == wanted
    assert [ids.tolist() for ids in pickle.loads(pickle.dumps(WordTable.of(backend))).encode(given)] == wanted


def test_met_words_are_not_encoded_again_and_a_full_table_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = learnt()
    table = WordTable.of(backend)
    asked: list[str] = []
    encode = table._encode
    monkeypatch.setattr(table, "_encode", lambda texts: asked.extend(texts) or encode(texts))
    table.encode(["the cat and the dog", "a<|end|>"])
    assert sorted(asked) == sorted([" and", " cat", " dog", " the", "the", "a<|end|>"])
    assert "½" not in table.known and table.encode(["1½"])[0].tolist() == backend.encode("1½").ids
    asked.clear()
    table.encode(["the dog and the dog"])
    assert not asked
    monkeypatch.setattr(words, "MOST_WORDS", 6)
    wanted = [encoding.ids for encoding in backend.encode_batch(TEXTS, add_special_tokens=False)]
    assert [ids.tolist() for ids in table.encode(TEXTS)] == wanted


def test_a_character_that_the_two_cut_in_different_ways_is_left_to_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    table = WordTable.of(learnt())
    assert all(map(table._is_alike, "aé一٣ \n\u3000…👩")) and not table._is_alike("\x1c")
    monkeypatch.setattr(table, "_is_alike", lambda character: character != "q")
    assert not table._cuts_alike("a quay") and not table._cuts_alike("a quay") and table._cuts_alike("a day")


def test_other_tokenizers_have_no_table() -> None:
    prefixed, normalised, dropping, bare = (learnt() for _ in range(4))
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    normalised.normalizer = normalizers.NFC()
    dropping.model.dropout = 0.1
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert [WordTable.of(each) for each in (prefixed, normalised, dropping, bare, unigram)] == [None] * 5
