"""What the evaluation found: scores with their intervals, tasks, and answers side by side."""

from typing import Any

from fledge.results.blocks import Block, Samples, Table, Text, facts
from fledge.results.curves import checkpoints
from fledge.results.gather import SAMPLES_PER_FORM, Run, first_samples
from fledge.results.numbers import ABSENT, plain
from fledge.results.scores import PARTS, SCORES


def results(run: Run) -> list[Block]:
    """Every score of every model; with its 95% interval where the evaluation has one."""
    models = run.models
    if not models:
        return []
    found = {key for scores in models.values() for key, value in scores.items() if not isinstance(value, dict | list)}
    keys = [key for key in SCORES if key in found] + sorted(found.difference(SCORES))
    rows = [[name_of(key), *(score(scores, key) for scores in models.values())] for key in keys]
    blocks: list[Block] = [Table(["", *models], rows)]
    for key, (title, written) in PARTS.items():
        found_parts = {name: scores[key] for name, scores in models.items() if key in scores}
        parts = dict.fromkeys(part for values in found_parts.values() for part in values)
        if parts:
            values = [[part, *(written(own.get(part)) for own in found_parts.values())] for part in parts]
            blocks.append(Table([title, *found_parts], values))
    meanings = {SCORES[key][0]: SCORES[key][1] for key in keys if key in SCORES}
    if any("intervals" in scores for scores in models.values()):
        meanings["[low, high]"] = "the 95% interval of the score above it"
    return [*blocks, *tasks(run), *checkpoints(run), *facts({"What the scores mean": meanings})]


def name_of(key: str) -> str:
    """What a score is called; a key nobody named stands for itself."""
    return SCORES[key][0] if key in SCORES else key


def score(scores: dict[str, Any], key: str) -> str:
    """A model's score and, on a line of its own, its 95% interval."""
    written = SCORES[key][2] if key in SCORES else plain
    interval = scores.get("intervals", {}).get(key)
    text = written(scores.get(key))
    return text if interval is None else f"{text}\n[{written(interval[0])}, {written(interval[1])}]"


def tasks(run: Run) -> list[Block]:
    """Accuracies of the public tasks, with their standard errors; a limit makes a task another one, so it is named."""
    own = {name: scores["tasks"] for name, scores in run.models.items() if scores.get("tasks")}
    rows = []
    for task in dict.fromkeys(task for its in own.values() for task in its):
        its = next(tasks[task] for tasks in own.values() if task in tasks)
        rows.append([task, *(plain(its.get(key)) for key in ("version", "num_fewshot", "limit"))])
        rows[-1] += [_accuracy(tasks.get(task, {})) for tasks in own.values()]
    return [Table(["Task", "version", "few-shot", "limit", *own], rows)] if rows else []


def _accuracy(its: dict[str, Any]) -> str:
    if its.get("acc") is None:
        return ABSENT
    error = its.get("acc_stderr")
    return f"{its['acc']:.1%}" + (f" ± {error:.1%}" if isinstance(error, int | float) else "")


def sample_blocks(run: Run) -> list[Block]:
    """The first answers to each form, of all models to the same prompts."""
    groups = first_samples(run.samples)
    if not groups:
        return []
    models = list(dict.fromkeys(sample["model"] for sample in run.samples))
    count = sum(map(len, groups.values()))
    whose = models[0] if len(models) == 1 else f"{', '.join(models[:-1])} and {models[-1]} side by side"
    said = f"The first {SAMPLES_PER_FORM} prompts of each form, {count} in all, in the order of the file, answered by "
    is_judged = any("perfect" in sample for sample in run.samples)
    marked = "Those that miss the form are marked." if is_judged else "Those that did not stop are marked."
    return [Text(f"{said}{whose}: not chosen and not edited. {marked}"), Samples(groups)]
