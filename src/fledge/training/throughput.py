"""How fast training goes: tokens and FLOPs a second, the share of the peak, the wait for data, the time to the end.

Tokens are those of documents, padding not counted, of all processes together: the tokens of a step times the filled
share of the rows; of pairs, both sides with their prompts. Their seconds are those of the steps, from the wait for
the data to the update, the compiling first step too; saving and evaluation are not among them, nor is what lies
between a process that ended and the one that goes on.

FLOPs are those of the model (Chowdhery et al. 2022, PaLM, appendix B), whatever the kernels do: 6M + 6Ld a token for
each token of its document, with M the weights in matrix products, L layers and d the width of all heads, as
`strict_flops_per_token` of fledge.planning.compute counts them. Attention is causal and ends with the document, and
what activation checkpointing computes again does not count.
"""

import logging
import time
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import (
    PreTrainedConfig,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from fledge.machine import peak_flops
from fledge.planning.compute import frozen_saving, strict_flops_per_token
from fledge.planning.shape import MODEL_TYPES, read_shape
from fledge.results.record import Record, read_metrics

from .guard import Guard


logger = logging.getLogger(__name__)


def model_flops_per_token(config: PreTrainedConfig, length: float, frozen: int, reference: bool) -> float | None:
    """Forward and backward FLOPs a token; None for an architecture whose shape the plan does not know.

    Args:
        length: tokens of the document that the mean token is in.
        frozen: weights that get no gradient, because of LoRA.
        reference: whether every step has a forward pass of DPO's reference; one made before training is no step's.
    """
    if config.model_type not in MODEL_TYPES:
        logger.info("flops_per_second, mfu: not given, the plan knows no model_type %s", config.model_type)
        return None
    whole = strict_flops_per_token(read_shape(config.to_dict(), "config.json"), length)
    return whole - frozen_saving(frozen) + (whole / 3 if reference else 0)


def peak_of_all(accelerator: Accelerator, bf16: bool) -> tuple[float | None, str]:
    """FLOP/s that all processes could reach together, None if unknown, and "measured" or the card's name."""
    accelerator.wait_for_everyone()  # processes of one machine measure at once, so that the sum is the machine's
    peak, source = peak_flops(bf16)
    if peak is None:
        logger.info("mfu: not given, no peak of %s is known in %s", source, "bf16" if bf16 else "float32")
        return None, source
    peak = float(accelerator.reduce(torch.tensor(peak, device=accelerator.device), "sum"))
    logger.info("peak: %.4g TFLOP/s (%s, %d processes)", peak / 1e12, source, accelerator.num_processes)
    return peak, source


class Throughput(TrainerCallback):
    """Writes the Trainer's logs and the throughput to metrics.jsonl.

    Args:
        guard: knows which rows the first process has read, for `rows` of a line.
        tokens_per_step: of an optimizer step over all processes.
        flops_per_token: None if unknown.
        peak: FLOP/s of all processes, None if unknown; `source` says where it is from.
    """

    def __init__(
        self,
        record: Record,
        guard: Guard,
        tokens_per_step: float,
        flops_per_token: float | None = None,
        peak: float | None = None,
        source: str = "",
    ) -> None:
        self.record, self.guard = record, guard
        self.tokens_per_step, self.flops_per_token = tokens_per_step, flops_per_token
        self.peak, self.source = peak, source
        self.steps, self.train_seconds = 0, 0.0  # of the whole run, whichever process took them
        self.wait_seconds = self.save_seconds = 0.0  # of this process
        self.start_seconds: float | None = None
        # steps, train_seconds and wait_seconds at the end of the processes before this one, and at the last line
        self._before = self._logged = (0, 0.0, 0.0)
        self._first: tuple[int, float] | None = None  # this process's first step, and when it ended
        self._last = time.perf_counter()
        self.told = ""

    def begin_at(self, step: int, evaluated: bool = True) -> None:
        """Count on from what metrics.jsonl says of the steps up to the checkpoint's, and forget the rest."""
        self.record.begin_at(step, evaluated)
        lines = [line for line in read_metrics(self.record.folder) if line.get("train_seconds")]
        if lines:
            self.steps, self.train_seconds = lines[-1]["step"], lines[-1]["train_seconds"]
            self._before = self._logged = (self.steps, self.train_seconds, 0.0)

    def results(self) -> dict[str, float | str | None]:
        """For the summary: means over all steps; the wait, saving and the start are those of this process."""
        rates = self._rates((0, 0.0, 0.0))
        here = self.train_seconds - self._before[1]
        return {
            **{name: rates.get(name) for name in ("tokens_per_second", "flops_per_second", "mfu")},
            "peak_flops": self.peak and _rounded(self.peak),
            "peak_source": self.source,
            "train_seconds": round(self.train_seconds, 2),
            "data_wait": _rounded(self.wait_seconds / here) if here else None,
            "save_seconds": round(self.save_seconds, 2),
            "start_seconds": self.start_seconds,
        }

    def seconds_left(self, state: TrainerState) -> float | None:
        """Until the last step, at the pace of this process since its first one, which compiles, saving included."""
        if self._first is None or state.global_step == self._first[0]:
            return None
        done = state.global_step - self._first[0]
        return (state.max_steps - state.global_step) * (time.perf_counter() - self._first[1]) / done

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._last = time.perf_counter()

    on_epoch_begin = on_evaluate = on_train_begin

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.wait_seconds += time.perf_counter() - self._last
        if self.start_seconds is None:
            self.start_seconds = round(time.time() - psutil.Process().create_time(), 2)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        now = time.perf_counter()  # the guard has read the gradient's norm, so that a GPU is at most an update behind
        self.train_seconds += now - self._last
        self.steps += 1
        self._first = self._first or (state.global_step, now)
        self._last = now

    def on_save(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.save_seconds += now - self._last
        self._last = now

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        values = {key: value for key, value in logs.items() if isinstance(value, int | float)}
        if "loss" in values:
            rates = self._rates(self._logged)
            values |= rates
            values["tokens"] = round(state.global_step * self.tokens_per_step)
            values["train_seconds"] = round(self.train_seconds, 2)
            if (left := self.seconds_left(state)) is not None:
                values["seconds_left"] = round(left, 1)
            logs.update(values)  # for the trackers after this one
            if rows := self.guard.rows_digest():
                values["rows"] = rows
            self._logged = (self.steps, self.train_seconds, self.wait_seconds)
            share = f", MFU {rates['mfu']:.1%}" if "mfu" in rates else ""
            self.told = f"{rates.get('tokens_per_second', 0):,.0f} tokens/s{share}"
        self.record.log(step=state.global_step, **values)
        self._last = time.perf_counter()

    def _rates(self, since: tuple[int, float, float]) -> dict[str, float]:
        steps, seconds, waited = since
        if self.train_seconds <= seconds:
            return {}
        taken = self.train_seconds - seconds
        tokens = (self.steps - steps) * self.tokens_per_step / taken
        rates = {"tokens_per_second": round(tokens, 1), "data_wait": _rounded((self.wait_seconds - waited) / taken)}
        if self.flops_per_token is not None:
            rates["flops_per_second"] = _rounded(tokens * self.flops_per_token)
            if self.peak is not None:
                rates["mfu"] = _rounded(tokens * self.flops_per_token / self.peak)
        return rates


class Bar(ProgressCallback):
    """The Trainer's bar, but begun where a resumed run begins, and with what Throughput knows.

    The Trainer's counts the steps of earlier processes into this one's pace.
    """

    def __init__(self, throughput: Throughput) -> None:
        super().__init__()
        self.throughput = throughput

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            shown = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            begun = {"total": state.max_steps, "initial": state.global_step}
            self.training_bar = tqdm(**begun, bar_format=shown, dynamic_ncols=True)
        self.current_step = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.training_bar is not None:
            left = self.throughput.seconds_left(state)
            left = "" if left is None else f", {tqdm.format_interval(left)} left"
            self.training_bar.set_postfix_str(f"{self.throughput.told}{left}", refresh=False)
        super().on_step_end(args, state, control, **kwargs)


def _rounded(value: float) -> float:
    """To five digits."""
    return float(f"{value:.5g}")
