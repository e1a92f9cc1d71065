"""What stands above a recipe's own file: smoke.yaml beside it, and the command line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from fledge.schema.check import Fault, expected, kinds
from fledge.schema.document import Document


SMOKE_RUNS = "runs/smoke/"
"""Where a smoke run writes and reads whatever the recipes have below runs/."""

Path = tuple[str | int, ...]
"""The keys and indices that lead to a value."""


class Place(NamedTuple):
    """Where a value stands, if not in the recipe's own file. Places sort as their faults are told."""

    layer: int
    line: int
    name: str


COMMAND_LINE = Place(2, 0, "command line")

Lines = dict[Path, "int | Place"]
"""The path of a value -> its line in the recipe, or its place above."""


@dataclass(frozen=True)
class Section:
    """What smoke.yaml says of one stage: values by dotted key, null for a key to take out, and where each stands."""

    place: Place
    values: dict[str, Any]
    places: dict[Path, Place] = field(default_factory=dict)

    def apply(self, values: dict[str, Any], lines: Lines) -> Iterator[Fault]:
        """Put the section into `values` and its places into `lines`; yields the keys it takes out in vain."""
        for key, value in self.values.items():
            path, place = tuple(key.split(".")), self.places[key,]
            if value is None and stated(values, path) is None:
                yield Fault(path, "null takes a key out, and the recipe does not state this one; leave it out", place)
            put(values, lines, path, value, place)
            if value is None:
                del below(values, path)[path[-1]]
            lines.update({(*path, *inside[1:]): where for inside, where in self.places.items() if inside[0] == key})

    def changes(self, values: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Dotted key -> what `values` state now, and what this section makes of it; None where it is not stated."""
        return {key: (stated(values, tuple(key.split("."))), moved(value)) for key, value in self.values.items()}


def sections(document: Document, name: str) -> dict[str, Section]:
    """The sections of a smoke.yaml called `name`, by the name of the recipe each is about."""
    found = {}
    for recipe, values in document.value.items():
        places = {
            path[1:]: Place(1, line, f"{name}:{line}")
            for path, line in document.lines.items()
            if path[:1] == (recipe,)
        }
        found[recipe] = Section(places.pop(()), values, places)
    return found


def moved(value: Any) -> Any:
    """`value` with every path below runs/ moved below runs/smoke/."""
    if isinstance(value, str) and value.startswith("runs/") and not value.startswith(SMOKE_RUNS):
        return SMOKE_RUNS + value.removeprefix("runs/")
    if isinstance(value, dict):
        return {key: moved(item) for key, item in value.items()}
    return [moved(item) for item in value] if isinstance(value, list) else value


def below(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The mapping that holds the last key of `path`."""
    for name in path[:-1]:
        values = values[name]
    return values


def stated(values: dict[str, Any], path: Path) -> Any:
    """The value at `path`, or None."""
    for name in path:
        values = values.get(name) if isinstance(values, dict) else None
    return values


def apply_command_line(
    overrides: Sequence[str], schema: dict[str, Any], values: dict[str, Any], lines: Lines
) -> Iterator[Fault]:
    """Put the overrides into `values` and mark their paths in `lines`; yields those that cannot be understood."""
    seen = set()
    for key, text in _pairs(overrides):
        path = tuple(key.removeprefix("--").split("."))
        part = schema
        for name in path:
            part = part.get("properties", {}).get(name, {})
        if not key.startswith("--"):
            yield Fault((), f"{key}: not understood; options are written --key value", COMMAND_LINE)
        elif path in seen:
            yield Fault(path, "given twice; keep one", COMMAND_LINE)
        elif text is None and part and "boolean" not in kinds(part):
            yield Fault(path, f"needs a value: {expected(part)}", COMMAND_LINE)
        else:
            try:
                put(values, lines, path, True if text is None else _parsed(text, part), COMMAND_LINE)
            except yaml.YAMLError as error:
                yield Fault(path, f"not YAML: {getattr(error, 'problem', error)}", COMMAND_LINE)
        seen.add(path)


def put(values: dict[str, Any], lines: Lines, path: Path, value: Any, place: Place) -> None:
    """Set the value at `path`, making the mappings that lead there; `lines` forgets what it replaces."""
    for replaced in [known for known in lines if known[: len(path)] == path]:
        del lines[replaced]
    for depth, name in enumerate(path[:-1], 1):
        if not isinstance(values.get(name), dict):
            values[name] = {}
            lines[path[:depth]] = place
        values = values[name]
    values[path[-1]] = value
    lines[path] = place


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """`--key value`, `--key=value` and bare `--key` as (`--key`, value or None); a stray word as (word, None)."""
    rest = list(overrides)
    while rest:
        key, equals, value = rest.pop(0).partition("=")
        if key.startswith("--") and not equals and rest and not rest[0].startswith("--"):
            yield key, rest.pop(0)
        else:
            yield key, value if equals else None


def _parsed(text: str, schema: dict[str, Any]) -> Any:
    """A command line value by the types its key takes; what fits none stays text and fails the check."""
    allowed = kinds(schema)
    if text == "null" and "null" in allowed:
        return None
    if "boolean" in allowed and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if allowed & {"integer", "number"}:
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
    if not allowed or (allowed & {"array", "object"} and text[:1] in ("[", "{")):
        document = Document(text)
        if document.faults:
            raise yaml.YAMLError(document.faults[0].message)
        return document.value
    return text
