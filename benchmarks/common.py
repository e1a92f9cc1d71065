"""What the benchmarks of this folder share: every way in a process of its own, in turn; medians, ratios, the page."""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]
PAGE = ROOT / "benchmarks" / "README.md"
COLOURS = ("#2a6fb0", "#c2571a", "#4d8f3a", "#8a5cb8")
STYLE = "text{font:11px sans-serif;fill:#555}.line{fill:none;stroke-width:1.5}.grid,.axis{stroke:#ccc}"
Figures = dict[str, Any]
Way = Callable[[argparse.Namespace], Figures]


def parser(doc: str, compares: bool = True) -> argparse.ArgumentParser:
    """--rounds, --json, and the run folder of the demo, whose models and data are used; --ways if it `compares`."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("run", type=Path, nargs="?", default=Path("runs/tang-poems"), help="runs/tang-poems if left out")
    if compares:
        made.add_argument("--ways", nargs="+", metavar="WAY", help="some of the table's; all if left out")
    made.add_argument("--way", help=argparse.SUPPRESS)
    made.add_argument("--round", type=int, default=0, help=argparse.SUPPRESS)
    return outputs(made)


def outputs(options: argparse.ArgumentParser, rounds: int = 3) -> argparse.ArgumentParser:
    """With --rounds, --json and --page, which every benchmark has."""
    options.add_argument("--rounds", type=int, default=rounds, help=f"of each, interleaved; {rounds} if left out")
    options.add_argument("--json", type=Path, metavar="PATH", help="write the figures here too")
    options.add_argument("--page", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)} too")
    return options


def parsed(options: argparse.ArgumentParser) -> argparse.Namespace:
    """What was given; ends where there is no such run."""
    given = options.parse_args()
    if not given.run.is_dir():
        options.error(f"{given.run}: no such folder; make demo makes it")
    return given


def compare(
    options: argparse.ArgumentParser, ways: dict[str, Way], key: str, rate: bool = False, name: str | None = None
) -> None:
    """Measure every way round after round and show the table `name`, by default called like the script.

    A way gets the parsed options, `round` among them, and returns its figures, numbers in the table and anything else
    in the JSON; of `losses`, one a step, the largest difference to the first way's is shown. The last column is the
    ratio of `key` to that of the first way, or of a `rate` how many times that of each way the first's is.
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
    if losses := next(iter(found.values()))[0].get("losses"):
        for way, rounds in found.items():
            apart = (abs(one - other) for one, other in zip(losses, rounds[0]["losses"], strict=True))
            medians[way]["losses apart"] = max(apart)
    if given.rounds > 1:
        for way, rounds in found.items():
            lowest, *_, highest = sorted(figures[key] for figures in rounds)
            medians[way]["from, to"] = f"{written(lowest)}, {written(highest)}"
    first = next(iter(medians.values()))[key]
    column = f"times {next(iter(found))}'s" if not rate else f"{next(iter(found))} is, times"
    rows = [
        {"way": way, **own, column: first / own[key] if rate else own[key] / first} for way, own in medians.items()
    ]
    show(given, name or Path(sys.argv[0]).stem, rows)
    write(given.json, {"rounds": found, "medians": rows})


def show(given: argparse.Namespace, name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Print a table under its date, machine and command; with --page, also in place of the page's of that name."""
    rounds = "one round" if given.rounds == 1 else f"medians of {given.rounds} rounds, interleaved"
    head = f"{datetime.date.today()}, {machine()}, {rounds}, `{command(sys.orig_argv[1:])}`:"
    text = f"{textwrap.fill(head, 120, break_long_words=False, break_on_hyphens=False)}\n\n{table(rows)}\n"
    print(f"\n{text}")
    if given.page:
        put(PAGE, name, text)


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands between a page's two marks of that name; a page without them gets them at its end."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    old = page.read_text(encoding="utf-8")
    if begin not in old:
        old += f"\n{begin}\n{end}\n"
    before, rest = old.split(begin, 1)
    page.write_text(f"{before}{begin}\n{text}{end}{rest.split(end, 1)[1]}", encoding="utf-8")


def command(words: list[str]) -> str:
    """What was typed, without --page and where things lie on this machine."""
    kept, rest = ["python"], iter(words)
    for word in rest:
        if word == "--json":
            next(rest)
        elif word == "--nanogpt":
            next(rest)
            kept += [word, "PATH"]
        elif word != "--page":
            kept.append(word)
    return " ".join(f'"{word}"' if " " in word else word for word in kept)


def machine() -> str:
    """Its cores and their name, and the rate of bf16 matrix products; or its GPU."""
    import torch

    from fledge.machine import matmul_rate, on_cpu

    if not on_cpu():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    names = [line.split(": ")[1] for line in cpuinfo() if line.startswith("model name")]
    cores, rate = len(os.sched_getaffinity(0)), matmul_rate(torch.bfloat16) / 1e12
    products = f"{rate:.2g} TFLOP/s in bf16 matrix products"
    return f"{cores} CPU cores ({', '.join([*names[:1], products])}), torch {torch.__version__}"


def cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


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
