"""Numbers, durations and near words, as every message, table and page writes them."""

from __future__ import annotations

import difflib
import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence


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


def percent(fraction: float, digits: int = 2) -> str:
    """A fraction in percent with so many decimals, without the sign; "-" where it is not known.

    >>> percent(0.82594), percent(0.82594, 1)
    ('82.59', '82.6')
    """
    return f"{100 * fraction:.{digits}f}" if math.isfinite(fraction) else "-"


def level(confidence: float) -> str:
    """
    >>> level(0.95), level(0.999)
    ('95 %', '99.9 %')
    """
    return f"{100 * confidence:.4g} %"


def points(difference: float) -> str:
    """A difference of two fractions in points of percent, with its sign.

    >>> points(0.0123), points(-0.0)
    ('+1.23', '+0.00')
    """
    return f"{100 * difference + 0.0:+.2f}"


def interval(
    value: float | None,
    low: float | None,
    high: float | None,
    write: Callable[[float], str] = "{:.2f}".format,
    *,
    without: str = "",
) -> str:
    """A number with the ends of its interval, or with `without` where those are not known; "-" if it is not either.

    >>> interval(0.6, 0.2, 0.8), interval(0.6, None, None), interval(0.01, -0.01, 0.03, points)
    ('0.60 (0.20 to 0.80)', '0.60', '+1.00 (-1.00 to +3.00)')
    """
    if value is None or not math.isfinite(value):
        return "-"
    if low is None or high is None or not math.isfinite(low):
        return write(value) + without
    return f"{write(value)} ({write(low)} to {write(high)})"


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


def one_line(error: BaseException) -> str:
    """What an exception says, on one line that any terminal prints as it is.

    >>> one_line(ValueError("two\\nlines, \\x1b[31mred"))
    'two lines, \\\\x1b[31mred'
    """
    try:
        words = " ".join(str(error).split())
    except Exception as again:  # somebody else's class, whose own `__str__` fails
        return f"its message cannot be shown ({type(again).__name__})"
    return printable(words)


def printable(words: str) -> str:
    """The words with what a terminal would obey or refuse, such as an escape sequence, written out; lines are kept.

    >>> printable("a\\x1b[31mred")
    'a\\\\x1b[31mred'
    """
    return "".join(one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in words)


def brief(words: str) -> str:
    """The words, and of a part that nobody would read to its end the beginning and the end.

    >>> brief("study is " + "x" * 5000)[:30], len(brief("study is " + "x" * 5000))
    ('study is xxxxxxxxxxxxxxxxxxxxx', 337)
    """
    words = re.sub(r"\S{600,}", lambda found: _middle_out(found[0]), words)
    return re.sub(r"'[^']{600,}'|\"[^\"]{600,}\"", lambda found: _middle_out(found[0]), words)


def _middle_out(word: str) -> str:
    return f"{word[:200]}[{len(word) - 300} characters more]{word[-100:]}"


def shown(name: object) -> str:
    """A path or a name as it can be printed: what no terminal shows, and no UTF-8 has, is escaped.

    >>> shown("a\\nb"), shown("caf\\u00e9"), shown("\\udcff.png")
    ('a\\\\nb', 'café', '\\\\udcff.png')
    """
    return printable(str(name).replace("\n", "\\n"))


def raised(error: BaseException) -> str:
    """An exception on one line, with its type; of a long one the beginning.

    >>> raised(KeyError("no such size"))
    "KeyError: 'no such size'"
    """
    return f"{type(error).__name__}: {one_line(error)[:300]}"


def hide_password(words: str) -> str:
    """The words without what stands between :// and @ of an address, and without a password among its parameters.

    >>> hide_password("http://me:p@ss@host/a"), hide_password("postgresql://host/db?password=x&sslmode=on")
    ('http://***@host/a', 'postgresql://host/db?password=***&sslmode=on')
    """
    words = re.sub(r"://[^\s'\"]*@", "://***@", words)  # up to the last @: a password may have one, or a slash
    return re.sub(r"(?i)\b(password|passwd|pwd|token|secret)=[^&\s'\"]+", r"\1=***", words)


def near(word: object, known: Iterable[str], *, prefix: str = "") -> str:
    """What stands behind an unknown word: the nearest known one, or where none is near all of them, up to 100.

    >>> near("mobilenet2", ["mobilenetv2", "resnet18"])
    "; did you mean 'mobilenetv2'?"
    >>> near("x", ["mobilenetv2", "resnet18"])
    ' (known: mobilenetv2, resnet18)'
    """
    names = list(known)
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {prefix + close[0]!r}?"
    return f" (known: {', '.join(prefix + name for name in names)})" if 0 < len(names) < 100 else ""


def typed(*words: str) -> str:
    """A command of ours as it is typed into a shell.

    >>> typed("ui", override("workspace", "my runs"))
    "scalesearch ui 'workspace=\"my runs\"'"
    """
    return shlex.join(["scalesearch", *words])


def metric_title(metric: str) -> str:
    """How a metric is called in sentences and on figures, by its name or the last part of "module:function".

    >>> metric_title("balanced_accuracy"), metric_title("auroc"), metric_title("my_metrics:f1")
    ('balanced accuracy', 'AUROC', 'f1')
    """
    name = metric.rpartition(":")[2]
    return {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}.get(name, name)


def override(key: str, value: object) -> str:
    """`key=value` as Hydra reads it; a shell may need it quoted once more, as `typed` does.

    >>> override("phis", [1, 2.5]), override("study", "2024"), override("workspace", "runs/a")
    ('phis=[1,2.5]', 'study="2024"', 'workspace=runs/a')
    """
    return f"{key}={_word(value)}"


def _word(value: object, *, inside: bool = False) -> str:
    """A plain value; `inside` a list or a mapping a colon would divide it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_word(inner, inside=True)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_word(inner, inside=True) for inner in value) + "]"
    if isinstance(value, str):
        keyword = value.lower() in ("null", "true", "false", "nan", "inf")
        if re.fullmatch(rf"[A-Za-z_/][\w./{'' if inside else ':'}-]*", value, re.ASCII) and not keyword:
            return value
        # a backslash is one, but before a quote it must be doubled
        return '"' + re.sub(r'(\\*)("|\Z)', lambda found: 2 * found[1] + found[2].replace('"', '\\"'), value) + '"'
    return json.dumps(value)
