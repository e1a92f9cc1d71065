"""The order of a folder's stages, and when a stage need not run again."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fledge
from fledge.arguments import STAGES
from fledge.files import digest, read_json
from fledge.publishing.outbox import OUTBOX
from fledge.recipe import Recipe, RecipeError, load_recipe, read_smoke


STATE = "chain.json"
"""In a stage's output_dir: the fingerprint it was started with and, once it is done, its files."""

VARIANT = "_lora"

HUB_KEYS = ("push_to_hub", "hub_")
"""Keys that decide where a result goes besides, and nothing of it."""

OWN_FILES = {STATE, "recipe.json", "versions.json", "metrics.jsonl", "events.jsonl", "summary.json"}
"""Files that describe a stage; what others read are the rest."""


def read_folder(folder: Path, smoke: bool = False) -> list[Recipe]:
    """The recipes of a folder, those that make something before those that read it; variants too.

    Args:
        smoke: shrunk by smoke.yaml, and with the recipes that it alone has.

    Raises:
        ValueError: no folder, no recipe in it, or everything that is wrong with any of them.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name one of recipes/")
    paths = sorted(path for path in folder.glob("*.yaml") if path.stem.partition("_")[0] in STAGES)
    if not paths:
        raise ValueError(
            f"{folder} holds no recipe: its files are named STAGE.yaml, with STAGE one of {', '.join(STAGES)}"
        )
    if smoke:
        paths = sorted({*paths, *(folder / f"{name}.yaml" for name in read_smoke(folder))})
    recipes, faults = [], []
    for path in paths:
        try:
            recipes.append(load_recipe(path.stem.partition("_")[0], path, smoke=smoke))
        except RecipeError as error:
            faults.append(str(error))
    if faults:
        raise RecipeError("\n".join(faults))
    order = list(STAGES)
    return list(_sorted(sorted(recipes, key=lambda recipe: (order.index(recipe.stage), recipe.name))))


def is_variant(name: str) -> bool:
    """Whether a recipe of this name is another way through a stage, `sft_lora` of `sft`: it runs if it is named."""
    return name.endswith(VARIANT)


def _sorted(recipes: list[Recipe]) -> Iterator[Recipe]:
    waiting = list(recipes)
    while waiting:
        ready = [r for r in waiting if not any(other in waiting for other in inputs(r, recipes))]
        if not ready:
            names = ", ".join(recipe.path.name for recipe in waiting)
            raise ValueError(f"{names}: each of them reads what another of them writes; correct their paths")
        # One at a time, so that the order of the stages decides wherever the paths leave a choice.
        waiting.remove(ready[0])
        yield ready[0]


def inputs(recipe: Recipe, recipes: list[Recipe]) -> list[Recipe]:
    """The recipes whose output_dir this one reads from."""
    read = _named(recipe)
    return [
        other
        for other in recipes
        if other is not recipe and any(path.is_relative_to(other.output_dir) for path in read)
    ]


def _named(recipe: Recipe) -> list[Path]:
    """Everything in a recipe that may be a path it reads."""
    return [Path(text) for key, value in recipe.values.items() if key != "output_dir" for text in _strings(value)]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def fingerprint(recipe: Recipe, recipes: list[Recipe], above: list[str]) -> str:
    """SHA-256 of all that decides a stage's result: its keys, its code, and the stages and files it reads.

    Not of the layout: it decides nothing, and the same run may go on elsewhere. A folder that no stage of these
    recipes makes, for instance a model of another run, is known by its files.

    Args:
        recipes: all of the folder: a file that one of them makes is known by that stage's fingerprint, in `above`.
    """
    made = [other.output_dir for other in recipes]
    given = [path for path in _named(recipe) if not any(path.is_relative_to(folder) for folder in made)]
    files: dict[str, Any] = {str(path): digest(path) for path in given if path.is_file()}
    files |= {str(path): result_files(path) for path in given if path.is_dir()}
    values = {key: value for key, value in recipe.values.items() if not key.startswith(HUB_KEYS)}
    parts = [values, files, sorted(above), _code_hash(recipe.stage)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _code_hash(stage: str) -> str:
    """Of the stage's file and of the rooms below the stages; the other stages and what stands above do not matter."""
    root = Path(fledge.__file__).parent
    rooms = (
        "arguments.py",
        "data_arguments.py",
        "files.py",
        "layouts.py",
        "machine.py",
        "recipe.py",
        "corpora",
        "data",
        "evaluation",
        "model",
        "training",
    )
    rooms += ("exporting",) if stage == "export" else ()
    found = [root / "stages" / f"{stage}.py"]
    for room in rooms:
        found += sorted((root / room).rglob("*.py")) if (root / room).is_dir() else [root / room]
    code = hashlib.sha256(fledge.__version__.encode())
    for path in found:
        code.update(path.read_bytes())
    return code.hexdigest()


def result_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a stage's result; without checkpoints, what waits for the hub and OWN_FILES."""
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    aside = ("checkpoint-", OUTBOX)
    kept = (path for path in paths if path.name not in OWN_FILES and not path.parts[0].startswith(aside))
    return {str(path): digest(folder / path) for path in kept}


def state_of(folder: Path) -> dict[str, Any]:
    """What the chain last wrote about a stage; empty if it never ran."""
    return read_json(folder / STATE) if (folder / STATE).is_file() else {}


def is_done(folder: Path, state: dict[str, Any], wanted: str) -> bool:
    """Whether the stage finished with this fingerprint and its files are still what they were."""
    return state.get("fingerprint") == wanted and "files" in state and result_files(folder) == state["files"]
