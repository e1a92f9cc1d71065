"""Several runs on one page: what they were told differently, what came of it, and whether the difference is one."""

from collections.abc import Iterator
from itertools import combinations
from os.path import commonpath
from typing import Any

from fledge.results.blocks import Block, Charts, Section, Table, Text
from fledge.results.charts import Chart, Points
from fledge.results.data import digests
from fledge.results.evaluated import name_of, score
from fledge.results.faults import faults
from fledge.results.gather import Run
from fledge.results.numbers import ABSENT, duration, plain
from fledge.results.scores import SCORES


SHOWN = 16
"""Digits of a digest on the page; the JSON has them all."""


def names_of(runs: list[Run]) -> list[str]:
    """The name of each run; a number tells apart those of the same name."""
    names = [run.name for run in runs]
    return [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names, 1)]


def comparison(runs: list[Run]) -> list[Section]:
    """The sections of the page, those that have nothing to say left out."""
    names = names_of(runs)
    sections = [
        Section("", [Text(f"{len(runs)} runs side by side: {', '.join(names)}."), *_lacking(runs, names)]),
        Section("Recipes", _recipes(runs, names)),
        Section("Data", _same_or_table(f"SHA-256, {SHOWN} digits", [_short(run) for run in runs], names)),
        Section("Evaluation", _scores(runs, names)),
        Section("Curves", _curves(runs, names)),
        Section("Time and memory", _times(runs, names)),
        Section("What was met", _met(runs, names)),
        Section("Versions", _same_or_table("Versions", [run.versions for run in runs], names)),
    ]
    return [section for section in sections if section.blocks]


def differing(runs: list[Run]) -> dict[str, list[Any]]:
    """`stage: key` -> the value of every run, of the keys that differ among those that have the stage.

    A path below a run's own folder counts by its place in it. Keys inside a key, such as those of model_config, count
    each by itself.
    """
    told = [dict(_told(run)) for run in runs]
    stages = list(dict.fromkeys(stage.name for run in runs for stage in run.stages))
    keys = {key for its in told for key in its}
    found = {}
    for key in sorted(keys, key=lambda key: (stages.index(key.partition(": ")[0]), key)):
        values = [its.get(key) for its in told]
        having = [its.get(key) for run, its in zip(runs, told, strict=True) if _has(run, key)]
        if any(value != having[0] for value in having):
            found[key] = values
    return found


def compared(runs: list[Run]) -> dict[str, Any]:
    """The content of the JSON beside the page."""
    names = names_of(runs)
    return {
        "runs": names,
        "recipe_keys_that_differ": {
            key: dict(zip(names, values, strict=True)) for key, values in differing(runs).items()
        },
        "data": {name: digests(run) for name, run in zip(names, runs, strict=True)},
        "evaluation": {name: run.evaluation for name, run in zip(names, runs, strict=True)},
        "intervals_overlap": {
            f"{model}: {key}": overlap(_intervals(runs, model, key)) for model, key in _measured(runs)
        },
        "seconds": {
            name: {stage.name: stage.summary["seconds"] for stage in run.finished}
            for name, run in zip(names, runs, strict=True)
        },
        "versions": {name: run.versions for name, run in zip(names, runs, strict=True)},
    }


def overlap(intervals: list[list[float] | None]) -> bool | None:
    """Whether every two of the intervals have a value in common; None if one is not known."""
    known = [its for its in intervals if its is not None]
    if len(known) < len(intervals):
        return None
    return all(a[0] <= b[1] and b[0] <= a[1] for a, b in combinations(known, 2))


def _lacking(runs: list[Run], names: list[str]) -> list[Text]:
    everywhere = dict.fromkeys(stage.name for run in runs for stage in run.stages)
    said = []
    for run, name in zip(runs, names, strict=True):
        has = {stage.name for stage in run.stages}
        lacks = [stage for stage in everywhere if stage not in has]
        unfinished = [stage.name for stage in run.stages if not stage.summary]
        said += [f"{name} has no {', '.join(lacks)}."] if lacks else []
        said += [f"{name} has not finished {', '.join(unfinished)}."] if unfinished else []
    return [Text(text, is_warning=True) for text in said]


def _recipes(runs: list[Run], names: list[str]) -> list[Block]:
    rows = [[key, *map(plain, values)] for key, values in differing(runs).items()]
    told = "The keys that differ, as they were resolved; a path below a run's folder counts by its place in it."
    return [Text(told), Table(["", *names], rows)] if rows else [Text("No key of any stage differs.")]


def _told(run: Run) -> Iterator[tuple[str, Any]]:
    """(`stage: key`, value) of everything the stages were told, with RUN for the run's own folder."""
    outputs = [str(stage.told["output_dir"]) for stage in run.stages if "output_dir" in stage.told]
    home = commonpath(outputs) if len(outputs) > 1 else outputs[0].rpartition("/")[0] if outputs else ""
    for stage in run.stages:
        for key, value in _flat(stage.told):
            yield f"{stage.name}: {key}", _at_home(value, home)


def _flat(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The values with their dotted keys, those in lists counted from 1; what is empty is left out, as if not told."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            yield from _flat({f"{key}[{index}]": entry for index, entry in enumerate(value, 1)}, path)
        elif value != []:
            yield f"{path}{key}", value


def _at_home(value: Any, home: str) -> Any:
    if isinstance(value, str) and home and (value == home or value.startswith(f"{home}/")):
        return f"RUN{value[len(home) :]}"
    return [_at_home(inner, home) for inner in value] if isinstance(value, list) else value


def _has(run: Run, key: str) -> bool:
    return key.partition(": ")[0] in {stage.name for stage in run.stages}


def _same_or_table(title: str, values: list[dict[str, str]], names: list[str]) -> list[Block]:
    """What differs; if nothing does, that."""
    keys = dict.fromkeys(key for its in values for key in its)
    rows = [
        [key, *(its.get(key, ABSENT) for its in values)] for key in keys if len({its.get(key) for its in values}) > 1
    ]
    if rows:
        return [Table([f"{title} that differ", *names], rows)]
    return [Text(f"{title}: the same in all of them, {len(keys)} in all.")] if keys else []


def _measured(runs: list[Run]) -> list[tuple[str, str]]:
    """(model, score) of whatever any run measured, in the order of the report."""
    models = dict.fromkeys(model for run in runs for model in run.models)
    found = []
    for model in models:
        own = dict.fromkeys(
            key
            for run in runs
            for key, value in run.models.get(model, {}).items()
            if not isinstance(value, dict | list)
        )
        found += [(model, key) for key in [*(k for k in SCORES if k in own), *(k for k in own if k not in SCORES)]]
    return found


def _intervals(runs: list[Run], model: str, key: str) -> list[list[float] | None]:
    return [run.models.get(model, {}).get("intervals", {}).get(key) for run in runs]


def _scores(runs: list[Run], names: list[str]) -> list[Block]:
    rows = [
        [
            f"{model}: {name_of(key)}",
            *(score(run.models.get(model, {}), key) for run in runs),
            plain(overlap(_intervals(runs, model, key))),
        ]
        for model, key in _measured(runs)
    ]
    said = "Where 95% intervals overlap, the difference may be chance; a dash: not measured, or no interval known."
    return [Text(said), Table(["", *names, "overlap"], rows)] if rows else []


def _curves(runs: list[Run], names: list[str]) -> list[Block]:
    blocks: list[Block] = []
    for stage in dict.fromkeys(stage.name for run in runs for stage in run.training):
        charts = [
            Chart(title, "nats", _lines(runs, names, stage, key, axis), axis=axis)
            for title, key, axis in (
                ("training loss", "loss", "step"),
                ("training loss by tokens", "loss", "tokens"),
                ("held-out loss", "eval_loss", "step"),
            )
        ]
        drawn = [chart for chart in charts if any(chart.finite.values())]
        blocks += [Charts(stage, drawn)] if drawn else []
    return blocks


def _lines(runs: list[Run], names: list[str], stage: str, key: str, axis: str) -> dict[str, Points]:
    """One line a run; a run without the stage keeps its colour for the others."""
    found: dict[str, Points] = {}
    for run, name in zip(runs, names, strict=True):
        found[name] = next((its.points(key, axis) for its in run.training if its.name == stage), [])
    return found


def _times(runs: list[Run], names: list[str]) -> list[Block]:
    rows = []
    for stage in dict.fromkeys(stage.name for run in runs for stage in run.stages):
        own = [next((its.summary for its in run.stages if its.name == stage), {}) for run in runs]
        rows.append([f"{stage}: time", *(duration(its.get("seconds")) for its in own)])
        rates = [its.get("results", {}).get("tokens_per_second") for its in own]
        if any(rates):
            rows.append([f"{stage}: tokens per second", *map(plain, rates)])
    rows.append(["whole run", *(duration(run.chain.get("wall_seconds")) for run in runs)])
    rows.append(["peak memory, GB", *(plain(run.chain.get("peak_memory_gb")) for run in runs)])
    rows.append(["machine", *(plain(run.chain.get("machine")) for run in runs)])
    return [Table(["", *names], rows)]


def _short(run: Run) -> dict[str, str]:
    return {name: value[:SHOWN] for name, value in digests(run).items()}


def _met(runs: list[Run], names: list[str]) -> list[Block]:
    rows = [
        [name, its["stage"], its["what"], plain(its.get("step"))]
        for run, name in zip(runs, names, strict=True)
        for its in faults(run)
    ]
    return [Table(["Run", "stage", "met", "step"], rows)] if rows else []
