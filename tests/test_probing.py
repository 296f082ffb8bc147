"""Which sizes a user's function can make is found by trying, used, and shown; through the plan, with real functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import factories
import pytest
from conftest import Ended, case

from scalesearch.network import Factory
from scalesearch.probing import grain, multiple, unscaled


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    with factories.forgotten():
        yield tmp_path


SIZES = "channels, repeats = max(4, 4 * round(4 * width)), max(1, round(2 * depth))\n"
BODY = (
    "more = [part for _ in range(repeats) for part in (nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())]\n"
    "last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]\n"
    "return nn.Sequential({stem}, *more, *last)"
)
# (the stem, what comes before it, the side, the grain)
GRAINS = {
    "any": ("nn.Conv2d(in_channels, channels, 3, padding=1)", "", 224, 1),
    "a stride of two": ("nn.Conv2d(in_channels, channels, 3, 2, 1)", "", 224, 1),
    "an odd side": ("nn.Conv2d(in_channels, channels, 3, 2, 1)", "", 223, 1),
    "a patch": ("nn.Conv2d(in_channels, channels, 4, 4)", "", 224, 4),
    "a patch of sixteen": ("nn.Conv2d(in_channels, channels, 16, 16)", "", 224, 16),
    "pixel unshuffle": (
        "nn.Sequential(nn.PixelUnshuffle(8), nn.Conv2d(64 * in_channels, channels, 1))",
        "",
        64,
        8,
    ),
    "refused by a check": (
        "nn.Conv2d(in_channels, channels, 3, 2, 1)",
        "if resolution % 32:\n    raise ValueError(f'resolution is {resolution}; it must be a multiple of 32')",
        224,
        32,
    ),
    "refused by an assertion": (
        "nn.Conv2d(in_channels, channels, 3, 2, 1)",
        "assert resolution % 24 == 0",
        96,
        24,
    ),
    "one size": ("nn.Conv2d(in_channels, channels, 3, 2, 1)", "assert resolution == 64", 64, 1),
}


def written(name: str, stem: str, before: str = "", sizes: str = SIZES) -> str:
    return factories.write(Path(), name, f"{sizes}{before}\n{BODY.format(stem=stem)}")


def test_the_grain_of_the_resolution_is_found() -> None:
    for number, (what, (stem, before, side, expected)) in enumerate(GRAINS.items()):
        with case(what):
            assert grain(factories.made(written(f"grain{number}", stem, before), resolution=side)) == expected


# (what a function is given, the multiple that its widths or depths have)
MULTIPLES = {
    "any": ("", 0.0),
    "whole channels": ("if 64 * {name} != int(64 * {name}):\n    raise ValueError('64 x {name} is not whole')", 1 / 64),
    "groups of sixteen": ("assert 64 * {name} % 16 == 0, 'groups of 16'", 0.25),
    "thirds": ("assert abs(3 * {name} - round(3 * {name})) < 1e-6", 1 / 3),
    "whole numbers": ("assert {name} == int({name})", 1.0),
    "a table": ("size = {{0.5: 1, 1.0: 2, 1.5: 3, 2.0: 4, 3.0: 6, 4.0: 8}}[{name}]", 0.5),
    "one size": ("assert {name} == 1", 0.0),
    "a fault of the code": ("if {name} not in (0.5, 1.0, 1.5, 2.0): undefined", 0.0),
}


@pytest.mark.parametrize("name", ["depth", "width"])
def test_the_multiple_of_depth_and_width_is_found(name: str) -> None:
    stem = "nn.Conv2d(in_channels, channels, 3, 2, 1)"
    for number, (what, (before, expected)) in enumerate(MULTIPLES.items()):
        with case(what):
            function = written(f"{name}s{number}", stem, before.format(name=name))
            assert multiple(factories.made(function, resolution=32), name) == pytest.approx(expected, abs=1e-6)
    assert multiple(factories.made(f"{name}s2:make", resolution=32, **{name: 2.0}), name) == 0.25


def test_dimensions_without_effect_are_found() -> None:
    stem = "nn.Conv2d(in_channels, channels, 3, 2, 1)"
    fixed = {
        "depth": ("", SIZES + "repeats = 2\n"),
        "width": ("", SIZES + "channels = 8\n"),
        "resolution": ("assert resolution == 64, 'made for 64 px'", SIZES),
        "": ("", SIZES),
    }
    for number, (name, (before, sizes)) in enumerate(fixed.items()):
        with case(name):
            found = unscaled(factories.made(written(f"fixed{number}", stem, before, sizes), resolution=64))
            assert list(found) == ([name] if name else [])
    assert "made for 64 px" in unscaled(factories.made("fixed2:make", resolution=64))["resolution"]


PLAN = "data=digits recipe.autocast=off grid.product_tolerance=0.3 budget.tolerance=0.3 executor.workers=1 --json"


@pytest.mark.usefixtures("in_this_process", "brief_latencies")
def test_a_function_of_multiples_gets_a_proxy_that_works_and_loses_no_gamma(command: Callable[..., Ended]) -> None:
    stem, before, *_ = GRAINS["refused by a check"]
    function = written("multiples", stem, before)
    code, answer, output = command(f"plan baseline.factory={function} {PLAN}")
    assert code == 0, output
    assert answer["baseline"]["resolution"] == 32
    assert answer["dropped"]["impossible"] == 0
    assert {row["resolution"] % 32 for row in answer["candidates"]} == {0}
    assert "the proxy has resolution 32 instead of 16: it takes multiples of 32 px" in output
    assert "resolutions are multiples of 32 px" in output


@pytest.mark.usefixtures("in_this_process", "brief_latencies")
def test_a_function_that_takes_multiples_of_a_width_loses_no_beta(command: Callable[..., Ended]) -> None:
    stem, before = "nn.Conv2d(in_channels, channels, 3, padding=1)", "assert 32 * width % 4 == 0, 'groups of 4'"
    function = written("grouped", stem, before, SIZES.replace("4 * round(4 * width)", "int(32 * width)"))
    code, answer, output = command(f"plan baseline.factory={function} baseline.resolution=8 proxy=none {PLAN}")
    assert code == 0, output
    assert answer["dropped"]["impossible"] == 0
    assert "widths are multiples of 0.125: grouped:make takes no others" in output
    assert len({beta for row in answer["candidates"] for _, beta, _ in row["triples"]}) > 3


@pytest.mark.usefixtures("in_this_process", "brief_latencies")
def test_points_that_cannot_be_are_counted_with_the_reason_of_the_network(command: Callable[..., Ended]) -> None:
    before = "if width > 0.3: raise ValueError(f'width {width} has no table')"
    function = written("reasons", "nn.Conv2d(in_channels, channels, 3, padding=1)", before)
    words = f"plan baseline.factory={function} baseline.resolution=16 proxy.width=0.28 {PLAN}"
    code, _, output = command(words)
    assert code == 2  # width = 1 is refused too: the function's own words say so
    assert "width 1.0 has no table" in output
    before = "if 1.1 < width < 1.3: raise ValueError(f'width {width} has no table')"
    function = written("reasons_too", "nn.Conv2d(in_channels, channels, 3, padding=1)", before)
    code, answer, output = command(f"plan baseline.factory={function} baseline.resolution=8 proxy=none {PLAN}")
    assert code == 0, output
    (reason,) = answer["impossible"]
    assert reason["points"] == answer["dropped"]["impossible"] > 0
    assert reason["reason"].startswith("ValueError: width 1.2 has no table, in reasons_too.py, line ")
    assert f"that no network can have ({reason['points']} x ValueError: width 1.2 has no table" in output


@pytest.mark.usefixtures("in_this_process", "brief_latencies")
def test_a_fault_of_the_code_at_one_point_is_no_point_that_cannot_be(command: Callable[..., Ended]) -> None:
    function = written("faulty", "nn.Conv2d(in_channels, channels, 3, padding=1)", "if depth > 1: undefined_name")
    code, answer, output = command(f"plan baseline.factory={function} baseline.resolution=8 proxy=none {PLAN}")
    assert (code, answer) == (2, {})
    assert "NameError: name 'undefined_name' is not defined" in output
    assert "faulty.py, line" in output
    assert output.count("\n") == 1


@pytest.mark.usefixtures("in_this_process", "brief_latencies")
def test_a_dimension_without_effect_is_taken_out_of_the_grid_and_the_screen_shows_it(
    command: Callable[..., Ended],
) -> None:
    function = written("shallow", "nn.Conv2d(in_channels, channels, 3, padding=1)", sizes=SIZES + "repeats = 2\n")
    code, answer, output = command(f"plan baseline.factory={function} baseline.resolution=8 proxy=none {PLAN}")
    assert code == 0, output
    assert list(answer["unscaled"]) == ["depth"]
    assert {alpha for row in answer["candidates"] for alpha, *_ in row["triples"]} == {1.0}
    assert answer["grid"]["points"] == 45  # of beta and gamma
    assert "depth changes no layer of the network: it stays at 1" in output
    sizes = "channels, repeats = 8, 2\n"
    function = written("rigid", "nn.Conv2d(in_channels, channels, 3, 2, 1)", "assert resolution == 8", sizes)
    code, _, output = command(f"plan baseline.factory={function} baseline.resolution=8 proxy=none {PLAN}")
    assert code == 2
    assert "there is nothing to search: depth changes no layer" in output


@pytest.mark.usefixtures("in_this_process", "brief_latencies")
def test_resolutions_that_compute_the_same_are_one_candidate(command: Callable[..., Ended]) -> None:
    function = written("halved", "nn.Conv2d(in_channels, channels, 3, 2, 1)")
    words = f"plan baseline.factory={function} baseline.resolution=20 proxy=none {PLAN}"
    code, answer, output = command(words)
    assert code == 0, output
    costs = [(row["macs"], row["params"], row["activations"]) for row in answer["candidates"]]
    assert len(costs) == len(set(costs))
    sides = {round(20 * gamma) for row in answer["candidates"] for *_, gamma in row["triples"]}
    assert {21, 22} <= sides  # both are 11 x 11 behind the stem
    for row in answer["candidates"]:
        assert row["resolution"] == round(20 * row["triples"][0][2])


def test_a_grain_that_a_baseline_has_is_kept_and_written(directory: Path) -> None:
    from scalesearch.config import network_of
    from scalesearch.network import load

    function = written("kept", GRAINS["a patch"][0])
    group = {"factory": function, "resolution": 224, "in_channels": 3, "num_classes": 10}
    found = network_of(group, trusted=True)
    assert isinstance(found, Factory)
    assert found.resolution_multiple == 4
    path = directory / "kept.yaml"
    path.write_text(found.to_yaml())
    assert load(path) == found
    given = network_of(group | {"resolution_multiple": 16}, trusted=True)
    assert given == replace(found, resolution_multiple=16)
