"""Every training stage on one axis of time, and the curves that have another: preferences, checkpoints."""

import math
from dataclasses import dataclass
from typing import Any

from fledge.results.blocks import Block, Charts, Table, Text
from fledge.results.charts import BUCKETS, Chart, Points
from fledge.results.faults import resumptions
from fledge.results.gather import Run, Stage
from fledge.results.numbers import fixed, plain


MINUTES = 180.0
"""Longer runs are counted in hours."""


@dataclass(frozen=True)
class Span:
    """When a stage worked, in seconds since the run began; time in which nothing ran is left out."""

    stage: Stage
    begin: float
    end: float
    lag: float
    """Seconds of its process before and after the record: imports, mostly before."""


def spans(run: Run) -> list[Span]:
    """The stages one after another, as long as the chain says that each took, or else as it says itself."""
    taken = {entry["name"]: entry["seconds"] for entry in run.chain.get("stages", [])}
    found, at = [], 0.0
    for stage in run.stages:
        logged = stage.points("loss", "seconds")
        own = stage.summary.get("seconds", logged[-1][0] if logged else 0.0)
        whole = max(taken.get(stage.summary.get("name", stage.name), own), own)
        found.append(Span(stage, at, at + whole, whole - own))
        at += whole
    return found


def curves(run: Run) -> list[Block]:
    """What the training stages logged, over the time since the run began, and DPO's rewards over its steps."""
    if not run.training:
        return []
    placed = spans(run)
    total = max((span.end for span in placed), default=0.0)
    size, unit = (3600.0, "hours") if total > MINUTES * 60 else (60.0, "minutes")

    trained = [span for span in placed if span.stage in run.training]

    def over_time(key: str) -> dict[str, Points]:
        return {
            span.stage.name: [((span.begin + span.lag + seconds) / size, value) for seconds, value in points]
            for span in trained
            if (points := span.stage.points(key, "seconds"))
        }

    bands = tuple((span.stage.name, span.begin / size, span.end / size) for span in trained)
    marks = tuple(
        (f"resumed at step {step}", _when(span, step) / size)
        for span in trained
        for step, _ in resumptions(span.stage)
    )
    own: dict[str, Any] = {"axis": f"{unit} of the run", "bands": bands, "marks": marks, "is_wide": True}

    def one(title: str, unit: str, key: str, include: tuple[float, ...] = (), is_log: bool = False) -> Chart:
        series = over_time(key)
        return Chart(title, unit, series, include, tones=dict.fromkeys(series, 0), is_log=is_log, **own)

    train = {f"{name}, train": points for name, points in over_time("loss").items()}
    heldout = {f"{name}, held out": points for name, points in over_time("eval_loss").items()}
    tones = dict.fromkeys(train, 0) | dict.fromkeys(heldout, 1)
    charts = [
        Chart("loss", "nats", train | heldout, tones=tones, **own),
        one("learning rate", "logarithmic", "learning_rate", is_log=True),
        one("throughput", "tokens per second", "tokens_per_second", (0,)),
        one("MFU", "share of the peak", "mfu", (0,)),
        one("arithmetic", "FLOP per second", "flops_per_second", (0,)),
        one("gradient norm", "before clipping", "grad_norm", (0,)),
    ]
    drawn = [chart for chart in charts if any(chart.finite.values())]
    said = f"The stages follow one another as they worked, in {unit}; time in which nothing ran is left out."
    if any(len(points) > 2 * BUCKETS for chart in drawn for points in chart.series.values()):
        said += f" Of a long line the least and the greatest value of {BUCKETS} stretches are drawn."
    return [Text(said), Charts("", drawn)] if drawn else [Text("Nothing logged yet.")]


def preferences(run: Run) -> list[Block]:
    """How the answers that were preferred gained on the others, step by step."""
    blocks: list[Block] = []
    for stage in run.training:
        accuracy, margin = stage.points("rewards/accuracies"), stage.points("rewards/margins")
        charts = [
            Chart("reward accuracy", "share of pairs", {"train": accuracy}, (0, 1)),
            Chart("reward margin", "chosen − rejected", {"train": margin}, (0,)),
        ]
        charts = [chart for chart in charts if any(chart.finite.values())]
        step0 = stage.results.get("step0_loss")
        told = "" if step0 is None else f" (loss at step 0: {step0:.4f}; ln 2 is {math.log(2):.4f})"
        if charts:
            blocks.append(Charts(f"{stage.name}{told}", charts))
    return blocks


def checkpoints(run: Run) -> list[Block]:
    """How the held-out likelihood moved from checkpoint to checkpoint, if the evaluation looked."""
    found = [its for its in run.evaluation.get("checkpoints", []) if isinstance(its, dict)]
    if not found:
        return []
    series: dict[str, Points] = {}
    for its in found:
        if its.get("tokens") is not None and its.get("bits_per_byte") is not None:
            series.setdefault(str(its.get("model")), []).append((its["tokens"], its["bits_per_byte"]))
    rows = [
        [
            str(its.get("model")),
            *(plain(its.get(key)) for key in ("step", "tokens")),
            *(fixed(its.get(key)) for key in ("bits_per_byte", "loss", "perplexity")),
        ]
        for its in found
    ]
    chart = Chart("bits per byte of checkpoints", "held-out text", series, axis="tokens")
    blocks: list[Block] = [Charts("Checkpoints", [chart])] if any(chart.finite.values()) else []
    return [*blocks, Table(["Checkpoints of", "step", "tokens", "bits per byte", "loss", "perplexity"], rows)]


def _when(span: Span, step: int) -> float:
    """Seconds of the run at which the stage had done so many steps, as far as its lines tell."""
    seconds = [seconds for seconds, done in _steps(span.stage) if done <= step]
    return span.begin + span.lag + (seconds[-1] if seconds else 0.0)


def _steps(stage: Stage) -> list[tuple[float, float]]:
    return [(seconds, step) for step, seconds in stage.points("seconds")]
