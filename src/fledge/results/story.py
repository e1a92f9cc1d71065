"""What the report says, as sections of blocks; page.py and markdown.py only say how it looks."""

import math
from dataclasses import dataclass
from typing import Any

from fledge.results.charts import Chart
from fledge.results.gather import SAMPLES_PER_FORM, Run, Stage, first_samples
from fledge.results.numbers import ABSENT, duration, fixed, percent, plain, short, worded
from fledge.results.scores import PARTS, SCORES


@dataclass(frozen=True)
class Text:
    """A paragraph; `is_warning` if the reader must not miss it."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    value: str
    label: str
    note: str


@dataclass(frozen=True)
class Tiles:
    """Headline figures side by side."""

    tiles: list[Tile]


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first column names the rows."""

    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Bars:
    """(label, length, what to write beside it)."""

    title: str
    rows: list[tuple[str, float, str]]


@dataclass(frozen=True)
class Charts:
    """The curves of one stage."""

    title: str
    charts: list[Chart]


@dataclass(frozen=True)
class Facts:
    """Nested keys and values under a title each, such as what every stage left."""

    groups: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Samples:
    """Answers by form."""

    groups: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Code:
    """Something to type."""

    text: str


Block = Text | Tiles | Table | Bars | Charts | Facts | Samples | Code


@dataclass(frozen=True)
class Section:
    """A title and what stands under it."""

    title: str
    blocks: list[Block]


DATA = ("corpus", "tokenizer", "prepare", "pairs")


def story(run: Run) -> list[Section]:
    """The sections of the report; those the run has nothing for are left out, and the first one says so."""
    sections = [
        Section("", [Text(lead(run)), *_warnings(run), tiles(run)]),
        Section("Results", results(run)),
        Section("Samples", sample_blocks(run)),
        Section("Curves", [_charts(stage) for stage in run.training]),
        Section("Time and throughput", _times(run)),
        Section("Data", _data(run)),
        Section("Other figures", _facts({s.name: s.results for s in run.finished if s.kind not in DATA})),
        Section("Environment", environment(run)),
        Section("Reproduce", [Code(run.chain["command"])] if "command" in run.chain else []),
    ]
    return [section for section in sections if section.blocks]


def best_model(run: Run) -> str | None:
    """The model at the end of the chain: dpo, or the last that was evaluated."""
    return "dpo" if "dpo" in run.models else next(reversed(run.models), None)


def marks_of(sample: dict[str, Any]) -> list[str]:
    """What is wrong with a sample."""
    wrong = {"not perfect": not sample.get("perfect", True), "did not stop": not sample["stopped"]}
    return [mark for mark, applies in wrong.items() if applies]


def lead(run: Run) -> str:
    pretrain, sft = run.results("pretrain"), run.results("sft")
    corpus = run.results("corpus")
    poems = corpus.get("poems", {})
    train = poems.get("kept", poems).get("train")
    documents = sum(parts["train"]["rows"] for parts in corpus.get("documents", {}).values())
    dpo = run.results("dpo")
    pairs = dpo.get("pairs", run.results("pairs").get("pairs")) if dpo else None
    parts = ["A language model"]
    if "parameters" in pretrain:
        parts.append(f" of {worded(pretrain['parameters'])} parameters")
    if "tokens" in pretrain:
        parts.append(f", trained from nothing on {worded(pretrain['tokens'])} tokens")
    if train is not None:
        parts.append(f" from {plain(train)} poems")
    elif documents:
        parts.append(f" from {plain(documents)} documents")
    if "tokens" in sft:
        parts.append(f", then tuned on {worded(sft['tokens'])} tokens of conversations")
    if pairs is not None:
        parts.append(f" and on {plain(pairs)} preference pairs")
    if "machine" in run.chain:
        parts.append(f"; all of it on {run.chain['machine']}")
    return "".join(parts) + "."


def _warnings(run: Run) -> list[Text]:
    unfinished = [stage.name for stage in run.stages if not stage.summary]
    skipped = [entry["name"] for entry in run.chain.get("stages", []) if entry.get("skipped")]
    said = []
    if run.missing:
        said.append(f"Not in this run: {', '.join(run.missing)}.")
    if unfinished:
        said.append(f"Not finished: {', '.join(unfinished)}. What was logged so far is shown.")
    if not run.chain:
        said.append("No chain.json: the time and the memory of the whole are not known.")
    if skipped:
        said.append(f"Done before and not run again: {', '.join(skipped)}.")
    if "evaluate" in {stage.kind for stage in run.finished} and not run.evaluation:
        said.append("The evaluation left no evaluation.json.")
    return [Text(text, is_warning=True) for text in said]


def tiles(run: Run) -> Tiles:
    wall, memory = run.chain.get("wall_seconds"), run.chain.get("peak_memory_gb")
    return Tiles(
        [
            _quality(run),
            _likelihood(run),
            Tile(ABSENT if wall is None else f"{wall / 60:.1f}", "minutes", "all stages together"),
            Tile(ABSENT if memory is None else f"{memory:.2f} GB", "memory", "at the peak"),
        ]
    )


def _quality(run: Run) -> Tile:
    """Perfect poems where there is a judge of them, and multiple choices elsewhere."""
    last = best_model(run)
    scores, sft = run.models.get(last, {}), run.models.get("sft", {})
    if "form_perfect" not in scores and "choice_accuracy" in scores:
        key, label, note = "choice_accuracy", "right choices", f"chance is {percent(scores['choice_chance'])}"
    else:
        key, label, note = "form_perfect", "perfect poems", ""
    if not note and last == "dpo" and key in sft:
        note = f"{percent(sft[key])} after SFT"
    return Tile(percent(scores.get(key)), f"{label} after {(last or 'dpo').upper()}", note)


def _likelihood(run: Run) -> Tile:
    base, trigram = run.models.get("base", {}), run.models.get("trigram", {})
    is_english = "form_perfect" not in base and "bits_per_byte" in base
    key, unit = ("bits_per_byte", "byte") if is_english else ("bits_per_char", "character")
    return Tile(
        fixed(base.get(key)), f"bits per {unit}", f"a trigram needs {fixed(trigram[key])}" if key in trigram else ""
    )


def results(run: Run) -> list[Block]:
    models = run.models
    if not models:
        return []
    found = {key for scores in models.values() for key, value in scores.items() if not isinstance(value, dict)}
    keys = [key for key in SCORES if key in found] + sorted(found.difference(SCORES))
    rows = []
    for key in keys:
        name, _, written = SCORES.get(key, (key, "", plain))
        rows.append([name, *(written(scores.get(key)) for scores in models.values())])
    blocks: list[Block] = [Table(["", *models], rows)]
    for key, (title, written) in PARTS.items():
        found_parts = {name: scores[key] for name, scores in models.items() if key in scores}
        parts = dict.fromkeys(part for values in found_parts.values() for part in values)
        if parts:
            values = [[part, *(written(own.get(part)) for own in found_parts.values())] for part in parts]
            blocks.append(Table([title, *found_parts], values))
    meanings = {SCORES[key][0]: SCORES[key][1] for key in keys if key in SCORES}
    return blocks + _facts({"What the scores mean": meanings})


def sample_blocks(run: Run) -> list[Block]:
    in_file = dict.fromkeys(sample["model"] for sample in run.samples)
    model = "dpo" if "dpo" in in_file else next(reversed(in_file), None)
    groups = first_samples(run.samples, model) if model else {}
    if not groups:
        return []
    count = sum(map(len, groups.values()))
    said = f"The first {SAMPLES_PER_FORM} answers of {model} to each form, {count} in all, in the order of the file: "
    is_judged = any("perfect" in sample for group in groups.values() for sample in group)
    marked = "Those that miss the form are marked." if is_judged else "Those that did not stop are marked."
    return [Text(f"{said}not chosen and not edited. {marked}"), Samples(groups)]


def _charts(stage: Stage) -> Charts:
    charts = [
        Chart("loss", "nats", {"train": stage.points("loss"), "held out": stage.points("eval_loss")}),
        Chart("learning rate", "", {"": stage.points("learning_rate")}, (0,)),
        Chart("throughput", "tokens per second", {"": stage.points("tokens_per_second")}, (0,)),
        Chart("reward accuracy", "share of pairs", {"": stage.points("rewards/accuracies")}, (0, 1)),
        Chart("reward margin", "chosen − rejected", {"": stage.points("rewards/margins")}, (0,)),
    ]
    step0 = stage.results.get("step0_loss")
    title = stage.name if step0 is None else f"{stage.name} (loss at step 0: {step0:.4f}; ln 2 is {math.log(2):.4f})"
    return Charts(title, [chart for chart in charts if any(chart.finite.values())])


def _times(run: Run) -> list[Block]:
    throughput = [(s.name, s.results["tokens_per_second"]) for s in run.finished if s.results.get("tokens_per_second")]
    rows = [
        (s.name, s.summary["seconds"], f"{duration(s.summary['seconds'])}, {s.summary['peak_memory_gb']:.2f} GB")
        for s in run.finished
    ]
    blocks: list[Block] = [Bars("Seconds and peak memory", rows)] if rows else []
    if throughput:
        blocks.append(Bars("Tokens per second", [(name, rate, short(rate)) for name, rate in throughput]))
    return blocks


def _data(run: Run) -> list[Block]:
    stages = {stage.name: stage.results for stage in run.finished if stage.kind in DATA}
    dropped = _dropped(stages)
    blocks: list[Block] = [Table(["Dropped", "Count"], dropped)] if dropped else []
    return blocks + _facts(stages)


def _dropped(values: dict[str, Any], path: str = "") -> list[list[str]]:
    """(where and why, how many) of every count whose path says "dropped"."""
    rows = []
    for key, value in values.items():
        whole = f"{path}: {key}" if path else key
        if isinstance(value, dict):
            rows += _dropped(value, whole)
        elif "dropped" in whole:
            rows.append([whole.replace(": dropped", ""), plain(value)])
    return rows


def _facts(groups: dict[str, dict[str, Any]]) -> list[Block]:
    filled = {title: values for title, values in groups.items() if values}
    return [Facts(filled)] if filled else []


def environment(run: Run) -> list[Block]:
    about = {key: run.chain[key] for key in ("date", "machine", "layout") if key in run.chain}
    found: dict[str, dict[str, None]] = {}
    for stage in run.stages:
        for library, version in stage.versions.items():
            found.setdefault(library, {})[version] = None
    # More than one version means that the stages did not all run in the same environment.
    versions = {library: " and ".join(versions) for library, versions in found.items()}
    return _facts({"Machine": about, "Versions": versions})
