"""YAML text -> plain values and the line each came from, refusing what makes a recipe ambiguous or dangerous."""

import re
from typing import Any

import yaml

from fledge.schema.check import SKIP, Fault


Lines = dict[tuple[str | int, ...], int]
"""The path of a value -> its line, counted from 1."""

MAX_DEPTH = 20
"""Levels of nesting: no recipe needs more, and the parser recurses."""

# YAML 1.1 reads 010 as 8 and 1:30 as 90.
_SURPRISING = re.compile(r"[-+]?(0[0-9_]+|[0-9_]+(:[0-9_.]+)+)")


class Document:
    """A parsed text: `value`, `lines` and the `faults` found on the way.

    Raises:
        yaml.YAMLError: the text is not YAML.
    """

    def __init__(self, text: str) -> None:
        self.faults: list[Fault] = []
        self.lines: Lines = {}
        self._loader = _Loader(text)
        node = self._loader.get_single_node()
        self.faults += self._loader.faults
        self.value = None if node is None else self._value(node, ())

    def _value(self, node: yaml.Node, path: tuple[str | int, ...]) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if node.tag == _Loader.REFUSED:
            return SKIP
        if isinstance(node, yaml.SequenceNode):
            return [self._value(child, (*path, index)) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: tuple[str | int, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, child in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key, str):
                self.faults.append(Fault(path, "a key is one word of text, not a list or a mapping", line))
            elif key in values:
                first = self.lines[*path, key]
                self.faults.append(Fault((*path, key), f"stated twice, first on line {first}; keep one", line))
            else:
                self.lines[*path, key] = line
                values[key] = self._value(child, (*path, key))
        return values

    def _scalar(self, node: yaml.ScalarNode, path: tuple[str | int, ...]) -> Any:
        kind = node.tag.rpartition(":")[2]
        # Dates and the like stay the text they are: no key takes one.
        if kind not in ("null", "bool", "int", "float"):
            return node.value
        try:
            value = self._loader.construct_object(node)
        except ValueError:
            self.faults.append(Fault(path, "not a number that can be read; write it in decimal"))
            return SKIP
        if kind in ("int", "float") and _SURPRISING.fullmatch(node.value):
            self.faults.append(Fault(path, f"YAML reads {node.value} as {value}; write {value}, or quote it as text"))
            return SKIP
        return value


class _Loader(yaml.SafeLoader):
    """Composes nodes, with a fault instead of a value for every tag, anchor and alias."""

    REFUSED = "refused"

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.faults: list[Fault] = []
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if self._depth == MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            self.get_event()
            return self._refused(event, f"*{event.anchor}: an alias has no place in a recipe; write the value out")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            return self._refused(event, f"{tag}: a tag has no place in a recipe; write the plain value")
        if event.anchor is not None:
            return self._refused(event, f"&{event.anchor}: an anchor has no place in a recipe; write the plain value")
        return node

    def _refused(self, event: yaml.Event, message: str) -> yaml.Node:
        self.faults.append(Fault((), message, event.start_mark.line + 1))
        return yaml.ScalarNode(self.REFUSED, "", event.start_mark, event.end_mark)
