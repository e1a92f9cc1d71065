"""Byte-level BPE of text, word by word out of a table.

The pre-tokenizer cuts text into words that BPE never joins, so the ids of a text are those of its words, one after
the other; and most words of a text were met before. tokenizers cuts and merges each of them anew, which was five
sixths of the time of prepare. Here a word is looked up, and only a new one is given to tokenizers. The ids are the
same: a text with anything in it that could be cut in another way goes to tokenizers whole.
"""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from tokenizers import Tokenizer


MOST_WORDS = 1 << 18
"""Of a table, about 50 MB; when it is full, it is begun anew."""

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+"
"""Of GPT-2's pattern, with what Python calls letters and digits; where Unicode has another opinion, such as on ½, the
character is found not to be cut alike."""
EACH_CHARACTER = r"(?s:.)"


class WordTable:
    """The ids of words met so far. Made by `of`, for one tokenizer."""

    def __init__(self, backend: Tokenizer, pattern: str) -> None:
        self.backend = backend
        self.cut = re.compile(pattern).findall
        self.added = [token.content for token in backend.get_added_tokens_decoder().values()]
        self.ids: dict[str, tuple[int, ...]] = {}
        self.known: set[str] = set()
        """Characters that Python and tokenizers take for the same kind: letter, number, space or none of them."""

    @classmethod
    def of(cls, backend: Tokenizer) -> "WordTable | None":
        """None for a tokenizer that works in another way than byte-level BPE of such words."""
        said = json.loads(backend.to_str())
        pattern = _pattern(said["pre_tokenizer"])
        alike = said["model"]["type"] == "BPE" and not said["model"].get("dropout") and not said["normalizer"]
        return cls(backend, pattern) if pattern and alike else None

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text without special tokens around it, (tokens,) int32."""
        alike = [self._cuts_alike(text) for text in texts]
        whole = iter(self._encode([text for text, is_alike in zip(texts, alike, strict=True) if not is_alike]))
        pairs = zip(texts, alike, strict=True)
        return [self._of_words(self.cut(text)) if is_alike else _array([next(whole)]) for text, is_alike in pairs]

    def _of_words(self, words: list[str]) -> np.ndarray:
        try:
            return _array(map(self.ids.__getitem__, words))
        except KeyError:
            pass
        if len(self.ids) > MOST_WORDS:
            self.ids.clear()
        new = list(set(words).difference(self.ids))
        self.ids.update(zip(new, self._encode(new), strict=True))
        return _array(map(self.ids.__getitem__, words))

    def _encode(self, texts: list[str]) -> list[tuple[int, ...]]:
        return [tuple(encoding.ids) for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _cuts_alike(self, text: str) -> bool:
        if any(token in text for token in self.added):
            return False
        if strange := set(text).difference(self.known):
            self.known.update(character for character in strange if self._is_alike(character))
            return strange <= self.known
        return True

    def _is_alike(self, character: str) -> bool:
        """Whether both cut it off a letter, a number, a space and another character alike; Unicode has versions."""
        tried = f"a{character}a1{character}1!{character}! {character} {character}{character}"
        wanted = [tried[start:end] for _, (start, end) in self.backend.pre_tokenizer.pre_tokenize_str(tried)]
        return self.cut(tried) == wanted


def _array(ids: Iterable[Iterable[int]]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(ids), np.int32)


def _pattern(pre_tokenizer: dict | None) -> str | None:
    """The words of the two pre-tokenizers that tokenizer.yaml makes."""
    if not pre_tokenizer:
        return None
    if pre_tokenizer["type"] != "Sequence":
        return GPT2_WORDS if pre_tokenizer.items() >= (BYTE_LEVEL | {"use_regex": True}).items() else None
    first, *others = pre_tokenizer["pretokenizers"]
    if len(others) != 1 or not others[0].items() >= (BYTE_LEVEL | {"use_regex": False}).items():
        return None
    isolates = (
        first["type"] == "Split" and first["pattern"] == {"Regex": r"[\s\S]"} and first["behavior"] == "Isolated"
    )
    return EACH_CHARACTER if isolates and not first["invert"] else None
