"""The report as one HTML file that asks nothing of anyone: no scripts, no fonts, no requests."""

import re
from html import escape
from typing import Any

from fledge.results.blocks import Bars, Block, Charts, Code, Facts, Samples, Section, Table, Text, Tiles, marks_of
from fledge.results.charts import Chart, line_chart
from fledge.results.numbers import plain, short
from fledge.results.style import CSS


_CHINESE = re.compile(r"[\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uff00-\uffef]+")


def page(title: str, sections: list[Section]) -> str:
    """The sections under a title, as a whole document."""
    return document(title, f"<style>{CSS}</style>", "\n".join(_section(section) for section in sections))


def document(title: str, head: str, body: str) -> str:
    """A whole HTML document: `head` and `body` are HTML, the title is text."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
{head}
</head>
<body>
<main>
<h1>{marked(title)}</h1>
{body}
</main>
</body>
</html>
"""


def _section(section: Section) -> str:
    title = f"<h2>{marked(section.title)}</h2>\n" if section.title else ""
    return f"<section>\n{title}" + "\n".join(block(part) for part in section.blocks) + "\n</section>"


def block(block: Block) -> str:
    """One block as HTML."""
    match block:
        case Text(text, is_warning):
            return f"<p{' class=warning' if is_warning else ''}>{marked(text)}</p>"
        case Tiles(tiles):
            cells = (
                f"<div><b>{marked(t.value)}</b>{marked(t.label)}<small>{marked(t.note)}</small></div>" for t in tiles
            )
            return f'<div class="tiles">{"".join(cells)}</div>'
        case Table(head, rows):
            return _table(head, rows)
        case Bars(title, rows):
            return _bars(title, rows)
        case Charts(title, charts):
            head = f"<h3>{marked(title)}</h3>\n" if title else ""
            return f'{head}<div class="charts">{"".join(map(_figure, charts))}</div>'
        case Facts(groups, is_folded):
            cards = (f"<div><h3>{marked(title)}</h3>{_facts(values)}</div>" for title, values in groups.items())
            shown = f'<div class="facts">{"".join(cards)}</div>'
            names = ", ".join(groups)
            return (
                f"<details><summary>Everything recorded of {marked(names)}</summary>{shown}</details>"
                if is_folded
                else shown
            )
        case Samples(groups):
            return "\n".join(_group(form, samples) for form, samples in groups.items())
        case Code(text):
            return f"<pre>{escape(text)}</pre>"


def _table(head: list[str], rows: list[list[str]]) -> str:
    top = "".join(f'<th scope="col">{marked(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{marked(name)}</th>{"".join(f"<td>{marked(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _bars(title: str, rows: list[tuple[str, float, str]]) -> str:
    longest = max(length for _, length, _ in rows) or 1
    body = "".join(
        f'<div>{marked(label)}</div><div class="bar"><i style="width:{length / longest:.2%}"></i></div>'
        f"<div>{marked(text)}</div>"
        for label, length, text in rows
    )
    return f'<h3>{marked(title)}</h3>\n<div class="bars">{body}</div>'


def _figure(chart: Chart) -> str:
    last = ((chart.tone(name), name, points[-1][1]) for name, points in chart.finite.items() if points)
    legend = "".join(
        f'<span class="s{tone}">{marked(name)} <b>{short(value)}</b></span>' for tone, name, value in last
    )
    why = "not finite, or not above 0 on a logarithmic axis" if chart.is_log else "not finite"
    lost = f"<small>{chart.not_drawn} values are {why} and not drawn</small>" if chart.not_drawn else ""
    caption = (
        f"<figcaption><span>{marked(chart.title)} <small>{marked(chart.unit)}</small></span>{legend}</figcaption>"
    )
    kind = ' class="broad"' if chart.is_wide else ""
    return f"<figure{kind}>{caption}<div>{line_chart(chart)}</div>{lost}</figure>"


def _facts(values: dict[str, Any]) -> str:
    items = (
        f"<dt>{marked(str(key))}</dt>"
        + (
            f'<dd class="nested">{_facts(value)}</dd>'
            if isinstance(value, dict)
            else f"<dd>{marked(plain(value))}</dd>"
        )
        for key, value in values.items()
    )
    return f"<dl>{''.join(items)}</dl>"


def _group(form: str, prompts: list[list[dict[str, Any]]]) -> str:
    rows = "\n".join(map(_answers, prompts))
    return f'<h3 class="form">{marked(form)}</h3>\n{rows}'


def _answers(samples: list[dict[str, Any]]) -> str:
    """What every model made of one prompt."""
    prompt = samples[0].get("prompt", samples[0]["title"])
    return f'<h4>{marked(prompt)}</h4>\n<div class="samples">{"".join(map(_sample, samples))}</div>'


def _sample(sample: dict[str, Any]) -> str:
    marks = "".join(f"<small>{mark}</small>" for mark in marks_of(sample))
    head = f"<h5>{marked(sample['model'])}</h5>{marks}"
    if "perfect" not in sample:
        return f'<article class="prose">{head}<p class="answer">{marked(sample["text"])}</p></article>'
    perfect = "" if sample["perfect"] else ' class="imperfect"'
    return f'<article{perfect}>{head}<p class="poem" lang="zh-Hans">{escape(sample["text"])}</p></article>'


def marked(text: str) -> str:
    """Escaped, with the Chinese in it marked as such, so that browsers choose Chinese glyphs and voices."""
    return _CHINESE.sub(r'<span lang="zh-Hans">\g<0></span>', escape(text))
