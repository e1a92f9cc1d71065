"""Token ids -> pieces of text that can be read: several tokens of one character stay together."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from fledge.data.checks import stop_tokens


MOST_BYTES = 4
"""Tokens that one character takes at most: its bytes in UTF-8."""

UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no whole character."""


@dataclass(frozen=True)
class Piece:
    """Text and the tokens that make it, from index `start` on: one, or the few whose bytes are one character."""

    text: str
    start: int
    count: int
    is_special: bool = False
    is_stop: bool = False


@dataclass(frozen=True)
class Reader:
    """A tokenizer with what tells its tokens apart: ids of special tokens, and those that generation stops at."""

    tokenizer: PreTrainedTokenizerBase
    special: frozenset[int]
    stops: frozenset[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Reader":
        """Of a tokenizer, and of its chat template as far as that can be rendered."""
        added = tokenizer.added_tokens_decoder.items()
        special = {*tokenizer.all_special_ids, *(id for id, token in added if token.special)}
        try:
            stops = stop_tokens(tokenizer)
        except (TemplateError, ValueError, TypeError):  # which the preflight says of it
            stops = [tokenizer.eos_token_id]
        return cls(tokenizer, frozenset(special), frozenset(stops))

    def pieces(self, ids: Sequence[int]) -> list[Piece]:
        """The text of `ids` in pieces, in order; each token belongs to exactly one.

        Decodes each token together with the one before it, as streaming servers do: a tokenizer of the SentencePiece
        kind writes the space of a word only where a word stands before it.
        """
        found: list[Piece] = []
        before = start = 0  # decoded from `before`; `start` begins the next piece
        for index, token in enumerate(ids):
            if token in self.special:
                if start < index:
                    found.append(Piece(self._decode(ids[start:index]), start, index - start))
                text = self.tokenizer.convert_ids_to_tokens(token)
                found.append(Piece(text, index, 1, is_special=True, is_stop=token in self.stops))
                before = start = index + 1
                continue
            known = self._decode(ids[before:start])
            text = self._decode(ids[before : index + 1])[len(known) :]
            is_last = index + 1 == len(ids)
            if (text and not text.endswith(UNFINISHED)) or index + 1 - start == MOST_BYTES or is_last:
                found.append(Piece(text, start, index + 1 - start, is_stop=token in self.stops))
                before, start = start, index + 1
        return found

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def visible(text: str) -> str:
    """`text` on one line with nothing in it that would drive a terminal: data comes from strangers."""
    shown = {"\n": "↵", "\t": "⇥", " ": " "}
    return "".join(shown.get(char) or (char if char.isprintable() else ascii(char)[1:-1]) for char in text)
