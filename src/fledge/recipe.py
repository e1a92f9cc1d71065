"""A recipe file and the command line, checked as a whole before anything heavy is imported."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from fledge.arguments import STAGES
from fledge.overrides import COMMAND_LINE, SMOKE_RUNS, Lines, Place, Section, apply_command_line, moved, sections
from fledge.schema import load
from fledge.schema.check import Fault, dotted, faults, redacted, suggestion
from fledge.schema.document import Document
from fledge.schema.names import SECRETS


MAX_BYTES = 100_000
"""A recipe is a page of text; the parser takes seconds for more than this."""

INPUT_FILES = ("chat_template", "from_file")
"""Keys whose file no stage makes, so that it can be missed before anything runs."""

SMOKE = "smoke.yaml"
"""Beside the recipes of a folder: what `--smoke` changes in each of them, by their names."""


class RecipeError(ValueError):
    """A recipe that cannot be used; one fault a line."""


@dataclass(frozen=True)
class Recipe:
    """What a recipe file and the command line state for one stage, typed and checked.

    `shrunk` is what smoke.yaml changed: dotted key -> the value before and after, None where there is none.
    """

    stage: str
    name: str
    path: Path
    values: dict[str, Any]
    sources: dict[str, str]
    smoke: bool = False
    shrunk: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    allowed: tuple[str, ...] = ()
    """Keys that may differ from those of the checkpoint that is resumed: `--allow-change KEY`."""

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


def load_recipe(stage: str, path: str | Path, overrides: Sequence[str] = (), smoke: bool = False) -> Recipe:
    """Read `path` for `stage`, with `overrides` as they stood on the command line (`--key value`, `--key=value`).

    Args:
        smoke: apply what smoke.yaml in the same folder says of this recipe, and move every path below runs/ to
            runs/smoke/. A recipe that only smoke.yaml has is named as if it were a file.

    Raises:
        RecipeError: everything that is wrong with the files and the overrides, each fault with its line and the fix.
    """
    path = Path(path)
    small = read_smoke(path.parent).get(path.stem) if smoke else None
    only_small = small is not None and not path.exists()
    _check_name(stage, path, is_there=path.exists() or only_small)
    document = Document("{}") if only_small else read_document(path)
    schema, values, found = load(stage), document.value, [*document.faults]
    lines: Lines = {**document.lines, **({(): small.place} if only_small else {})}
    shrunk = small.changes(values) if small and not only_small else {}
    if small:
        found += small.apply(values, lines)
    plain, values = values, moved(values) if smoke else values
    elsewhere = [key for key in values if values[key] != plain[key]]
    found += apply_command_line(overrides, schema, values, lines)
    found += faults(values, schema)
    found += _missing_files(values)
    if smoke and not str(values.get("output_dir", SMOKE_RUNS)).startswith(SMOKE_RUNS):
        found += [Fault(("output_dir",), f"a smoke run writes below {SMOKE_RUNS} alone; name a folder there")]
    if found:
        raise RecipeError("\n".join(messages(found, path, lines)))
    sources = {key: _source(key, path, lines) for key in values}
    sources |= {key: f"{sources[key]}, moved to {SMOKE_RUNS}" for key in elsewhere if lines[key,] != COMMAND_LINE}
    return Recipe(stage, path.stem, path, values, sources, smoke, shrunk)


def read_smoke(folder: Path) -> dict[str, Section]:
    """What the smoke.yaml of a recipe folder says of each recipe, by the recipe's name.

    Raises:
        RecipeError: there is none, or what is wrong with its form; its values are checked with their recipes.
    """
    path = folder / SMOKE
    if not path.is_file():
        raise RecipeError(
            f"{path}: no such file; --smoke needs one, which says how to shrink each recipe of the folder"
        )
    document = read_document(path)
    found = list(document.faults)
    for name, values in document.value.items():
        if (stage := name.partition("_")[0]) not in STAGES:
            found.append(Fault((name,), f"begins with no stage{suggestion(stage, STAGES)}"))
        elif not isinstance(values, dict):
            found.append(Fault((name,), "write `key: value` lines below it"))
    if found:
        raise RecipeError("\n".join(messages(found, path, {**document.lines})))
    return sections(document, str(path))


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


def _check_name(stage: str, path: Path, is_there: bool) -> None:
    if not is_there:
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


def _missing_files(values: dict[str, Any]) -> Iterator[Fault]:
    for key in INPUT_FILES:
        name = values.get(key)
        if isinstance(name, str) and name and not Path(name).is_file():
            yield Fault((key,), f"no such file: {name}{_nearest_file(Path(name))}")


def _nearest_file(path: Path) -> str:
    return suggestion(path.name, (file.name for file in path.parent.glob("*")))


def messages(found: list[Fault], path: Path, lines: Lines) -> list[str]:
    """The faults of a file as lines of text, in the order of their lines: `path:line: key: what and the fix`."""

    def placed(fault: Fault) -> tuple[Place, str, str]:
        return _place(fault.line or _line(fault.path, lines), path), dotted(fault.path), fault.message

    texts = []
    for place, key, message in sorted(map(placed, found)):
        dashes = "--" if place == COMMAND_LINE else ""
        texts.append(_printable(f"{place.name}: {dashes + key + ': ' if key else ''}{message}"))
    return list(dict.fromkeys(texts))


def _place(line: int | Place, path: Path) -> Place:
    return line if isinstance(line, Place) else Place(0, line, f"{path}:{line}")


def _line(path: tuple[str | int, ...], lines: Lines) -> int | Place:
    """The line of `path`, or of what holds it: a missing key has none of its own."""
    while path not in lines:
        path = path[:-1]
    return lines[path]


def _source(key: str, path: Path, lines: Lines) -> str:
    """Where the key stands and, of a mapping, the first place in each layer above that changed something in it."""
    places = sorted(_place(line, path) for place, line in lines.items() if place[:1] == (key,))
    own = _place(lines[key,], path)
    above = {place.layer: place.name for place in reversed(places) if place.layer > own.layer}
    return " and ".join([own.name, *(above[layer] for layer in sorted(above))])


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
