"""What tokenizer, chat template and model must agree on, or the model never learns to stop."""

import hashlib
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from .tokenise import render


PROBE = [
    {"role": "user", "content": "A?"},
    {"role": "assistant", "content": "B!"},
    {"role": "user", "content": "C?"},
    {"role": "assistant", "content": "D!"},
]


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless the stop token exists, differs from padding, and is what the template teaches."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if eos is None or pad is None or tokenizer.bos_token_id is None:
        raise ValueError("the tokenizer lacks a bos, eos or pad token; name all three in tokenizer.yaml")
    if eos == pad:
        raise ValueError(
            f"pad_token and eos_token are both {tokenizer.eos_token}: padding is never trained on, so the model would "
            "never learn to stop; use a pad token of its own"
        )
    template = tokenizer.chat_template
    if not template:
        raise ValueError("the tokenizer has no chat template; name one of chat_templates/ in tokenizer.yaml")
    if "generation %}" not in template and "generation -%}" not in template:
        raise ValueError(
            "the chat template has no {% generation %} markers, so no token would be trained on; add them"
        )
    ids, mask = render(tokenizer, PROBE)
    for start, end in spans(mask):
        if ids[end - 1] != eos:
            raise ValueError(
                f"the chat template ends an assistant turn with {tokenizer.decode(ids[end - 1 : end])!r} and not with "
                f"eos_token {tokenizer.eos_token!r} inside its generation markers: the model would never stop"
            )
        words = tokenizer.decode(ids[start : end - 1])
        if words not in ("B!", "D!"):
            raise ValueError(f"the chat template's generation markers hold {words!r} where only the answer belongs")
    if len(spans(mask)) != 2:
        raise ValueError(f"the chat template marks {len(spans(mask))} assistant turns of a conversation that has 2")
    if ids.count(tokenizer.bos_token_id) > 1:
        raise ValueError("the chat template writes the bos token more than once")
    prompt = tokenizer.apply_chat_template(PROBE[:3], add_generation_prompt=True, tokenize=True, return_dict=True)
    if ids[: len(prompt["input_ids"])] != prompt["input_ids"]:
        raise ValueError("the chat template's generation prompt is not how it renders the turns before an answer")


def check_agreement(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, manifest: dict[str, Any]) -> None:
    """Raise ValueError unless tokenizer, model and prepared rows belong together."""
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} entries, the model {config.vocab_size}; train it anew")
    if fingerprint(tokenizer) != manifest["tokenizer"]:
        raise ValueError("prepared: its rows were made with another tokenizer or chat template; run prepare again")
    if manifest["max_length"] > config.max_position_embeddings:
        raise ValueError(
            f"prepared: rows of {manifest['max_length']} tokens, and max_position_embeddings is "
            f"{config.max_position_embeddings}; raise it in model_config, or prepare shorter rows"
        )


def spans(mask: list[int]) -> list[tuple[int, int]]:
    """Start and end of every run of ones."""
    edges = [index for index, (a, b) in enumerate(zip([0, *mask], [*mask, 0], strict=True)) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what decides the ids: vocabulary, merges, special tokens and chat template."""
    text = tokenizer.backend_tokenizer.to_str() + (tokenizer.chat_template or "") + repr(tokenizer.special_tokens_map)
    return hashlib.sha256(text.encode()).hexdigest()
