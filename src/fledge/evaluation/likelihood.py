"""How likely a model finds given documents."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fledge.data.sources import Row
from fledge.data.tokenise import IGNORED, Document, Tokeniser


@torch.inference_mode()
def log_likelihoods(
    model: PreTrainedModel, documents: Sequence[Document], pad_token_id: int, label: str, batch_size: int = 64
) -> list[float]:
    """The log-probability of each document's labels, in nats, in float32; one document sees no other."""
    order = sorted(range(len(documents)), key=lambda i: len(documents[i].input_ids))  # alike lengths: less padding
    result = [0.0] * len(documents)
    for start in tqdm(range(0, len(order), batch_size), desc=label, unit=" batches", disable=None):
        indices = order[start : start + batch_size]
        length = max(len(documents[i].input_ids) for i in indices)
        input_ids = torch.full((len(indices), length), pad_token_id)
        labels = torch.full((len(indices), length), IGNORED)
        attention_mask = torch.zeros((len(indices), length), dtype=torch.long)
        for row, index in enumerate(indices):
            document = documents[index]
            used = len(document.input_ids)
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
        totals = torch.zeros(len(indices), device=device).index_add_(0, rows, losses)
        for index, total in zip(indices, totals.tolist(), strict=True):
            result[index] = -total
    return result


def bits(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]) -> float:
    """Bits per character of the text, or of the answers of a conversation; each end counts as one character."""
    documents = as_documents(model, tokenizer, rows)
    turns = [[{"role": "assistant", "content": row["text"]}] if "text" in row else row["messages"] for row in rows]
    characters = sum(len(turn["content"]) + 1 for row in turns for turn in row if turn["role"] == "assistant")
    nats = -sum(log_likelihoods(model, documents, tokenizer.pad_token_id, f"{name}: likelihood"))
    return nats / math.log(2) / characters


def preference_margins(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: list[dict[str, Any]]
) -> list[float]:
    """log p(chosen) - log p(rejected) of each pair; DPO's reward margin is how much that grew since the reference."""
    sides = [
        log_likelihoods(
            model,
            as_documents(model, tokenizer, [{"messages": pair["prompt"] + pair[side]} for pair in pairs]),
            tokenizer.pad_token_id,
            f"{name}: {side}",
        )
        for side in ("chosen", "rejected")
    ]
    return [chosen - rejected for chosen, rejected in zip(*sides, strict=True)]


def as_documents(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]
) -> list[Document]:
    """Tokenised and masked as for training; a row that does not fit the model's context is an error."""
    tokenise = Tokeniser(tokenizer, model.config.max_position_embeddings)
    places = [Row(row, f"row {index}") for index, row in enumerate(rows, 1)]
    return [document for documents in tokenise.documents(places) for document in documents]
