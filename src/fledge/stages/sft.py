"""Fine-tune on prepared conversations with TRL's SFTTrainer: packed rows, loss on the assistant's tokens only.

accelerate launch --config_file accelerate_configs/cpu.yaml -m fledge sft recipes/tang-poems/sft.yaml
"""

from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from fledge.arguments import SftArguments
from fledge.data.checks import preflight, require
from fledge.data.collate import PackedCollator
from fledge.data.load import load_model, load_tokenizer
from fledge.data.prepared import as_hugging_face, load_prepared
from fledge.recipe import Recipe
from fledge.training.arguments import library_arguments
from fledge.training.engine import in_bf16
from fledge.training.lora import lora_config, show_bias
from fledge.training.run import finish, keep, speed_up, start, train
from fledge.training.trainer import StageTrainer
from fledge.training.varlen import VARLEN, choose_attention
from fledge.training.vocabulary import replace_tokenizer


class SftTrainer(StageTrainer, SFTTrainer):
    """TRL's SFTTrainer with what every fledge stage adds."""


def main(recipe: Recipe) -> None:
    """Recipe -> data, model -> SFTTrainer -> a model folder with its tokenizer."""
    keys = recipe.own(SftArguments)
    rows, heldout, manifest = load_prepared(keys.prepared)
    length = manifest["max_length"]
    args, torch_compile = library_arguments(recipe, SFTConfig, keys.tokens_per_step, length, "tokens")
    record = start(recipe, args)
    check_stated(args, manifest)

    set_seed(args.seed)
    tokenizer = load_tokenizer(keys.model_name_or_path, "model_name_or_path")
    model = load_model(keys.model_name_or_path, "model_name_or_path")
    attention = choose_attention(keys.attn_implementation, model.config, in_bf16(args))
    model.set_attn_implementation(attention)
    new_tokens: list[int] = []
    if keys.tokenizer:
        known, tokenizer = tokenizer, load_tokenizer(keys.tokenizer, "tokenizer")
        require(preflight(tokenizer))
        new_tokens = replace_tokenizer(model, known, tokenizer, keys.tokenizer)
    adapter = lora_config(recipe, keys, model, new_tokens)
    require(preflight(tokenizer, model.config, model.generation_config, manifest))
    if adapter and new_tokens:  # the adapter's folder names the model it stands on, so that has to be on disk
        keep(model, tokenizer, recipe.output_dir / "start")

    # The rows are packed and their labels masked already: TRL has nothing left to prepare, and would look for raw
    # conversations to apply assistant_only_loss to.
    args.assistant_only_loss = False
    args.dataset_kwargs = {"skip_prepare_dataset": True}
    at_once = args.eval_batch_size * args.world_size
    trainer = SftTrainer(
        model=model,
        args=args,
        train_dataset=as_hugging_face(rows),
        eval_dataset=as_hugging_face(heldout.whole_batches(at_once)) if heldout else None,
        processing_class=tokenizer,
        peft_config=adapter,
    )
    show_bias(model)
    # TRL's collator joins the whole batch into one row: right for kernels that take document boundaries, but a dense
    # mask over that row costs the square of the batch.
    trainer.data_collator = PackedCollator(length, tokenizer.pad_token_id, attention == VARLEN)
    trainer.apply(keys, manifest)
    tokens_per_step = keys.tokens_per_step * manifest["train"]["fill"]
    speed_up(model, torch_compile, tokens_per_step * trainer.planned_steps(), args.bf16)
    callback = train(trainer, recipe, record, tokens_per_step, rows.mean_length)
    finish(trainer, record, callback, new_tokens=len(new_tokens))


def check_stated(args: SFTConfig, manifest: dict) -> None:
    """Raise ValueError where sft.yaml states something else than what prepare froze."""
    if not (args.packing and args.assistant_only_loss):
        raise ValueError(
            "sft.yaml: prepared rows are packed and carry the assistant's tokens only as labels; write "
            "`packing: true` and `assistant_only_loss: true`"
        )
    if args.max_length != manifest["max_length"]:
        raise ValueError(
            f"sft.yaml: max_length is {args.max_length}, prepared rows have {manifest['max_length']} tokens; write "
            f"`max_length: {manifest['max_length']}`, or prepare anew"
        )
