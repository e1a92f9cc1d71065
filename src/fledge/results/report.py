"""`fledge report RUN`: one page about a run, for eyes (report.html), for text (report.md) and for programs."""

from pathlib import Path

from fledge.files import write_json
from fledge.results.gather import figures, gather
from fledge.results.markdown import markdown
from fledge.results.page import page
from fledge.results.story import story, tiles


def headlines(run: Path) -> list[str]:
    """The report's headline figures, a line each."""
    return [
        f"{tile.value} {tile.label}" + (f" ({tile.note})" if tile.note else "") for tile in tiles(gather(run)).tiles
    ]


def write(run: Path) -> Path:
    """Write report.html, report.md and report.json into a run folder and return the path of the first.

    Stages that are missing or unfinished are named in the report. Raises ValueError if there is no stage at all.
    """
    gathered = gather(run)
    sections = story(gathered)
    write_json(run / "report.json", figures(gathered))
    (run / "report.md").write_text(markdown(gathered.name, sections), encoding="utf-8")
    html = run / "report.html"
    html.write_text(page(gathered.name, sections), encoding="utf-8")
    return html
