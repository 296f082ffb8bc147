"""One sentence for each way in which a value can be wrong, and values that come out as they were given."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest
from conftest import case
from hypothesis import given
from hypothesis import strategies as st

from scalesearch.checks import Must, at_least, between, checked, described, parse, value, words


@checked("recipe", kw_only=True)
class Given:
    epochs: Annotated[float, between(0.01, 100, "passes over the images")]
    seeds: Annotated[int, at_least(1)] = 1
    schedule: Literal["one_cycle", "cosine"] = "cosine"
    resolution: Annotated[int, between(1, 4096)] | None = None
    flip: bool = False
    devices: Sequence[str] = ()
    path: Annotated[str | None, Must("null or the path of a directory")] = None

    def __post_init__(self) -> None:
        if self.seeds > 1 and self.epochs == 1:
            raise ValueError("recipe.seeds and recipe.epochs do not go together")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "below": ({"epochs": 0}, "recipe.epochs is 0; it must be a number from 0.01 to 100"),
    "above": ({"epochs": 1e3}, "recipe.epochs is 1000.0; it must be a number from 0.01 to 100"),
    "nan": ({"epochs": math.nan}, "recipe.epochs is nan; it must be a number from 0.01 to 100"),
    "inf": ({"epochs": math.inf}, "recipe.epochs is inf; it must be a number from 0.01 to 100"),
    "flag": ({"epochs": True}, "recipe.epochs is True; it must be a number from 0.01 to 100"),
    "string": ({"epochs": "1"}, "recipe.epochs is '1'; it must be a number from 0.01 to 100"),
    "null": ({"epochs": None}, "recipe.epochs is None; it must be a number from 0.01 to 100"),
    "fraction": ({"epochs": 2, "seeds": 1.0}, "recipe.seeds is 1.0; it must be a whole number of at least 1"),
    "choice": ({"epochs": 2, "schedule": "cosin"}, "recipe.schedule is 'cosin'; did you mean 'cosine'?"),
    "far choice": ({"epochs": 2, "schedule": "x"}, "recipe.schedule is 'x' (known: one_cycle, cosine)"),
    "no choice": ({"epochs": 2, "schedule": 1}, "recipe.schedule is 1; it must be one of one_cycle, cosine"),
    "or null": (
        {"epochs": 2, "resolution": 0},
        "recipe.resolution is 0; it must be null or a whole number from 1 to 4096",
    ),
    "no flag": ({"epochs": 2, "flip": 1}, "recipe.flip is 1; it must be true or false"),
    "no list": ({"epochs": 2, "devices": "abc"}, "recipe.devices is 'abc'; it must be a list"),
    "in a list": ({"epochs": 2, "devices": ["a", 3]}, "recipe.devices[1] is 3; it must be a string"),
    "own words": ({"epochs": 2, "path": 3}, "recipe.path is 3; it must be null or the path of a directory"),
    "missing": ({}, "recipe.epochs is missing"),
    "misspelt": ({"epoch": 2}, "recipe.epoch is not a known key; did you mean 'epochs'?"),
    "together": ({"epochs": 1, "seeds": 2}, "recipe.seeds and recipe.epochs do not go together"),
}


def test_every_refusal_is_one_sentence() -> None:
    for name, (values, expected) in REFUSED.items():
        with case(name):
            for make in (lambda values=values: Given(**values), lambda values=values: parse(Given, values)):
                with pytest.raises(ValueError) as refused:  # noqa: PT011
                    make()
                assert str(refused.value) == expected


def test_what_is_no_mapping_is_no_group() -> None:
    for values in (None, [1], "x", {1: 2}):
        with case(values), pytest.raises(ValueError, match=r"recipe is .*; it must be a group of settings"):
            parse(Given, values)


@given(st.floats(0.01, 100), st.integers(1, 10**6), st.booleans())
def test_what_is_right_comes_out_as_it_was_given(epochs: float, seeds: int, flip: bool) -> None:
    if epochs == 1:
        seeds = 1
    made = Given(epochs=epochs, seeds=seeds, flip=flip)
    assert (made.epochs, made.seeds, made.flip) == (epochs, seeds, flip)
    assert dataclasses.replace(made, flip=not flip).flip is not flip
    assert made == Given(epochs=epochs, seeds=seeds, flip=flip)
    assert hash(made) == hash(Given(epochs=epochs, seeds=seeds, flip=flip))


def test_a_whole_number_where_any_may_be_is_that_number() -> None:
    """1 and 1.0 are equal, and would be two keys of the ledger."""
    assert isinstance(Given(epochs=2).epochs, float)


def test_a_single_value_is_checked_the_same_way() -> None:
    kind = Annotated[int, between(1, 9)]
    assert value(3, kind, "port") == 3
    for wrong in (0, 10, 2.5, "3", True, None):
        with case(wrong), pytest.raises(ValueError, match=r"port is .*; it must be a whole number from 1 to 9"):
            value(wrong, kind, "port")


def test_the_help_says_what_the_check_says() -> None:
    rows = {row.name: row for row in described(Given)}
    assert rows["epochs"].about == "passes over the images"
    assert rows["epochs"].must_be == "a number from 0.01 to 100"
    assert rows["epochs"].default is dataclasses.MISSING
    assert rows["resolution"].default is None
    assert words(Mapping[str, int]) == "a group of settings"
