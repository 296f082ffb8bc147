from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scalesearch.cost import Budget, Cost, cost, stage_costs
from scalesearch.model import build
from scalesearch.network import Network, Stage
from scalesearch.scaling import Coefficients, Proxy, Rounding, resize, scale, shrink

pytestmark = pytest.mark.usefixtures("one_thread")


def measured(network: Network) -> Cost:
    """The cost as torch counts it on the module: nothing of it is known to `scalesearch.cost`."""
    outputs: list[int] = []
    with torch.device("meta"):
        module = build(network).eval()
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.register_forward_hook(lambda part, given, output: outputs.append(output.numel()))
        image = torch.empty(1, network.in_channels, network.resolution, network.resolution)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            logits = module(image)
    assert logits.shape == (1, network.num_classes)
    macs, odd = divmod(counter.get_total_flops(), 2)
    assert not odd
    return Cost(macs, sum(parameter.numel() for parameter in module.parameters()), sum(outputs))


def squeezed(network: Network, ratio: float) -> Network:
    return replace(network, stages=tuple(replace(stage, squeeze_excite=ratio) for stage in network.stages))


def test_every_baseline_costs_what_torch_counts(baseline: Network) -> None:
    assert cost(baseline) == measured(baseline)


@pytest.mark.parametrize("ratio", [0.25, 1 / 24, 1])
def test_squeeze_and_excitation_in_every_stage_costs_what_torch_counts(baseline: Network, ratio: float) -> None:
    network = squeezed(baseline, ratio)
    assert cost(network) == measured(network)
    assert cost(network).params > cost(squeezed(baseline, 0)).params


@pytest.mark.parametrize("triple", [(1.2, 1.1, 1.15), (2, 1, 1), (1, 1.4, 1), (1, 1, 1.4), (1.35, 1.15, 1.05)])
def test_scaled_networks_cost_what_torch_counts(
    triple: tuple[float, float, float], baseline: Network, roundings: dict[str, Rounding]
) -> None:
    for rounding in roundings.values():
        network = scale(baseline, Coefficients(*triple), 1, rounding=rounding)
        assert cost(network) == measured(network), rounding.name


@pytest.mark.parametrize("phi", [-1, 0.5, 3])
def test_other_phis_cost_what_torch_counts(phi: float, baseline: Network, roundings: dict[str, Rounding]) -> None:
    network = scale(squeezed(baseline, 0.25), Coefficients(1.2, 1.1, 1.15), phi, rounding=roundings["nearest"])
    assert cost(network) == measured(network)


def test_proxies_and_their_scaled_networks_cost_what_torch_counts(
    baseline: Network, roundings: dict[str, Rounding], proxies: dict[str, Proxy]
) -> None:
    for proxy in proxies.values():
        for rounding in roundings.values():
            fitted = replace(baseline, in_channels=1, num_classes=10)
            small, grain = shrink(fitted, proxy, rounding)
            for network in (small, scale(small, Coefficients(1.2, 1.1, 1.15), 1, rounding=grain)):
                assert cost(network) == measured(network)


@pytest.mark.parametrize("resolution", [1, 2, 3, 7, 17, 33])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_odd_sides_kernels_and_strides_cost_what_torch_counts(resolution: int, kernel: int, stride: int) -> None:
    network = Network(
        name="odd",
        resolution=max(resolution, 2 * stride),
        stem=Stage(block="conv_norm", channels=5, kernel=kernel, stride=2),
        stages=(
            Stage(block="mbconv", channels=7, repeats=2, kernel=kernel, stride=stride, expand=2.5, squeeze_excite=0.3),
            Stage(block="preact_bottleneck", channels=9, repeats=2, kernel=kernel, expand=0.3, squeeze_excite=0.1),
            Stage(block="conv", channels=6, kernel=kernel, repeats=2),
        ),
        head=Stage(block="norm", channels=6),
        activation="gelu",
        in_channels=2,
        num_classes=3,
    )
    assert cost(network) == measured(network)


def test_published_parameters_of_mobilenetv2(
    baselines: dict[str, Network], reference: Callable[[str], list[dict[str, str]]]
) -> None:
    (row,) = (row for row in reference("baselines") if row["model"] == "MobileNetV2 1.0")
    counted = cost(baselines["mobilenetv2"])
    assert counted.params == int(row["params_exact_other"]) == 3_504_872
    assert counted.macs / 1e6 == pytest.approx(float(row["multadds_M_published"]), rel=0.01)


def test_preresnet29_at_six_times_its_depth_is_the_published_preresnet164(
    baselines: dict[str, Network], roundings: dict[str, Rounding], reference: Callable[[str], list[dict[str, str]]]
) -> None:
    (row,) = (row for row in reference("baselines") if row["model"].startswith("PreAct ResNet-164"))
    network = resize(baselines["preresnet29"], depth=6, rounding=roundings["released"])
    assert 3 * network.depth + 2 == 164
    assert cost(network).params == int(row["params_exact_other"]) == 1_726_388
    # 255.1 M is published: 3 % more than the convolutions and the linear layer have, whatever else it counts.
    assert cost(network).macs / 1e6 == pytest.approx(float(row["multadds_M_published"]), rel=0.03)


def test_parts_add_up_to_the_whole_in_the_order_of_the_forward_pass(baseline: Network) -> None:
    rows = stage_costs(baseline)
    assert [row for row, _ in rows] == [*(row for row, _ in baseline.rows()), "classifier"]
    for metric in ("macs", "params", "activations"):
        assert sum(getattr(part, metric) for _, part in rows) == getattr(cost(baseline), metric)


@pytest.mark.parametrize(
    ("given", "hint"), [("mbconvv", "did you mean 'mbconv'?"), ("preact_botleneck", "did you mean"), ("zzz", "")]
)
def test_an_unknown_block_is_refused_with_the_nearest_name(given: str, hint: str, baseline: Network) -> None:
    broken = replace(baseline, stages=(*baseline.stages, replace(baseline.stages[-1], block=given)))
    with pytest.raises(ValueError, match="known blocks: conv, conv_norm") as refusal:
        cost(broken)
    said = str(refusal.value)
    assert said.startswith(f"baseline {baseline.name!r}: stages")
    assert f".block is {given!r}; " in said
    assert hint in said
    assert ("did you mean" in said) == bool(hint)


def test_a_head_of_norm_that_cannot_stand_there_is_refused(baselines: dict[str, Network]) -> None:
    base = baselines["preresnet29"]
    with pytest.raises(ValueError, match="baseline 'preresnet29': head: channels is 128; a norm keeps the 256"):
        cost(replace(base, head=replace(base.head, channels=128)))


@pytest.mark.parametrize(
    ("ratio", "admitted"), [(2, True), (2.2, True), (1.8, True), (2.2 + 1e-6, False), (1.8 - 1e-6, False), (0, False)]
)
def test_the_edges_of_a_budget_belong_to_it(ratio: float, admitted: bool) -> None:
    assert Budget(2.0, 0.1).admits(ratio) is admitted


def test_a_budget_without_tolerance_admits_its_ratio_only() -> None:
    assert Budget(3.0, 0.0).admits(3.0)
    assert not Budget(3.0, 0.0).admits(3.0001)
