"""How every training stage begins and ends, in four plain calls: start, speed_up, train, finish."""

import atexit
import logging
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
from accelerate.utils import broadcast_object_list, is_peft_model
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from fledge.layouts import launched_engine
from fledge.machine import choose_compile, has_compiler, is_main_process, keep_freed_memory, on_cpu
from fledge.model.build import decoder_layers
from fledge.preempted import Preempted
from fledge.recipe import Recipe, resolved
from fledge.results.record import MADE_ROOM, Record, read_metrics, versions

from . import blocked, cpu_head, documents, order
from .arguments import values_of
from .checkpoints import made_from, newest_checkpoint, newest_marked
from .engine import in_bf16, refuse_other
from .origin import origin, refuse_changed
from .preemption import EvaluationLeft, PreemptionCallback
from .spikes import Spikes
from .throughput import Bar, Throughput, model_flops_per_token, peak_of_all
from .trainer import StageTrainer
from .watchdog import Watchdog


TOKENS_FOR_TILES = 100_000
"""Above this many tokens the few seconds that compiling the loops of head and attention takes are soon earned back."""

KEPT_OF_LAYERS = 0.9
"""Share of what compiled layers keep for their backward pass that may stay; torch computes the cheapest rest again."""

logger = logging.getLogger(__name__)


def start(recipe: Recipe, args: TrainingArguments) -> Record:
    """Begin the stage's record; refuses to go on from checkpoints that were made of something else."""
    checkpoint = newest_marked(recipe.output_dir)
    if checkpoint and is_main_process():
        now = origin(recipe, resolved(recipe, values_of(args)))
        refuse_changed(checkpoint, made_from(checkpoint), now, recipe.allowed)
    return Record(recipe, values_of(args), is_main_process())


def speed_up_cpu(tokens: float) -> None:
    """Make the fused head, and attention within documents, fast on a CPU; elsewhere nothing.

    Args:
        tokens: that they will see, for whether compiling their loops pays.
    """
    if not on_cpu():
        return
    keep_freed_memory()
    cpu_head.install()
    if tokens > TOKENS_FOR_TILES and has_compiler():
        cpu_head.compile_tiles()
        blocked.compile_loop()
        documents.compile_loop()


def speed_up(model: PreTrainedModel, torch_compile: bool | str, tokens: float, bf16: bool) -> None:
    """`speed_up_cpu`, and compile the decoder layers where that pays.

    Layers, not the model: they share one graph, so it compiles once, and their names in checkpoints stay.

    Args:
        tokens: tokens this stage will train on, for the estimate of `torch_compile: auto`.
    """
    speed_up_cpu(tokens)
    if choose_compile(torch_compile, model.num_parameters(), tokens, bf16):
        if on_cpu():  # no matrix product is among it: a tenth less memory for a hundredth more time
            torch._functorch.config.activation_memory_budget = KEPT_OF_LAYERS
        for layer in decoder_layers(model):
            layer.compile()


def keep(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a model and its tokenizer before training, as what an adapter will stand on."""
    if is_main_process():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    model.name_or_path = str(folder)


def train(
    trainer: StageTrainer, recipe: Recipe, record: Record, tokens_per_step: float, mean_length: float
) -> Throughput:
    """Train to the end, from the newest whole checkpoint if there is one; returns the callback with the throughput.

    Args:
        tokens_per_step: of an optimizer step over all processes, padding not counted.
        mean_length: tokens of the document that the mean token is in.
    """
    refuse_other(trainer)
    if on_cpu():
        atexit.register(_leave_group)
    if trainer.is_deepspeed_enabled and trainer.spikes.policy == "skip":
        raise ValueError("loss_spike: skip: ZeRO updates in its backward pass, so nothing can be left out; write stop")
    trainer.tokens_per_step = tokens_per_step
    trained, every = (parameters(trainer.model, only_trainable=only) for only in (True, False))
    if is_peft_model(trainer.model):
        logger.info("LoRA: %s parameters are trained, %s stay as they are", f"{trained:,}", f"{every - trained:,}")
    reference = not getattr(trainer.args, "precompute_ref_log_probs", True)  # a key of DPO's alone
    flops = model_flops_per_token(trainer.model.config, mean_length, every - trained, reference)
    peak = peak_of_all(trainer.accelerator, in_bf16(trainer.args))
    callback = Throughput(record, trainer.guard, tokens_per_step, flops, *peak)
    trainer.callback_handler.callbacks.insert(0, callback)  # first, so that trackers get what it adds
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(Bar(callback))
    trainer.preemption = stop = PreemptionCallback()
    trainer.add_callback(stop)
    order.install()
    trainer.note = record.note
    trainer.made = cache(lambda: {**origin(recipe, record.resolved), "versions": versions()})
    # Making a trainer may have drawn random numbers or not: TRL keeps the reference's log-probabilities in a cache.
    set_seed(trainer.args.seed)
    checkpoint = _newest_for_all(recipe.output_dir, trainer.args.world_size)
    with Watchdog(trainer.hang_timeout) as watchdog:
        trainer.add_callback(watchdog)
        if checkpoint is None:
            callback.begin_at(0)
            trainer.train()
        else:
            with suppress(EvaluationLeft):  # one that is made up, and left again
                _resume(trainer, callback, checkpoint)
    if stop.agreed and (stop.left or trainer.state.global_step < trainer.planned_steps()):
        at = f"step {trainer.state.global_step} of {trainer.planned_steps()}"
        record.note(MADE_ROOM, step=trainer.state.global_step)
        raise Preempted(f"asked to make room: stopped after {at} with a checkpoint; the same command goes on from it")
    return callback


def _leave_group() -> None:
    """Gloo's threads, left to the end of Python, now and then abort a process that has done all its work."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _newest_for_all(output_dir: Path, processes: int) -> Path | None:
    """The checkpoint to resume from: one process reads and verifies it, and tells the others."""
    found = [newest_checkpoint(output_dir) if is_main_process() else None]
    return (broadcast_object_list(found) if processes > 1 else found)[0]


def _resume(trainer: StageTrainer, callback: Throughput, checkpoint: Path) -> None:
    logger.warning("resuming from %s", checkpoint)
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    made = made_from(checkpoint)
    left = made.get("evaluation_left", False)
    callback.begin_at(state.global_step, evaluated=not left)
    trainer._total_train_tokens = made.get("num_tokens") or 0  # TRL's count, in num_tokens of a line
    trainer.spikes = Spikes(trainer.spikes.policy, made.get("losses", ()))
    if state.global_step >= trainer.planned_steps():
        # All steps are done and only the end is missing; the Trainer would take one step more.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.is_deepspeed_enabled = trainer.is_fsdp_enabled = False  # nothing is wrapped: it is saved as it is
        trainer.state = state
        if left:
            trainer._determine_best_metric(trainer.evaluate(), None)
        if trainer.args.load_best_model_at_end and state.best_model_checkpoint:
            trainer._load_from_checkpoint(state.best_model_checkpoint)
    else:
        trainer.args.eval_on_start = left
        trainer.train(resume_from_checkpoint=str(checkpoint))


def finish(trainer: StageTrainer, record: Record, callback: Throughput, **results: Any) -> None:
    """Save model and tokenizer into output_dir, write the summary, and see that all has reached the hub.

    Raises:
        NotPushed: something has not.
    """
    trainer.model.config.use_cache = True  # the Trainer turns it off for training, and would save that
    trainer.save_model()
    if is_main_process():
        losses = [line["loss"] for line in read_metrics(record.folder) if "loss" in line]
        record.finish(
            parameters=parameters(trainer.model),
            trained_parameters=parameters(trainer.model, only_trainable=True),
            steps=trainer.state.global_step,
            tokens=round(trainer.state.global_step * callback.tokens_per_step),
            **callback.results(),
            final_loss=losses[-1] if losses else None,
            processes=trainer.args.world_size,
            engine=launched_engine(),
            **gpu_memory(),
            **results,
        )
    if trainer.courier:
        trainer.courier.put(record.folder)
        trainer.courier.finish()


def gpu_memory() -> dict[str, float]:
    """The most that tensors took of this process's GPU, and the most the allocator held, in GiB; empty on a CPU."""
    if on_cpu():
        return {}
    taken, held = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"peak_gpu_gib": round(taken / 2**30, 3), "reserved_gpu_gib": round(held / 2**30, 3)}


def parameters(model: PreTrainedModel, only_trainable: bool = False) -> int:
    """How many a model has, also where ZeRO-3 keeps the most of them elsewhere."""
    found = (weight for weight in model.parameters() if weight.requires_grad or not only_trainable)
    return sum(getattr(weight, "ds_numel", weight.numel()) for weight in found)
