from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from scalesearch.model import BLOCKS, build, layers
from scalesearch.model.hidden import on_meta
from scalesearch.network import ACTIVATIONS, Network, Stage
from scalesearch.scaling import Coefficients, Proxy, Rounding, resize, scale, shrink

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(*stages: Stage, activation: str = "relu", stem: int = 8) -> Network:
    return Network(
        name="tiny",
        resolution=8,
        stem=(Stage(block="conv_norm", channels=stem),),
        stages=stages,
        head=(Stage(block="conv_norm", channels=16, kernel=1),),
        activation=activation,
        num_classes=5,
    )


def small(network: Network, proxies: dict[str, Proxy], roundings: dict[str, Rounding]) -> Network:
    """A network as a search would train it, of two blocks a stage at most.

    Dropout is off, so that a step depends on the weights alone.
    """
    stages = tuple(replace(stage, repeats=min(stage.repeats, 2)) for stage in network.stages)
    fitted = replace(network, stages=stages, num_classes=10, dropout=0.0)
    return shrink(fitted, replace(proxies["small"], depth=1), roundings["nearest"])[0]


def batch(network: Network, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, network.in_channels, network.resolution, network.resolution, generator=generator)
    return images, torch.randint(network.num_classes, (size,), generator=generator)


def steps(network: Network, count: int) -> nn.Module:
    """The module after `count` steps, with the gradients of one more."""
    torch.manual_seed(0)
    module = build(network).train()
    images, labels = batch(network)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for step in range(count + 1):
        optimizer.zero_grad()
        logits = module(images)
        assert logits.shape == (len(images), network.num_classes)
        loss = nn.functional.cross_entropy(logits, labels)
        assert loss.isfinite()
        loss.backward()
        if step < count:
            optimizer.step()
    return module


def without_gradient(module: nn.Module) -> list[str]:
    return [name for name, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def with_zero_gradient(module: nn.Module) -> list[str]:
    return [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]


def but_for_dead_gates(names: list[str]) -> list[str]:
    """One or two squeezed channels may all meet a relu below 0; the last bias of a gate has a gradient even then."""
    return [name for name in names if ".squeeze." not in name and not name.endswith(".excite.weight")]


def test_every_baseline_takes_a_step_that_reaches_every_parameter(
    baseline: Network, proxies: dict[str, Proxy], roundings: dict[str, Rounding]
) -> None:
    network = small(baseline, proxies, roundings)
    assert without_gradient(steps(network, 0)) == []
    # Branches begin at zero, so it takes one step before the loss depends on all of them.
    module = steps(network, 1)
    assert without_gradient(module) == []
    assert but_for_dead_gates(with_zero_gradient(module)) == []


@pytest.mark.parametrize("triple", [(1.2, 1.1, 1.15), (1, 1.4, 1)])
def test_scaled_baselines_take_a_step(
    triple: tuple[float, float, float], baseline: Network, proxies: dict[str, Proxy], roundings: dict[str, Rounding]
) -> None:
    network = scale(small(baseline, proxies, roundings), Coefficients(*triple), 1, rounding=roundings["nearest"])
    assert but_for_dead_gates(with_zero_gradient(steps(network, 1))) == []


def test_squeeze_and_excitation_takes_a_step_in_every_stage_that_can_have_it(
    baseline: Network, proxies: dict[str, Proxy], roundings: dict[str, Rounding]
) -> None:
    network = small(baseline, proxies, roundings)
    ratio = {True: 0.5, False: 0.0}
    can = ["squeeze_excite" in BLOCKS[stage.block].fields for stage in network.stages]
    stages = [replace(row, squeeze_excite=ratio[yes]) for row, yes in zip(network.stages, can, strict=True)]
    module = steps(replace(network, stages=tuple(stages)), 1)
    assert without_gradient(module) == []
    gates = [name for name, _ in module.named_parameters() if ".squeeze." in name or ".excite." in name]
    assert len(gates) == 4 * sum(row.repeats for row, yes in zip(stages, can, strict=True) if yes)
    assert but_for_dead_gates(with_zero_gradient(module)) == []


# Every block, alone


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_block_trains_with_every_activation(block_network: Network, activation: str) -> None:
    assert with_zero_gradient(steps(replace(block_network, activation=activation), 1)) == []


def test_a_blocks_output_has_the_shape_that_its_place_says(block_network: Network) -> None:
    assert_shapes(block_network)


def test_a_block_is_made_of_its_records(block_network: Network) -> None:
    assert_made_of_records(block_network)


def test_a_block_leaves_its_input_alone(block_network: Network) -> None:
    """Activations work in place, which must never reach the tensor that a residual still needs."""
    torch.manual_seed(0)
    module = build(block_network).train()
    first = len(block_network.stem)
    x = module.blocks[:first](batch(block_network, 2)[0]).detach()
    before = x.clone()
    module.blocks[first](x)
    assert torch.equal(x, before)


def test_every_field_of_a_row_is_read_by_the_blocks_that_say_so(block_network: Network) -> None:
    """Another value gives another network: other records, or at least other numbers."""
    (stage,) = block_network.stages
    others = {
        "channels": 32,
        "kernel": 7,
        "stride": 4,
        "expand": 4,
        "squeeze_excite": 1,
        "groups": 2,
        "heads": 8,
        "first_kernel": 5,
        "squeeze_divisor": 16,
    }
    fields = set(BLOCKS[stage.block].fields)
    if BLOCKS[stage.block].gives == "tokens":
        fields -= {"channels"}  # of which the next transformer would hear
    if not stage.squeeze_excite:
        fields -= {"squeeze_divisor"}
    if stage.block == "ghost" and stage.stride == 1 and stage.channels == 16:
        fields -= {"kernel"}  # of convolutions that stand where the shape changes
    for name in fields:
        other = replace(stage, **{name: others.get(name, "gelu")})
        changed = replace(block_network, stages=(other,))
        assert outcome(changed) != outcome(block_network), name


def outcome(network: Network) -> list[float]:
    """Logits of the module after a step, from the same seed; in float64, as a ConvNeXt's branch begins with 1e-6."""
    module = steps(network, 1).eval().double()
    with torch.no_grad():
        return module(batch(network)[0].double()).flatten().tolist()


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_the_networks_epsilon_is_every_norms(epsilon: float, block_network: Network) -> None:
    module = build(replace(block_network, norm_epsilon=epsilon))
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d | nn.LayerNorm)]
    assert {part.eps for part in norms} == {epsilon}


def test_a_block_of_another_package_is_found_by_its_entry_point(tmp_path: Path) -> None:
    """A real one: a package with the metadata that an installation writes. It is built, and counted as its records."""
    (tmp_path / "average.py").write_text(
        "import torch.nn.functional as F\n"
        "from scalesearch.model import Block, Convolution\n\n"
        "class Average(Block):\n"
        "    fields = ('channels', 'activation')\n\n"
        "    @staticmethod\n"
        "    def layers(place):\n"
        "        return {'conv': Convolution(place.in_channels, place.channels, place.resolution)}\n\n"
        "    def forward(self, x):\n"
        "        return self.activation(self.conv(F.avg_pool2d(x, 3, 1, 1)))\n"
    )
    metadata = tmp_path / "average-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: average\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[scalesearch.blocks]\naverage = average:Average\n")
    code = (
        "import torch\n"
        "from scalesearch.cost import cost\n"
        "from scalesearch.model import BLOCKS, build\n"
        "from scalesearch.network import from_table\n"
        "assert 'average' in set(BLOCKS)\n"
        "row = {'block': 'average', 'channels': 4}\n"
        "table = {'resolution': 8, 'activation': 'relu', 'stem': row, 'stages': [row], 'num_classes': 2}\n"
        "network = from_table(table, name='net')\n"
        "print(build(network)(torch.zeros(1, 3, 8, 8)).numel(), cost(network).params)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ended.stdout.split() == ["2", str(3 * 4 + 4 * 4 + 4 * 2 + 2)], ended.stderr


# Records and shapes of whole networks


def test_the_modules_layers_are_the_counted_records(baseline: Network) -> None:
    assert_made_of_records(baseline)


def assert_made_of_records(network: Network) -> None:
    with torch.device("meta"):
        module = build(network)
    assert len(module.blocks) == sum(1 for _ in network.places())
    for block, (place, records) in zip(module.blocks, layers(network), strict=True):
        parts = {name: sum(p.numel() for p in part.parameters()) for name, part in block.named_children()}
        assert {name: parts[name] for name in records} == {name: record.params for name, record in records.items()}
        assert sum(parts.values()) == sum(p.numel() for p in block.parameters()), place.name
        assert sum(parts.values()) == sum(record.params for record in records.values()), place.name


def test_an_output_has_the_resolution_of_its_place(baseline: Network, roundings: dict[str, Rounding]) -> None:
    assert_shapes(resize(baseline, resolution=1.15, rounding=roundings["released"]))


def assert_shapes(network: Network) -> None:
    with torch.device("meta"):
        module = build(network).eval()
        x = torch.empty(2, network.in_channels, network.resolution, network.resolution)
        for block, place in zip(module.blocks, network.places(), strict=True):
            x = block(x)
            side = place.resolution
            shapes = {
                "image": (2, place.channels, side, side),
                "tokens": (2, 1 + side**2, place.channels),
                "pooled": (2, place.channels, 1, 1),
            }
            assert x.shape == shapes[BLOCKS[place.stage.block].gives], place.name


@pytest.mark.parametrize(
    ("channels", "ratio", "squeezed"), [(32, 0.25, 8), (16, 0.25, 4), (14, 0.25, 3), (9, 0.3, 2), (8, 1 / 24, 1)]
)
def test_squeezed_channels_are_a_share_of_the_blocks_input_cut_off(channels: int, ratio: float, squeezed: int) -> None:
    """As in the TPU reference: max(1, int(input * ratio)), and not a share of the expanded channels."""
    stage = Stage(block="mbconv", channels=24, expand=6, squeeze_excite=ratio)
    block = build(tiny(stage, stem=channels)).blocks[1]
    assert (block.squeeze.in_channels, block.squeeze.out_channels) == (6 * channels, squeezed)
    assert (block.excite.in_channels, block.excite.out_channels) == (squeezed, 6 * channels)


@pytest.mark.parametrize(
    ("block", "channels", "expand", "ratio", "hidden", "squeezed"),
    [
        ("bneck", 40, 3, 0.25, 120, 32),  # MobileNetV3-Large, rows 5 and 11 to 15 (arXiv:1905.02244, table 1)
        ("bneck", 80, 6, 0.25, 480, 120),
        ("bneck", 160, 6, 0.25, 960, 240),
        ("bneck", 16, 4.5, 0.25, 72, 24),  # 18 to a multiple of 8, and not to 16, which is below 90 % of it
        ("bneck", 16, 1, 0.25, 16, 8),
        ("fused_mbconv", 24, 4, 0.25, 96, 6),
        ("mbconv", 24, 6, 1 / 24, 144, 1),
    ],
)
def test_expanded_and_squeezed_channels(
    block: str, channels: int, expand: float, ratio: float, hidden: int, squeezed: int
) -> None:
    made = build(tiny(Stage(block=block, channels=32, expand=expand, squeeze_excite=ratio), stem=channels)).blocks[1]
    assert made.squeeze.in_channels == made.excite.out_channels == made.project.in_channels == hidden
    assert made.squeeze.out_channels == squeezed


@pytest.mark.parametrize("block", ["basic", "bottleneck", "preact_basic", "preact_bottleneck"])
@pytest.mark.parametrize(("channels", "ratio", "squeezed"), [(64, 1 / 16, 4), (24, 0.25, 6), (16, 1 / 64, 1)])
def test_squeezed_channels_of_a_resnet_are_a_share_of_its_output(
    block: str, channels: int, ratio: float, squeezed: int
) -> None:
    """arXiv:1709.01507, section 4: the gate stands at the end of the branch."""
    made = build(tiny(Stage(block=block, channels=channels, squeeze_excite=ratio))).blocks[1]
    assert (made.squeeze.in_channels, made.squeeze.out_channels) == (channels, squeezed)


def test_the_global_seed_decides_the_weights() -> None:
    network = tiny(Stage(block="mbconv", channels=8, expand=2))
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(torch.cat([p.flatten() for p in build(network).parameters()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# Against torchvision

PUBLISHED: dict[str, Callable[[], nn.Module]] = {
    "mobilenetv2": torchvision.models.mobilenet_v2,
    "efficientnet_b0": torchvision.models.efficientnet_b0,
}


def randomise(module: nn.Module) -> None:
    """Other weights and batch norm statistics than a fresh module's, of which many are 0 or 1."""
    generator = torch.Generator().manual_seed(0)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) * (high - low) + low)

    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            bound = (3 / part.weight[0].numel()) ** 0.5
            uniform(part.weight, -bound, bound)
            if part.bias is not None:
                uniform(part.bias, -1, 1)
        elif isinstance(part, nn.BatchNorm2d):
            for tensor, low, high in (
                (part.weight, 0.5, 1.5),
                (part.bias, -0.5, 0.5),
                (part.running_mean, -0.5, 0.5),
                (part.running_var, 0.1, 0.5),
            ):
                uniform(tensor, low, high)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
@pytest.mark.parametrize("resolution", [64, 97])
def test_logits_are_torchvisions_with_the_same_weights(
    name: str, resolution: int, baselines: dict[str, Network]
) -> None:
    theirs = PUBLISHED[name]().double().eval()
    ours = build(replace(baselines[name], resolution=resolution)).double().eval()
    randomise(theirs)
    given, wanted = theirs.state_dict(), ours.state_dict()
    # Both define their layers in the order of the forward pass, so that the n-th tensor is the n-th.
    assert [tensor.shape for tensor in given.values()] == [tensor.shape for tensor in wanted.values()]
    ours.load_state_dict(dict(zip(wanted, given.values(), strict=True)))
    images = torch.randn(2, 3, resolution, resolution, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    with torch.no_grad():
        expected, logits = theirs(images), ours(images)
    assert expected.std(dim=0).mean() > 1e-2, "the logits do not depend on the image; nothing would be compared"
    torch.testing.assert_close(logits, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameter_counts_are_torchvisions(name: str, baselines: dict[str, Network]) -> None:
    with torch.device("meta"):
        theirs, ours = PUBLISHED[name](), build(baselines[name])
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]


def test_a_space_to_depth_stem_is_timms() -> None:
    """With the channels in timm's order, so that weights can be exchanged."""
    network = tiny(Stage(block="space_to_depth", channels=24, stride=4), activation="gelu")
    block = build(network).blocks[1].double().eval()
    images = torch.randn(2, 8, 19, 19, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    folded = timm.layers.SpaceToDepth(4)(images[:, :, :16, :16])  # what fills no patch is left out
    assert torch.equal(block(images), F.gelu(block.norm(block.conv(folded))))


# The beginning of training


AT_FIRST: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    **dict.fromkeys(("mbconv", "bneck", "fused_mbconv", "edge_residual", "folded_mbconv", "uib"), lambda block, x: x),
    **dict.fromkeys(("basic", "bottleneck", "regnet"), lambda block, x: F.relu(shortcut(block, x))),
    **dict.fromkeys(("preact_basic", "preact_bottleneck"), lambda block, x: shortcut(block, x)),
}


def shortcut(block: nn.Module, x: Tensor) -> Tensor:
    if not hasattr(block, "shortcut"):
        return x
    if hasattr(block, "shortcut_norm"):
        return block.shortcut_norm(block.shortcut(x))
    return block.shortcut(F.relu(block.norm1(x)))


def begins_at_zero(block: nn.Module) -> bool:
    return any(not parameter.any() for name, parameter in block.named_parameters() if name.endswith("weight"))


def zeroed(block: str, *, channels: int) -> Network:
    """Blocks of which the first changes the channels, unless there are 16."""
    given = {"expand": 2, "squeeze_excite": 0.5}
    read = {name: value for name, value in given.items() if name in BLOCKS[block].fields}
    return tiny(Stage(block=block, channels=channels, repeats=3, **read), stem=16)


def test_the_blocks_that_begin_at_zero_are_these() -> None:
    found = set()
    for name, block in BLOCKS.items():
        if block.takes == block.gives == "image" and "channels" in block.fields:
            expand = 2 if "expand" in block.fields else 1
            if begins_at_zero(build(tiny(Stage(block=name, channels=16, expand=expand), stem=16)).blocks[1]):
                found.add(name)
    assert found == set(AT_FIRST)


@pytest.mark.parametrize("channels", [16, 24])
@pytest.mark.parametrize("block", AT_FIRST)
def test_a_residual_block_is_its_shortcut_until_trained(block: str, channels: int) -> None:
    torch.manual_seed(0)
    module = build(zeroed(block, channels=channels)).train()
    at_zero = [part for part in module.blocks if begins_at_zero(part)]
    assert len(at_zero) == (3 if channels == 16 or hasattr(module.blocks[1], "shortcut") else 2)
    for part in at_zero:
        width = 16 if part is module.blocks[1] else channels
        x = torch.randn(4, width, 5, 5)
        assert torch.equal(part(x.clone()), AT_FIRST[block](part, x))


@pytest.mark.parametrize("block", AT_FIRST)
def test_a_branch_that_begins_at_zero_is_trained_nevertheless(block: str) -> None:
    network = zeroed(block, channels=16)
    x = torch.randn(4, 16, 8, 8)
    assert sum(map(begins_at_zero, steps(network, 0).blocks)) == 3
    trained = steps(network, 1)
    assert not any(map(begins_at_zero, trained.blocks))
    for part in trained.blocks[1:4]:
        assert not torch.equal(part(x.clone()), AT_FIRST[block](part, x))


@pytest.mark.parametrize("block", AT_FIRST)
def test_a_block_that_changes_shape_is_not_zero_at_first(block: str) -> None:
    torch.manual_seed(0)
    module = build(tiny(Stage(block=block, channels=24, stride=2)))
    assert module.blocks[1](torch.randn(2, 8, 8, 8)).any()


def test_a_fused_block_of_one_convolution_keeps_its_activation_inside_the_residual() -> None:
    """Zeroing its only norm would stop every gradient of a ReLU, so it begins as it is drawn."""
    torch.manual_seed(0)
    block = build(tiny(Stage(block="fused_mbconv", channels=8, expand=1))).blocks[1]
    assert not begins_at_zero(block)
    x = torch.randn(2, 8, 8, 8)
    torch.testing.assert_close(block(x), x + F.relu(block.expand_norm(block.expand(x))))


def test_dropout_is_the_networks_own() -> None:
    network = replace(tiny(Stage(block="mbconv", channels=8, expand=2)), dropout=0.9)
    torch.manual_seed(0)
    module = build(network)
    images, _ = batch(network)
    module.eval()
    assert torch.equal(module(images), module(images))
    module.train()
    assert not torch.equal(module(images), module(images))


def test_on_the_meta_device_nothing_is_drawn_and_what_does_not_fit_is_still_refused() -> None:
    def made() -> nn.Module:
        layer = nn.Linear(3, 4)
        for draw in (nn.init.trunc_normal_, nn.init.kaiming_uniform_, nn.init.orthogonal_, nn.init.ones_):
            draw(layer.weight)
        layer.weight.data.mul_(0.5).t_().t_()
        return layer

    with on_meta():
        there, double = made(), nn.Linear(2, 2).double()
        with pytest.raises(RuntimeError, match="broadcast"):
            torch.zeros(3).mul_(torch.zeros(4))
    assert [(name, one.shape, one.dtype, one.device.type) for name, one in there.state_dict().items()] == [
        (name, one.shape, one.dtype, "meta") for name, one in made().state_dict().items()
    ]
    assert double.weight.dtype == torch.float64
    before = torch.get_rng_state()
    with on_meta():
        made()
    assert torch.equal(torch.get_rng_state(), before)
    kept = torch.ones(2)
    with on_meta():
        kept.mul_(3.0)  # has values, and is no part of what is made
    assert kept.tolist() == [3.0, 3.0]
