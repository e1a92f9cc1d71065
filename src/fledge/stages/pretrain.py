"""Train a model from nothing on prepared rows, with the Hugging Face Trainer.

accelerate launch --config_file accelerate_configs/cpu.yaml -m fledge pretrain recipes/tang-poems/pretrain.yaml
"""

from transformers import GenerationConfig, TrainingArguments, set_seed

from fledge.arguments import PretrainArguments
from fledge.data.checks import preflight, require, stop_tokens
from fledge.data.collate import PackedCollator
from fledge.data.load import load_tokenizer
from fledge.data.prepared import load_prepared
from fledge.model.build import build_config, build_model, special_tokens
from fledge.recipe import Recipe
from fledge.training.arguments import library_arguments
from fledge.training.engine import in_bf16
from fledge.training.run import finish, speed_up, start, train
from fledge.training.trainer import Pretrainer
from fledge.training.varlen import VARLEN, choose_attention


def main(recipe: Recipe) -> None:
    """Recipe -> data, tokenizer, model -> Trainer -> a model folder with its tokenizer."""
    keys = recipe.own(PretrainArguments)
    rows, heldout, manifest = load_prepared(keys.prepared)
    length = manifest["max_length"]
    args, torch_compile = library_arguments(recipe, TrainingArguments, keys.tokens_per_step, length, "tokens")
    record = start(recipe, args)

    set_seed(args.seed)
    tokenizer = load_tokenizer(keys.tokenizer, "tokenizer")
    config = build_config(keys.model_config, tokenizer)
    require(preflight(tokenizer, config, manifest=manifest, chat=False))
    model = build_model(config)
    attention = choose_attention(keys.attn_implementation, config, in_bf16(args))
    model.set_attn_implementation(attention)
    stops = stop_tokens(tokenizer)  # a document may end with another token than an answer
    ends = {"eos_token_id": stops if len(stops) > 1 else stops[0]}
    model.generation_config = GenerationConfig(**special_tokens(tokenizer) | ends)

    trainer = Pretrainer(
        model=model,
        args=args,
        train_dataset=rows,
        eval_dataset=heldout.whole_batches(args.eval_batch_size * args.world_size) if heldout else None,
        data_collator=PackedCollator(length, tokenizer.pad_token_id, attention == VARLEN),
        processing_class=tokenizer,
    )
    trainer.apply(keys, manifest)
    trainer.use_fused_head()
    tokens_per_step = keys.tokens_per_step * manifest["train"]["fill"]
    speed_up(model, torch_compile, tokens_per_step * trainer.planned_steps(), args.bf16)
    callback = train(trainer, recipe, record, tokens_per_step, rows.mean_length)
    finish(trainer, record, callback)
