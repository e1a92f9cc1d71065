"""What the report says, as sections of blocks; page.py and markdown.py only say how it looks."""

import shlex
from typing import Any

from fledge.files import digest
from fledge.results.blocks import Block, Code, Section, Text, Tile, Tiles, facts
from fledge.results.curves import curves, preferences
from fledge.results.data import digests, sources
from fledge.results.evaluated import results, sample_blocks
from fledge.results.faults import met
from fledge.results.gather import Run
from fledge.results.numbers import ABSENT, fixed, percent, plain, worded
from fledge.results.planned import plan_blocks


DATA = ("corpus", "tokenizer", "prepare", "pairs")


def story(run: Run) -> list[Section]:
    """The sections of the report; those the run has nothing for are left out, and the first one says so."""
    sections = [
        Section("", [Text(lead(run)), *_warnings(run), tiles(run)]),
        Section("Plan and measurement", plan_blocks(run)),
        Section("Data", [*sources(run), *facts(_of(run, is_data=True), is_folded=True)]),
        Section("Curves", curves(run)),
        Section("Evaluation", results(run)),
        Section("Preferences", preferences(run)),
        Section("Samples", sample_blocks(run)),
        Section("What was met", met(run)),
        Section("Other figures", facts(_of(run, is_data=False), is_folded=True)),
        Section("Environment", environment(run)),
        Section("Reproduce", reproduce(run)),
    ]
    return [section for section in sections if section.blocks]


def best_model(run: Run) -> str | None:
    """The model at the end of the chain: dpo, or the last that was evaluated."""
    return "dpo" if "dpo" in run.models else next(reversed(run.models), None)


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


def _of(run: Run, is_data: bool) -> dict[str, dict[str, Any]]:
    """What the stages of data, or the others, say that they achieved."""
    return {stage.name: stage.results for stage in run.finished if (stage.kind in DATA) == is_data}


def environment(run: Run) -> list[Block]:
    about = {key: run.chain[key] for key in ("date", "machine", "layout") if key in run.chain}
    return facts({"Machine": about, "Versions": run.versions})


def reproduce(run: Run) -> list[Block]:
    """The versions to install, the command, and digests to compare recipes and data by."""
    found = {library: version for stage in run.stages for library, version in stage.versions.items()}
    python, own = found.pop("python", None), found.pop("fledge", None)
    lines = []
    if found:
        # What follows a plus names a build (torch 2.13.0+cpu), which an index need not have.
        wanted = [f"{library}=={version.partition('+')[0]}" for library, version in found.items()]
        lines = [f"# Python {python or ABSENT}, fledge {own or ABSENT}", shlex.join(["pip", "install", *wanted])]
    lines += [run.chain["command"]] if "command" in run.chain else []
    told = {f"{stage.name}/recipe.json": stage.folder / "recipe.json" for stage in run.stages}
    recipes = {name: digest(path) for name, path in told.items() if path.is_file()}
    blocks: list[Block] = [Code("\n".join(lines))] if lines else []
    return blocks + facts({"the recipes, SHA-256": recipes, "the data, SHA-256": digests(run)}, True)
