"""`fledge run`: every stage of a folder in order, each in a process of its own; what is done is not done again."""

import os
import platform
import shlex
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fledge.causes import NotPushed
from fledge.files import hold, write_json
from fledge.layouts import find_layout, read_layout
from fledge.preempted import Preempted
from fledge.recipe import Recipe
from fledge.results.report import headlines
from fledge.results.report import write as write_report

from .plan import STATE, fingerprint, inputs, is_done, is_variant, read_folder, result_files, state_of
from .process import launch


def run(folder: Path, on: str | None, only: str | None, start: str | None, smoke: bool = False) -> int:
    """Run the stages of `folder`; returns the exit code of the first that fails, 69 if one was not pushed, or 0.

    Args:
        on: the layout, a file or the name of one in accelerate_configs/; its cpu.yaml if None.
        only: name of the one stage to run, done or not.
        start: name of the stage to begin with; it and everything after it runs, done or not.
        smoke: shrink every stage as the folder's smoke.yaml says, and write below runs/smoke/. Variants run as well.
    """
    began = time.time()
    recipes = read_folder(folder, smoke)
    variants = [recipe.name for recipe in recipes if is_variant(recipe.name) and recipe.name != only and not smoke]
    recipes = [recipe for recipe in recipes if recipe.name not in variants]
    layout = find_layout(on or folder.resolve().parent.parent / "accelerate_configs" / "cpu.yaml")
    if (machines := read_layout(layout).num_machines) > 1:
        raise ValueError(f"--on {on}: {machines} machines; fledge launch {folder} --on {on} is what starts several")
    names = [recipe.name for recipe in recipes]
    for name in (only, start):
        if name is not None and name not in names:
            named = f"; --only also takes {', '.join(variants)}" if variants else ""
            raise ValueError(f"{name}: no stage of {folder}; its stages are {', '.join(names)}{named}")

    home = Path(os.path.commonpath([recipe.output_dir for recipe in recipes]))
    hold(home, home / ".chain.lock")
    if smoke:
        say_what_shrank(recipes, home)
    if variants:
        say(f"variants, run by --only: {', '.join(variants)}")
    prints: dict[str, str] = {}
    stages: list[dict[str, Any]] = []
    unpushed: list[Recipe] = []
    for index, recipe in enumerate(recipes):
        above = [prints[other.name] for other in inputs(recipe, recipes)]
        prints[recipe.name] = fingerprint(recipe, recipes, above)
        state = state_of(recipe.output_dir)
        forced = recipe.name == only or (start is not None and index >= names.index(start))
        left_out = not forced and (only is not None or start is not None)
        skipped = left_out or (not forced and is_done(recipe.output_dir, state, prints[recipe.name]))
        what = "left out" if left_out else "unchanged, skipped" if skipped else recipe.path
        say(f"[{index + 1}/{len(recipes)}] {recipe.name}: {what}")
        if not skipped:
            state, code = run_stage(recipe, layout, state, prints[recipe.name])
            if code == Preempted.exit_code:
                say(f"{recipe.name} made room; the same command goes on")
                return code
            if code == NotPushed.exit_code:
                unpushed.append(recipe)
            elif code:
                say(f"{recipe.name} failed with exit code {code}; the same command continues here")
                return code
        if "seconds" in state:
            measured = {key: state[key] for key in ("seconds", "peak_memory_gb")}
            stages.append({"name": recipe.name, "stage": recipe.stage, **measured, "skipped": skipped})
    finish(folder, home, layout, stages, began)
    if unpushed:
        names = ", ".join(recipe.name for recipe in unpushed)
        say(f"trained, and not pushed: {names}; fledge publish {home} sends what waits")
        return NotPushed.exit_code
    return 0


def say_what_shrank(recipes: list[Recipe], home: Path) -> None:
    """Say that this is a smoke run, and every value that smoke.yaml changed."""
    say(f"a smoke run: shrunk until every stage fits a CPU; what it measures means nothing. It writes {home}")
    for recipe in recipes:
        changes = (f"{key} {shown(old)} -> {shown(new)}" for key, (old, new) in recipe.shrunk.items())
        whole = "" if recipe.path.exists() else "only in a smoke run"
        if text := ", ".join(changes) or whole:
            say(f"  {recipe.name}: {text}")


def shown(value: Any) -> str:
    """A recipe's value in a few characters."""
    if isinstance(value, list) and len(value) == 1:
        return shown(value[0].get("path", value[0]) if isinstance(value[0], dict) else value[0])
    if isinstance(value, list | dict):
        return f"{len(value)} entries"
    if isinstance(value, bool | None):
        return "nothing" if value is None else str(value).lower()
    return f"{value:,}" if isinstance(value, int) else str(value)


def run_stage(recipe: Recipe, layout: Path, state: dict[str, Any], wanted: str) -> tuple[dict[str, Any], int]:
    """Run one stage; an interrupted one with the same fingerprint goes on from its newest checkpoint."""
    folder = recipe.output_dir
    interrupted = state.get("fingerprint") == wanted and "files" not in state
    if folder.exists() and not interrupted:
        set_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    state = {"fingerprint": wanted, "spent": spent_before(folder, state) if interrupted else 0.0, "began": began}
    write_json(folder / STATE, state)
    outcome = launch(recipe, layout)
    state["spent"] = round(state["spent"] + time.time() - state.pop("began"), 2)
    if outcome.exit_code in (0, NotPushed.exit_code):
        state |= {"seconds": state.pop("spent"), "peak_memory_gb": round(outcome.peak_memory_gb, 3)}
        state["files"] = result_files(folder)
    write_json(folder / STATE, state)
    for cause in outcome.causes[:5]:  # in the order in which they came; the launcher has said much since
        say(cause)
    return state, outcome.exit_code


def spent_before(folder: Path, state: dict[str, Any]) -> float:
    """Seconds of the earlier attempts; of one that was killed together with the chain, up to its last written file."""
    killed = 0.0
    if "began" in state:
        killed = max(path.stat().st_mtime for path in folder.rglob("*")) - state["began"]
    return state["spent"] + max(killed, 0.0)


def set_aside(folder: Path) -> None:
    """Rename an older result to NAME.previous; the one before it goes."""
    previous = folder.with_name(folder.name + ".previous")
    if previous.exists():
        shutil.rmtree(previous)
    folder.rename(previous)
    say(f"{folder} holds an older result; it is now {previous}")


def finish(folder: Path, home: Path, layout: Path, stages: list[dict[str, Any]], began: float) -> None:
    """Write the chain's own record and the report, and say what was reached."""
    ran = sum(stage["seconds"] for stage in stages if not stage["skipped"])
    earlier = sum(stage["seconds"] for stage in stages if stage["skipped"])
    record = {
        "peak_memory_gb": max((stage["peak_memory_gb"] for stage in stages), default=0.0),
        "layout": str(layout.name),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "command": shlex.join(["fledge", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "stages": stages,
    }
    # Twice: the second report knows how long the first one took.
    for _ in range(2):
        own = time.time() - began - ran  # of the chain itself, between the stages
        write_json(home / STATE, {"wall_seconds": round(earlier + ran + own, 1), **record})
        page = write_report(home)
    for line in headlines(home):
        say(f"  {line}")
    say(f"report: {page}")
    if (home / "export").is_dir():
        say(f"chat:   fledge chat {home}")


def say(text: str) -> None:
    """One line of the chain's own, at once even when the output is a file."""
    print(text, flush=True)
