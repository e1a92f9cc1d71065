"""Text and conversations -> documents: token ids with the labels that are trained on."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from .sources import Row


IGNORED = -100
"""Label of a token that is context only."""


@dataclass
class Document:
    """Token ids and labels of one document, equally long; the first label is always ignored."""

    input_ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        """Tokens that are trained on."""
        return sum(label != IGNORED for label in self.labels)


@dataclass
class Tokeniser:
    """Turns rows into documents of at most `max_length` tokens, and counts what it met.

    A row with `text` becomes <bos> text <eos>, every token but the first a label. A row with `messages` is rendered by
    the tokenizer's chat template; its labels are what stands between the template's generation markers: the
    assistant's tokens and the stop token of each turn.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    overlong: Literal["split", "drop", "fail"] = "fail"
    faulty: Literal["drop", "fail"] = "fail"
    counts: Counter[str] = field(default_factory=Counter)

    def documents(self, row: Row) -> list[Document]:
        """The documents of one row: one, several if it had to be split, none if it was dropped.

        Raises:
            ValueError: a row that cannot be trained on where the recipe says `fail`.
        """
        self.counts["rows"] += 1
        if isinstance(row.values.get("messages"), list):
            document, fault = self._conversation(row.values["messages"])
        elif "text" in row.values and isinstance(row.values["text"], str | None):
            document, fault = self._text(row.values["text"] or "")
        else:
            raise ValueError(f"{row.place}: neither `text` nor `messages`; its columns are {', '.join(row.values)}")
        if fault:
            if self.faulty == "fail":
                raise ValueError(
                    f"{row.place}: {fault}; correct the row, or write `faulty: drop` to leave such rows out"
                )
            self.counts[f"dropped: {fault}"] += 1
            return []
        if len(document.input_ids) > self.max_length:
            return self._shortened(document, row)
        return [document]

    def _text(self, text: str) -> tuple[Document | None, str | None]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            return None, "empty text"
        ids = [self.tokenizer.bos_token_id, *ids, self.tokenizer.eos_token_id]
        return Document(ids, [IGNORED, *ids[1:]]), None

    def _conversation(self, messages: list[dict[str, Any]]) -> tuple[Document | None, str | None]:
        if not all(isinstance(message, dict) for message in messages):
            return None, "a message that is no object with role and content"
        answers = [message.get("content") for message in messages if message.get("role") == "assistant"]
        if not answers:
            return None, "no assistant turn"
        if not all(isinstance(answer, str) and answer.strip() for answer in answers):
            return None, "an empty assistant turn"
        try:
            ids, mask = render(self.tokenizer, messages)
        except (TemplateError, TypeError) as error:  # a role it does not know, or words that are no text
            return None, f"the chat template cannot render it ({error})"
        labels = [token if supervised else IGNORED for token, supervised in zip(ids, mask, strict=True)]
        labels[0] = IGNORED
        return Document(ids, labels), None

    def _shortened(self, document: Document, row: Row) -> list[Document]:
        length = len(document.input_ids)
        is_text = not isinstance(row.values.get("messages"), list)
        if self.overlong == "split" and is_text:
            self.counts["split"] += 1
            starts = range(0, length, self.max_length)
            parts = [slice(start, start + self.max_length) for start in starts]
            return [Document(document.input_ids[p], [IGNORED, *document.labels[p][1:]]) for p in parts]
        if self.overlong == "drop":
            self.counts[f"dropped: longer than {self.max_length} tokens"] += 1
            return []
        raise ValueError(
            f"{row.place}: {length} tokens, and max_length is {self.max_length}; raise max_length, or write "
            "`overlong: drop`" + (" or `overlong: split`" if is_text else " (an answer is never cut)")
        )


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and 1 for each token inside the template's generation markers, 0 for the others."""
    rendered = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, add_special_tokens=False
    )
    return rendered["input_ids"], rendered["assistant_masks"]
