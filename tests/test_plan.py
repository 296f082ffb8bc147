"""The plan: which networks a search trains. The training itself is tested where it is run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CONF, case, composed, study_settings
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from scalesearch.budget import Budget, Limits, Profiler
from scalesearch.cli import main
from scalesearch.config import Groups, plain
from scalesearch.cost import cost
from scalesearch.network import Network
from scalesearch.scaling import Coefficients, Proxy, Rounding, scale, shrink, uneven_channels
from scalesearch.search import BASELINE, Axis, Grid, Plan, Real, candidates, measured
from scalesearch.study import StudySettings, decisive_settings

TWICE = Budget(2.0, 0.1)
ANY = Budget(1.0, 1e6)
GRID_TABLE = "derived_phi1_grid"


def axis(start: str, stop: str, step: str) -> Axis:
    return Axis(Decimal(start), Decimal(stop), Decimal(step))


def read_grid(name: str) -> Grid:
    table = yaml.safe_load((CONF / "grid" / f"{name}.yaml").read_text())
    axes = {
        key: axis(*(str(table[key][part]) for part in ("start", "stop", "step"))) for key in ("alpha", "beta", "gamma")
    }
    return Grid(
        **axes, product=Decimal(str(table["product"])), product_tolerance=Decimal(str(table["product_tolerance"]))
    )


NNI = read_grid("nni")


def admitted(grid: Grid) -> set[tuple[Decimal, Decimal, Decimal]]:
    return {point for point in grid.points() if grid.admits(*point)}


def triples(plan: Plan) -> list[tuple[float, float, float]]:
    return [(t.alpha, t.beta, t.gamma) for candidate in plan.candidates for t in candidate.triples]


def experiment(*overrides: str) -> StudySettings:
    return study_settings(*overrides)


def planned(*overrides: str) -> Plan:
    requested = experiment(*overrides)
    network, rounding = requested.proxy_network
    return candidates(network, requested.grid, requested.budget, rounding)


@pytest.fixture(scope="module")
def default() -> Plan:
    return planned()


@pytest.fixture(scope="module")
def nni(baselines: dict[str, Network], roundings: dict[str, Rounding]) -> Plan:
    """NNI's points on B0, rounded as there, and no budget."""
    return candidates(baselines["efficientnet_b0"], NNI, ANY, roundings["released"])


# The grid


def test_nnis_grid_has_the_published_triples(reference: Callable[[str], list[dict[str, str]]]) -> None:
    published = [tuple(Decimal(row[name]) for name in ("alpha", "beta", "gamma")) for row in reference(GRID_TABLE)]
    assert len(published) == 108
    assert [point for point in NNI.points() if NNI.admits(*point)] == published


def test_a_product_at_the_very_edge_is_out_on_both_sides_whatever_binary_floats_say() -> None:
    assert abs(1.9 - 2) > 0.1 > abs(0.9 - 1)  # noise puts the one outside and the other inside
    for centre in (1, 2):
        for distance, inside in (("0.1", False), ("0.0999999", True), ("0.1000001", False)):
            grid = replace(NNI, product=Decimal(centre), product_tolerance=Decimal("0.1"))
            assert grid.admits(centre - Decimal(distance), Decimal(1), Decimal(1)) is inside
            assert grid.admits(centre + Decimal(distance), Decimal(1), Decimal(1)) is inside
    edge = (Decimal("1.9"), Decimal(1), Decimal(1))
    assert edge in NNI.points()
    assert edge not in admitted(NNI)
    assert edge in admitted(replace(NNI, product_tolerance=Decimal("0.101")))


def test_finer_steps_lose_no_point_of_coarser_ones() -> None:
    for coarse in ["0.1", "0.2", "0.25", "0.5", "1"]:
        with case(coarse):
            coarse_grid = replace(
                NNI, **{name: replace(getattr(NNI, name), step=Decimal(coarse)) for name in ("alpha", "beta", "gamma")}
            )
            halved = replace(
                coarse_grid,
                **{
                    name: replace(getattr(coarse_grid, name), step=Decimal(coarse) / 5)
                    for name in ("alpha", "beta", "gamma")
                },
            )
            assert set(coarse_grid.points()) <= set(halved.points())
            assert admitted(coarse_grid) <= admitted(NNI)


def test_a_point_does_not_depend_on_where_its_axis_starts() -> None:
    wide = replace(NNI, alpha=axis("0.5", "3", "0.05"), beta=axis("0.5", "2", "0.05"), gamma=axis("0.5", "2", "0.05"))
    assert admitted(NNI) == admitted(wide) & set(NNI.points())
    assert admitted(NNI) < admitted(wide)


@given(st.integers(10, 500), st.integers(0, 5), st.integers(1, 100), st.integers(0, 99))
def test_an_axis_holds_exact_decimals_and_its_stop_where_it_is_hit(
    start: int, count: int, step: int, more: int
) -> None:
    hundredth = Decimal("0.01")
    stop = start + count * step
    found = Axis(start * hundredth, stop * hundredth, step * hundredth).values()
    assert [str(value) for value in found] == [f"{(start + index * step) / 100:.2f}" for index in range(count + 1)]
    beyond = Axis(start * hundredth, (stop + more % step) * hundredth, step * hundredth).values()
    assert beyond == found


# The plan


def test_nnis_triples_are_the_published_networks(nni: Plan, reference: Callable[[str], list[dict[str, str]]]) -> None:
    rows = reference(GRID_TABLE)
    assert nni.points == 21 * 11 * 11
    assert nni.dropped == {"product": nni.points - 108, "impossible": 0, "budget": 0, "limits": 0}
    assert len(nni.candidates) == len({row["network_id_ceil"] for row in rows}) == 65
    owner = {(t.alpha, t.beta, t.gamma): candidate for candidate in nni.candidates for t in candidate.triples}
    groups: dict[str, set[str]] = {}
    for row in rows:
        candidate = owner[float(row["alpha"]), float(row["beta"]), float(row["gamma"])]
        network = candidate.network
        groups.setdefault(row["network_id_ceil"], set()).add(candidate.id)
        assert candidate.cost.macs == int(row["macs_ceil"]), row
        assert candidate.cost.params == int(row["params_ceil"]), row
        assert candidate.ratio == pytest.approx(float(row["macs_ratio_ceil"]), abs=5e-4), row
        assert network.resolution == int(row["resolution_int"]), row
        assert " ".join(str(stage.repeats) for stage in network.stages) == row["repeats_ceil"], row
        assert candidate.coefficients.product == pytest.approx(2, abs=0.1)
        assert " ".join(str(part.channels) for _, part in network.rows()) == row["channels_stem_stages_head"], row
    assert all(len(ids) == 1 for ids in groups.values())
    assert len(set.union(*groups.values())) == 65


@pytest.mark.parametrize(("rule", "expected"), [("released", 12), ("nearest", 75)])
def test_how_many_of_nnis_triples_cost_twice_b0(
    rule: str, expected: int, baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    plan = candidates(baselines["efficientnet_b0"], NNI, TWICE, roundings[rule])
    found = triples(plan)
    assert len(found) == expected
    assert plan.dropped["budget"] == 108 - expected


def test_every_point_is_a_triple_of_one_candidate_or_counted_as_dropped(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    """Every baseline with one of the roundings and budgets, each of which has some baselines."""
    budgets = (TWICE, ANY, Budget(1.5, 0.2), Budget(7.0, 0.1))
    turns = cycle(product((roundings["released"], roundings["nearest"]), budgets))
    for baseline, (rounding, budget) in zip(baselines.values(), turns, strict=False):
        with case(baseline.name, rounding.name, budget):
            plan = candidates(baseline, NNI, budget, rounding)
            found = triples(plan)
            assert len(found) == len(set(found))
            assert len(found) + sum(plan.dropped.values()) == plan.points
            assert {tuple(Decimal(str(value)) for value in triple) for triple in found} <= admitted(NNI)
            assert len({candidate.network for candidate in plan.candidates}) == len(plan.candidates)
            assert len({candidate.id for candidate in plan.candidates} | {BASELINE}) == len(plan.candidates) + 1
            for candidate in plan.candidates:
                assert budget.admits(candidate.ratio)
                assert candidate.cost == cost(candidate.network)
                assert candidate.ratio == candidate.cost.macs / cost(baseline).macs
                for triple in candidate.triples:
                    assert scale(baseline, triple, 1, rounding=rounding) == candidate.network
                distances = [abs(triple.product - 2) for triple in candidate.triples]
                assert candidate.coefficients == candidate.triples[0]
                assert distances[0] == pytest.approx(min(distances), abs=1e-9)


def test_equal_networks_are_one_candidate_with_all_their_triples(nni: Plan) -> None:
    (deepest,) = (candidate for candidate in nni.candidates if Coefficients(2.0, 1.0, 1.0) in candidate.triples)
    assert deepest.triples[0] == Coefficients(2.0, 1.0, 1.0)  # its product is 2; the next one's is 1.95
    assert Coefficients(1.95, 1.0, 1.0) in deepest.triples


def test_the_baseline_is_the_network_itself(nni: Plan, baselines: dict[str, Network]) -> None:
    assert nni.baseline.id == BASELINE
    assert nni.baseline.network == baselines["efficientnet_b0"]
    assert nni.baseline.coefficients == Coefficients(1.0, 1.0, 1.0)
    assert nni.baseline.ratio == 1
    assert nni.baseline.cost == cost(baselines["efficientnet_b0"])


def test_the_same_request_has_the_same_plan(baselines: dict[str, Network], roundings: dict[str, Rounding]) -> None:
    for name in ("mobilenetv2", "preresnet20", "resnext50", "vit_tiny"):
        with case(name):
            one, other = (candidates(baselines[name], NNI, TWICE, roundings["nearest"]) for _ in range(2))
            assert one == other


def test_a_candidate_at_the_edge_of_the_budget_is_kept(nni: Plan, roundings: dict[str, Rounding]) -> None:
    for candidate in (nni.candidates[0], nni.candidates[20], nni.candidates[-1]):
        tolerance = abs(candidate.ratio / 2 - 1)
        for allowed, kept in ((tolerance, True), (tolerance - 1e-6, False)):
            plan = candidates(nni.baseline.network, NNI, Budget(2.0, allowed), roundings["released"])
            assert (candidate.network in {c.network for c in plan.candidates}) is kept


def test_points_that_no_network_can_have_are_counted_as_impossible(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    smallest = replace(baselines["mobilenetv2"], resolution=32)
    grid = replace(NNI, alpha=axis("1", "2", "0.5"), beta=axis("1", "2", "0.5"), gamma=axis("0.5", "1.5", "0.5"))
    plan = candidates(smallest, replace(grid, product_tolerance=Decimal(100)), ANY, roundings["nearest"])
    assert plan.dropped == {"product": 0, "impossible": 9, "budget": 0, "limits": 0}  # the nine with gamma = 0.5
    assert len(triples(plan)) == 18


def test_a_budget_that_nothing_meets_is_told_the_nearest_points(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    base = baselines["efficientnet_b0"]
    plan = candidates(base, NNI, Budget(3.0, 1e-6), roundings["released"])
    assert plan.candidates == []
    assert plan.dropped["budget"] == 108
    ratios = sorted(
        (cost(scale(base, Coefficients(*map(float, point)), 1, rounding=roundings["released"])).macs / cost(base).macs)
        for point in admitted(NNI)
    )
    nearest = sorted(ratios, key=lambda ratio: abs(math.log(ratio / 3)))[:5]
    assert [ratio for _, ratio in plan.nearest] == nearest
    for triple, ratio in plan.nearest:
        assert cost(scale(base, triple, 1, rounding=roundings["released"])).macs / cost(base).macs == ratio


def test_a_grid_without_an_admitted_point_has_no_candidates(
    baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    plan = candidates(baselines["mobilenetv2"], replace(NNI, product=Decimal(100)), TWICE, roundings["nearest"])
    assert plan.candidates == plan.nearest == []
    assert plan.dropped["product"] == plan.points


# Solved gammas


def test_a_sampler_searches_points_whose_gamma_meets_the_budget() -> None:
    requested = experiment("search=tpe", "baseline=preresnet20")
    assert requested.search.solves_gamma
    network, rounding = requested.proxy_network
    solved = candidates(network, requested.grid, requested.budget, rounding, solve_gamma=True)
    assert solved.points == len(requested.grid.alpha.values()) * len(requested.grid.beta.values())
    assert solved.dropped["product"] == 0
    assert len(solved.candidates) > 12
    found = triples(solved)
    assert len({triple[:2] for triple in found}) == len(found)
    for candidate in solved.candidates:
        for other in (-1, 1):  # no neighbouring resolution comes nearer to the budget
            side = candidate.network.resolution + other
            if requested.grid.gamma.start <= side / network.resolution <= requested.grid.gamma.stop:
                near = cost(replace(candidate.network, resolution=side)).macs / solved.baseline.cost.macs
                assert abs(candidate.ratio - 2) <= abs(near - 2)


# What the real network may need


def test_a_triple_whose_real_variant_exceeds_a_limit_is_dropped_by_its_own_rule(
    baselines: dict[str, Network], roundings: dict[str, Rounding], proxies: dict[str, Proxy]
) -> None:
    base, rounding, profiler = baselines["mobilenetv2"], roundings["nearest"], Profiler(batch_size=16)
    proxy, grain = shrink(base, proxies["small"], rounding)
    free = candidates(proxy, NNI, TWICE, grain)
    needed = {triple: cost(scale(base, triple, 1, rounding=rounding)).params for triple in all_triples(free)}
    limit = sorted(needed.values())[len(needed) // 2]
    real = Real(base, rounding, Limits(params=limit), profiler)
    plan = candidates(proxy, NNI, TWICE, grain, real=real)
    assert set(all_triples(plan)) == {triple for triple, params in needed.items() if params <= limit}
    assert plan.dropped == free.dropped | {"limits": sum(params > limit for params in needed.values())}
    assert plan.dropped["limits"] > 0 < len(plan.candidates)
    nearest = sorted(params / limit for params in needed.values() if params > limit)[:5]
    assert [share for _, share, _ in plan.excess] == nearest
    assert {metric for *_, metric in plan.excess} == {"params"}
    assert candidates(proxy, NNI, TWICE, grain, real=real._replace(limits=Limits())) == free


def test_a_limit_that_no_variant_meets_leaves_nothing(
    baselines: dict[str, Network], roundings: dict[str, Rounding], proxies: dict[str, Proxy]
) -> None:
    for metric in ["macs", "memory", "training_memory"]:
        with case(metric):
            base = baselines["preresnet20"]
            proxy, grain = shrink(base, proxies["small"], roundings["nearest"])
            grid = read_grid("quick")
            free = candidates(proxy, grid, TWICE, grain)
            real = Real(base, roundings["nearest"], Limits(**{metric: 10.0}), Profiler(batch_size=16))
            plan = candidates(proxy, grid, TWICE, grain, real=real)
            assert plan.candidates == []
            assert plan.dropped["limits"] == len(all_triples(free)) > 0
            assert all(share > 1 for _, share, _ in plan.excess)


def test_a_measured_plan_has_the_footprint_of_its_networks(default: Plan) -> None:
    profiler = Profiler(batch_size=64)
    plan = measured(default._replace(candidates=default.candidates[:2]), profiler)
    for before, after in zip((default.baseline, *default.candidates), (plan.baseline, *plan.candidates), strict=False):
        assert after.footprint == profiler.footprint(before.network)
        assert after.sizes() == before.sizes() | profiler.footprint(before.network)._asdict()
        assert replace(after, footprint=None) == before


def test_limits_make_another_study_and_their_absence_does_not() -> None:
    requested = experiment()
    assert requested.limits == Limits()
    named = experiment("budget.params=5M", "budget.memory=64MiB")
    assert named.limits == Limits(params=5e6, memory=64 * 2**20)
    assert named.study != requested.study
    assert "params" not in decisive_settings(requested.values)["budget"]
    before_limits_were_known = {**requested.values, "budget": {"macs_ratio": 2, "tolerance": 0.1}}
    assert decisive_settings(before_limits_were_known) == decisive_settings(requested.values)


def test_a_limit_that_is_none_is_refused() -> None:
    cases = [
        ("budget.params=5X", "budget.params is '5X'; it must be a number such as"),
        ("budget.training_memory=true", "budget.training_memory is True; it must be bytes"),
        ("+budget.latency=5", "budget.latency is not a known key; did you mean 'latency_ms'"),
        ("~budget.tolerance", "budget.tolerance is missing"),
    ]
    for override, words in cases:
        with case(override, words), pytest.raises(ValueError, match=words):
            experiment(override)


@pytest.mark.usefixtures("in_this_process")
def test_the_plan_says_what_limits_have_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], brief_latencies: None
) -> None:
    def plan(*overrides: str) -> tuple[int, dict[str, Any], str]:
        with pytest.raises(SystemExit) as ended:
            main(["plan", "grid=quick", f"workspace={tmp_path}", *overrides, "--json"])
        out, shown = capsys.readouterr()
        return int(ended.value.code or 0), json.loads(out), shown

    code, answer, shown = plan("budget.params=6M", "budget.memory=1GiB")
    assert code == 0
    assert answer["limits"] == {"params": 6e6, "memory": 2**30}
    beyond = answer["dropped"]["limits"]
    assert 0 < beyond < beyond + len(answer["candidates"])
    assert f"{beyond} whose variant at phi = 1 needs more than budget.params=6M or budget.memory=1GiB" in shown
    assert {"memory", "training_memory", "latency_ms"} <= answer["candidates"][0].keys()
    code, same, _ = plan("budget.params=6M", "budget.memory=1GiB")
    assert same | {"estimated_seconds": 0} == answer | {"estimated_seconds": 0}  # latencies are not measured again
    code, nothing, shown = plan("budget.params=1M")
    assert code == 5
    assert nothing["candidates"] == []
    assert nothing["excess"][0]["share"] > 1
    assert f"no candidate: of {nothing['dropped']['limits']} triples that met the budget" in shown
    assert f"the nearest: {nothing['excess'][0]['share']:.3g} x budget.params (alpha=" in shown


def all_triples(plan: Plan) -> list[Coefficients]:
    return [Coefficients(*triple) for triple in triples(plan)]


# What is shipped


def test_the_default_search_has_candidates_enough_all_of_twice_the_cost(default: Plan) -> None:
    assert default.baseline.network.name == "mobilenetv2"
    assert len(default.candidates) >= 10
    for candidate in default.candidates:
        assert 1.8 - 1e-9 <= candidate.cost.macs / default.baseline.cost.macs <= 2.2 + 1e-9


def test_the_default_search_has_the_extremes_and_the_papers_triple(default: Plan) -> None:
    found = {Coefficients(*triple) for triple in triples(default)}
    assert Coefficients(1.2, 1.1, 1.15) in found
    assert any(t.alpha > 1 and t.beta == t.gamma == 1 for t in found)
    assert any(t.beta > 1 and t.alpha == t.gamma == 1 for t in found)
    assert any(t.gamma > 1 and t.alpha == t.beta == 1 for t in found)


def test_no_default_candidate_needs_more_detail_than_its_images_have(default: Plan) -> None:
    resolutions = {candidate.network.resolution for candidate in default.candidates}
    assert max(resolutions) <= 28
    assert min(resolutions) == default.baseline.network.resolution
    assert len(resolutions) >= 4


def test_every_baseline_has_a_plan_by_default(baselines: dict[str, Network], roundings: dict[str, Rounding]) -> None:
    whole = composed("run")
    for baseline in baselines.values():
        with case(baseline.name):
            even = "fine" if uneven_channels(baseline, roundings["nearest"]) else "nearest"
            for group, choice in (("baseline", baseline.name), ("rounding", even)):
                table = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text())
                OmegaConf.update(whole, group, table, merge=False)
            requested = StudySettings.of(Groups(plain(whole)))
            network, rounding = requested.proxy_network
            assert network.name == baseline.name
            plan = candidates(network, requested.grid, requested.budget, rounding)
            assert len(plan.candidates) >= 5
            assert all(TWICE.admits(candidate.ratio) for candidate in plan.candidates)


def test_the_settings_grids_are_exact_decimals() -> None:
    assert experiment("grid=nni").grid == NNI
    assert experiment().grid == read_grid("default")
