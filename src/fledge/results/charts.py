"""Line charts as inline SVG: no library, no script, and only colours that the page's theme sets."""

import math
from dataclasses import dataclass
from html import escape

from fledge.results.numbers import short


Points = list[tuple[float, float]]

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 32
MOST_DOTS = 60


@dataclass(frozen=True)
class Chart:
    """Lines over the steps of a stage. `include`: values that the vertical axis has to reach."""

    title: str
    unit: str
    series: dict[str, Points]
    include: tuple[float, ...] = ()

    @property
    def finite(self) -> dict[str, Points]:
        """The series with what can be drawn of them."""
        return {name: [p for p in points if math.isfinite(p[1])] for name, points in self.series.items() if points}

    @property
    def not_drawn(self) -> int:
        """How many values are infinite or not a number."""
        return sum(map(len, self.series.values())) - sum(map(len, self.finite.values()))


def line_chart(chart: Chart) -> str:
    """The <svg> of a chart with at least one finite point. Lines have the classes s0, s1, ... in their order."""
    steps = [step for points in chart.finite.values() for step, _ in points]
    values = [value for points in chart.finite.values() for _, value in points] + list(chart.include)
    x_low, x_high = _spread(min(0, *steps), max(steps))
    y_low, y_high = _spread(min(values), max(values))
    y_step = _tick_step(y_low, y_high)
    y_low, y_high = math.floor(y_low / y_step) * y_step, math.ceil(y_high / y_step) * y_step

    def x(step: float) -> float:
        return LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in _ticks(y_low, y_high, y_step):
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    for tick in _ticks(x_low, x_high, _tick_step(x_low, x_high)):
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{short(tick)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">step</text>')
    for index, points in enumerate(chart.finite.values()):
        path = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
        parts.append(f'<path class="line s{index}" d="M{path}"/>')
        # Few points are measurements apart, such as evaluations; many would only thicken the line.
        for step, value in points if len(points) <= MOST_DOTS else points[-1:]:
            parts.append(f'<circle class="s{index}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.2"/>')
    label = escape(f"{chart.title} over steps")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


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
