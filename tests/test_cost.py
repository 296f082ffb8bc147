from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import block_networks, case
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scalesearch.cost import Cost, cost, stage_costs
from scalesearch.model import BLOCKS, build, layers
from scalesearch.network import Network, Stage, load
from scalesearch.scaling import Coefficients, Proxy, Rounding, resize, scale, shrink

PAPER = Coefficients(1.2, 1.1, 1.15)

pytestmark = pytest.mark.usefixtures("one_thread")


def measured(network: Network) -> Cost:
    """The cost as torch counts it on the module: nothing of it is known to `scalesearch.cost`."""
    outputs: list[int] = []
    with torch.device("meta"):
        module = build(network).eval()
        image = torch.empty(1, network.in_channels, network.resolution, network.resolution)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.register_forward_hook(lambda part, given, output: outputs.append(output.numel()))
        elif isinstance(part, nn.BatchNorm2d):
            part.forward = torch.clone  # nothing that torch counts, and slow without data
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = module(image)
    assert logits.shape == (1, network.num_classes)
    macs, odd = divmod(counter.get_total_flops(), 2)
    assert not odd
    return Cost(macs, sum(parameter.numel() for parameter in module.parameters()), sum(outputs))


def squeezed(network: Network, ratio: float) -> Network:
    """The network with gates in every stage whose block can have them."""
    stages = (
        replace(stage, squeeze_excite=ratio) if "squeeze_excite" in BLOCKS[stage.block].fields else stage
        for stage in network.stages
    )
    return replace(network, stages=tuple(stages))


def short(network: Network) -> Network:
    """The network with two blocks a stage at most: all of its rows and shapes, in a fraction of the time."""
    return replace(network, stages=tuple(replace(row, repeats=min(row.repeats, 2)) for row in network.stages))


WHOLE = ("mobilenetv2", "efficientnet_b0", "efficientnetv2_s", "preresnet20", "resnext50", "vit_tiny")


@pytest.mark.parametrize("name", WHOLE)
def test_whole_baselines_cost_what_torch_counts(name: str, baselines: dict[str, Network]) -> None:
    assert cost(baselines[name]) == measured(baselines[name])


def test_every_row_of_every_baseline_costs_what_torch_counts(baselines: dict[str, Network]) -> None:
    for name, network in baselines.items():
        with case(name):
            assert cost(short(network)) == measured(short(network))


def test_every_block_costs_what_torch_counts() -> None:
    for name, network in block_networks().items():
        with case(name):
            assert cost(network) == measured(network)


@pytest.mark.parametrize(("phi", "rule"), [(-1, "nearest"), (1, "released")])
def test_scaled_networks_with_gates_cost_what_torch_counts(
    phi: float, rule: str, baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    """Half of the baselines each way."""
    for name in list(baselines)[phi == 1 :: 2]:
        with case(name):
            plain = scale(short(baselines[name]), PAPER, phi, rounding=roundings[rule])
            network = squeezed(plain, 0.3)
            assert cost(network) == measured(network)
            without = squeezed(plain, 0)
            assert (cost(network).params > cost(without).params) == (network != without)


@pytest.mark.parametrize("triple", [(2, 1, 1), (1, 1.4, 1), (1, 1, 1.4), (1.35, 1.15, 1.05)])
def test_a_whole_scaled_network_costs_what_torch_counts(
    triple: tuple[float, float, float], baselines: dict[str, Network], roundings: dict[str, Rounding]
) -> None:
    for name in ("preresnet20", "vit_tiny"):
        network = scale(baselines[name], Coefficients(*triple), 1, rounding=roundings["nearest"])
        assert cost(network) == measured(network)


def test_proxies_and_their_scaled_networks_cost_what_torch_counts(
    baselines: dict[str, Network], roundings: dict[str, Rounding], proxies: dict[str, Proxy]
) -> None:
    """Every proxy of one baseline of a kind, and the smallest of every other, itself or scaled by turns."""
    for index, (name, baseline) in enumerate(baselines.items()):
        fitted = short(replace(baseline, in_channels=1, num_classes=10))
        for proxy in proxies.values() if name in WHOLE else [proxies["small"]]:
            small, grain = shrink(fitted, proxy, roundings["nearest"])
            both = [small, scale(small, PAPER, 1, rounding=grain)]
            for network in both if name in WHOLE else [both[index % 2]]:
                with case(name, proxy):
                    assert cost(network) == measured(network)


def test_every_rule_scales_every_proxy_of_every_baseline(
    baselines: dict[str, Network], roundings: dict[str, Rounding], proxies: dict[str, Proxy]
) -> None:
    """All that a plan can be made of is a network: its records are made, and no row of it is refused."""
    for baseline, proxy, rounding in product(baselines.values(), proxies.values(), roundings.values()):
        with case(baseline.name, proxy, rounding):
            small, grain = shrink(baseline, proxy, rounding)
            for triple in ((1.2, 1.1, 1.15), (1, 1.4, 1), (2, 1, 1), (1, 1, 1.4)):
                scaled = scale(small, Coefficients(*triple), 1, rounding=grain)
                assert cost(scaled).macs >= cost(small).macs > 0


def test_odd_sides_kernels_and_strides_cost_what_torch_counts() -> None:
    """Every block that has a stride, on odd channels that change; the last sides may be a single pixel."""
    strided = [name for name, block in BLOCKS.items() if "stride" in block.fields and block.gives == "image"]
    assert len(strided) >= 9
    # Every kernel with every stride, and each of the two on every side.
    for turn, (kernel, stride) in enumerate(product((1, 3, 5, 7), (1, 2, 4))):
        side = (2, 7, 33)[(turn + turn // 3) % 3]
        wanted = {"channels": 7, "kernel": kernel, "stride": stride, "expand": 2.5, "squeeze_excite": 0.3}
        wanted["first_kernel"] = 5 if kernel == 1 or turn % 2 else 0  # a uib's stride needs one of its two kernels
        for name in strided:
            given = {field: value for field, value in wanted.items() if field in BLOCKS[name].fields}
            network = Network(
                name="odd",
                resolution=max(side, 2 * stride),
                stem=(Stage(block="conv_norm", channels=5, kernel=kernel, stride=2),),
                stages=(Stage(block=name, repeats=2, **given),),
                activation="gelu",
                in_channels=2,
                num_classes=3,
            )
            with case(name, side, kernel, stride):
                assert cost(network) == measured(network)


def test_groups_divide_what_a_convolution_costs() -> None:
    """32 groups of ResNeXt-50's first 3x3 convolution, written out (arXiv:1611.05431, table 1)."""
    (place, records), *_ = layers(
        Network(
            name="one",
            resolution=56,
            stem=(Stage(block="bottleneck", channels=256, expand=0.5, groups=32),),
            stages=(Stage(block="conv", channels=8),),
            activation="relu",
            in_channels=64,
        )
    )
    assert place.row == "stem"
    assert records["conv2"].params == 128 * 4 * 9
    assert records["conv2"].macs == 56 * 56 * 128 * 4 * 9


def test_attention_costs_two_products_of_all_tokens_with_all_tokens(baselines: dict[str, Network]) -> None:
    """12 blocks of ViT-Ti at 224 px: 197 tokens of 192 channels, 3 heads."""
    rows = dict(stage_costs(baselines["vit_tiny"]))
    linear = 197 * (192 * 3 * 192 + 192 * 192 + 2 * 192 * 4 * 192)
    attention = 2 * 197 * 197 * 192
    assert rows["stages.0"].macs == 12 * (linear + attention)
    other_heads = replace(baselines["vit_tiny"], stages=(replace(baselines["vit_tiny"].stages[0], heads=6),))
    assert cost(other_heads) == cost(baselines["vit_tiny"])


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


def test_parts_add_up_to_the_whole_in_the_order_of_the_forward_pass(baselines: dict[str, Network]) -> None:
    for baseline in baselines.values():
        with case(baseline.name):
            rows = stage_costs(baseline)
            assert [row for row, _ in rows] == [*(row for row, _ in baseline.rows()), "classifier"]
            for metric in ("macs", "params", "activations"):
                assert sum(getattr(part, metric) for _, part in rows) == getattr(cost(baseline), metric)


def test_an_unknown_block_is_refused_with_the_nearest_name(baselines: dict[str, Network]) -> None:
    hints = {"mbconvv": "did you mean 'mbconv'?", "preact_botleneck": "did you mean", "zzz": "known: conv, conv_norm"}
    for baseline, (given, hint) in product(baselines.values(), hints.items()):
        broken = replace(baseline, stages=(*baseline.stages, replace(baseline.stages[-1], block=given)))
        with case(baseline.name, given):
            with pytest.raises(ValueError, match=rf"\.block is {given!r}.*{re.escape(hint)}") as refusal:
                cost(broken)
            assert str(refusal.value).startswith(f"baseline {baseline.name!r}: stages")


# Tables that are nonsense

CONVOLUTIONS = """
resolution: 32
activation: relu
stem: {block: conv_norm, stride: 2, channels: 16}
stages:
  - {block: mbconv, expand: 6, channels: 24}
  - {block: bottleneck, repeats: 2, stride: 2, expand: 0.5, channels: 64, groups: 8}
head: {block: norm}
"""
TRANSFORMER = """
resolution: 32
activation: gelu
stem: {block: patch_embed, stride: 8, channels: 48}
stages:
  - {block: transformer, repeats: 2, expand: 4, channels: 48, heads: 3}
head: {block: class_token}
"""
NONSENSE = [
    # What the table alone says.
    (CONVOLUTIONS, "repeats: 2", "repeats: 0", "stages[1].repeats is 0; it must be a whole number from 1 to 1000"),
    (CONVOLUTIONS, "channels: 24", "channels: 1000000000", "stages[0].channels is 1000000000; it must be null or a"),
    (CONVOLUTIONS, "resolution: 32", "resolution: 3", "resolution is 3 px, smaller than the total stride 4"),
    (CONVOLUTIONS, "stride: 2, channels", "repeats: 2, channels", "stem.repeats is 2; only stages repeat"),
    (CONVOLUTIONS, "{block: norm}", "{block: norm, repeats: 2}", "head.repeats is 2; only stages repeat"),
    (CONVOLUTIONS, "expand: 6", "activation: rel", "stages[0].activation is 'rel'; did you mean 'relu'?"),
    (CONVOLUTIONS, "{block: conv_norm, stride: 2, channels: 16}", "[]", "stem is empty"),
    (CONVOLUTIONS, "{block: conv_norm, stride: 2, channels: 16}", "3", "stem is 3; it must be a row or a list"),
    (CONVOLUTIONS, "activation: relu", "activation: relu\nnorm_epsilon: 0", "norm_epsilon is 0; it must be a number"),
    # What a block says: of its fields,
    (CONVOLUTIONS, "block: mbconv", "block: mbconvv", "stages[0].block is 'mbconvv'; did you mean 'mbconv'?"),
    (CONVOLUTIONS, "block: mbconv", "block: zzz", "stages[0].block is 'zzz' (known: conv, conv_norm"),
    (CONVOLUTIONS, "groups: 8", "heads: 8", "stages[1].heads is 8; a bottleneck has none: leave it out"),
    (CONVOLUTIONS, "expand: 6", "groups: 2", "stages[0].groups is 2; a mbconv has none: leave it out"),
    (
        CONVOLUTIONS,
        "stem: {block: conv_norm",
        "stem: {block: conv, activation: silu",
        "stem.activation is silu; a conv",
    ),
    (CONVOLUTIONS, "{block: norm}", "{block: norm, kernel: 1}", "head.kernel is 1; a norm has none: leave it out"),
    (CONVOLUTIONS, "{block: norm}", "{block: norm, channels: 64}", "head.channels is 64; a norm has none"),
    (CONVOLUTIONS, "block: norm", "block: norm, stride: 2", "head.stride is 2; a norm has none"),
    (CONVOLUTIONS, ", channels: 24", "", "stages[0].channels is missing"),
    (CONVOLUTIONS, "channels: 24", "channels: null", "stages[0].channels is missing"),
    # of its sizes,
    (CONVOLUTIONS, "stride: 2, expand", "stride: 3, expand", "stages[1].stride is 3; of a bottleneck it must be 1, 2"),
    (CONVOLUTIONS, "stride: 2, channels", "stride: 3, channels", "stem.stride is 3; of a conv_norm it must be 1, 2 or"),
    (CONVOLUTIONS, "{block: norm}", "{block: max_pool, stride: 3}", "head.stride is 3; of a max_pool it must be 1, 2"),
    (CONVOLUTIONS, "groups: 8", "groups: 7", "stages[1].groups is 7; it must divide the 32 inner channels"),
    (TRANSFORMER, "heads: 3", "heads: 5", "stages[0].heads is 5; it must divide the 48 channels"),
    (TRANSFORMER, ", heads: 3", "", "stages[0].heads is missing"),
    (TRANSFORMER, "channels: 48, heads", "channels: 96, heads", "stages[0].channels is 96; a transformer keeps the 48"),
    (TRANSFORMER, "stride: 8", "stride: 7", "stem.stride is 7; the resolution, 32 px, must be a multiple of it"),
    (TRANSFORMER, "stride: 8", "stride: 64", "resolution is 32 px, smaller than the total stride 64"),
    # and of its place.
    (TRANSFORMER, "head: {block: class_token}", "", "stages[0].block is 'transformer', which leaves tokens; a class_"),
    (
        TRANSFORMER,
        "{block: class_token}",
        "{block: norm}",
        "head.block is 'norm', which takes feature maps; it gets tokens",
    ),
    (
        TRANSFORMER,
        "patch_embed, stride: 8",
        "conv, stride: 4",
        "'transformer', which takes tokens; it gets feature maps",
    ),
    (CONVOLUTIONS, "{block: norm}", "{block: class_token}", "head.block is 'class_token', which takes tokens; it gets"),
    (
        CONVOLUTIONS,
        "block: mbconv, expand: 6",
        "block: patch_embed",
        "stages[1].block is 'bottleneck', which takes feat",
    ),
    (
        CONVOLUTIONS,
        "block: mbconv, expand: 6",
        "block: pooled_linear",
        "'bottleneck', which takes feature maps; it gets poo",
    ),
    (
        TRANSFORMER,
        "- {block: transformer",
        "- {block: patch_embed, channels: 48, stride: 2, repeats: 2}\n  - {block: transformer",
        "stages[0].block is 'patch_embed', which takes feature maps; it gets tokens",
    ),
    (
        CONVOLUTIONS,
        "block: mbconv, expand: 6",
        "block: patch_embed, repeats: 2",
        "stages[0].repeats is 2; a patch_embed gives tokens: it stands once",
    ),
]


def test_nonsense_in_a_table_is_refused_by_row_and_field(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for table in (CONVOLUTIONS, TRANSFORMER):
        path.write_text(table)
        assert cost(load(path)).macs > 0
    for table, old, new, message in NONSENSE:
        with case(message):
            assert table.count(old) == 1
            path.write_text(table.replace(old, new))
            with pytest.raises(ValueError, match=re.escape(message)) as refusal:
                cost(load(path))
            assert str(refusal.value).startswith("baseline 'mine': ")
            assert "\n" not in str(refusal.value)


def test_every_block_refuses_each_field_that_it_does_not_read() -> None:
    others: dict[str, Any] = {"channels": 32, "kernel": 7, "stride": 2, "expand": 3, "squeeze_excite": 0.125}
    others |= {"groups": 2, "heads": 8, "first_kernel": 5, "squeeze_divisor": 8, "activation": "silu"}
    assert {"block", "repeats", *others} == {field.name for field in fields(Stage)}
    for case_name, network in block_networks().items():
        (stage,) = network.stages
        for name in set(others) - set(BLOCKS[stage.block].fields):
            wrong = replace(network, stages=(replace(stage, **{name: others[name]}),))
            message = rf"stages\[0\]\.{name} is {others[name]}; a {stage.block} has none"
            with case(case_name, name), pytest.raises(ValueError, match=message):
                cost(wrong)
