"""Align a model with preference pairs, with TRL's DPOTrainer; the model it starts from is the frozen reference.

With `use_peft` the reference is the same model with the adapter switched off: no second copy in memory.

accelerate launch --config_file accelerate_configs/cpu.yaml -m fledge dpo recipes/tang-poems/dpo.yaml
"""

import logging
from pathlib import Path

import datasets
from transformers import PreTrainedTokenizerBase, set_seed
from trl import DPOConfig, DPOTrainer

from fledge.arguments import DpoArguments
from fledge.data.checks import preflight, require
from fledge.data.faults import FAULTS, truncated_fault
from fledge.data.load import is_adapter, load_model, load_tokenizer
from fledge.data.pairs import encode, read_pairs
from fledge.recipe import Recipe
from fledge.results.record import read_metrics
from fledge.training.arguments import library_arguments
from fledge.training.lora import lora_config
from fledge.training.run import finish, speed_up, speed_up_cpu, start, train
from fledge.training.trainer import StageTrainer
from fledge.training.varlen import padded_attention


logger = logging.getLogger(__name__)


class DpoTrainer(StageTrainer, DPOTrainer):
    """TRL's DPOTrainer with what every fledge stage adds."""


def main(recipe: Recipe) -> None:
    """Recipe -> pairs, model -> DPOTrainer -> a model folder with its tokenizer."""
    keys = recipe.own(DpoArguments)
    args, torch_compile = library_arguments(recipe, DPOConfig, keys.pairs_per_step, 1, "pairs")
    record = start(recipe, args)

    set_seed(args.seed)
    tokenizer = load_tokenizer(keys.model_name_or_path, "model_name_or_path")
    # Loaded from disk, never passed on from memory: TRL loads the reference from this same path.
    attention = padded_attention(keys.attn_implementation)
    model = load_model(keys.model_name_or_path, "model_name_or_path", attention)
    require(preflight(tokenizer, model.config, model.generation_config, max_length=args.max_length))
    pairs = read_pairs(Path(keys.pairs) / "train.parquet")
    tokens_per_pair, mean_length = check_lengths(pairs, tokenizer, args.max_length, keys.overlong)

    adapter = lora_config(recipe, keys, model)
    # TRL would load the reference from the path in the configuration, and an adapter's folder holds no whole model.
    alone = is_adapter(keys.model_name_or_path) and not adapter
    reference = load_model(keys.model_name_or_path, "model_name_or_path", attention) if alone else None

    if args.precompute_ref_log_probs:  # making the trainer reads the reference, by the head that training will have
        speed_up_cpu(len(pairs) * tokens_per_pair)
    trainer = DpoTrainer(
        model=model,
        ref_model=reference,
        args=args,
        train_dataset=pairs,
        processing_class=tokenizer,
        peft_config=adapter,
    )
    trainer.apply(keys)
    tokens_per_step = keys.pairs_per_step * tokens_per_pair
    speed_up(model, torch_compile, tokens_per_step * trainer.planned_steps(), args.bf16)
    callback = train(trainer, recipe, record, tokens_per_step, mean_length)
    # ln 2 by theory: before the first update the policy is the reference. A resumed run has no step 0.
    first = [entry["loss"] for entry in read_metrics(recipe.output_dir) if entry.get("step") == 1 and "loss" in entry]
    finish(trainer, record, callback, step0_loss=first[-1] if first else None, pairs=len(pairs))


def check_lengths(
    pairs: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None, overlong: str
) -> tuple[float, float]:
    """Tokens of the mean pair, both sides together, and of the side that the mean token is in; says how many it cuts.

    Raises:
        ValueError: a side longer than max_length under `fail`; under `truncate`, a pair that teaches nothing once cut.
    """
    total, squared, cut = 0, 0, 0
    for index, pair in enumerate(pairs, 1):
        prompt, *answers = encode(tokenizer, pair)
        lengths = {side: len(prompt) + len(ids) for side, ids in zip(("chosen", "rejected"), answers, strict=True)}
        limit = max_length or max(lengths.values())
        if max(lengths.values()) > limit and overlong == "fail":
            side = max(lengths, key=lengths.__getitem__)
            raise ValueError(
                f"pairs: row {index}: {side} has {lengths[side]} tokens with its prompt, and max_length is "
                f"{max_length}; raise max_length in dpo.yaml, or write `overlong: truncate`"
            )
        if fault := truncated_fault(prompt, *answers, limit):
            raise ValueError(f"pairs: row {index}: {fault}; {FAULTS[fault]}")
        total += sum(min(length, limit) for length in lengths.values())
        squared += sum(min(length, limit) ** 2 for length in lengths.values())
        cut += sum(length > limit for length in lengths.values())
    if cut:
        logger.warning(
            "pairs: %d of %d sides are cut at %s tokens, their stop token with them",
            cut,
            2 * len(pairs),
            max_length,
        )
    return total / len(pairs), squared / total
