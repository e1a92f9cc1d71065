"""Sample answers in batches."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import BatchEncoding, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from fledge.data.load import load_model, load_tokenizer
from fledge.machine import choose_bf16, keep_freed_memory, on_cpu


KEPT = 0.8
"""Share of running answers below which the finished ones leave the batch; doing it copies the cache."""


@dataclass(frozen=True)
class Answer:
    """What a model wrote after a prompt; `stopped` says that it ended with a stop token and was not cut off."""

    text: str
    stopped: bool


def load(folder: str, key: str = "model_name_or_path") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model folder, on the device the layout names, in float32, with its tokenizer.

    Raises:
        ValueError: what is wrong with the folder that the recipe's `key` names.
    """
    if on_cpu():
        keep_freed_memory()
    tokenizer, model = load_tokenizer(folder, key), load_model(folder, key)
    return model.eval().to("cpu" if on_cpu() else "cuda"), tokenizer


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    temperature: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    label: str,
) -> list[Answer]:
    """One answer for each prompt, a text with its special tokens in it, in the order of the prompts.

    Plain sampling at `temperature` from the whole distribution, in bfloat16 where the machine multiplies in it, as in
    training. In float32 an answer does not depend on its batch; in bfloat16 rounding may change it. Unlike `generate`,
    it lets go of finished answers, and draws one number a row where multinomial draws one for every entry of the
    vocabulary: on a CPU that is most of the time of a small model.
    """
    if model.generation_config.eos_token_id is None:
        raise ValueError(f"{model.name_or_path}: generation_config.json names no eos_token_id: it would never stop")
    stops = torch.tensor(_as_list(model.generation_config.eos_token_id), device=model.device)
    if choose_bf16("auto"):
        model = copy.deepcopy(model).bfloat16()  # a copy: likelihoods are taken from the float32 weights
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # alike lengths together: less padding
    answers: dict[int, Answer] = {}
    generator = torch.Generator(model.device).manual_seed(seed)
    with tqdm(total=len(prompts), desc=label, unit=" answers", disable=None) as bar:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            encoded = tokenizer(
                [prompts[i] for i in indices],
                add_special_tokens=False,
                padding=True,
                padding_side="left",
                return_tensors="pt",
            ).to(model.device)
            written = _continue(model, encoded, stops, temperature, max_new_tokens, generator)
            for index, tokens in zip(indices, written, strict=True):
                stopped = bool(tokens) and tokens[-1] in stops
                text = tokenizer.decode(tokens[:-1] if stopped else tokens, skip_special_tokens=True)
                answers[index] = Answer(text, stopped)
            bar.update(len(indices))
    return [answers[i] for i in range(len(prompts))]


def _continue(
    model: PreTrainedModel,
    encoded: BatchEncoding,
    stops: torch.Tensor,
    temperature: float,
    max_new_tokens: int,
    generator: torch.Generator,
) -> list[list[int]]:
    """The new tokens of each row of a left-padded batch, a stop token last where one came."""
    written: list[list[int]] = [[] for _ in encoded["input_ids"]]
    rows = torch.arange(len(written), device=model.device)  # which row of `written` each row of the batch is
    running = torch.ones_like(rows, dtype=torch.bool)
    tokens, mask = encoded["input_ids"], encoded["attention_mask"]
    cache = DynamicCache(config=model.config)
    for _ in range(max_new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        # As an index, not as a count: on a CPU the head would copy its weights once a row for a strided view.
        last = torch.tensor([tokens.shape[1] - 1], device=model.device)
        logits = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=last,
        ).logits[:, -1]
        cumulative = torch.softmax(logits.float() / temperature, dim=-1).cumsum(-1)
        # rand is in [0, 1), so this is in (0, 1]: no entry of probability 0 is ever drawn.
        draw = 1 - torch.rand((len(rows), 1), generator=generator, device=model.device)
        tokens = torch.searchsorted(cumulative, draw * cumulative[:, -1:])
        for row, token in zip(rows[running].tolist(), tokens[running, 0].tolist(), strict=True):
            written[row].append(token)
        running &= ~torch.isin(tokens[:, 0], stops)
        if not running.any():
            break
        if running.float().mean() < KEPT:
            kept = running.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, tokens, mask, running = rows[kept], tokens[kept], mask[kept], running[kept]
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
    return written


def chat_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> str:
    """The text after which the assistant answers `messages`."""
    return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)


def _as_list(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]
