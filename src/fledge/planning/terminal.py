"""The plan as lines for a terminal: what it is, what it takes, and where it fits."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .compute import Prices
from .fit import CARDS, USABLE
from .memory import PARTS
from .plan import MEASURED, plan


MARKS = dict(zip(PARTS, "█▓▒◆░▪·", strict=True))
COLOURS = dict(zip(PARTS, ("34", "36", "32", "35", "33", "31", "2"), strict=True))
HEAD, FAINT, BAD = "1", "2", "1;31"


def show(path: Path, overrides: Sequence[str], on: str | None, prices: Prices, card: float, as_json: bool) -> None:
    """Print the plan.

    Raises:
        ValueError: as `plan` does.
    """
    made = plan(path, overrides, on, prices, card)
    if as_json:
        print(json.dumps(made, indent=2, ensure_ascii=False))
        return
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = min(max(shutil.get_terminal_size((120, 40)).columns, 100), 140)
    print("\n".join(lines(made, width, colour)))


def lines(made: dict[str, Any], width: int, colour: bool) -> Iterator[str]:
    """The whole plan, `width` columns wide."""

    def ink(text: str, attributes: str) -> str:
        return f"\x1b[{attributes}m{text}\x1b[0m" if colour and text else text

    for stage in made["stages"]:
        yield ink(f"{stage['recipe']} · {stage['stage']}", HEAD)
        yield from (f"  {ink(f'{name:<12}', FAINT)}{text}" for name, text in _facts(stage))
        yield ""
        yield from _table(stage["layouts"], made["assumed"]["card_gb"], width, ink)
        if len(stage["layouts"]) == 1:
            yield ""
            yield from _parts(stage["layouts"][0], ink)
        for layout in stage["layouts"]:
            if layout["exceeds"]:
                yield ""
                yield ink(f"  {layout['name']} does not fit {made['assumed']['card_gb']:g} GB. Any one of these:", BAD)
                yield from (f"    {line}" for line in layout["advice"])
        yield ""
    yield from _basis(made)


def _facts(stage: dict[str, Any]) -> Iterator[tuple[str, str]]:
    model, parameters, flops, disk = (stage[key] for key in ("model", "parameters", "flops", "checkpoints"))
    yield (
        "model",
        f"{model['type']}, {model['layers']} layers, {model['hidden_size']:,} wide, {model['heads']} heads"
        f" ({model['key_value_heads']} of keys and values), vocabulary {model['vocab_size']:,}"
        f"{', tied' if model['tied'] else ''}",
    )
    parts = f"embedding {parameters['embedding']:,} + body {parameters['body']:,}"
    if parameters["adapters"]:
        parts += f" + LoRA {parameters['adapters']:,}, which alone are trained"
    yield "parameters", f"{parameters['total']:,} = {parts}"
    rows = "pairs of two sides" if stage["stage"] == "dpo" else "rows"
    yield (
        "batch",
        f"{stage['tokens_per_step']:,} tokens a step = {stage['rows_per_step']:,} {rows} of {stage['row_length']:,}",
    )
    if stage["steps"] is None:
        what, maker = ("pairs", "pairs") if stage["stage"] == "dpo" else ("rows", "prepare")
        yield "length", f"not known: its {what} are not counted yet; run the {maker} stage, or state --max_steps N"
    else:
        epochs = f", {stage['epochs']:.2f} epochs" if stage["epochs"] else ""
        yield "length", f"{stage['steps']:,} steps, {stage['total_tokens']:,} tokens{epochs}"
    for source in stage["sources"]:
        yield "", f"{source['name']}: {source['tokens']:,} tokens, {source['epochs']:.2f} epochs"
    yield "compute", _compute(flops["total"], flops["per_token"], flops["formula"])
    yield "  strictly", _compute(flops["strict_total"], flops["strict_per_token"], flops["strict_formula"])
    saved = "none but the finished model" if disk["saved"] == 0 else f"{disk['checkpoint_gb']:,.2f} GB each"
    if disk["saved"] != 0 and disk["kept"] is not None:
        saved += f", {disk['kept']:,} kept" + (f" of {disk['saved']:,}" if disk["saved"] else "")
    space = f", {disk['disk_gb']:,.1f} GB of disk" if disk["disk_gb"] is not None else ""
    yield "checkpoints", f"{saved}; the weights {disk['weights_gb']:,.2f} GB{space}"
    yield (
        "memory",
        f"{'bfloat16' if stage['bf16'] else 'float32'} products, {stage['attention']} attention, activations "
        f"{'computed twice (checkpointing)' if stage['activation_checkpointing'] else 'kept'}",
    )
    yield from (("note", note) for note in stage["notes"])


def _compute(total: float | None, per_token: float, formula: str) -> str:
    return f"{'' if total is None else f'{total:.3e} FLOPs = tokens x '}{per_token:.4g} ({formula})"


def _table(layouts: list[dict[str, Any]], card: float, width: int, ink: Any) -> Iterator[str]:
    name = max(6, *(len(layout["name"]) for layout in layouts))
    bar = max(16, width - name - 62)
    cards = "".join(f"{size:>5}" for size in CARDS)
    scale = f"0 {'─' * (bar - len(f'{card:g}') - 8)} {card:g} GiB"
    yield ink(f"  {'':<{name}}{'':>11}{'':>10}{'':>12}{'':>7}  {'':<{bar}}  largest micro-batch", FAINT)
    yield ink(f"  {'layout':<{name}}{'batch':>11}{'hours':>10}{'US$':>12}{'GiB':>7}  {scale:<{bar}}{cards} GB", FAINT)
    for layout in layouts:
        if layout["refused"]:
            yield f"  {layout['name']:<{name}}   {ink('refused: ' + layout['refused'], FAINT)}"
            continue
        memory = layout["memory_gib_per_gpu"]
        batch = f"{layout['micro_batch']} x {layout['accumulation']}"
        price = "–" if layout["cost_usd"] is None else f"{layout['cost_usd']:,.{2 if layout['cost_usd'] < 10 else 0}f}"
        sizes = "".join(f"{layout['largest_micro_batch'].get(str(size)) or '–':>5}" for size in CARDS)
        peak = ink(f"{memory['peak']:>7.1f}", BAD if layout["exceeds"] else HEAD)
        drawn = _bar(memory, card, bar, ink)
        yield f"  {layout['name']:<{name}}{batch:>11}{_hours(layout['hours']):>10}{price:>12}{peak}  {drawn}{sizes}"
    yield ink("  " + "  ".join(f"{mark} {part.replace('_', ' ')}" for part, mark in MARKS.items()), FAINT)


def _bar(memory: dict[str, Any], card: float, width: int, ink: Any) -> str:
    """The parts of the peak, one after the other; the whole width is the card, and ▶ is what does not fit."""
    drawn, filled, held = "", 0, 0.0
    room = width - (memory["peak"] > card)
    for part, mark in MARKS.items():
        held += memory[part]
        cells = min(room, round(held / card * width)) - filled
        drawn += ink(mark * cells, COLOURS[part])
        filled += cells
    return drawn + (ink("▶", BAD) if room < width else " " * (width - filled))


def _parts(layout: dict[str, Any], ink: Any) -> Iterator[str]:
    memory = layout["memory_gib_per_gpu"]
    yield ink(
        f"  GiB of each {'GPU' if layout['gpus'] else 'process'} at the fullest moment ({memory['moment']})", HEAD
    )
    for part, mark in MARKS.items():
        cells = round(memory[part] / memory["peak"] * 40)
        yield f"  {part.replace('_', ' '):<18}{memory[part]:>8.2f}  {ink(mark * cells, COLOURS[part])}"
    yield f"  {'together':<18}{memory['peak']:>8.2f}"
    if layout["tokens_per_second"] is not None:
        yield f"  {layout['tokens_per_second']:,.0f} tokens/s are what these hours ask for"
    yield (
        f"  {memory['peak_without_checkpointing']:.1f} with activations kept, "
        f"{memory['peak_with_checkpointing']:.1f} with activation_checkpointing; "
        f"full logits would take {memory['full_logits_would_take']:.1f} where the fused head takes "
        f"{memory['logits_and_loss']:.1f}"
    )


def _basis(made: dict[str, Any]) -> Iterator[str]:
    assumed = made["assumed"]
    yield f"{MEASURED[0].upper()}{MEASURED[1:]}. Activations are those without torch_compile, which keeps fewer."
    yield (
        f"Assumed: {assumed['mfu']:.0%} of {assumed['peak_tflops_per_gpu']:g} TFLOP/s a GPU (--mfu, --tflops), "
        f"US$ {assumed['usd_per_gpu_hour']:.2f} a GPU hour (--price); a card is full at {USABLE:.0%} of it (--card)."
    )


def _hours(hours: float | None) -> str:
    if hours is None:
        return "–"
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:,.{1 if hours < 1000 else 0}f} h"
