"""How likely a model finds given documents and answers."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fledge.data.sources import Row
from fledge.data.tokenise import IGNORED, Document, Tokeniser

from .intervals import Ratio


BATCH_TOKENS = 8192
"""Positions of one forward pass, padding included; their logits over the vocabulary are most of the memory."""


@torch.inference_mode()
def log_likelihoods(
    model: PreTrainedModel,
    documents: Sequence[Document],
    pad_token_id: int,
    label: str,
    batch_tokens: int = BATCH_TOKENS,
) -> list[float]:
    """The log-probability of each document's labels, in nats, in float32; one document sees no other.

    What is longer than the model's context is read in windows that overlap by one token: every label counts once, with
    what stands before it in its window.
    """
    pieces = [
        (index, window)
        for index, document in enumerate(documents)
        for window in windows(document, model.config.max_position_embeddings)
    ]
    pieces.sort(key=lambda piece: -len(piece[1]))  # alike lengths together: less padding
    result = [0.0] * len(documents)
    start = 0
    with tqdm(total=len(pieces), desc=label, unit=" windows", disable=None) as bar:
        while start < len(pieces):
            size = max(1, batch_tokens // len(pieces[start][1]))  # the first is the longest
            batch = pieces[start : start + size]
            found = _batch([window for _, window in batch], model, pad_token_id)
            for (index, _), log_likelihood in zip(batch, found, strict=True):
                result[index] += log_likelihood
            start += len(batch)
            bar.update(len(batch))
    return result


def _batch(documents: Sequence[Document], model: PreTrainedModel, pad_token_id: int) -> list[float]:
    shape = (len(documents), max(map(len, documents)))
    input_ids = torch.full(shape, pad_token_id)
    labels = torch.full(shape, IGNORED)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    for row, document in enumerate(documents):
        used = len(document)
        input_ids[row, :used] = torch.from_numpy(document.input_ids)
        labels[row, :used] = torch.from_numpy(document.labels)
        attention_mask[row, :used] = 1
    device = model.device
    hidden = model.base_model(
        input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), use_cache=False
    ).last_hidden_state
    labels = labels[:, 1:].to(device)
    rows, columns = (labels != IGNORED).nonzero(as_tuple=True)  # only where there is a label: logits are large
    logits = model.get_output_embeddings()(hidden[rows, columns])
    losses = cross_entropy(logits.float(), labels[rows, columns], reduction="none")
    totals = torch.zeros(len(documents), device=device).index_add_(0, rows, losses)
    return (-totals).tolist()


def windows(document: Document, length: int) -> list[Document]:
    """Pieces of at most `length` tokens; each begins with the token the one before ends with, which is no label."""
    starts = range(0, max(len(document) - 1, 1), length - 1)
    pieces = [Document(document.input_ids[i : i + length], document.labels[i : i + length].copy()) for i in starts]
    for piece in pieces:
        piece.labels[0] = IGNORED
    return pieces


class Measured(NamedTuple):
    """What a row's text, or the answers of its conversation, takes; each end counts as one character and one byte."""

    bits: float
    characters: int
    utf8_bytes: int
    tokens: int = 0
    """Labels, the stop tokens among them; 0 of what has no tokens."""

    @classmethod
    def of(cls, bits: float, row: dict[str, Any], tokens: int = 0) -> "Measured":
        """With the characters and bytes of a row."""
        texts = _measured_texts(row)
        return cls(bits, sum(len(text) + 1 for text in texts), sum(utf8_bytes(text) + 1 for text in texts), tokens)


def measure(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]
) -> list[Measured]:
    """Bits that each row's text takes, its end included, or the answers of each row's conversation."""
    documents = as_documents(tokenizer, rows)
    found = log_likelihoods(model, documents, tokenizer.pad_token_id, f"{name}: likelihood")
    return [
        Measured.of(-nats / math.log(2), row, document.supervised)
        for nats, row, document in zip(found, rows, documents, strict=True)
    ]


def bits_per(unit: Literal["characters", "utf8_bytes"], found: Sequence[Measured]) -> Ratio:
    """Bits by what they measure, row by row."""
    return Ratio([each.bits for each in found], [getattr(each, unit) for each in found])


def text_measures(sources: dict[str, list[Measured]]) -> dict[str, Any]:
    """Of all sources together bits per character and per byte, and where there are tokens the loss and perplexity.

    The loss is in nats a token; like the perplexity, its exponential, it can be compared with one tokenizer only.
    Where there are several sources, bits per byte of each.
    """
    found = [each for part in sources.values() for each in part]
    nats, tokens = [each.bits * math.log(2) for each in found], [each.tokens for each in found]
    return {
        "bits_per_char": bits_per("characters", found),
        "bits_per_byte": bits_per("utf8_bytes", found),
        **({"loss": Ratio(nats, tokens), "perplexity": Ratio(nats, tokens, math.exp)} if any(tokens) else {}),
        **(
            {"bits_per_byte_by_source": {name: bits_per("utf8_bytes", part).value for name, part in sources.items()}}
            if len(sources) > 1
            else {}
        ),
    }


def utf8_bytes(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text.encode())


def _measured_texts(row: dict[str, Any]) -> list[str]:
    if "text" in row:
        return [row["text"]]
    return [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]


def preference_margins(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: list[dict[str, Any]]
) -> list[float]:
    """log p(chosen) - log p(rejected) of each pair; DPO's reward margin is how much that grew since the reference."""
    sides = [
        log_likelihoods(
            model,
            as_answers(tokenizer, [(pair["prompt"], pair[side]) for pair in pairs]),
            tokenizer.pad_token_id,
            f"{name}: {side}",
        )
        for side in ("chosen", "rejected")
    ]
    return [chosen - rejected for chosen, rejected in zip(*sides, strict=True)]


def picked(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    document_prompt: Callable[[dict[str, Any]], str] | None,
) -> list[int]:
    """The index of the choice that the model finds likeliest per byte, its end included, in each row.

    Normalised by bytes, like acc_bytes of the Language Model Evaluation Harness (Gao et al. 2021; its acc_norm counts
    characters), so that a short choice has no advantage and tokenizers can be compared. `document_prompt` says how the
    question begins as plain text, for a base model; None asks in a chat.
    """
    flat = [(row, choice) for row in rows for choice in row["choices"]]
    if document_prompt is None:
        answers = [(row["prompt"], [{"role": "assistant", "content": choice}]) for row, choice in flat]
        documents = as_answers(tokenizer, answers)
    else:
        documents = [_continued(tokenizer, document_prompt(row), f"{choice}\n") for row, choice in flat]
    found = log_likelihoods(model, documents, tokenizer.pad_token_id, f"{name}: choices")
    scores = iter([nats / (utf8_bytes(choice) + 1) for nats, (_, choice) in zip(found, flat, strict=True)])
    result = []
    for row in rows:
        own = [next(scores) for _ in row["choices"]]
        result.append(own.index(max(own)))
    return result


def _continued(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> Document:
    """A document's beginning with what follows it as labels."""
    before, after = (
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in (prompt, answer)
    )
    before = [tokenizer.bos_token_id, *before]
    return Document.of(before + after, [0] * len(before) + [1] * len(after))


def as_answers(
    tokenizer: PreTrainedTokenizerBase, dialogues: list[tuple[list[dict[str, str]], list[dict[str, str]]]]
) -> list[Document]:
    """Prompts with their last answers; the answers within a prompt are no labels."""
    documents = as_documents(tokenizer, [{"messages": prompt + answer} for prompt, answer in dialogues])
    for document in documents:
        supervised = np.flatnonzero(document.labels != IGNORED)
        gaps = np.flatnonzero(np.diff(supervised) > 1)
        if len(gaps):
            document.labels[: supervised[gaps[-1] + 1]] = IGNORED
    return documents


def as_documents(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]) -> list[Document]:
    """Tokenised and masked as for training, one document a row, whatever its length."""
    found = Tokeniser(tokenizer, sys.maxsize).documents(
        [Row(row, f"row {index}") for index, row in enumerate(rows, 1)]
    )
    return [document for (document,) in found]
