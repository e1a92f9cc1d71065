"""Another tokenizer for a model: the tokens it knows by the same ids, and more."""

import logging

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fledge.data.template_checks import stop_tokens


logger = logging.getLogger(__name__)


def replace_tokenizer(
    model: PreTrainedModel, old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, folder: str
) -> list[int]:
    """Make `model` a model of `new`: rows for its tokens, and its special tokens in config and generation_config.

    A new token's rows, in the embedding and in the head, begin at the mean of all that `old` has, so that it is as
    likely as a token of the average logit, not as likely as chance would have it (Hewitt 2021, Initializing new word
    embeddings for pretrained language models).

    Args:
        folder: of `new`, for messages.

    Returns:
        The ids of the tokens that are new.

    Raises:
        ValueError: `new` lacks a token of `old`, or knows it by another id.
    """
    known, ids = old.get_vocab(), new.get_vocab()
    moved = sorted((place, token) for token, place in known.items() if ids.get(token) != place)
    if moved:
        place, token = moved[0]
        raise ValueError(
            f"tokenizer: {folder}: {len(moved)} tokens of the model's own tokenizer are missing or have another id, "
            f"such as {token!r}, {place} there and {ids.get(token)} here; take one made from it (`base_tokenizer` in "
            "tokenizer.yaml), or leave the key out"
        )
    added = sorted(set(ids.values()) - set(known.values()))
    before = model.config.get_text_config().vocab_size
    if max(ids.values()) >= before:
        model.resize_token_embeddings(max(ids.values()) + 1, mean_resizing=False)
    rows = sorted(known.values())
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):  # the same matrix where tied
            module.weight[added] = module.weight[rows].mean(dim=0)

    stops = stop_tokens(new)
    for config in (model.config, model.generation_config):
        config.pad_token_id, config.bos_token_id, config.eos_token_id = new.pad_token_id, new.bos_token_id, stops[0]
    if len(stops) > 1:
        model.generation_config.eos_token_id = stops
    logger.info(
        "%d tokens are new to the model (%s); its vocabulary goes from %d to %d",
        len(added),
        " ".join(new.convert_ids_to_tokens(added[:8])) or "none",
        before,
        model.config.get_text_config().vocab_size,
    )
    return added
