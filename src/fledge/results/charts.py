"""Line charts as inline SVG: no library, no script, and only colours that the page's theme sets."""

import math
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from fledge.results.numbers import short


Points = list[tuple[float, float]]

HEIGHT = 190
WIDTHS = {False: 360, True: 760}
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 32
MOST_DOTS = 60
TONES = 6
"""Colours that a page has: s0 to s5."""
BUCKETS = 400
"""Of a longer line the least and the greatest value of so many stretches are drawn: no peak is lost."""
LETTER = 6.2
"""Width of a letter, about: a name that does not fit its band is left to the tooltip."""


@dataclass(frozen=True)
class Chart:
    """Lines over one axis. `include`: values that the vertical axis has to reach."""

    title: str
    unit: str
    series: dict[str, Points]
    include: tuple[float, ...] = ()
    axis: str = "step"
    bands: tuple[tuple[str, float, float], ...] = ()
    """(name, from, to) on the axis: shaded behind the lines."""
    marks: tuple[tuple[str, float], ...] = ()
    """(what, where) on the axis: a dashed line each."""
    tones: dict[str, int] = field(default_factory=dict)
    """The colour of a series; its place if left out."""
    is_log: bool = False
    is_wide: bool = False

    @property
    def finite(self) -> dict[str, Points]:
        """The series with what can be drawn of them."""
        found = {name: [p for p in points if self._can_draw(p[1])] for name, points in self.series.items()}
        return {name: points for name, points in found.items() if self.series[name]}

    @property
    def not_drawn(self) -> int:
        """How many values are infinite, not a number, or not above 0 on a logarithmic axis."""
        return sum(map(len, self.series.values())) - sum(map(len, self.finite.values()))

    def tone(self, name: str) -> int:
        """The number of the series' colour."""
        return self.tones.get(name, list(self.series).index(name))

    def _can_draw(self, value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not self.is_log)


def line_chart(chart: Chart) -> str:
    """The <svg> of a chart with at least one finite point. Lines have the classes s0, s1, ... of their tones."""
    series, width = {name: thinned(points) for name, points in chart.finite.items() if points}, WIDTHS[chart.is_wide]
    steps = [step for points in series.values() for step, _ in points]
    steps += [edge for _, *edges in chart.bands for edge in edges]
    values = [value for points in series.values() for _, value in points] + list(chart.include)
    x_low, x_high = _spread(min(0, *steps), max(steps))
    if chart.is_log:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        low, high = (low, high) if high > low else (low - 1, high)
        every = max(1, math.ceil((high - low) / 5))
        y_ticks, y_low, y_high = [10.0**power for power in range(low, high + 1, every)], 10.0**low, 10.0**high
    else:
        y_low, y_high = _spread(min(values), max(values))
        y_step = _tick_step(y_low, y_high)
        y_low, y_high = math.floor(y_low / y_step) * y_step, math.ceil(y_high / y_step) * y_step
        y_ticks = _ticks(y_low, y_high, y_step)

    def x(step: float) -> float:
        return LEFT + (step - x_low) / (x_high - x_low) * (width - LEFT - RIGHT)

    def y(value: float) -> float:
        if chart.is_log:
            value, low, high = math.log10(value), math.log10(y_low), math.log10(y_high)
        else:
            low, high = y_low, y_high
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [_band(name, x(begin), x(end)) for name, begin, end in chart.bands]
    for tick in y_ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{width - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    for tick in _ticks(x_low, x_high, _tick_step(x_low, x_high, 8 if chart.is_wide else 4)):
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{short(tick)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{width - RIGHT}"/>')
    parts.append(f'<text x="{width - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(chart.axis)}</text>')
    for what, where in chart.marks:
        at = f'<path class="mark" d="M{x(where):.1f} {TOP}V{HEIGHT - BOTTOM}"><title>{escape(what)}</title></path>'
        parts.append(f'{at}<text class="mark" x="{x(where) + 3:.1f}" y="{TOP + 22}">{escape(what)}</text>')
    for name, points in series.items():
        tone = chart.tone(name)
        path = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
        parts.append(f'<path class="line s{tone}" d="M{path}"/>')
        # Few points are measurements apart, such as evaluations; many would only thicken the line.
        for step, value in points if len(points) <= MOST_DOTS else points[-1:]:
            parts.append(f'<circle class="s{tone}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.2"/>')
    return (
        f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{escape(spoken(chart))}">{"".join(parts)}</svg>'
    )


def spoken(chart: Chart) -> str:
    """The chart in a sentence, for those who hear the page."""
    lines = (
        f"{name} from {short(points[0][1])} to {short(points[-1][1])}".strip()
        for name, points in chart.finite.items()
        if points
    )
    marks = (f"{what} at {short(where)}" for what, where in chart.marks)
    return f"{chart.title} over {chart.axis}: {'; '.join([*lines, *marks])}"


def thinned(points: Points) -> Points:
    """The points, or of very many the least and the greatest value of each of BUCKETS stretches."""
    if len(points) <= 2 * BUCKETS:
        return points
    edges = [round(index * len(points) / BUCKETS) for index in range(BUCKETS + 1)]
    kept: Points = []
    for first, last in pairwise(edges):
        part = points[first:last]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends)
    return [points[0], *kept, points[-1]]


def _band(name: str, begin: float, end: float) -> str:
    box = f'<rect class="band" x="{begin:.1f}" y="{TOP}" width="{end - begin:.1f}" height="{HEIGHT - TOP - BOTTOM}">'
    fits = len(name) * LETTER < end - begin
    label = f'<text x="{(begin + end) / 2:.1f}" y="{TOP + 10}" text-anchor="middle">{escape(name)}</text>'
    return f"{box}<title>{escape(name)}</title></rect>{label if fits else ''}"


def _spread(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty."""
    return (low, high) if high > low else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)


def _tick_step(low: float, high: float, most: int = 4) -> float:
    """The smallest round step that takes at most `most` ticks from low to high."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)


def _ticks(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [index * step for index in range(first, last + 1)]
