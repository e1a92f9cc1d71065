"""What a run was trained on: sources, tokens, licences, digests."""

from pathlib import Path
from typing import Any

from fledge.results.blocks import Block, Table
from fledge.results.gather import Run
from fledge.results.numbers import percent, plain


def sources(run: Run) -> list[Block]:
    """Every prepared mixture, source by source, and the licences that corpora state."""
    blocks: list[Block] = []
    for stage in run.stages:
        if "train" in stage.manifest:
            head = [stage.name, "documents", "tokens", "read", "share", "times"]
            rows = [
                [
                    short_path(its["name"]),
                    *map(plain, (its["documents"], its["tokens"], its["tokens_read"])),
                    percent(its["share"]),
                    plain(its["epochs"]),
                ]
                for its in stage.manifest["train"]["sources"]
            ]
            blocks.append(Table(head, rows))
    if stated := licences(run.results("corpus")):
        blocks.append(Table(["Package", "Version", "Licence"], stated))
    return blocks


def digests(run: Run) -> dict[str, str]:
    """SHA-256 of what each prepare stage made, by stage and split, and of the packages the corpora are made of."""
    found = {
        f"{stage.name}, {split}": stage.manifest[split]["sha256"]
        for stage in run.stages
        for split in ("train", "eval")
        if stage.manifest.get(split)
    }
    return found | _hashes(run.results("corpus"))


def _hashes(value: Any, name: str = "corpus") -> dict[str, str]:
    """package -> SHA-256 of every mapping that states one."""
    if not isinstance(value, dict):
        return {}
    if isinstance(found := value.get("sha256"), str):
        return {str(value.get("package", name)): found}
    return {key: its for part, inner in value.items() for key, its in _hashes(inner, part).items()}


def licences(value: Any, name: str = "") -> list[list[str]]:
    """(name, version, licence) of every mapping that states one."""
    if not isinstance(value, dict):
        return []
    if isinstance(licence := value.get("license"), str):
        return [[str(value.get("package", name)), str(value.get("version", "")), licence]]
    return [row for key, its in value.items() for row in licences(its, key)]


def short_path(name: str) -> str:
    """A source without the folders of the machine it lay on."""
    return "/".join(Path(name).parts[-2:])
