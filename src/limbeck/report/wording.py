"""How the report words numbers: percent, durations, memory, counts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

NO_BREAK = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
ABSENT = "\N{EN DASH}"


def count(number: int, noun: str) -> str:
    """A count with its noun: `1 image`, `1,797 images`."""
    return f"{number:,}{NO_BREAK}{noun}" + ("" if number == 1 else "s")


def thousands(number: int) -> str:
    """A count without its noun: `1,797`."""
    return f"{number:,}"


def number(value: float) -> str:
    """A plain number to four significant digits; a dash where it is not finite."""
    if not math.isfinite(value):
        return ABSENT
    return f"{value:,.4g}".replace("-", MINUS)


def percent(value: float, decimals: int = 0) -> str:
    """A share as percent: `42 %`; a positive share that rounds to nothing reads `under 1 %`."""
    if not math.isfinite(value):
        return ABSENT
    if decimals == 0 and 0 < value < 0.005:
        return f"under{NO_BREAK}1{NO_BREAK}%"
    shown = f"{100 * value:,.{decimals}f}"
    if float(shown.replace(",", "")) == 0:
        shown = shown.removeprefix("-")
    return shown.replace("-", MINUS) + f"{NO_BREAK}%"


def fraction(value: float) -> str:
    """A label fraction as percent with no more digits than it needs: `0.5 %`, `10 %`."""
    return f"{100 * value:.3g}{NO_BREAK}%"


def points(value: float) -> str:
    """A difference of accuracies in percentage points, with its sign: `+0.2`, `0.0`."""
    if not math.isfinite(value):
        return ABSENT
    shown = f"{100 * value:+.1f}"
    return "0.0" if float(shown) == 0 else shown.replace("-", MINUS)


def interval(low: float, high: float) -> str:
    """The bounds of an interval of differences: `-0.4 to +0.8`."""
    return f"{points(low)} to {points(high)}"


def gain(mean: float, low: float | None, high: float | None) -> str:
    """A difference with its interval: `+0.2 points (95 % interval -0.4 to +0.8)`."""
    if low is None or high is None:
        return f"{points(mean)}{NO_BREAK}points (no interval: one seed)"
    return f"{points(mean)}{NO_BREAK}points (95{NO_BREAK}% interval {interval(low, high)})"


def duration(seconds: float) -> str:
    """A time in its two largest units: `0.4 s`, `2 min 14 s`, `1 h 03 min`."""
    if not math.isfinite(seconds):
        return ABSENT
    if seconds < 9.95:
        return f"{seconds:.1f}{NO_BREAK}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest}{NO_BREAK}s"
    if minutes < 60:
        return f"{minutes}{NO_BREAK}min{NO_BREAK}{rest:02d}{NO_BREAK}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,}{NO_BREAK}h{NO_BREAK}{minutes:02d}{NO_BREAK}min"


def memory(size: int) -> str:
    """A size in bytes: `340 MiB`, `1.2 GiB`."""
    if size < 2**30:
        return f"{size / 2**20:,.0f}{NO_BREAK}MiB"
    return f"{size / 2**30:,.1f}{NO_BREAK}GiB"


def size(stored: int) -> str:
    """A size in bytes, in decimal units: `512 B`, `64.0 kB`, `1.2 GB`."""
    if stored < 1000:
        return f"{stored}{NO_BREAK}B"
    value, units = stored / 1000, ["kB", "MB", "GB", "TB"]
    while value >= 999.95 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:,.1f}{NO_BREAK}{units[0]}"


def words(name: str) -> str:
    """A camelCase name as words: `distilledSet` reads `Distilled set`."""
    spaced = re.sub(r"(?<=[a-z0-9])[A-Z](?=[a-z])", lambda capital: f" {capital[0].lower()}", name)
    return spaced[:1].upper() + spaced[1:]


def listing(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"
