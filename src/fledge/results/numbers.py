"""Numbers as a reader wants them."""

from typing import Any


ABSENT = "–"


def plain(value: Any) -> str:
    """A whole number with separators, a fraction with four digits, a truth as yes or no, a list with commas."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 1e15):
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.4g}"
    return str(value)


def percent(value: float | None) -> str:
    """0.9213 -> 92.1%."""
    return ABSENT if value is None else f"{value:.1%}"


def fixed(value: float | None) -> str:
    """Three decimals."""
    return ABSENT if value is None else f"{value:.3f}"


def short(value: float) -> str:
    """Three digits and a unit: 3,412,345 -> 3.41M. For axes and tiles."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}".replace("e-0", "e-")


def worded(value: float) -> str:
    """Three digits and a word: 3,412,345 -> 3.41 million. For sentences."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """5025 -> 1 h 24 min; 312.4 -> 5 min 12 s; 3.2 -> 3.2 s."""
    if seconds is None:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
