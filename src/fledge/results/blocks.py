"""What a page is made of: sections of blocks; page.py and markdown.py say how they look."""

from dataclasses import dataclass
from typing import Any

from fledge.results.charts import Chart


@dataclass(frozen=True)
class Text:
    """A paragraph; `is_warning` if the reader must not miss it."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    value: str
    label: str
    note: str


@dataclass(frozen=True)
class Tiles:
    """Headline figures side by side."""

    tiles: list[Tile]


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first column names the rows. A line break in a cell stays one."""

    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Bars:
    """(label, length, what to write beside it)."""

    title: str
    rows: list[tuple[str, float, str]]


@dataclass(frozen=True)
class Charts:
    """Curves that belong together."""

    title: str
    charts: list[Chart]


@dataclass(frozen=True)
class Facts:
    """Nested keys and values under a title each, such as what every stage left."""

    groups: dict[str, dict[str, Any]]
    is_folded: bool = False
    """Whether a reader has to open them."""


@dataclass(frozen=True)
class Samples:
    """By form, for each prompt the answers of every model: lines of samples.jsonl."""

    groups: dict[str, list[list[dict[str, Any]]]]


@dataclass(frozen=True)
class Code:
    """Something to type."""

    text: str


Block = Text | Tiles | Table | Bars | Charts | Facts | Samples | Code


@dataclass(frozen=True)
class Section:
    """A title and what stands under it."""

    title: str
    blocks: list[Block]


def facts(groups: dict[str, dict[str, Any]], is_folded: bool = False) -> list[Block]:
    """One block of the groups that are not empty; none if all are."""
    filled = {title: values for title, values in groups.items() if values}
    return [Facts(filled, is_folded)] if filled else []


def marks_of(sample: dict[str, Any]) -> list[str]:
    """What is wrong with a sample."""
    wrong = {"not perfect": not sample.get("perfect", True), "did not stop": not sample["stopped"]}
    return [mark for mark, applies in wrong.items() if applies]
