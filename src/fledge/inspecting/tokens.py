"""Token ids -> pieces of text that can be read: several tokens of one character stay together."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


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


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[Piece]:
    """The text of `ids` in pieces, in order; each token belongs to exactly one.

    Decodes each token together with the one before it, as streaming servers do: a tokenizer of the SentencePiece kind
    writes the space of a word only where a word stands before it.
    """
    special = set(tokenizer.all_special_ids)
    found: list[Piece] = []
    before = start = 0  # decoded from `before`; `start` begins the next piece
    for index, token in enumerate(ids):
        if token in special:
            if start < index:
                found.append(Piece(_decode(tokenizer, ids[start:index]), start, index - start))
            found.append(Piece(tokenizer.convert_ids_to_tokens(token), index, 1, is_special=True))
            before = start = index + 1
            continue
        known = _decode(tokenizer, ids[before:start])
        text = _decode(tokenizer, ids[before : index + 1])[len(known) :]
        is_last = index + 1 == len(ids)
        if (text and not text.endswith(UNFINISHED)) or index + 1 - start == MOST_BYTES or is_last:
            found.append(Piece(text, start, index + 1 - start))
            before, start = start, index + 1
    return found


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def visible(text: str) -> str:
    """`text` on one line with nothing in it that would drive a terminal: data comes from strangers."""
    shown = {"\n": "↵", "\t": "⇥", " ": " "}
    return "".join(shown.get(char) or (char if char.isprintable() else ascii(char)[1:-1]) for char in text)
