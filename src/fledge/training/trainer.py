"""What fledge adds to the trainers of transformers and TRL: a decay ratio, a record, and no pickles."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer
from trl.trainer.utils import add_fused_lm_head

from fledge.arguments import TrainingKeys
from fledge.machine import is_main_process
from fledge.results.record import SPIKE

from .checkpoints import commit, is_marked, refuse_full_disk, rotate, staged
from .guard import Guard
from .hub import Courier
from .muon import MuonWithAdamW, hidden_matrices
from .order import EpochOrder
from .preemption import EvaluationLeft, PreemptionCallback
from .spikes import Spikes


class StageTrainer(Trainer):
    """Mixed in before Trainer, SFTTrainer or DPOTrainer."""

    decay_ratio: float | None = None
    muon_learning_rate: float | None = None
    hang_timeout: float = 1800.0
    courier: Courier | None = None
    tokens_per_step = 0.0
    heldout_tokens_per_row: float | None = None
    preemption: PreemptionCallback | None = None
    made: Callable[[], dict[str, Any]] = dict
    """What checkpoints say that they were made of; `train` of fledge.training.run sets it, and `note`."""
    note: Callable[..., None] = staticmethod(lambda *_, **__: None)
    """`Record.note` of the stage."""
    _saving = False
    _rows: torch.Tensor | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.guard = Guard()
        self.spikes = Spikes("log")
        super().__init__(*args, **kwargs)
        self._pushes, self.args.push_to_hub = self.args.push_to_hub, False  # see `Courier`

    def init_hf_repo(self, token: str | None = None) -> None:
        """Nothing: training begins without asking the hub."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.args.train_sampling_strategy != "random":
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochOrder(len(self.train_dataset if train_dataset is None else train_dataset), seed)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """With `muon_learning_rate`, the decoder's matrices go to Muon and the rest to the optimizer of `optim`."""
        if self.muon_learning_rate is None or self.optimizer is not None:
            return super().create_optimizer(model)
        matrices = hidden_matrices(self.model)
        for weight in matrices:
            weight.requires_grad_(False)  # for a moment, so that the Trainer's own groups leave them out
        rest = super().create_optimizer(model)
        for weight in matrices:
            weight.requires_grad_(True)
        self.optimizer = MuonWithAdamW(matrices, rest, self.muon_learning_rate, self.args.weight_decay)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """`decay_ratio` of all steps becomes warmup_stable_decay's num_decay_steps, which knows no ratios."""
        if self.is_deepspeed_enabled:  # ZeRO's optimizer has no defaults, and a schedule to a `min_lr` reads them
            self.optimizer.defaults = {"lr": self.args.learning_rate}
        if self.decay_ratio is not None:
            kwargs = dict(self.args.lr_scheduler_kwargs or {})
            kwargs["num_decay_steps"] = round(self.decay_ratio * num_training_steps)
            self.args.lr_scheduler_kwargs = kwargs
        return super().create_scheduler(num_training_steps, optimizer)

    def apply(self, keys: TrainingKeys, manifest: dict[str, Any] | None = None) -> None:
        """Take over fledge's own keys, and from the manifest what makes eval_loss a mean over tokens."""
        self.decay_ratio = keys.decay_ratio
        self.muon_learning_rate = keys.muon_learning_rate
        self.hang_timeout = keys.hang_timeout
        self.spikes = Spikes(keys.loss_spike)
        self.courier = Courier(self.args, keys.hub_timeout) if self._pushes and is_main_process() else None
        if manifest and self.eval_dataset is not None:
            self.heldout_tokens_per_row = manifest["eval"]["supervised_tokens"] / len(self.eval_dataset)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not model.training and self.heldout_tokens_per_row:
            # The Trainer takes the mean over batches, weighed by their rows: with this denominator that is the mean
            # over all tokens, whatever the layout. It multiplies by the processes what it divides by such a number.
            rows = len(inputs["input_ids"]) * self.args.world_size
            num_items_in_batch = rows * self.heldout_tokens_per_row
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self._rows = inputs.pop("rows", None)  # for the guard, not for the model
        return super()._prepare_inputs(inputs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.guard.take(loss, self._rows)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm, step = super()._get_grad_norm(model, grad_norm), self.state.global_step + 1
        loss, rows = self.guard.check(norm, step)  # before the update; DeepSpeed made it in backward
        mean = self.accelerator.reduce(torch.tensor(loss, device=self.args.device), "mean")
        left_out = self.spikes.met(float(mean), step, rows)
        if left_out:
            self.optimizer.zero_grad()  # to None: no optimizer touches a weight or its own state
        if step in self.spikes.found:
            self.note(SPIKE, step=step, loss=float(mean), left_out=left_out)
        return norm

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return math.ceil(self.args.num_train_epochs * len(self.train_dataset) / per_step)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if state_dict is not None:  # gathered by FSDP or DeepSpeed, which write a tied head a second time
            tied = getattr(self.model, "all_tied_weights_keys", {})
            state_dict = {name: weight for name, weight in state_dict.items() if name not in tied}
        super()._save(output_dir, state_dict)
        # A pickle, and it would hold a hub token in clear text.
        (folder / "training_args.bin").unlink(missing_ok=True)
        if is_peft_model(self.model):  # what the adapter makes of its base, and where that stops
            self.model.config.save_pretrained(folder)
            self.model.generation_config.save_pretrained(folder)

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(staged(Path(self.args.output_dir))) if self._saving else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the Trainer saves, but beside; the last process done, it is committed, and only then older ones go."""
        args, state, folder = self.args, self.state, Path(self.args.output_dir)
        limit = args.save_total_limit
        if args.should_save:
            trained = sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)
            refuse_full_disk(folder, (4 if args.save_only_model else 12) * trained)  # float32, with two moments
        args.save_total_limit, self._saving = None, True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            args.save_total_limit, self._saving = limit, False
        name = f"checkpoint-{state.global_step}"
        best = folder / f"checkpoint-{state.best_global_step}"
        if state.best_global_step and (best.name == name or best.is_dir()):
            state.best_model_checkpoint = str(best)
        self.accelerator.wait_for_everyone()
        if args.should_save:
            state.save_to_json(str(staged(folder) / name / "trainer_state.json"))
            # What the Trainer would begin anew: see `_resume` of fledge.training.run.
            counted = {"num_tokens": getattr(self, "_total_train_tokens", None), "losses": list(self.spikes.losses)}
            left = {"evaluation_left": bool(self.preemption and self.preemption.left)}
            made = {"step": state.global_step, **left, **counted, **self.made()}
            if self.courier and self.courier.every_save:  # before the commit: a kill between them loses no revision
                self.courier.put(staged(folder) / name, state.global_step, state.global_step * self.tokens_per_step)
            commit(folder, name, made, args.save_only_model)
            rotate(folder, limit, state.best_model_checkpoint)
            if self.courier and self.courier.every_save:
                self.courier.go()
        self.accelerator.wait_for_everyone()

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: nn.Module, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        try:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        except EvaluationLeft:
            self.control.should_training_stop = True
            if not is_marked(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"):
                self._save_checkpoint(model, trial)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the Trainer's, but the random numbers go on as if there had been none: it may be left and made up."""
        with torch.random.fork_rng([self.args.device] if self.args.device.type == "cuda" else []):
            return super().evaluate(*args, **kwargs)

    def _evaluate(self, trial: Any, ignore_keys: Any, skip_scheduler: bool = False) -> dict[str, float]:
        metrics = super()._evaluate(trial, ignore_keys, skip_scheduler)
        if skip_scheduler and self.state.global_step:  # one that was left, made up before training goes on
            self._determine_best_metric(metrics, trial)
        return metrics


class Pretrainer(StageTrainer):
    """The Trainer with TRL's fused head, so that pretraining never builds full logits either."""

    def use_fused_head(self) -> None:
        """Give the model the forward that SFTTrainer and DPOTrainer give theirs."""
        add_fused_lm_head(self.model, outputs=("log_probs",))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        fused = {} if getattr(self.model.config, "z_loss_weight", 0.0) else {"fused_lm_head": True}
        return super().compute_loss(model, {**inputs, **fused}, *args, **kwargs)
