"""A run folder read back: its stages, what the chain and the evaluation left, and the figures of report.json."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fledge.arguments import LIBRARY, STAGES
from fledge.files import read_json
from fledge.results.record import EVENTS, SUMMARY, read_lines, read_metrics


SAMPLES_PER_FORM = 3

# The scores report.json has for each model whether or not they were measured; others pass through. Those of JUDGED
# and of the trigram are left out of a report whose evaluation has them for no model: there was nothing to measure.
JUDGED = {"form_perfect", "form_perfect_by_form", "copied_line_rate"}
SCORES = {
    "trigram": ("bits_per_char",),
    "base": ("bits_per_char", "form_perfect"),
    "sft": ("bits_per_char", "form_perfect", "distinct_2"),
    "dpo": (
        "bits_per_char",
        "form_perfect",
        "form_perfect_by_form",
        "stop_rate",
        "distinct_2",
        "copied_line_rate",
        "preference_accuracy",
    ),
}


@dataclass(frozen=True)
class Stage:
    """One stage's folder. `summary` is empty as long as the stage has not finished."""

    name: str
    kind: str
    folder: Path
    summary: dict[str, Any]

    @property
    def results(self) -> dict[str, Any]:
        """What the stage's summary says it achieved."""
        return self.summary.get("results", {})

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of what the stage ran with."""
        return _json(self.folder / "versions.json")

    @cached_property
    def told(self) -> dict[str, Any]:
        """What the stage was told: its recipe's keys, the defaults of the libraries too."""
        return {key: its["value"] for key, its in _json(self.folder / "recipe.json").items()}

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What a prepare stage says of its rows; empty of other stages."""
        return _json(self.folder / "manifest.json")

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """What befell the stage; empty if nothing was recorded."""
        return list(read_lines(self.folder / EVENTS))

    def points(self, key: str, over: str = "step") -> list[tuple[float, float]]:
        """(step, value) of one of the stage's metrics, in the order of the steps.

        Args:
            over: the metric to give in the place of the step: "seconds", "tokens".
        """
        points: list[tuple[float, float]] = []
        steps: list[float] = []
        for line in self._metrics:
            if line.get(key) is not None and "step" in line and over in line:
                # A resumed run repeats the steps after its checkpoint; what it repeats, it replaces.
                while steps and steps[-1] >= line["step"]:
                    steps.pop()
                    points.pop()
                steps.append(line["step"])
                points.append((line[over], line[key]))
        return points

    @cached_property
    def _metrics(self) -> list[dict[str, Any]]:
        lines, before, last = [], 0.0, 0.0
        for line in read_metrics(self.folder):
            seconds = line.get("seconds", last)
            before += last if seconds < last else 0.0  # records older than events.jsonl
            last = seconds
            lines.append({**line, "seconds": before + seconds})
        return lines


@dataclass(frozen=True)
class Run:
    """Everything a report tells about."""

    name: str
    stages: list[Stage]
    chain: dict[str, Any]
    evaluation: dict[str, Any]
    samples: list[dict[str, Any]]

    @property
    def finished(self) -> list[Stage]:
        """The stages that left a summary."""
        return [stage for stage in self.stages if stage.summary]

    @property
    def training(self) -> list[Stage]:
        """The stages that train, finished or not."""
        return [stage for stage in self.stages if stage.kind in LIBRARY]

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The evaluated models in the order of report.json, with their scores."""
        order = [*(name for name in SCORES if name in self.evaluation), *self.evaluation]
        return {name: self.evaluation[name] for name in order if isinstance(self.evaluation[name], dict)}

    @property
    def missing(self) -> list[str]:
        """Kinds of stages the run has no folder for; of a corpus that holds pairs, none for the pairs is missing."""
        there = {stage.kind for stage in self.stages}
        there |= {"pairs"} if "pairs/train" in self.results("corpus").get("rows", {}) else set()
        return [kind for kind in STAGES if kind not in there]

    @property
    def versions(self) -> dict[str, str]:
        """What the stages ran with; several versions of a library if they did not all run in one environment."""
        found: dict[str, dict[str, None]] = {}
        for stage in self.stages:
            for library, version in stage.versions.items():
                found.setdefault(library, {})[version] = None
        return {library: " and ".join(versions) for library, versions in found.items()}

    def results(self, kind: str) -> dict[str, Any]:
        """Results of the last finished stage of a kind; empty if there is none."""
        return next((stage.results for stage in reversed(self.finished) if stage.kind == kind), {})


def gather(run: Path) -> Run:
    """Read a run folder. Raises ValueError if it holds no stage."""
    if not run.is_dir():
        raise ValueError(f"{run}: no such folder; name the folder that holds a run's stages, such as runs/tang-poems")
    chain = _json(run / "chain.json")
    stages = _in_order([_stage(path) for path in sorted(run.iterdir()) if _is_stage(path)], chain)
    if not stages:
        raise ValueError(
            f"{run}: no stage in it: none of its folders has a recipe.json or a {SUMMARY}; "
            "name the folder above the stages, or run them with fledge run RECIPE_FOLDER"
        )
    # An evaluation still under way has yesterday's figures in its folder.
    evaluated = [stage.folder for stage in stages if stage.kind == "evaluate" and stage.summary]
    evaluation = _json(evaluated[-1] / "evaluation.json") if evaluated else {}
    samples = list(_samples(evaluated[-1] / "samples.jsonl")) if evaluated else []
    return Run(run.resolve().name, stages, chain, evaluation, samples)


def figures(run: Run) -> dict[str, Any]:
    """The content of report.json; None for what was not measured."""
    measured = {key for scores in run.models.values() for key in scores}
    no_judge, no_trigram = (
        bool(measured) and lacks for lacks in (JUDGED.isdisjoint(measured), "trigram" not in run.models)
    )
    scores = {
        name: {key: None for key in keys if not (no_judge and key in JUDGED)} | run.evaluation.get(name, {})
        for name, keys in SCORES.items()
        if not (no_trigram and name == "trigram")
    }
    scores["dpo"]["step0_loss"] = run.results("dpo").get("step0_loss")
    return {
        **run.evaluation,
        "wall_seconds": run.chain.get("wall_seconds"),
        "peak_memory_gb": run.chain.get("peak_memory_gb"),
        **scores,
        "tokens_per_second": {kind: run.results(kind).get("tokens_per_second") for kind in LIBRARY},
    }


def first_samples(samples: Iterable[dict[str, Any]]) -> dict[str, list[list[dict[str, Any]]]]:
    """By form, the first prompts in the order of the file, each with the answers of all models: nobody chose them."""
    prompts: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    asked: Counter[tuple[str, str, str]] = Counter()
    for sample in samples:
        form, prompt = sample["form"], sample.get("prompt", sample["title"])
        asked[sample["model"], form, prompt] += 1  # the same prompt may come several times
        prompts.setdefault((form, prompt, asked[sample["model"], form, prompt]), []).append(sample)
    groups: dict[str, list[list[dict[str, Any]]]] = {}
    for (form, _, _), answers in prompts.items():
        groups.setdefault(form, []).append(answers)
    return {form: group[:SAMPLES_PER_FORM] for form, group in groups.items()}


def _is_stage(path: Path) -> bool:
    # The chain sets an outdated result aside as NAME.previous.
    return path.suffix != ".previous" and ((path / "recipe.json").is_file() or (path / SUMMARY).is_file())


def _stage(folder: Path) -> Stage:
    summary = _json(folder / SUMMARY)
    # Before a stage has a summary, only its folder's name tells its kind: prepare_sft is a prepare.
    return Stage(folder.name, summary.get("stage", folder.name.partition("_")[0]), folder, summary)


def _in_order(stages: list[Stage], chain: dict[str, Any]) -> list[Stage]:
    """As the chain ran them; those the chain does not name after it, kind by kind."""
    names = [entry["name"] for entry in chain.get("stages", [])]
    kinds = list(STAGES)

    def place(stage: Stage) -> tuple[int, int, str]:
        # The chain knows a stage by its recipe, whose name the folder need not have.
        name = stage.summary.get("name", stage.name)
        in_chain = names.index(name) if name in names else len(names)
        return in_chain, kinds.index(stage.kind) if stage.kind in kinds else len(kinds), stage.name

    return sorted(stages, key=place)


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if line:
                yield _parsed(line, f"{path}:{number}")


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is no such file."""
    if not path.exists():
        return {}
    try:
        return read_json(path)
    except json.JSONDecodeError as error:
        raise _damaged(path, error) from None


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise _damaged(where, error) from None


def _damaged(where: Path | str, error: json.JSONDecodeError) -> ValueError:
    return ValueError(f"{where}: not JSON ({error}); run the stage that wrote it again")
