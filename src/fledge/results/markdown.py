"""The report as Markdown."""

import re
from typing import Any

from fledge.results.blocks import Bars, Block, Charts, Code, Facts, Samples, Section, Table, Text, Tiles, marks_of
from fledge.results.charts import Chart
from fledge.results.numbers import plain, short


def markdown(title: str, sections: list[Section]) -> str:
    """The sections under a title."""
    parts = [f"# {_inline(title)}"]
    for section in sections:
        if section.title:
            parts.append(f"## {section.title}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case Text(text, is_warning):
            return f"> **Note.** {_inline(text)}" if is_warning else _inline(text)
        case Tiles(tiles):
            return _table(["Figure", "Value", ""], [[tile.label, tile.value, tile.note] for tile in tiles])
        case Table(head, rows):
            return _table(head, rows)
        case Bars(title, rows):
            return _table([title, ""], [[label, text] for label, _, text in rows])
        case Charts(title, charts):
            return (f"### {_inline(title)}\n\n" if title else "") + _curves(charts)
        case Facts(groups):
            return "\n\n".join(
                f"### {_inline(title)}\n\n" + "\n".join(_facts(values)) for title, values in groups.items()
            )
        case Samples(groups):
            return "\n\n".join(_answers(form, answers) for form, group in groups.items() for answers in group)
        case Code(text):
            return _fenced(text)


def _curves(charts: list[Chart]) -> str:
    """Where each curve begins and ends; report.html draws them."""
    rows = []
    for chart in charts:
        for name, points in chart.finite.items():
            if points:
                label = ", ".join(filter(None, (chart.title, name, chart.unit)))
                lowest = min(value for _, value in points)
                rows.append([label, *map(short, (points[0][1], points[-1][1], lowest))])
    return _table(["Curve", "first", "last", "lowest"], rows)


def _answers(form: str, samples: list[dict[str, Any]]) -> str:
    """What every model made of one prompt."""
    prompt = samples[0].get("prompt", samples[0]["title"])
    parts = [f"**{_inline(prompt)}** ({_inline(form)})"]
    for sample in samples:
        marks = "".join(f", {mark}" for mark in marks_of(sample))
        parts.append(f"{_inline(sample['model'])}{marks}:\n\n{_fenced(sample['text'])}")
    return "\n\n".join(parts)


def _facts(values: dict[str, Any], depth: int = 0) -> list[str]:
    lines = []
    for key, value in values.items():
        is_nested = isinstance(value, dict)
        lines.append(f"{'  ' * depth}- {_inline(str(key))}:" + ("" if is_nested else f" {_inline(plain(value))}"))
        lines += _facts(value, depth + 1) if is_nested else []
    return lines


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([_inline(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _inline(text: str) -> str:
    """Text that Markdown takes literally, on one line."""
    return re.sub(r"([\\`*<>|\[\]#]|\b_|_\b)", r"\\\1", " ".join(text.split()))
