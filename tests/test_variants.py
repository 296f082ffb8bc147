from __future__ import annotations

import math
from pathlib import Path

import pytest

from scalesearch.cost import cost
from scalesearch.network import Network, load
from scalesearch.scaling import Coefficients, Rounding, scale
from scalesearch.variants import family, family_rows, write

PAPER = Coefficients(1.2, 1.1, 1.15)
SIZES = ("macs", "params", "activations")
COLUMNS = ["name", "phi", "nominal_ratio", "product_ratio", *SIZES, "macs_ratio", "depth", "resolution", "file"]


def test_every_variant_is_the_scaled_baseline_at_its_counted_cost(
    baseline: Network, roundings: dict[str, Rounding]
) -> None:
    for rounding in roundings.values():
        variants = family(baseline, PAPER, [1, 2.5, 4], rounding=rounding)
        assert [variant.phi for variant in variants] == [1, 2.5, 4]
        for variant in variants:
            assert variant.network == scale(baseline, PAPER, variant.phi, rounding=rounding)
            assert variant.cost == cost(variant.network)
            assert variant.macs_ratio == cost(variant.network).macs / cost(baseline).macs


@pytest.mark.parametrize("phis", [[0], [0.0, -0.0, 0], [1, 0, 1.0, 1]])
def test_every_phi_is_there_once_and_phi_0_is_the_baseline(
    phis: list[float], baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    base = baselines["mobilenetv2"]
    variants = family(base, PAPER, phis, rounding=roundings["nearest"])
    assert [variant.phi for variant in variants] == sorted({float(phi) for phi in phis})
    assert variants[0].network == base
    assert variants[0].network.name == base.name
    assert variants[0].macs_ratio == 1


def test_a_negative_phi_makes_the_baseline_smaller(baseline: Network, roundings: dict[str, Rounding]) -> None:
    smaller, same = family(baseline, PAPER, [-1, 0], rounding=roundings["nearest"])
    assert (smaller.phi, same.phi) == (-1, 0)
    assert smaller.macs_ratio < 1 == same.macs_ratio
    assert smaller.network.resolution < baseline.resolution


@pytest.mark.parametrize("phi", [20, 300, 1e6, 1e308, math.inf, -math.inf, math.nan, -40, -5000])
def test_an_absurd_phi_is_refused_by_its_name(phi: float, baseline: Network, roundings: dict[str, Rounding]) -> None:
    for rounding in roundings.values():
        with pytest.raises(ValueError, match=r"must be|are the most|raise the resolution") as refusal:
            family(baseline, Coefficients(2, 2, 2), [1, phi], rounding=rounding)
        said = str(refusal.value)
        assert said.startswith(f"phi {phi:g}: ")
        assert len(said) < 250


def test_every_file_loads_again_as_an_equal_network(
    baseline: Network, roundings: dict[str, Rounding], tmp_path: Path
) -> None:
    for rounding in roundings.values():
        directory = tmp_path / rounding.name / "deep"
        variants = family(baseline, PAPER, [-0.5, 1, 2, 3], rounding=rounding)
        write(variants, PAPER, directory, rounding=rounding)
        files = [str(row["file"]) for row in family_rows(variants, PAPER, directory)]
        assert sorted(files) == sorted(map(str, (directory / "baseline").iterdir()))
        for variant, file in zip(variants, files, strict=True):
            again = load(Path(file))
            assert again == variant.network
            assert again.name == variant.network.name == Path(file).stem
            assert cost(again) == variant.cost


def test_a_file_says_how_it_was_made(
    baselines: dict[str, Network], roundings: dict[str, Rounding], tmp_path: Path
) -> None:
    variants = family(baselines["mobilenetv2"], PAPER, [2], rounding=roundings["nearest"])
    write(variants, PAPER, tmp_path, rounding=roundings["nearest"])
    text = (tmp_path / "baseline" / "mobilenetv2_phi2.yaml").read_text()
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert "phi = 2, alpha (depth) = 1.2, beta (width) = 1.1, gamma (resolution) = 1.15" in head
    assert "depth 1.44, width 1.21, resolution 1.322; rounding: nearest" in head
    assert f"{variants[0].cost.macs:,} multiply-adds" in head
    assert f"{variants[0].cost.params:,} params" in head


def test_phis_that_differ_little_do_not_share_a_file(
    baselines: dict[str, Network], roundings: dict[str, Rounding], tmp_path: Path
) -> None:
    phis = [0, 1, 1.0000001, 0.1, 0.1 + 0.2, 0.3]
    variants = family(baselines["mobilenetv2"], PAPER, phis, rounding=roundings["nearest"])
    table = family_rows(variants, PAPER, tmp_path)
    assert len({row["file"] for row in table}) == len({row["name"] for row in table}) == 6
    assert {"mobilenetv2", "mobilenetv2_phi1", "mobilenetv2_phi0.3"} <= {row["name"] for row in table}
    write(variants, PAPER, tmp_path, rounding=roundings["nearest"])
    assert {str(path) for path in (tmp_path / "baseline").iterdir()} == {row["file"] for row in table}


def test_the_table_has_nominal_and_counted_ratios(
    baselines: dict[str, Network], roundings: dict[str, Rounding], tmp_path: Path
) -> None:
    variants = family(baselines["efficientnet_b0"], PAPER, [0, 1, 2, 3], rounding=roundings["nearest"])
    table = family_rows(variants, PAPER, tmp_path)
    for phi, (row, variant) in enumerate(zip(table, variants, strict=True)):
        assert sorted(row) == sorted(COLUMNS)
        assert row["nominal_ratio"] == 2**phi
        assert row["product_ratio"] == pytest.approx((1.2 * 1.1**2 * 1.15**2) ** phi)
        assert {name: row[name] for name in SIZES} == {name: getattr(variant.cost, name) for name in SIZES}
        assert row["macs_ratio"] == variant.cost.macs / variants[0].cost.macs
        assert row["depth"] == variant.network.depth
    assert [row["resolution"] for row in table] == [224, 258, 296, 341]
    assert [row["depth"] for row in table] == [16, 19, 23, 28]  # 16 * 1.2^phi, to the nearest


def test_writing_again_replaces_the_files(
    baselines: dict[str, Network], roundings: dict[str, Rounding], tmp_path: Path
) -> None:
    variants = family(baselines["mobilenetv2"], PAPER, [1], rounding=roundings["nearest"])
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "mobilenetv2_phi1.yaml").write_text("half a fi")
    for _ in range(2):
        write(variants, PAPER, tmp_path, rounding=roundings["nearest"])
        assert load(tmp_path / "baseline" / "mobilenetv2_phi1.yaml") == variants[0].network
        assert len(list((tmp_path / "baseline").iterdir())) == 1
