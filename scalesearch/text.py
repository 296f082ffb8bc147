"""Numbers, durations and near words, as every message, table and page writes them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence


def count(number: float) -> str:
    """A count with its unit: 803 k, 5.29 M, 37.7 G.

    >>> count(5_288_548)
    '5.29 M'
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 3 min 05 s, 2 h 10 min.

    >>> duration(185)
    '3 min 05 s'
    """
    if not math.isfinite(seconds):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def percent(fraction: float) -> str:
    """A fraction in percent with two digits, without the sign; "-" where it is not known.

    >>> percent(0.82594)
    '82.59'
    """
    return f"{100 * fraction:.2f}" if math.isfinite(fraction) else "-"


def plural(number: int, noun: str) -> str:
    """
    >>> plural(1, "seed"), plural(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(words: Sequence[str], last: str = "and") -> str:
    """
    >>> listed(["depth", "width", "resolution"])
    'depth, width and resolution'
    """
    *others, final = words
    return f"{', '.join(others)} {last} {final}" if others else final


def near(word: object, known: Iterable[str], *, prefix: str = "") -> str:
    """What stands behind an unknown word: the nearest known one, or where none is near all of them.

    >>> near("mobilenet2", ["mobilenetv2", "resnet18"])
    "; did you mean 'mobilenetv2'?"
    >>> near("x", ["mobilenetv2", "resnet18"])
    ' (known: mobilenetv2, resnet18)'
    """
    names = list(known)
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {prefix + close[0]!r}?"
    return f" (known: {', '.join(prefix + name for name in names)})" if names else ""
