"""`fledge report RUN...`: one page about a run, or several, for eyes (HTML), as text (Markdown), for programs."""

from pathlib import Path
from typing import Any

from fledge.files import write_json, write_text
from fledge.results.blocks import Section
from fledge.results.charts import TONES
from fledge.results.compare import compared, comparison
from fledge.results.faults import faults
from fledge.results.gather import figures, gather
from fledge.results.markdown import markdown
from fledge.results.page import page
from fledge.results.planned import planned
from fledge.results.story import story, tiles


def headlines(run: Path) -> list[str]:
    """The report's headline figures, a line each."""
    return [
        f"{tile.value} {tile.label}" + (f" ({tile.note})" if tile.note else "") for tile in tiles(gather(run)).tiles
    ]


def report(runs: list[Path], html: Path | None = None) -> Path:
    """Write the report of one run, or a page that compares several; returns the page's path.

    Raises:
        ValueError: as `write` and `compare` do.
    """
    return write(runs[0], html) if len(runs) == 1 else compare(runs, html)


def write(run: Path, html: Path | None = None) -> Path:
    """Write the report of a run, HTML with Markdown and JSON beside it, and return the path of the first.

    Stages that are missing or unfinished are named in the report.

    Args:
        html: where the page goes; RUN/report.html if None.

    Raises:
        ValueError: there is no stage at all.
    """
    its = gather(run)
    values = {**figures(its), "plan": planned(its), "faults": faults(its)}
    return _write(html or run / "report.html", its.name, story(its), values)


def compare(runs: list[Path], html: Path | None = None) -> Path:
    """Write one page about several runs, as `write` does about one.

    Args:
        html: where the page goes; comparison.html in the folder of the first run if None.

    Raises:
        ValueError: a run has no stage at all, or there are more runs than colours.
    """
    if len(runs) > TONES:
        raise ValueError(f"report: {len(runs)} runs; a page tells {TONES} apart, so name fewer at a time")
    its = [gather(run) for run in runs]
    title = " / ".join(dict.fromkeys(run.name for run in its))
    return _write(html or runs[0] / "comparison.html", title, comparison(its), compared(its))


def _write(html: Path, title: str, sections: list[Section], values: dict[str, Any]) -> Path:
    if html.suffix != ".html":
        raise ValueError(f"--html {html}: the page ends with .html; .md and .json come beside it")
    html.parent.mkdir(parents=True, exist_ok=True)
    write_text(html, page(title, sections))
    write_text(html.with_suffix(".md"), markdown(title, sections))
    write_json(html.with_suffix(".json"), values)
    return html
