"""Sample answers in batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from fledge.machine import choose_bf16, on_cpu
from fledge.model import register


@dataclass(frozen=True)
class Answer:
    """What a model wrote after a prompt; `stopped` says that it ended with a stop token and was not cut off."""

    text: str
    stopped: bool


def load(folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model folder, on the device the layout names, in float32, with its tokenizer."""
    register()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
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

    Plain sampling at `temperature` from the whole distribution, in bfloat16 autocast where the machine has it.
    """
    stops = set(_as_list(model.generation_config.eos_token_id))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # alike lengths together: less padding
    answers: dict[int, Answer] = {}
    bf16 = choose_bf16("auto")
    torch.manual_seed(seed)
    with tqdm(total=len(prompts), desc=label, unit=" answers", disable=None) as bar:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = tokenizer(
                [prompts[i] for i in indices],
                add_special_tokens=False,
                padding=True,
                padding_side="left",
                return_tensors="pt",
            ).to(model.device)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                generated = model.generate(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    do_sample=True,
                    temperature=temperature,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=max_new_tokens,
                )
            for index, tokens in zip(indices, generated[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                end = next((place for place, token in enumerate(tokens) if token in stops), None)
                text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
                answers[index] = Answer(text, end is not None)
            bar.update(len(indices))
    return [answers[i] for i in range(len(prompts))]


def chat_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> str:
    """The text after which the assistant answers `messages`."""
    return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)


def _as_list(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]
