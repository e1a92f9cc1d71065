"""A recipe file and the command line, checked as a whole before anything heavy is imported."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from fledge.arguments import STAGES
from fledge.schema import load
from fledge.schema.check import Fault, dotted, expected, faults, kinds, redacted, suggestion
from fledge.schema.document import Document, Lines
from fledge.schema.names import SECRETS


MAX_BYTES = 100_000
"""A recipe is a page of text; the parser takes seconds for more than this."""

INPUT_FILES = ("chat_template", "from_file")
"""Keys whose file no stage makes, so that it can be missed before anything runs."""

COMMAND_LINE = sys.maxsize
"""Stands for the line of what was stated on the command line; it sorts last."""


class RecipeError(ValueError):
    """A recipe that cannot be used; one fault a line."""


@dataclass(frozen=True)
class Recipe:
    """What a recipe file and the command line state for one stage, typed and checked."""

    stage: str
    name: str
    path: Path
    values: dict[str, Any]
    sources: dict[str, str]

    def own(self, cls: type) -> Any:
        """An instance of fledge's dataclass of this stage, its defaults filled in."""
        hints = get_type_hints(cls)
        return cls(**{key: _instance(hints[key], value) for key, value in self.values.items() if key in hints})

    def library(self) -> dict[str, Any]:
        """The keys that are not fledge's own: keyword arguments of the stage's Hugging Face dataclass."""
        return {key: value for key, value in self.values.items() if key not in get_type_hints(STAGES[self.stage])}

    @property
    def output_dir(self) -> Path:
        """The folder the stage writes."""
        return Path(self.values["output_dir"])


def load_recipe(stage: str, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read `path` for `stage`, with `overrides` as they stood on the command line (`--key value`, `--key=value`).

    Raises:
        RecipeError: everything that is wrong with the file and the overrides, each fault with its line and the fix.
    """
    path = Path(path)
    _check_name(stage, path)
    document = read_document(path)
    schema, values, lines = load(stage), document.value, document.lines
    found = [*document.faults, *_apply(overrides, schema, values, lines)]
    found += faults(values, schema)
    found += _missing_files(values)
    if found:
        raise RecipeError("\n".join(messages(found, path, lines)))
    return Recipe(stage, path.stem, path, values, {key: _source(key, path, lines) for key in values})


def resolved(recipe: Recipe, library_values: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Every key with its value and where it is from: `file:line`, "command line", "default" or "derived".

    `library_values` are those of the Hugging Face dataclass once built. A value there that neither the recipe states
    nor the library has as its default, such as gradient_accumulation_steps, is "derived". Secrets are left out.
    """
    own = recipe.own(STAGES[recipe.stage])
    values = recipe.values | (library_values or {}) | {field.name: getattr(own, field.name) for field in fields(own)}
    defaults = load(recipe.stage)["properties"]

    def origin(key: str, value: Any) -> str:
        if key in recipe.sources:
            return recipe.sources[key]
        if hasattr(own, key):
            return "default"
        return "default" if value == defaults.get(key, {}).get("default") or not value else "derived"

    plain = {key: _plain(value) for key, value in sorted(values.items()) if key not in SECRETS}
    return {key: {"value": value, "from": origin(key, value)} for key, value in plain.items()}


def read_document(path: Path) -> Document:
    """The mapping in a YAML file, recipe or layout, with its lines and what is wrong with it as YAML.

    Raises:
        RecipeError: it cannot be read, is no YAML, or holds something else than a mapping.
    """
    text = _read(path)
    try:
        document = Document(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}:{_syntax_fault(error, text)}") from None
    if not isinstance(document.value, dict):
        what = "the file is empty" if document.value is None else "the top level has to be a mapping"
        raise RecipeError(f"{path}:{document.lines.get((), 1)}: {what}; write `key: value` lines")
    return document


def _check_name(stage: str, path: Path) -> None:
    if not path.exists():
        raise RecipeError(f"{path}: no such file{_nearest_file(path)}")
    if path.is_dir():
        raise RecipeError(f"{path}: a folder; name one of its files, or run them all with fledge run {path}")
    named = path.stem.partition("_")[0]
    if named not in STAGES:
        raise RecipeError(f"{path}: a recipe's name begins with its stage; rename it to {stage}{path.suffix}")
    if named != stage:
        raise RecipeError(f"{path}: a recipe of {named}, not of {stage}; write fledge {named} {path}")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{path}: larger than {MAX_BYTES:,} bytes, which is no recipe")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}: not UTF-8; save the file as UTF-8") from None


def _syntax_fault(error: yaml.YAMLError, text: str) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return f"{text.count(chr(10), 0, error.position) + 1}: a control character; remove it"
    line, problem = error.problem_mark.line + 1, error.problem
    if "'\\t'" in problem:
        problem = "a tab where YAML takes only spaces; replace it by spaces"
    return f"{line}: not YAML: {_printable(problem)}"


def _apply(overrides: Sequence[str], schema: dict[str, Any], values: dict[str, Any], lines: Lines) -> Iterator[Fault]:
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
                _put(values, lines, path, True if text is None else _parsed(text, part))
            except yaml.YAMLError as error:
                yield Fault(path, f"not YAML: {getattr(error, 'problem', error)}", COMMAND_LINE)
        seen.add(path)


def _put(values: dict[str, Any], lines: Lines, path: tuple[str, ...], value: Any) -> None:
    for below in [place for place in lines if place[: len(path)] == path]:
        del lines[below]
    for depth, name in enumerate(path[:-1], 1):
        if not isinstance(values.get(name), dict):
            values[name] = {}
            lines[path[:depth]] = COMMAND_LINE
        values = values[name]
    values[path[-1]] = value
    lines[path] = COMMAND_LINE


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


def _missing_files(values: dict[str, Any]) -> Iterator[Fault]:
    for key in INPUT_FILES:
        name = values.get(key)
        if isinstance(name, str) and name and not Path(name).is_file():
            yield Fault((key,), f"no such file: {name}{_nearest_file(Path(name))}")


def _nearest_file(path: Path) -> str:
    return suggestion(path.name, (file.name for file in path.parent.glob("*")))


def messages(found: list[Fault], path: Path, lines: Lines) -> list[str]:
    """The faults of a file as lines of text, in the order of their lines: `path:line: key: what and the fix`."""
    placed = sorted((fault.line or _line(fault.path, lines), dotted(fault.path), fault.message) for fault in found)
    texts = []
    for line, key, message in placed:
        where, dashes = ("command line", "--") if line == COMMAND_LINE else (f"{path}:{line}", "")
        texts.append(_printable(f"{where}: {dashes + key + ': ' if key else ''}{message}"))
    return list(dict.fromkeys(texts))


def _line(path: tuple[str | int, ...], lines: Lines) -> int:
    """The line of `path`, or of what holds it: a missing key has none of its own."""
    while path not in lines:
        path = path[:-1]
    return lines[path]


def _source(key: str, path: Path, lines: Lines) -> str:
    if lines[key,] == COMMAND_LINE:
        return "command line"
    nested = any(place[0] == key and line == COMMAND_LINE for place, line in lines.items() if place)
    return f"{path}:{lines[key,]}" + (" and command line" if nested else "")


def _instance(hint: Any, value: Any) -> Any:
    """`value` with the entries of a list of one of our dataclasses made instances."""
    entry = get_args(hint)[0] if isinstance(value, list) and get_args(hint) else None
    return [entry(**item) for item in value] if is_dataclass(entry) else value


def _plain(value: Any) -> Any:
    """`value` as JSON knows it, without tokens."""
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if key not in SECRETS}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if isinstance(value, int | float | None) and finite else redacted(str(value))


def _printable(text: str) -> str:
    """`text` on one line, without tokens and without what would drive a terminal: recipes come from strangers."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in redacted(text))
