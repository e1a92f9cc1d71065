"""The house: a room imports only from floors below its own, and no file outgrows its room."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fledge


SOURCE = Path(fledge.__file__).parent
FLOORS = [
    {
        "__init__",
        "arguments",
        "causes",
        "corpora",
        "data_arguments",
        "files",
        "help",
        "layouts",
        "machine",
        "model",
        "overrides",
        "planning",
        "preempted",
        "recipe",
        "schema",
    },
    {"data"},
    {"evaluation", "exporting", "publishing", "training", "results"},
    {"stages"},
    {"launching", "inspecting", "chat", "cli", "__main__"},
]
"""From the ground. The rooms of the ground floor may use each other; elsewhere NEIGHBOURS says who may use whom."""
NEIGHBOURS = {
    ("publishing", "results"),
    ("training", "publishing"),
    ("training", "results"),
    ("cli", "launching"),
    ("cli", "inspecting"),
    ("cli", "chat"),
    ("__main__", "cli"),
}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(module: str) -> str:
    """`fledge.data.pack` -> data; `fledge` itself is its __init__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def module_of(path: Path) -> str:
    return ".".join(["fledge", *path.relative_to(SOURCE).with_suffix("").parts])


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import of a file, those inside functions too."""
    package = module_of(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                is_module = (SOURCE.parent / whole.replace(".", "/")).is_dir() or (
                    SOURCE.parent / (whole.replace(".", "/") + ".py")
                ).is_file()
                yield node.lineno, whole if is_module else base


def floor_of(room: str) -> int:
    return next(index for index, rooms in enumerate(FLOORS) if room in rooms)


def test_every_room_has_a_floor() -> None:
    rooms = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in FILES}
    assert rooms == set.union(*FLOORS)
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down(path: Path) -> None:
    room = room_of(module_of(path))
    for line, name in imports(path):
        if name.split(".")[0] != "fledge":
            continue
        other = room_of(name)
        allowed = (
            other == room
            or floor_of(other) < floor_of(room)
            or floor_of(other) == floor_of(room) == 0
            or (room, other) in NEIGHBOURS
        )
        assert allowed, f"{path}:{line}: {room} imports {name}"
        if room == "stages":
            assert other != "stages", f"{path}:{line}: a stage imports a stage"


@pytest.mark.parametrize("path", sorted((SOURCE / "model").glob("*.py")), ids=module_of)
def test_the_model_stands_alone(path: Path) -> None:
    # transformers copies these files beside the weights.
    for line, name in imports(path):
        top = name.split(".")[0]
        own = name.startswith("fledge.model")
        assert own or top in {"torch", "transformers", "huggingface_hub"} | sys.stdlib_module_names, f"{path}:{line}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_file_outgrows_its_room(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines < (150 if path.parent.name == "stages" else 300)
