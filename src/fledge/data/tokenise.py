"""Text and conversations -> documents: token ids with the labels that are trained on."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from .faults import Tally
from .sources import Row
from .words import WordTable


IGNORED = -100
"""Label of a token that is context only."""

Overlong = Literal["split", "drop", "truncate", "split-at-a-turn", "fail"]
Policy = Literal["drop", "keep", "fail"]
Turns = list[dict[str, Any]]
Piece = tuple[Turns, list[Turns]]
"""Part of a conversation: the system turn, if there is one, and exchanges, each the turns up to an answer."""


@dataclass
class Document:
    """Token ids and labels of one document, each (length,) int32; the first label is always ignored."""

    input_ids: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, ids: Sequence[int], mask: Sequence[int] | None = None) -> "Document":
        """From ids and the mask that `render` gives; without a mask every token but the first is trained on."""
        input_ids = np.array(ids, dtype=np.int32)
        labels = input_ids.copy() if mask is None else np.where(np.array(mask, dtype=bool), input_ids, IGNORED)
        labels[0] = IGNORED
        return cls(input_ids, labels.astype(np.int32))

    @property
    def supervised(self) -> int:
        """Tokens that are trained on."""
        return int(np.count_nonzero(self.labels != IGNORED))

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, part: slice) -> "Document":
        return Document(self.input_ids[part], self.labels[part])


@dataclass
class Tokeniser:
    """Turns rows into documents, and counts what it met in `tally`.

    A row with `text` becomes <bos> text <eos>, every token but the first a label. A row with `messages` is rendered by
    the tokenizer's chat template; its labels are what stands between the template's generation markers: the
    assistant's tokens and the stop token of each turn.

    Args:
        max_length: no conversation comes out longer, in tokens; nor a text, unless `cuts_text`.
        overlong: what is done with a longer one.
        faulty: whether a row that the template cannot render, or that has nothing to learn, is dropped or refused.
        cuts_text: whether packing will cut text that is longer than a row.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    overlong: Overlong = "fail"
    faulty: Policy = "fail"
    cuts_text: bool = False
    tally: Tally = field(default_factory=Tally)
    overlong_rows: int = 0
    """Rows that were dropped, truncated or split because they were too long."""

    def __post_init__(self) -> None:
        self.tokenizer("")  # brings the backend into the state that every call of the tokenizer works in
        self.table = WordTable.of(self.tokenizer.backend_tokenizer)

    def documents(self, rows: Sequence[Row]) -> list[list[Document]]:
        """The documents of each row of a batch: one, several if it was split, none if it was dropped.

        Raises:
            ValueError: a row that cannot be trained on where the recipe says `fail`.
        """
        rendered = iter(_render_all(self.tokenizer, [row.values["messages"] for row in rows if _is_chat(row)]))
        texts = [row.values["text"] for row in rows if not _is_chat(row)]
        encoded = iter(self._encoded(texts))
        found = [self._chat(next(rendered), row) if _is_chat(row) else self._text(next(encoded), row) for row in rows]
        pieces = iter(self._split([row for row, documents in zip(rows, found, strict=True) if documents is None]))
        return [next(pieces) if documents is None else documents for documents in found]

    def _encoded(self, texts: list[str]) -> Iterable[Sequence[int]]:
        if self.table:
            return self.table.encode(texts)
        backend = self.tokenizer.backend_tokenizer
        return (encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False))

    def _text(self, ids: Sequence[int], row: Row) -> list[Document]:
        document = Document.of(np.concatenate([[self.tokenizer.bos_token_id], ids, [self.tokenizer.eos_token_id]]))
        if len(document) <= self.max_length:
            return [document]
        if self.cuts_text:
            self.tally.add("text cut over rows", row.place)
            return [document]
        self.overlong_rows += 1
        if self.overlong == "drop":
            return self._dropped(row, f"longer than {self.max_length} tokens")
        raise ValueError(
            f"{row.place}: {len(document)} tokens, and max_length is {self.max_length}; raise max_length, write "
            "`packing_strategy: best-fit-split` to cut such text over rows, or `overlong: drop`"
        )

    def _chat(self, rendered: tuple[list[int], list[int]] | Exception, row: Row) -> list[Document] | None:
        """None says that the conversation is to be split."""
        if isinstance(rendered, Exception):
            return self._faulty(row, "the chat template cannot render it", f" ({rendered})")
        document = Document.of(*rendered)
        if not document.supervised:
            return self._faulty(row, "no token to learn from")
        if len(document) <= self.max_length:
            return [document]
        self.overlong_rows += 1
        if self.overlong == "drop":
            return self._dropped(row, f"longer than {self.max_length} tokens")
        if self.overlong == "truncate":
            return self._truncated(document, row)
        if self.overlong == "split-at-a-turn":
            return None
        raise ValueError(
            f"{row.place}: {len(document)} tokens, and max_length is {self.max_length}; raise max_length, or write "
            "`overlong: drop`, `overlong: truncate` or `overlong: split-at-a-turn`"
        )

    def _faulty(self, row: Row, fault: str, detail: str = "") -> list[Document]:
        if self.faulty == "fail":
            raise ValueError(
                f"{row.place}: {fault}{detail}; correct the row, or write `faulty: drop` to leave such rows out"
            )
        return self._dropped(row, fault)

    def _dropped(self, row: Row, reason: str) -> list[Document]:
        self.tally.add(f"dropped: {reason}", row.place)
        return []

    def _truncated(self, document: Document, row: Row) -> list[Document]:
        supervised = document.labels != IGNORED
        ends = np.flatnonzero(supervised & ~np.append(supervised[1:], False)) + 1
        whole = ends[ends <= self.max_length]
        if len(whole):
            self.tally.add("truncated: after the last whole answer that fits", row.place)
            return [document[: whole[-1]]]
        if not supervised[: self.max_length].any():
            return self._dropped(row, f"no answer begins within {self.max_length} tokens")
        self.tally.add("truncated: an answer lost its stop token", row.place)
        return [document[: self.max_length]]

    def _split(self, rows: list[Row]) -> list[list[Document]]:
        """The pieces of each conversation, of as many whole exchanges as fit; all rows at once, for speed."""
        wholes = [_exchanges(row.values["messages"]) for row in rows]
        alone = iter(self._documents([(system, [turns]) for system, exchanges in wholes for turns in exchanges]))
        two = iter(self._documents([(system, exchanges[:2]) for system, exchanges in wholes if exchanges[1:]]))
        found = []
        for row, (system, exchanges) in zip(rows, wholes, strict=True):
            lengths = [len(next(alone)) for _ in exchanges]
            # What every piece begins with, the system turn for instance, counts once.
            shared = sum(lengths[:2]) - len(next(two)) if exchanges[1:] else 0
            for _ in range(sum(length > self.max_length for length in lengths)):
                self.tally.add(f"dropped: one exchange longer than {self.max_length} tokens", row.place)
            found.append([(system, exchanges[run]) for run in _runs(lengths, shared, self.max_length)])
            if found[-1]:
                self.tally.add("split at a turn", row.place)
        pieces = iter(self._fitting([piece for own in found for piece in own]))
        return [list(chain.from_iterable(next(pieces) for _ in own)) for own in found]

    def _fitting(self, pieces: list[Piece]) -> list[list[Document]]:
        """Each piece as a document, or as several where the template made it longer than foreseen."""
        found = [[document] for document in self._documents(pieces)]
        for index, ((system, exchanges), (document,)) in enumerate(zip(pieces, found, strict=True)):
            if len(document) > self.max_length:
                half = len(exchanges) // 2
                halves = self._fitting([(system, exchanges[:half]), (system, exchanges[half:])])
                found[index] = list(chain.from_iterable(halves))
        return found

    def _documents(self, pieces: list[Piece]) -> list[Document]:
        conversations = [[*system, *chain.from_iterable(exchanges)] for system, exchanges in pieces]
        if not conversations:
            return []
        rendered = _rendered(self.tokenizer, conversations)
        return list(map(Document.of, rendered["input_ids"], rendered["assistant_masks"]))


def _runs(lengths: list[int], shared: int, limit: int) -> Iterator[slice]:
    """Neighbours whose lengths, less what all but the first of them share with it, are `limit` at most together."""
    start, total = 0, 0
    for index, length in enumerate(lengths):
        more = length - shared if total else length
        if length <= limit and total + more <= limit:
            total += more
            continue
        if total:
            yield slice(start, index)
        start, total = (index, length) if length <= limit else (index + 1, 0)
    if total:
        yield slice(start, len(lengths))


def _is_chat(row: Row) -> bool:
    return "messages" in row.values


def _exchanges(messages: Turns) -> Piece:
    """The system turn, and the other turns up to each answer; turns after the last answer teach nothing."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    exchanges: list[Turns] = []
    turns: Turns = []
    for message in messages[len(system) :]:
        turns.append(message)
        if message["role"] == "assistant":
            exchanges.append(turns)
            turns = []
    return system, exchanges


def _render_all(
    tokenizer: PreTrainedTokenizerBase, conversations: list[list[dict[str, Any]]]
) -> list[tuple[list[int], list[int]] | Exception]:
    """`render` of each conversation, all at once; in place of one that the template refuses, the error."""
    if not conversations:
        return []
    try:
        rendered = _rendered(tokenizer, conversations)
    except (TemplateError, TypeError) as error:  # a role it does not know, or words that are no text
        half = len(conversations) // 2
        if not half:
            return [error]
        return _render_all(tokenizer, conversations[:half]) + _render_all(tokenizer, conversations[half:])
    return list(zip(rendered["input_ids"], rendered["assistant_masks"], strict=True))


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and 1 for each token inside the template's generation markers, 0 for the others."""
    rendered = _rendered(tokenizer, messages)
    return rendered["input_ids"], rendered["assistant_masks"]


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[Any]) -> Any:
    return tokenizer.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        add_special_tokens=False,
        tokenizer_kwargs={"verbose": False},  # rows longer than the model are counted elsewhere
    )
