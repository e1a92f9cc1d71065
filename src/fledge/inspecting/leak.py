"""Whether packed documents see each other: change one, and look at the logits of its neighbours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fledge.data.collate import PackedCollator
from fledge.machine import on_cpu
from fledge.training.varlen import VARLEN, choose_attention


MOST_ROWS = 4
"""Rows that are tried."""

TOLERANCE = 1e-5
"""Largest change of a neighbour's logit that counts as none. On one machine a masked neighbour adds exactly zero."""

ALLOWED = ("sdpa", "eager")
"""Every attention backend a recipe may state that takes a mask; varlen takes boundaries."""


@dataclass(frozen=True)
class Trial:
    """One way to run a row, and the largest change of any logit in it."""

    name: str
    neighbours: float
    """Of the other documents; zero if none sees the changed one."""
    itself: float
    """Of the changed document; far from zero, or nothing was changed."""
    is_control: bool
    """A way known to leak: it shows that the test sees a leak where there is one."""

    @property
    def leaks(self) -> bool:
        """Whether a neighbour noticed."""
        return self.neighbours > TOLERANCE


@dataclass(frozen=True)
class LeakTest:
    """What was tried on which model and how many rows."""

    model: str
    rows: int
    trials: list[Trial]

    def fault(self) -> str | None:
        """What is wrong, if anything: a backend that leaks, or controls that do not."""
        leaking = [trial for trial in self.trials if trial.leaks and not trial.is_control]
        if leaking:
            changes = ", ".join(
                f"{trial.name} (largest change of a logit {trial.neighbours:.3g})" for trial in leaking
            )
            return f"packed documents see each other under {changes}; train with another attn_implementation"
        if not all(trial.leaks for trial in self.trials if trial.is_control):
            return "the leak test is blind: a control that is known to leak shows no change"
        return None


# What training never does, for it leaks; applied to a batch.
CONTROLS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "position ids that never restart": lambda b: b | {"position_ids": torch.arange(b["input_ids"].shape[1])[None]},
    "an attention mask of ones": lambda b: b | {"attention_mask": torch.ones_like(b["input_ids"])},
    "the key-value cache left on": lambda b: b | {"use_cache": True},
}


def leak_test(
    model: PreTrainedModel,
    said: str,
    rows: Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> LeakTest:
    """Run real rows as training does under every allowed backend, and as it must not be done.

    Args:
        model: in float32, as are the logits that are compared.
        said: the model in words.
        rows: packed rows of at least two documents each.

    Raises:
        ValueError: no row has two documents.
    """
    if not rows:
        raise ValueError("--leak-test: no row looked at holds two documents, so there is no neighbour to disturb")
    rows = rows[:MOST_ROWS]
    collate = PackedCollator(max_length, tokenizer.pad_token_id)
    trials = []
    for backend in ALLOWED:
        model.set_attn_implementation(backend)
        trials.append(_trial(model, backend, rows, collate, dict, is_control=False))
    model.set_attn_implementation(ALLOWED[0])
    for name, spoil in CONTROLS.items():
        trials.append(_trial(model, f"{ALLOWED[0]}, {name}", rows, collate, spoil, is_control=True))
    if choose_attention("auto", model.config, bf16=True) == VARLEN:
        device = "cpu" if on_cpu() else "cuda"
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):  # the kernel there knows no float32
            model.to(device).set_attn_implementation(VARLEN)
            collate.boundaries = True
            trials.append(_trial(model, VARLEN, rows, collate, dict, is_control=False))
    return LeakTest(said, len(rows), trials)


@torch.no_grad()
def _trial(
    model: PreTrainedModel,
    name: str,
    rows: Sequence[dict[str, Any]],
    collate: PackedCollator,
    spoil: Callable[[dict[str, Any]], dict[str, Any]],
    is_control: bool,
) -> Trial:
    neighbours = itself = 0.0
    for row in rows:
        lengths = [int(length) for length in row["seq_lengths"]]
        middle = (len(lengths) - 1) // 2  # a later document follows it, the only kind that causal attention lets see
        start = sum(lengths[:middle])
        part, used = slice(start, start + lengths[middle]), sum(lengths)
        batch = {key: value for key, value in collate([row]).items() if key not in ("labels", "rows")}
        batch = {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in batch.items()}
        batch["use_cache"] = False
        changed = batch["input_ids"].clone()
        changed[:, part] = (changed[:, part] + 1) % model.config.vocab_size
        before = model(**spoil(batch)).logits
        difference = (model(**spoil(batch | {"input_ids": changed})).logits - before).abs()[0, :used].amax(-1)  # (T,)
        itself = max(itself, difference[part].max().item())
        difference[part] = 0
        neighbours = max(neighbours, difference.max().item())
    return Trial(name, neighbours, itself, is_control)
