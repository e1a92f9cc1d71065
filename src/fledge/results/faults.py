"""What a run met on its way, as far as its stages recorded it."""

from typing import Any

from fledge.results.blocks import Block, Table, Text
from fledge.results.gather import Run, Stage
from fledge.results.numbers import plain
from fledge.results.record import BEGAN, EVENTS, MADE_ROOM, SPIKE


def resumptions(stage: Stage) -> list[tuple[int, int]]:
    """(step it went on from, the last step that had been logged before) of every attempt but the first."""
    began = [event for event in stage.events if event["event"] == BEGAN]
    return [(event["step"], event["reached"]) for index, event in enumerate(began) if index or event["step"]]


def faults(run: Run) -> list[dict[str, Any]]:
    """One mapping a fault: stage, what, and the figures of it. For report.json, and for `met`."""
    found: list[dict[str, Any]] = []
    for stage in run.training:
        for event in stage.events:
            its = {"stage": stage.name, "step": event.get("step"), "date": event["date"]}
            if event["event"] == MADE_ROOM:
                found.append({**its, "what": "asked to make room"})
            elif event["event"] == SPIKE:
                what = "loss spike, update left out" if event["left_out"] else "loss spike, told"
                found.append({**its, "what": what, "loss": event["loss"]})
            elif event["step"] or event is not stage.events[0]:
                redone = max(0, event["reached"] - event["step"])
                found.append({**its, "what": "resumed" if event["step"] else "begun again", "steps_redone": redone})
        for folder in sorted(stage.folder.glob("damaged-checkpoint-*")):
            found.append({"stage": stage.name, "what": "checkpoint set aside", "name": folder.name})
    return found


def met(run: Run) -> list[Block]:
    """A table of the faults, or that there was none; and of whom nothing was recorded."""
    found = faults(run)
    rows = [
        [its["what"], its["stage"], plain(its.get("step")), its.get("date", "").replace("+00:00", " UTC"), _more(its)]
        for its in found
    ]
    unrecorded = [stage.name for stage in run.training if not (stage.folder / EVENTS).exists()]
    recorded = [stage.name for stage in run.training if stage.name not in unrecorded]
    blocks: list[Block] = [Table(["Met", "stage", "step", "date", ""], rows)] if rows else []
    quiet = [name for name in recorded if name not in {its["stage"] for its in found}]
    if quiet:
        nothing = "no resumption, no request to make room, no loss spike, no damaged checkpoint"
        blocks.append(Text(f"{', '.join(quiet)}: {nothing}."))
    if unrecorded:
        blocks.append(Text(f"{', '.join(unrecorded)}: no {EVENTS}, so what was met on the way is not known."))
    if dropped := dropped_rows(run):
        blocks.append(Table(["Dropped", "Count"], [[where, plain(count)] for where, count in dropped]))
    elif run.finished:
        blocks.append(Text("No stage dropped a row."))
    return blocks


def dropped_rows(run: Run) -> list[tuple[str, Any]]:
    """(stage and why, how many) of everything a stage's summary says was dropped."""
    return [row for stage in run.finished for row in _dropped(stage.results, stage.name)]


def _dropped(values: dict[str, Any], path: str) -> list[tuple[str, Any]]:
    rows = []
    for key, value in values.items():
        whole = f"{path}: {key}"
        if isinstance(value, dict):
            rows += _dropped(value, whole)
        elif "dropped" in whole and isinstance(value, int) and value:
            rows.append((whole.replace(": counts", "").replace(": dropped", ""), value))
    return rows


def _more(its: dict[str, Any]) -> str:
    """The figures of one fault in words."""
    if "steps_redone" in its:
        count = its["steps_redone"]
        return f"{plain(count)} logged steps done again" if count else "no logged step done again"
    return f"loss {its['loss']:.4f}" if "loss" in its else its.get("name", "")
