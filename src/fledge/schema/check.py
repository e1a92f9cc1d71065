"""A validator for the JSON Schema subset that `python -m fledge.schema` writes, with messages for people.

Stricter than JSON Schema in three ways: 100.0 is no integer, true is no 1, and a number has to be finite.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, NamedTuple

from fledge.arguments import STAGES
from fledge.schema import load
from fledge.schema.names import ANYWHERE, REFUSED, RETIRED


SKIP = object()
"""Stands for a value that was already refused while reading."""

TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}")
_EXPONENT = re.compile(r"([-+]?)(\d*)\.?(\d*)[eE]([-+]?)(\d+)")
_KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
_NOUNS = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "a mapping",
    "string": "text",
}


class Fault(NamedTuple):
    """A mistake in a recipe: where in the mapping, what is wrong, and the line or place if it is not the path's."""

    path: tuple[str | int, ...]
    message: str
    line: Any = None


def dotted(path: tuple[str | int, ...]) -> str:
    """The way a key is written in messages: `datasets[0].path`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def kinds(schema: dict[str, Any]) -> set[str]:
    """The JSON types a schema allows; empty if it allows any."""
    if "enum" in schema:
        return {_KINDS.get(type(option), "null") for option in schema["enum"]}
    types = schema.get("type", [])
    return {types} if isinstance(types, str) else set(types)


def expected(schema: dict[str, Any]) -> str:
    """What a schema asks for, as words."""
    if "enum" in schema:
        return "one of " + ", ".join(option if isinstance(option, str) else _show(option) for option in schema["enum"])
    return " or ".join(_NOUNS[kind] for kind in sorted(kinds(schema) - {"null"})) or "any value"


def faults(value: Any, schema: dict[str, Any], path: tuple[str | int, ...] = ()) -> Iterator[Fault]:
    """Every fault of `value` and of what it contains."""
    if value is SKIP:
        return
    if message := _scalar_fault(value, schema):
        yield Fault(path, message)
    elif isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield Fault(path, "the list is empty")
        for index, item in enumerate(value):
            yield from faults(item, schema.get("items", {}), (*path, index))
    elif isinstance(value, dict):
        yield from _mapping_faults(value, schema, path)


def redacted(text: str) -> str:
    """`text` without tokens."""
    return TOKEN.sub("hf_...", text)


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing if no known name is near."""
    near = get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _mapping_faults(value: dict[str, Any], schema: dict[str, Any], path: tuple[str | int, ...]) -> Iterator[Fault]:
    schema = _of_its_kind(value, schema)
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    near = set()
    for key, item in value.items():
        place = (*path, key)
        if TOKEN.search(key):
            yield Fault(path, ANYWHERE["token"])
        elif key in properties:
            yield from faults(item, properties[key], place)
        elif key in ANYWHERE:
            yield Fault(place, ANYWHERE[key])
        elif others is False:
            near.update(get_close_matches(key, properties, 1))
            yield Fault(place, _unknown(key, place, schema))
        else:
            yield from faults(item, others, place)
    for key in schema.get("required", ()):
        # A misspelt key is one fault, not two.
        if key not in value and key not in near:
            yield Fault((*path, key), "missing; " + properties[key].get("description", expected(properties[key])))


def _of_its_kind(value: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with `allOf` rules, cut down to the properties that the rule for this value leaves it."""
    for rule in schema.get("allOf", ()):
        condition = rule["if"]
        if all(
            value[name] == part["const"] if name in value else name not in condition.get("required", ())
            for name, part in condition["properties"].items()
        ):
            names = rule["then"]["propertyNames"]["enum"]
            return schema | {"properties": {name: schema["properties"][name] for name in names}}
    return schema


def _unknown(key: str, path: tuple[str | int, ...], schema: dict[str, Any]) -> str:
    name = ".".join(part for part in path if isinstance(part, str))
    if reason := REFUSED.get(name) or RETIRED.get(name):
        return reason
    if len(path) == 1 and (elsewhere := [f"{stage}.yaml" for stage in STAGES if key in load(stage)["properties"]]):
        return f"no key of this stage; it belongs in {' or '.join(elsewhere)}"
    if near := suggestion(key, schema["properties"]):
        return "unknown key" + near
    if "title" in schema:
        return f"unknown key; {schema['title']} --help lists the keys"
    return f"unknown key; known are {', '.join(schema['properties'])}"


def _scalar_fault(value: Any, schema: dict[str, Any]) -> str | None:
    if isinstance(value, str) and TOKEN.search(value):
        return ANYWHERE["token"]
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    allowed = kinds(schema)
    if isinstance(value, str) and (number := _number_in(value, allowed)):
        return f"{value} is text to YAML; write {number}"
    if "enum" in schema:
        return _enum_fault(value, schema)
    kind = _KINDS.get(type(value), "null")
    if allowed and kind not in allowed and not (kind == "integer" and "number" in allowed):
        return f"expected {expected(schema)}, not {_show(value)}{_type_hint(value, allowed)}"
    if kind in ("integer", "number"):
        return _range_fault(value, schema)
    return "the text is empty" if kind == "string" and len(value) < schema.get("minLength", 0) else None


def _enum_fault(value: Any, schema: dict[str, Any]) -> str | None:
    options = schema["enum"]
    # 1 == True in Python, so equality alone would let `bf16: 1` pass.
    if any(type(value) is type(option) and value == option for option in options):
        return None
    if value is False and (word := next((word for word in ("no", "NO") if word in options), None)):
        return f'YAML reads a plain no or off as false; write "{word}" in quotes'
    words = [option for option in options if isinstance(option, str)]
    near = suggestion(value, words) if isinstance(value, str) else ""
    # Forty optimizers would bury the suggestion.
    known = "a known value" if near and len(options) > 12 else expected(schema)
    return f"{_show(value)} is not {known}{near}"


def _range_fault(value: float, schema: dict[str, Any]) -> str | None:
    if "minimum" in schema and value < schema["minimum"]:
        return f"must be at least {schema['minimum']}, not {value}"
    if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
        return f"must be above {schema['exclusiveMinimum']}, not {value}"
    if "maximum" in schema and value > schema["maximum"]:
        return f"must be at most {schema['maximum']}, not {value}"
    if "not" in schema and value == schema["not"]["const"]:
        return f"must not be {value}"
    return None


def _number_in(text: str, allowed: set[str]) -> str | None:
    """The YAML spelling of a number that reached us as text, where a number is wanted or nothing is known."""
    if allowed and not allowed & {"integer", "number"}:
        return None
    match = _EXPONENT.fullmatch(text)
    if not match and not allowed:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    if "number" not in allowed and number.is_integer() and allowed:
        return str(int(number))
    if not match:
        return text
    sign, whole, fraction, exponent_sign, exponent = match.groups()
    return f"{sign}{whole or 0}.{fraction or 0}e{exponent_sign or '+'}{exponent}"


def _type_hint(value: Any, allowed: set[str]) -> str:
    if value is None:
        return "; give a value or delete the key"
    if isinstance(value, float) and "integer" in allowed and value.is_integer():
        return f"; write {int(value)}"
    if "boolean" in allowed and str(value).lower() in ("true", "false", "0", "1"):
        return f"; write {'true' if str(value).lower() in ('true', '1') else 'false'}"
    return "; put it in quotes" if "string" in allowed and isinstance(value, bool | int | float) else ""


def _show(value: Any) -> str:
    # Redacted first: half a token would no longer look like one.
    text = redacted(json.dumps(value, ensure_ascii=False, default=lambda _: "..."))
    return text if len(text) <= 60 else text[:57] + "..."
