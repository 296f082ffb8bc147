"""Every network of scalesearch/networks.csv against its library and what is published; docs/networks.py measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from conftest import script

from scalesearch.cost import cost
from scalesearch.model import build
from scalesearch.network import Network

DOCS = Path(__file__).parent.parent / "docs"
networks = script(DOCS / "networks.py")

ROWS = {row.name: row for row in networks.rows()}
measure = cache(networks.measure)

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.xdist_group("families")]  # measured once


def smallest() -> set[str]:
    """Of the rows whose networks are made of the same blocks, the one of fewest multiply-adds; the others are slow."""
    found: dict[tuple[bool, frozenset[str]], tuple[int, str]] = {}
    for name, row in ROWS.items():
        network = networks.network(row)
        blocks = bool(row.library), frozenset(stage.block for _, stage in network.rows())
        found[blocks] = min(found.get(blocks, (10**18, "")), (cost(network).macs, name))
    return {name for _, name in found.values()}


QUICK = smallest()


def parametrized(rows: Iterable[networks.Row]) -> pytest.MarkDecorator:
    cases = [pytest.param(row, id=row.name, marks=() if row.name in QUICK else pytest.mark.slow) for row in rows]
    return pytest.mark.parametrize("row", cases)


every_row = parametrized(ROWS.values())
with_library = {name: row for name, row in ROWS.items() if row.library}
every_library = parametrized(with_library.values())


def test_no_name_stands_twice_and_every_table_has_a_row(baselines: dict[str, Network]) -> None:
    assert len(ROWS) == len(networks.rows())
    unscaled = {row.baseline for row in ROWS.values() if row.depth == row.width == 1}
    assert unscaled == baselines.keys()


def test_the_readme_says_how_many_there_are() -> None:
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert f"[docs/networks.md](docs/networks.md) lists all {len(ROWS)} networks" in readme


def test_a_library_or_a_published_figure_stands_beside_every_row() -> None:
    for name, row in ROWS.items():
        assert row.library or row.published_params or row.published_macs, name
        assert bool(row.source) == bool(row.published_params or row.published_macs), name


@every_library
def test_parameters_are_the_librarys(row: networks.Row) -> None:
    assert measure(row).params == measure(row).library_params


@every_row
def test_multiply_adds_are_those_that_torch_counts(row: networks.Row) -> None:
    """On our module, and on the library's."""
    assert measure(row).macs == measure(row).torch_macs
    if row.library:
        assert measure(row).macs == measure(row).library_macs


@every_library
def test_logits_are_the_librarys_with_the_same_weights(row: networks.Row) -> None:
    assert measure(row).spread > 0.02, "the logits do not depend on the image; nothing would be compared"
    assert measure(row).difference <= 1e-4


@pytest.mark.slow
def test_a_table_has_the_epsilon_of_a_library(baselines: dict[str, Network]) -> None:
    known: dict[str, set[float]] = {}
    for row in with_library.values():
        known.setdefault(row.baseline, set()).add(measure(row).library_epsilon)
    assert [name for name, network in baselines.items() if network.norm_epsilon not in known[name]] == []


# What the comparison of logits would not let pass: shapes are the same in all of these

OTHERWISE: dict[str, tuple[str, Callable[[Network], Network]]] = {
    "relu for relu6": ("mobilenetv1_100", lambda network: replace(network, activation="relu")),
    "hard swish for swish": ("efficientnet_b0", lambda network: replace(network, activation="hardswish")),
    "epsilon": ("mobilenetv2_100", lambda network: replace(network, norm_epsilon=1e-3)),
    "activation of a row": ("mobilenetv3_large_100", lambda network: in_stage(network, 3, activation="hardswish")),
    "place of a stride": (
        "resnet18",
        lambda network: in_stage(in_stage(network, 1, stride=1), 2, stride=4),
    ),
    "pooling": (
        "resnet50",
        lambda network: replace(network, stem=(network.stem[0], replace(network.stem[1], kernel=5))),
    ),
    "heads": ("vit_tiny_patch16_224", lambda network: in_stage(network, 0, heads=6)),
}


def in_stage(network: Network, index: int, **fields: object) -> Network:
    stages = list(network.stages)
    stages[index] = replace(stages[index], **fields)
    return replace(network, stages=tuple(stages))


@pytest.mark.parametrize("change", OTHERWISE)
def test_the_comparison_of_logits_sees(change: str) -> None:
    name, changed = OTHERWISE[change]
    made = replace(networks.network(ROWS[name]), resolution=64)
    theirs, _ = networks.pair(ROWS[name], made)
    other = changed(replace(made, norm_epsilon=networks.epsilon(theirs)))
    assert networks.compare(theirs, build(other), made)[0] > 1e-3


# Published figures


def test_published_figures_are_met() -> None:
    for name, row in ROWS.items():
        for figure, (counted, published) in networks.figures(row).items():
            met = networks.as_printed(counted, published) or (name, figure) in networks.OTHER_COUNTS
            assert met, (name, figure, counted, published)


@pytest.mark.parametrize(("name", "figure"), networks.OTHER_COUNTS)
def test_every_exception_is_needed_and_as_large_as_said(name: str, figure: str) -> None:
    counted, published = networks.figures(ROWS[name])[figure]
    assert not networks.as_printed(counted, published)
    assert round(float(counted / published - 1) * 100, 1) == networks.OTHER_COUNTS[name, figure][0]


# The page


@pytest.mark.slow
def test_the_recorded_page_is_what_is_counted_now() -> None:
    """Up to the differences of logits, which depend on the machine."""
    recorded = networks.PAGE.read_text(encoding="utf-8")
    again = networks.page({name: measure(row) for name, row in ROWS.items()})
    assert without_logits(recorded) == without_logits(again), "python docs/networks.py writes it anew"


def without_logits(page: str) -> list[str]:
    lines = [line.split(" | ") for line in page.splitlines()]
    at = next(cells.index("logits") for cells in lines if "logits" in cells)
    return [" | ".join(cells[:at] + cells[at + 1 :]) for cells in lines]
