"""Align a model with preference pairs, with TRL's DPOTrainer; the model it starts from is the frozen reference.

accelerate launch --config_file accelerate_configs/cpu.yaml -m fledge dpo recipes/tang-poems/dpo.yaml
"""

from pathlib import Path

import datasets
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, set_seed
from trl import DPOConfig, DPOTrainer

from fledge.arguments import DpoArguments
from fledge.data.checks import check_tokenizer
from fledge.data.pairs import read_pairs
from fledge.model import register
from fledge.recipe import Recipe
from fledge.results.record import Record
from fledge.training.arguments import library_arguments, values_of
from fledge.training.machine import is_main_process
from fledge.training.run import finish, speed_up, train
from fledge.training.trainer import StageTrainer


class DpoTrainer(StageTrainer, DPOTrainer):
    """TRL's DPOTrainer with what every fledge stage adds."""


def main(recipe: Recipe) -> None:
    """Recipe -> pairs, model -> DPOTrainer -> a model folder with its tokenizer."""
    keys = recipe.own(DpoArguments)
    args, torch_compile = library_arguments(recipe, DPOConfig, keys.pairs_per_step, 1, "pairs")
    record = Record(recipe, values_of(args), is_main_process())

    register()
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(keys.model_name_or_path, trust_remote_code=False)
    check_tokenizer(tokenizer)
    pairs = read_pairs(Path(keys.pairs) / "train.parquet")
    tokens_per_pair = check_lengths(pairs, tokenizer, args.max_length)
    # Loaded from disk, never passed on from memory: TRL loads the reference from this same path.
    model = AutoModelForCausalLM.from_pretrained(
        keys.model_name_or_path, attn_implementation=keys.attn_implementation, trust_remote_code=False
    )

    trainer = DpoTrainer(model=model, args=args, train_dataset=pairs, processing_class=tokenizer)
    trainer.apply(keys)
    tokens_per_step = keys.pairs_per_step * tokens_per_pair
    speed_up(model, torch_compile, tokens_per_step * trainer.planned_steps(), args.bf16)
    callback = train(trainer, recipe, record, tokens_per_step)
    first = next((entry for entry in callback.logged if entry["tokens"] == round(tokens_per_step)), None)
    # ln 2 by theory: before the first update the policy is the reference.
    finish(trainer, record, callback, step0_loss=first["loss"] if first else None, pairs=len(pairs))


def check_lengths(pairs: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> float:
    """Mean tokens of a pair, both sides together.

    Raises:
        ValueError: a side longer than max_length, which TRL would cut without a word.
    """
    total = 0
    for index, pair in enumerate(pairs, 1):
        for side in ("chosen", "rejected"):
            length = len(tokenizer.apply_chat_template(pair["prompt"] + pair[side], return_dict=True)["input_ids"])
            total += length
            if max_length is not None and length > max_length:
                raise ValueError(
                    f"pairs: row {index}: {side} has {length} tokens with its prompt, and max_length is {max_length}; "
                    "raise max_length in dpo.yaml"
                )
    return total / len(pairs)
