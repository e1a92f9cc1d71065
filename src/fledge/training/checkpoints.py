"""Checkpoints that are whole or not there; nothing else in fledge may say which one is the newest.

    unfinished/checkpoint-40      a save under way; every process writes into it
    checkpoint-40                 the same folder, renamed once all of its files are hashed and on the disk
    checkpoint-40/COMPLETE.json   written last: its files with their SHA-256, who wrote them, and from what
    damaged-checkpoint-40         set aside: it is not what COMPLETE.json says, or never got one

Marked like this by OLMo-core and by torch's distributed checkpoints; hashed like Megatron-LM's integrity.json.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fledge.files import digest, read_json, write_json
from fledge.layouts import FAMILIES, launched_engine


COMPLETE = "COMPLETE.json"
UNFINISHED = "unfinished"
DAMAGED = "damaged-"

NEEDED = ("trainer_state.json", "scheduler.pt", "config.json")
OPTIMIZER = {"plain": "optimizer.pt", "fsdp": "optimizer.bin", "zero": "global_step*"}
"""Where each family of engines keeps the optimizer's state. Without it, without the scheduler's or the random numbers'
the Trainer would go on with new ones, and say nothing."""

logger = logging.getLogger(__name__)


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that is what its COMPLETE.json says; reads all of it.

    What is not is renamed to damaged-checkpoint-N, never deleted, and named in a warning. For one process of a launch.
    """
    for folder in [*(output_dir / UNFINISHED).glob("checkpoint-*"), *_by_step(output_dir)]:
        fault = "its save was interrupted" if folder.parent.name == UNFINISHED else fault_of(folder)
        if fault is None and made_from(folder)["weights_only"]:
            logger.warning("%s holds weights alone (save_only_model) and is passed over", folder)
            continue
        if fault is None:
            return folder
        aside = _set_aside(folder, output_dir)
        logger.warning("%s: %s; it is now %s and is passed over", folder, fault, aside.name)
    return None


def newest_marked(output_dir: Path) -> Path | None:
    """The newest checkpoint whose COMPLETE.json can be read, whether or not its files are still what that says."""
    return next((folder for folder in _by_step(output_dir) if is_marked(folder)), None)


def is_marked(checkpoint: Path) -> bool:
    """Whether it was committed: its COMPLETE.json can be read."""
    try:
        return isinstance(made_from(checkpoint), dict)
    except (OSError, ValueError):
        return False


def made_from(checkpoint: Path) -> dict[str, Any]:
    """What COMPLETE.json says of a checkpoint."""
    return read_json(checkpoint / COMPLETE)


def fault_of(checkpoint: Path) -> str | None:
    """Why one cannot be resumed from: the first file that is missing or changed; None if it is whole."""
    try:
        complete = read_json(checkpoint / COMPLETE)
        files: dict[str, dict[str, Any]] = complete["files"]
    except FileNotFoundError:
        return f"{COMPLETE} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{COMPLETE} is cut off or no longer JSON"
    for name, its in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != its["bytes"]:
            return f"{name} has {path.stat().st_size} bytes of {its['bytes']}"
    found = _digests(checkpoint, list(files))
    return next((f"{name} has changed" for name in files if found[name] != files[name]["sha256"]), None)


def staged(output_dir: Path) -> Path:
    """The folder that processes write a checkpoint's folder into."""
    return output_dir / UNFINISHED


def commit(output_dir: Path, name: str, made: dict[str, Any], weights_only: bool = False) -> Path:
    """Give a checkpoint that all processes have written its name: hash, sync, rename, mark. For one process.

    Args:
        made: of what it was made, for COMPLETE.json.
        weights_only: it was saved without what resuming needs (save_only_model).

    Raises:
        ValueError: the library left out a file that resuming needs.
    """
    unfinished, final = staged(output_dir) / name, output_dir / name
    lacking = [] if weights_only else [file for file in _needed() if not list(unfinished.glob(file))]
    if lacking:
        raise ValueError(f"{unfinished}: the save left out {', '.join(lacking)}; nothing was committed")
    names = sorted(str(path.relative_to(unfinished)) for path in unfinished.rglob("*") if path.is_file())
    for file in names:
        _sync(unfinished / file)
    hashes = _digests(unfinished, names)
    files = {file: {"bytes": (unfinished / file).stat().st_size, "sha256": hashes[file]} for file in names}
    if final.exists():  # of an earlier attempt at the same step
        _set_aside(final, output_dir)
    unfinished.rename(final)
    _sync(output_dir)
    write_json(final / COMPLETE, {**made, "topology": topology(), "weights_only": weights_only, "files": files})
    _sync(final / COMPLETE)
    _sync(final)
    return final


def rotate(output_dir: Path, keep: int | None, best: str | None) -> None:
    """Delete the oldest whole checkpoints until `keep` are left; never the newest or `best`."""
    whole = [folder for folder in _by_step(output_dir) if is_marked(folder)]
    spared = {folder for folder in whole if best and folder.name == Path(best).name}
    for folder in whole[max(keep or len(whole), 1) :]:
        if folder not in spared:
            (folder / COMPLETE).unlink()  # first: half of it must not look whole
            shutil.rmtree(folder)


def refuse_full_disk(output_dir: Path, expected: int) -> None:
    """Raise ValueError, before anything is written, if the next checkpoint will not fit on the disk.

    Args:
        expected: its bytes, if there is no earlier one to tell.
    """
    newest = newest_marked(output_dir)
    if newest:
        expected = sum(its["bytes"] for its in made_from(newest)["files"].values())
    free = shutil.disk_usage(output_dir).free
    if free < 1.02 * expected:
        kept = f"; {newest} is whole, and the same command goes on from it" if newest else ""
        raise ValueError(
            f"output_dir: {output_dir}: the next checkpoint takes {expected / 1e9:.2f} GB and {free / 1e9:.2f} GB are "
            f"free; make room, or state a smaller save_total_limit{kept}"
        )


def topology() -> dict[str, Any]:
    """The engine and the number of processes of this launch."""
    return {"engine": launched_engine(), "processes": int(os.environ.get("WORLD_SIZE", "1"))}


def _needed() -> Iterator[str]:
    now = topology()
    yield from (*NEEDED, "*.safetensors", OPTIMIZER[FAMILIES[now["engine"]]])
    processes = now["processes"]
    yield from ([f"rng_state_{rank}.pth" for rank in range(processes)] if processes > 1 else ["rng_state.pth"])


def _by_step(output_dir: Path) -> list[Path]:
    """The folders named as checkpoints, the newest first."""
    steps = {folder: re.fullmatch(r"checkpoint-(\d+)", folder.name) for folder in output_dir.glob("checkpoint-*")}
    return sorted((folder for folder in steps if steps[folder]), key=lambda folder: -int(steps[folder][1]))


def _set_aside(folder: Path, output_dir: Path) -> Path:
    target, number = output_dir / f"{DAMAGED}{folder.name}", 1
    while target.exists():
        number += 1
        target = output_dir / f"{DAMAGED}{folder.name}-{number}"
    return folder.rename(target)


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(lambda name: digest(folder / name), names), strict=True))


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_other_layout(output_dir: Path) -> None:
    """Raise ValueError if this launch cannot go on from the newest whole checkpoint.

    One process and DDP read each other's, at any number of processes; so do FSDP2 and HSDP. ZeRO's optimizer state is
    cut for its stage and its number of processes. To be called before anything heavy is imported.
    """
    checkpoint = newest_marked(output_dir)
    if checkpoint is None:
        return
    wrote, now = made_from(checkpoint)["topology"], topology()
    family = FAMILIES[wrote["engine"]]
    if wrote == now or (family == FAMILIES[now["engine"]] and family != "zero"):
        return
    raise ValueError(
        f"{checkpoint} was written by {wrote['engine']} on {wrote['processes']} process(es), and its optimizer state "
        f"cannot be read by {now['engine']} on {now['processes']}; either continue on {_readers(wrote)}, or keep the "
        f"weights alone: begin anew in another output_dir (sft, dpo: with model_name_or_path: {checkpoint})"
    )


def _readers(wrote: dict[str, Any]) -> str:
    family = FAMILIES[wrote["engine"]]
    if family == "zero":
        return f"a {wrote['engine']} layout of {wrote['processes']} process(es)"
    engines = [engine for engine, its in FAMILIES.items() if its == family]
    return f"a layout of {' or '.join(engines)}, of any number of processes"
