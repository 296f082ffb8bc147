"""One way to check what people give: type and range are declared beside each field, and a refusal is one sentence.

    @checked("recipe")
    class Recipe:
        epochs: Annotated[float, between(0.01, 10_000, "passes over the training images")]

`Recipe(epochs=-1)` raises a ValueError that says "recipe.epochs is -1; it must be a number from 0.01 to 10000".
Checks of several fields together stand in `__post_init__`, which raises ValueError with a whole sentence; a field's own
validator raises one with what follows "epochs is -1; ".
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, dataclass_transform, get_args, get_origin

import pydantic
import pydantic.dataclasses
from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from scalesearch.text import near

Class = TypeVar("Class")
_SECTION = "section of the message"  # no field has this name
_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


class Must(NamedTuple):
    """Of a field: what a value must be, in words that follow "it must be", where type and range do not say it."""

    be: str


def between(low: float, high: float, about: str | None = None) -> Any:
    """Of a field: both ends may be reached; `about` says what the value means, for the help."""
    return Field(ge=low, le=high, description=about)


def at_least(low: float, about: str | None = None) -> Any:
    """Of a field: see `between`."""
    return Field(ge=low, description=about)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def checked(section: str = "", *, kw_only: bool = False) -> Callable[[type[Class]], type[Class]]:
    """A frozen dataclass whose values are checked when it is made; `section` stands before a field in messages.

    Types are strict: no string is a number and no number a flag, but a whole number may stand for any and becomes a
    float, so that 1 and 1.0 are one key.
    """

    def decorate(cls: type[Class]) -> type[Class]:
        made: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=kw_only, config=_CONFIG)(cls)
        validate = made.__init__

        @functools.wraps(validate)
        def __init__(self: Any, *positional: Any, **values: Any) -> None:  # noqa: N807
            where = values.pop(_SECTION, section)
            try:
                validate(self, *positional, **values)
            except ValidationError as error:
                raise ValueError(_sentence(error, type(self), where)) from None

        made.__init__ = __init__
        made.__section__ = section
        return typing.cast("type[Class]", made)

    return decorate


def parse(cls: type[Class], values: object, section: str | None = None) -> Class:
    """The checked dataclass of plain values, as a YAML has them. Raises: ValueError."""
    where = getattr(cls, "__section__", "") if section is None else section
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        names = ", ".join(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]
        raise ValueError(f"{where} is {_shown(values)}; it must be a group of settings: {names}")
    known(values, [field.name for field in dataclasses.fields(cls)], where)  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    nested = {key for key in values if hasattr(hints[key], "__section__") and not isinstance(values[key], hints[key])}
    given = {
        key: parse(hints[key], one, _place(where, (key,))) if key in nested else one for key, one in values.items()
    }
    return cls(**given, **({_SECTION: where} if hasattr(cls, "__section__") else {}))


def value(given: object, kind: Any, name: str) -> Any:
    """A single value of the type `kind`, such as `Annotated[int, between(1, 9)]`. Raises: ValueError with `name`."""
    try:
        return TypeAdapter(kind, config=_CONFIG).validate_python(given, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(_refusal(_place(name, first["loc"]), first, kind)) from None


def known(values: Mapping[str, Any], names: list[str], section: str) -> None:
    """Refuse a key that is none of `names`. Raises: ValueError with the nearest one."""
    for key in values:
        if key not in names:
            raise ValueError(f"{_place(section, (key,))} is not a known key{near(key, names)}")


class Described(NamedTuple):
    """A field for the help: its default (`dataclasses.MISSING` where it has none), what it must be, what it means."""

    name: str
    default: Any
    must_be: str
    about: str


def described(cls: type[Any]) -> Iterator[Described]:
    """The fields of a checked dataclass, as the help and the reference print them."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        infos = [meta for meta in getattr(hints[field.name], "__metadata__", ()) if isinstance(meta, FieldInfo)]
        about = next((info.description for info in infos if info.description), "")
        yield Described(field.name, field.default, words(hints[field.name]), about)


def words(kind: Any) -> str:
    """What a value of that type must be.

    >>> words(Annotated[int, between(1, 9)])
    'a whole number from 1 to 9'
    >>> words(Literal["best", "cheapest_tied"] | None)
    'null or one of best, cheapest_tied'
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        text = next((meta.be for meta in inner[1:] if isinstance(meta, Must)), None)
        return text or words(inner[0]) + _range([m for meta in inner[1:] for m in getattr(meta, "metadata", [])])
    if origin in (Union, types.UnionType):
        others = [words(one) for one in inner if one is not type(None)]
        return " or ".join((["null"] if type(None) in inner else []) + others)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}" if len(inner) > 1 else str(inner[0])
    if kind in _WORDS:
        return _WORDS[kind]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a group of settings"
    return "a list" if origin is not None else f"a {kind.__name__}"


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    Decimal: "a number",
    str: "a string",
    bool: "true or false",
    list: "a list",
    tuple: "a list",
}


def _range(bounds: list[Any]) -> str:
    low = next((f"{bound.ge:g}" for bound in bounds if isinstance(bound, Ge)), None)
    high = next((f"{bound.le:g}" for bound in bounds if isinstance(bound, Le)), None)
    above = next((f"{bound.gt:g}" for bound in bounds if isinstance(bound, Gt)), None)
    below = next((f"{bound.lt:g}" for bound in bounds if isinstance(bound, Lt)), None)
    start = (
        f" from {low}" if low and (high or below) else f" of at least {low}" if low else f" above {above}" * bool(above)
    )
    return start + (f" to {high}" if high else f" to below {below}" if below else "")


def _sentence(error: ValidationError, cls: type[Any], section: str) -> str:
    errors = error.errors()
    # A misspelt key is missing as well: that it is not known says more.
    first = next((one for one in errors if one["type"] == "unexpected_keyword_argument"), errors[0])
    if first["type"] == "value_error" and not first["loc"]:  # of `__post_init__`: a whole sentence
        return str(first["ctx"]["error"])
    fields = [field.name for field in dataclasses.fields(cls)]
    outer, *inner = first["loc"]
    outer = fields[outer] if isinstance(outer, int) else outer  # of a value that was given by position
    name = _place(section, (outer, *inner))
    if first["type"] == "unexpected_keyword_argument":
        return f"{name} is not a known key{near(outer, fields)}"
    if first["type"] in ("missing", "missing_argument"):
        return f"{name} is missing"
    hints = typing.get_type_hints(cls, include_extras=True)
    kind = hints[outer]
    for part in inner:
        kind = _inside(kind) if isinstance(part, int) else kind
    return _refusal(name, first, kind)


def _inside(kind: Any) -> Any:
    """What a list of that type holds."""
    inner = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType, Annotated):
        return next((_inside(one) for one in inner if get_args(one)), kind)
    return inner[0] if inner else kind


def _refusal(name: str, error: Any, kind: Any) -> str:
    given = error["input"]
    if error["type"] == "value_error":  # of a field's own validator
        return f"{name} is {given!r}; {error['ctx']['error']}"
    choices = _choices(kind)
    if choices and isinstance(given, str):
        return f"{name} is {given!r}{near(given, choices)}"
    return f"{name} is {_shown(given)}; it must be {words(kind)}"


def _shown(given: object) -> str:
    return str(given) if isinstance(given, Decimal) else repr(given)


def _choices(kind: Any) -> list[str]:
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return [str(one) for one in inner]
    return [choice for one in inner for choice in _choices(one)]


def _place(section: str, place: tuple[int | str, ...]) -> str:
    name = section
    for part in place:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name
