"""What the benchmarks of this folder share: every way in a process of its own, in turn; then medians and ratios."""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]
COLOURS = ("#2a6fb0", "#c2571a", "#4d8f3a", "#8a5cb8")
STYLE = "text{font:11px sans-serif;fill:#555}.line{fill:none;stroke-width:1.5}.grid,.axis{stroke:#ccc}"
Figures = dict[str, Any]
Way = Callable[[argparse.Namespace], Figures]


def parser(doc: str, compares: bool = True) -> argparse.ArgumentParser:
    """--rounds, --json, and the run folder of the demo, whose models and data are used; --ways if it `compares`."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("run", type=Path, nargs="?", default=Path("runs/tang-poems"), help="runs/tang-poems if left out")
    made.add_argument("--rounds", type=int, default=3, help="how often each is measured, interleaved; 3 if left out")
    if compares:
        made.add_argument("--ways", nargs="+", metavar="WAY", help="some of the table's; all if left out")
    made.add_argument("--json", type=Path, metavar="PATH", help="write the figures here too")
    made.add_argument("--way", help=argparse.SUPPRESS)
    made.add_argument("--round", type=int, default=0, help=argparse.SUPPRESS)
    return made


def parsed(options: argparse.ArgumentParser) -> argparse.Namespace:
    """What was given; ends where there is no such run."""
    given = options.parse_args()
    if not given.run.is_dir():
        options.error(f"{given.run}: no such folder; make demo makes it")
    return given


def compare(options: argparse.ArgumentParser, ways: dict[str, Way], key: str) -> dict[str, list[Figures]]:
    """Measure every way round after round and print the table; `key` is the figure whose ratio to the first is shown.

    A way gets the parsed options, `round` among them, and returns its figures, numbers in the table and anything else
    in the JSON.
    """
    given = parsed(options)
    if given.way:
        print(json.dumps(ways[given.way](given)))
        raise SystemExit
    if unknown := {*(given.ways or ())} - {*ways}:
        options.error(f"--ways: no {', '.join(sorted(unknown))}; there are {', '.join(ways)}")
    found: dict[str, list[Figures]] = {way: [] for way in ways if way in (given.ways or ways)}
    for number in range(given.rounds):
        for way in found:
            found[way].append(child([*sys.argv, "--round", str(number), "--way", way]))
    medians = {way: medians_of(rounds) for way, rounds in found.items()}
    first = next(iter(medians.values()))[key]
    rows = [{"way": way, **own, "ratio": own[key] / first} for way, own in medians.items()]
    print(f"\n{Path(sys.argv[0]).stem}: medians of {given.rounds}, interleaved; ratio of {key}\n")
    print(table(rows))
    write(given.json, {"rounds": found, "medians": rows})
    return found


def tokens_of(prepared: Path) -> Any:
    """All tokens of prepared rows, one after another."""
    import numpy as np

    from fledge.data.prepared import load_prepared

    rows = load_prepared(prepared)[0]
    return np.concatenate([rows[index]["input_ids"] for index in range(len(rows))])


def child(command: list[str]) -> Figures:
    """What a Python script prints on its last line, as JSON."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def medians_of(rounds: list[Figures]) -> dict[str, float]:
    """The median of every number."""
    numbers = [key for key, value in rounds[0].items() if isinstance(value, int | float)]
    return {key: statistics.median(figures[key] for figures in rounds) for key in numbers}


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown; numbers with four digits."""
    rows = list(rows)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([written(cell) for cell in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def written(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return "" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell)


def drawn(chart: Any) -> str:
    """A chart of fledge.results.charts as an SVG of its own."""
    from fledge.results.charts import line_chart

    styles = "".join(f".line.s{i}{{stroke:{c}}}circle.s{i}{{fill:{c}}}" for i, c in enumerate(COLOURS))
    tones = zip(chart.series, COLOURS, strict=False)
    names = "".join(
        f'<text x="60" y="{24 + 13 * i}" style="fill:{tone}">{name}</text>' for i, (name, tone) in enumerate(tones)
    )
    opened, _, rest = line_chart(chart).partition(">")
    return f'{opened} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}{styles}</style>{names}{rest}\n'


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """JSON, if a path is given."""
    if path:
        path.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
