"""The preflight: tokenizer, chat template, model and prepared rows must agree, or the model never learns to stop.

Every training stage runs it before its first step. Which checks run follows from what it is given:

- the tokenizer's own: always;
- the chat template's: if the tokenizer has one; lacking one is a fault unless `chat=False`, for stages that need no
  template: pretraining on text, preparing text, exporting;
- against a model: with `config` and `generation_config`;
- against prepared rows: with `manifest`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from .template_checks import Check, check_template, spans, stop_tokens


if TYPE_CHECKING:  # these two bring torch along
    from transformers import GenerationConfig, PreTrainedConfig


__all__ = [
    "Check",
    "check_agreement",
    "check_tokenizer",
    "fingerprint",
    "preflight",
    "require",
    "spans",
    "stop_tokens",
]

TEXT = 'Who is it? "The quick brown fox, who jumps over a lazy dog."\n\nYes:  it is; isn\'t it!\n'
"""Comes back from every tokenizer that loses nothing: capitals, punctuation, newlines, two spaces in a row."""


def preflight(
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig | None = None,
    generation_config: GenerationConfig | None = None,
    manifest: dict[str, Any] | None = None,
    *,
    max_length: int | None = None,
    chat: bool = True,
) -> list[Check]:
    """Look at everything that was given and say what was found; raises nothing, see `require`.

    Args:
        config: of the model that is to be trained, as is `generation_config`.
        manifest: of the prepared rows it is to be trained on.
        max_length: tokens of the longest sequence, where no manifest says so.
        chat: whether this needs a chat template.
    """
    place = tokenizer.name_or_path or "tokenizer"
    checks = [_named(tokenizer, place)]
    if checks[0].problem:
        return checks
    checks += [_padding(tokenizer, place), _single(tokenizer, place), _round_trip(tokenizer, place)]
    checks.append(_post_processor(tokenizer, place))
    stops = [tokenizer.eos_token_id]
    if tokenizer.chat_template or chat:
        found = check_template(tokenizer, place)
        checks += found
        if not any(check.problem for check in found):
            stops = stop_tokens(tokenizer)
    if config is not None:
        checks.append(_embedding(tokenizer, config))
    if generation_config is not None:
        checks.append(_generation(tokenizer, config, generation_config, stops))
    if manifest is not None:
        checks.append(_prepared(tokenizer, manifest))
        max_length = manifest["max_length"]
    if config is not None and max_length is not None:
        checks.append(_length(config, max_length, "prepared" if manifest is not None else "max_length"))
    return checks


def require(checks: Sequence[Check]) -> None:
    """Raise one ValueError with every problem and its fix, if there is any."""
    problems = [f"{check.problem}; {check.fix}" for check in checks if check.problem]
    if len(problems) == 1:
        raise ValueError(problems[0])
    if problems:
        raise ValueError("\n  ".join([f"{len(problems)} problems before the first step:", *problems]))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, *, chat: bool = True) -> None:
    """Raise ValueError unless the stop token exists, differs from padding, and is what the template teaches."""
    require(preflight(tokenizer, chat=chat))


def check_agreement(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, manifest: dict[str, Any]) -> None:
    """Raise ValueError unless tokenizer, model and prepared rows belong together."""
    require(
        [
            _embedding(tokenizer, config),
            _prepared(tokenizer, manifest),
            _length(config, manifest["max_length"], "prepared"),
        ]
    )


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what decides the ids: vocabulary, merges, special tokens and chat template."""
    text = tokenizer.backend_tokenizer.to_str() + (tokenizer.chat_template or "") + repr(tokenizer.special_tokens_map)
    return hashlib.sha256(text.encode()).hexdigest()


def _named(tokenizer: PreTrainedTokenizerBase, place: str) -> Check:
    tokens = {name: getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "pad")}
    return Check.of(
        "bos, eos and pad are named",
        ", ".join(f"{name} {token}" for name, token in tokens.items()),
        None in tokens.values(),
        f"{place}: the tokenizer lacks a bos, eos or pad token",
        "name all three in tokenizer.yaml, or in tokenizer_config.json",
    )


def _padding(tokenizer: PreTrainedTokenizerBase, place: str) -> Check:
    return Check.of(
        "pad differs from eos",
        f"pad {tokenizer.pad_token_id}, eos {tokenizer.eos_token_id}",
        tokenizer.pad_token_id == tokenizer.eos_token_id,
        f"{place}: pad_token and eos_token are both {tokenizer.eos_token}: padding is never trained on, so the model "
        "would never learn to stop",
        "use a pad token of its own",
    )


def _single(tokenizer: PreTrainedTokenizerBase, place: str) -> Check:
    """Each special token is one token, at the beginning and in the midst of text."""

    def survives(token: str) -> bool:
        id, texts = tokenizer.convert_tokens_to_ids(token), (token, f"A{token}b")
        return all(tokenizer(text, add_special_tokens=False)["input_ids"].count(id) == 1 for text in texts)

    broken = [token for token in tokenizer.all_special_tokens if not survives(token)]
    return Check.of(
        "special tokens are single tokens",
        " ".join(tokenizer.all_special_tokens),
        bool(broken),
        f"{place}: special tokens that text does not turn into one token: {' '.join(broken)}",
        "list them as special added tokens in tokenizer.json (special_tokens of tokenizer.yaml does it)",
    )


def _round_trip(tokenizer: PreTrainedTokenizerBase, place: str) -> Check:
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return Check.of(
        "text comes back",
        f"{len(TEXT)} characters, {len(ids)} tokens",
        back != TEXT,
        f"{place}: the tokenizer loses text: {TEXT!r} comes back as {back!r}",
        "take a tokenizer without lossy normalisation and with every byte in its vocabulary",
    )


def _post_processor(tokenizer: PreTrainedTokenizerBase, place: str) -> Check:
    """A prompt that ends with eos has ended before the answer; bos is looked at with the template."""
    return Check.of(
        "nothing is appended to text",
        repr(tokenizer.convert_ids_to_tokens(tokenizer("A")["input_ids"])),
        tokenizer("A")["input_ids"][-1] == tokenizer.eos_token_id,
        f"{place}: the tokenizer's post-processor appends {tokenizer.eos_token} to every text, prompts too",
        "set `add_eos_token: false` in tokenizer_config.json, or `post_processor: null` in tokenizer.json",
    )


def _embedding(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> Check:
    entries = max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)
    vocab_size = config.get_text_config().vocab_size
    trained = bool(config.name_or_path)
    return Check.of(
        "the tokenizer fits the embedding",
        f"{entries} entries, vocab_size {vocab_size}",
        entries > vocab_size,
        f"{config.name_or_path or 'model_config'}: the tokenizer has {entries} entries, the model {vocab_size}",
        "train it anew, or take the tokenizer it was trained with"
        if trained
        else f"write `vocab_size: {entries}` or more, or leave it out",
    )


def _generation(
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig | None,
    generation_config: GenerationConfig,
    stops: list[int],
) -> Check:
    named = generation_config.eos_token_id
    named = [] if named is None else named if isinstance(named, list) else [named]
    lacking = [token for token in stops if token not in named]
    place = f"{config.name_or_path}/" if config is not None and config.name_or_path else ""
    wanted = stops[0] if len(stops) == 1 else stops
    token = tokenizer.convert_ids_to_tokens(lacking[-1]) if lacking else tokenizer.pad_token
    return Check.of(
        "generation_config stops where the template does",
        f"eos_token_id {generation_config.eos_token_id}, taught {stops}",
        bool(lacking) or tokenizer.pad_token_id in named,
        f"{place}generation_config.json: eos_token_id is {generation_config.eos_token_id} and "
        + (f"lacks {token} ({lacking[-1]}), which ends an answer" if lacking else f"holds the pad token {token}"),
        f"write `eos_token_id: {wanted}`",
    )


def _prepared(tokenizer: PreTrainedTokenizerBase, manifest: dict[str, Any]) -> Check:
    now = fingerprint(tokenizer)
    return Check.of(
        "rows were prepared with this tokenizer",
        now[:12],
        now != manifest["tokenizer"],
        "prepared: its rows were made with another tokenizer or chat template",
        "run prepare again",
    )


def _length(config: PreTrainedConfig, max_length: int, key: str) -> Check:
    # Not every architecture has a limit, or calls it by this name.
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    name = config.get_text_config().attribute_map.get("max_position_embeddings", "max_position_embeddings")
    return Check.of(
        "rows fit the model",
        f"{max_length} tokens, {name} {limit}",
        limit is not None and max_length > limit,
        f"{key}: rows of {max_length} tokens, and {name} is {limit}",
        "raise it in model_config, or prepare shorter rows"
        if key == "prepared"
        else f"write at most `{key}: {limit}`",
    )
