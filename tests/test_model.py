from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import Tensor, nn

from scalesearch.model import BLOCKS, InvertedResidual, PreactivationBottleneck, build, layers
from scalesearch.network import ACTIVATIONS, Network, Stage
from scalesearch.scaling import Coefficients, Proxy, Rounding, resize, scale, shrink

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(*stages: Stage, activation: str = "relu", stem: int = 8, head: Stage | None = None) -> Network:
    return Network(
        name="tiny",
        resolution=8,
        stem=Stage(block="conv_norm", channels=stem),
        stages=stages,
        head=head or Stage(block="conv_norm", channels=16, kernel=1),
        activation=activation,
        num_classes=5,
    )


def small(network: Network, proxies: dict[str, Proxy], roundings: dict[str, Rounding]) -> Network:
    """A network as a search would train it, with dropout off so that a step depends on the weights alone."""
    fitted = replace(network, num_classes=10, dropout=0.0)
    return shrink(fitted, proxies["small"], roundings["nearest"])[0]


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


def test_every_baseline_takes_a_step_that_reaches_every_parameter(
    baseline: Network, proxies: dict[str, Proxy], roundings: dict[str, Rounding]
) -> None:
    network = small(baseline, proxies, roundings)
    assert without_gradient(steps(network, 0)) == []
    # Branches begin at zero, so it takes one step before the loss depends on all of them.
    module = steps(network, 1)
    assert without_gradient(module) == []
    assert with_zero_gradient(module) == []


@pytest.mark.parametrize("triple", [(1.2, 1.1, 1.15), (2, 1, 1), (1, 1.4, 1), (1, 1, 1.4)])
def test_scaled_baselines_take_a_step(
    triple: tuple[float, float, float], baseline: Network, proxies: dict[str, Proxy], roundings: dict[str, Rounding]
) -> None:
    network = scale(small(baseline, proxies, roundings), Coefficients(*triple), 1, rounding=roundings["nearest"])
    assert with_zero_gradient(steps(network, 1)) == []


def test_squeeze_and_excitation_takes_a_step_in_every_stage(
    baseline: Network, proxies: dict[str, Proxy], roundings: dict[str, Rounding]
) -> None:
    network = small(baseline, proxies, roundings)
    network = replace(network, stages=tuple(replace(stage, squeeze_excite=0.5) for stage in network.stages))
    module = steps(network, 1)
    assert without_gradient(module) == []
    gates = [name for name, _ in module.named_parameters() if ".squeeze." in name or ".excite." in name]
    assert len(gates) == 4 * network.depth
    # The inner half of a gate may be dead where few channels meet a relu; its outer half is not.
    assert [name for name in with_zero_gradient(module) if ".squeeze." not in name] == []


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("block", sorted({*BLOCKS} - {"norm"}))
def test_every_block_trains_with_every_activation(block: str, activation: str) -> None:
    stage = Stage(block=block, channels=16, repeats=2, stride=2, expand=2 if block == "mbconv" else 0.5)
    assert with_zero_gradient(steps(tiny(stage, activation=activation), 1)) == []


def test_the_modules_layers_are_the_counted_records(baseline: Network) -> None:
    with torch.device("meta"):
        module = build(baseline)
    assert len(module.blocks) == sum(1 for _ in baseline.places())
    for block, (place, records) in zip(module.blocks, layers(baseline), strict=True):
        parts = {name: part for name, part in block.named_children() if any(True for _ in part.parameters())}
        assert parts.keys() == records.keys(), place.name
        for name, part in parts.items():
            assert sum(p.numel() for p in part.parameters()) == records[name].params, (place.name, name)


@pytest.mark.parametrize(
    ("channels", "ratio", "squeezed"), [(32, 0.25, 8), (16, 0.25, 4), (14, 0.25, 3), (9, 0.3, 2), (8, 1 / 24, 1)]
)
def test_squeezed_channels_are_a_share_of_the_blocks_input_cut_off(channels: int, ratio: float, squeezed: int) -> None:
    """As in the TPU reference: max(1, int(input * ratio)), and not a share of the expanded channels."""
    stage = Stage(block="mbconv", channels=24, expand=6, squeeze_excite=ratio)
    block = build(tiny(stage, stem=channels)).blocks[1]
    assert (block.squeeze.in_channels, block.squeeze.out_channels) == (6 * channels, squeezed)
    assert (block.excite.in_channels, block.excite.out_channels) == (squeezed, 6 * channels)


def test_an_output_has_the_resolution_of_its_place(baseline: Network, roundings: dict[str, Rounding]) -> None:
    network = resize(baseline, resolution=1.15, rounding=roundings["released"])
    with torch.device("meta"):
        module = build(network).eval()
        x = torch.empty(1, network.in_channels, network.resolution, network.resolution)
        for block, place in zip(module.blocks, network.places(), strict=True):
            assert x.shape[1:] == (place.in_channels, place.in_resolution, place.in_resolution), place.name
            x = block(x)
            assert x.shape[1:] == (place.stage.channels, place.resolution, place.resolution), place.name


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


# The beginning of training


def residual_blocks(module: nn.Module) -> Iterable[nn.Module]:
    for block in module.modules():
        if isinstance(block, InvertedResidual) and block.residual:
            yield block
        if isinstance(block, PreactivationBottleneck) and not hasattr(block, "shortcut"):
            yield block


def test_residual_blocks_are_the_identity_until_trained(
    baseline: Network, proxies: dict[str, Proxy], roundings: dict[str, Rounding]
) -> None:
    network = small(resize(baseline, depth=2, rounding=roundings["released"]), proxies, roundings)
    torch.manual_seed(0)
    module = build(network).train()
    seen = 0
    for block in residual_blocks(module):
        channels = (block.project if isinstance(block, InvertedResidual) else block.conv3).out_channels
        x = torch.randn(4, channels, 5, 5)
        assert torch.equal(block(x.clone()), x)
        seen += 1
    assert seen == sum(
        place.stride == 1 and place.in_channels == place.stage.channels
        for place in network.places()
        if place.stage.block in ("mbconv", "preact_bottleneck")
    )


@pytest.mark.parametrize("block", ["mbconv", "preact_bottleneck"])
def test_a_branch_that_begins_at_zero_is_trained_nevertheless(block: str) -> None:
    stage = Stage(block=block, channels=16, repeats=3, expand=2 if block == "mbconv" else 0.5, squeeze_excite=0.5)
    network = tiny(stage, stem=16)
    x = torch.randn(4, 16, 8, 8)
    branches = list(residual_blocks(steps(network, 0)))
    assert len(branches) == 3
    for trained in residual_blocks(steps(network, 1)):
        assert not torch.equal(trained(x.clone()), x)


def test_a_block_that_changes_shape_is_not_zero_at_first() -> None:
    for block in ("mbconv", "preact_bottleneck"):
        torch.manual_seed(0)
        module = build(tiny(Stage(block=block, channels=24, stride=2, expand=2 if block == "mbconv" else 0.5)))
        assert module.blocks[1](torch.randn(2, 8, 8, 8)).any()


def test_a_block_leaves_its_input_alone() -> None:
    """Activations work in place, which must never reach the tensor that a residual still needs."""
    for block in sorted({*BLOCKS} - {"norm"}):
        torch.manual_seed(0)
        module = build(tiny(Stage(block=block, channels=8, expand=1, squeeze_excite=0.5), stem=8)).train()
        x = torch.randn(2, 8, 8, 8)
        before = x.clone()
        module.blocks[1](x)
        assert torch.equal(x, before), block


def test_dropout_is_the_networks_own() -> None:
    network = replace(tiny(Stage(block="mbconv", channels=8, expand=2)), dropout=0.9)
    torch.manual_seed(0)
    module = build(network)
    images, _ = batch(network)
    module.eval()
    assert torch.equal(module(images), module(images))
    module.train()
    assert not torch.equal(module(images), module(images))
