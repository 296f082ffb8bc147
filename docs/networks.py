"""Writes docs/networks.md: every network of scalesearch/networks.csv, counted here, by torch and in its library.

    python docs/networks.py

What it measures is what tests/test_families.py asserts. Needs the extra `timm`; takes about a minute on one core.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import timm
import torch
import torchvision
import yaml
from timm.layers import BatchNormAct2d, SEModule, create_conv2d
from timm.models import efficientnet, resnetv2
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models.resnetv2 import PreActBasic, PreActBottleneck, ResNetV2
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scalesearch.cost import cost
from scalesearch.model import build
from scalesearch.network import Network, load
from scalesearch.pretrained import match
from scalesearch.scaling import Rounding, resize

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "scalesearch" / "networks.csv"
PAGE = ROOT / "docs" / "networks.md"


class Row(NamedTuple):
    """A row of networks.csv. Published figures are in millions, each with the exponent of its last printed digit."""

    name: str
    baseline: str
    rounding: str
    depth: float
    width: float
    resolution: int
    library: str
    published_params: Decimal | None
    published_macs: Decimal | None
    source: str


class Measurement(NamedTuple):
    """One network, counted in three ways, and compared. The library's values are None if no library has the network."""

    params: int
    macs: int
    torch_macs: int
    library_params: int | None = None
    library_macs: int | None = None
    library_epsilon: float | None = None
    difference: float | None = None  # of a logit, the largest
    spread: float | None = None  # standard deviation of a logit between images, the smaller of two resolutions


def rows() -> list[Row]:
    """The rows of networks.csv."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [
        Row(
            name=row["name"],
            baseline=row["baseline"],
            rounding=row["rounding"],
            depth=float(row["depth"]),
            width=float(row["width"]),
            resolution=int(row["resolution"]),
            library=row["library"],
            published_params=Decimal(row["published_params_M"]) if row["published_params_M"] else None,
            published_macs=Decimal(row["published_macs_M"]) if row["published_macs_M"] else None,
            source=row["source"],
        )
        for row in csv.DictReader(io.StringIO("\n".join(lines)))
    ]


def network(row: Row) -> Network:
    """The network that the row's rule makes of its baseline."""
    baseline = load(ROOT / "conf" / "baseline" / f"{row.baseline}.yaml")
    rule = Rounding(**yaml.safe_load((ROOT / "conf" / "rounding" / f"{row.rounding}.yaml").read_text()))
    return replace(resize(baseline, depth=row.depth, width=row.width, rounding=rule), resolution=row.resolution)


def measure(row: Row) -> Measurement:
    """Everything that docs/networks.md shows of a row."""
    made = network(row)
    counted = cost(made)
    if not row.library:
        with torch.device("meta"):
            return Measurement(counted.params, counted.macs, macs(build(made), made))
    theirs, ours = pair(row, made)
    params = sum(parameter.numel() for parameter in theirs.parameters())
    torch_macs, library_macs = macs(ours, made), macs(theirs, made)
    compared = []
    fixed = made.stem[0].block == "patch_embed"  # positions are of one resolution
    for resolution in (32, 48) if fixed else (16, 31) if made.resolution <= 32 else (48, 65):
        sized = replace(made, resolution=resolution)
        if fixed:
            theirs, ours = pair(row, sized)
        compared.append(compare(theirs, ours, sized))
    difference, spread = max(a for a, _ in compared), min(b for _, b in compared)
    return Measurement(
        counted.params, counted.macs, torch_macs, params, library_macs, epsilon(theirs), difference, spread
    )


def macs(module: nn.Module, made: Network) -> int:
    """Multiply-adds of one image by torch's FlopCounterMode, of a module on the meta device."""
    image = torch.empty(1, made.in_channels, made.resolution, made.resolution, device="meta")
    # Without gradients torch's own attention is one operation, which its counter does not know.
    gradients = any(isinstance(part, nn.MultiheadAttention) for part in module.modules())
    with torch.set_grad_enabled(gradients), FlopCounterMode(display=False) as counter:
        module.eval()(image)
    return counter.get_total_flops() // 2


# The library's network


def pair(row: Row, made: Network) -> tuple[nn.Module, nn.Module]:
    """(the library's module, ours with the library's epsilon), on the meta device, for images and classes of `made`."""
    with torch.device("meta"):
        theirs = library(row, made)
        return theirs, build(replace(made, norm_epsilon=epsilon(theirs)))


def library(row: Row, made: Network) -> nn.Module:
    """The library's module."""
    kind, _, name = row.library.partition(":")
    if kind == "timm-class":
        return _preactivation(made) if name == "ResNetV2" else _efficientnet_x()
    options: dict[str, object] = {}
    if name.startswith("vit_"):
        options["img_size" if kind == "timm" else "image_size"] = made.resolution
    if name.startswith("tf_"):
        options["pad_type"] = ""
    return timm.create_model(name, **options) if kind == "timm" else torchvision.models.get_model(name, **options)


def _efficientnet_x() -> nn.Module:
    """EfficientNet-X-B0, not named by timm: the function that makes its B3 and B5, with gates 4 times as wide."""

    def gate(channels: int, rd_ratio: float, **named: object) -> nn.Module:
        return SqueezeExcite(channels, rd_ratio=4 * rd_ratio, **named)

    multipliers = {"channel_multiplier": 1.0, "depth_multiplier": 1.0}
    return efficientnet._gen_efficientnet_x("efficientnet_x_b3", se_layer=gate, **multipliers)


def _preactivation(made: Network) -> nn.Module:
    """timm's ResNetV2 with the stages of `made`, a stem of one 3 x 3 convolution and timm's gates where it has them."""
    first, basic = made.stages[0], made.stages[0].block == "preact_basic"
    with mock.patch.object(resnetv2, "make_divisible", round):  # which makes channels multiples of 8; the table's stay
        module = ResNetV2(
            layers=[stage.repeats for stage in made.stages],
            channels=[stage.channels for stage in made.stages],
            stem_chs=made.stem[0].channels,
            num_classes=made.num_classes,
            basic=basic,
            bottle_ratio=first.expand,
            conv_layer=create_conv2d,
            norm_layer=BatchNormAct2d,
        )
    module.stem = create_conv2d(made.in_channels, made.stem[0].channels, 3, stride=made.stem[0].stride)
    for block in module.modules():
        if not isinstance(block, PreActBasic | PreActBottleneck):
            continue
        if first.squeeze_excite:
            last = "conv2" if basic else "conv3"
            convolution = getattr(block, last)
            gate = SEModule(convolution.out_channels, rd_ratio=first.squeeze_excite, rd_divisor=1)
            setattr(block, last, nn.Sequential(convolution, gate))
        shortcut = block.downsample
        del block.downsample  # timm registers it first; weights are paired in the order of registration
        block.downsample = shortcut
    return module


def epsilon(module: nn.Module) -> float:
    """What the norms of a library's module add to a variance: the same in all of them."""
    (value,) = {part.eps for part in module.modules() if isinstance(part, nn.BatchNorm2d | nn.LayerNorm)}
    return value


# The same weights on both sides


def compare(theirs: nn.Module, ours: nn.Module, made: Network) -> tuple[float, float]:
    """(largest difference of a logit, mean deviation of a logit between images) of two images with the same weights.

    Weights are random and the running statistics are near those of the images, so that no signal dies or explodes on
    its way and logits are about 1. They are paired by the code that a training with `init` uses.
    """
    generator = torch.Generator().manual_seed(made.resolution)
    images = torch.randn(2, made.in_channels, made.resolution, made.resolution, generator=generator)
    with torch.no_grad():
        if next(theirs.parameters()).is_meta:
            theirs.to_empty(device="cpu")
            _randomise(theirs, generator)
        with _statistics(theirs, generator):
            expected = theirs.eval()(images)
        ours.load_state_dict(match(theirs.state_dict(), ours), strict=False, assign=True)  # no counters of batches
        difference = (ours.eval()(images) - expected).abs().max()
        return difference.item(), expected.std(dim=0).mean().item()


def _randomise(module: nn.Module, generator: torch.Generator) -> None:
    for part in module.modules():
        norm = isinstance(part, nn.BatchNorm2d | nn.LayerNorm)
        for name, parameter in part.named_parameters(recurse=False):
            if norm:
                low, high = (0.5, 1.5) if name == "weight" else (-0.5, 0.5)
            elif parameter.ndim in (2, 4):
                high = (3 / parameter[0].numel()) ** 0.5  # a variance of 1 / fan-in
                low = -high
            else:  # biases, class tokens, positions
                low, high = -0.5, 0.5
            parameter.uniform_(low, high, generator=generator)


@contextmanager
def _statistics(module: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """While it is open, each batch norm first sets its statistics close to those of its input, and keeps them."""

    def near(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        (x,) = inputs
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        variance = (variance + variance.mean()) / 2  # of two images and one place a channel's own may be near 0
        noise = torch.rand(2, len(mean), generator=generator)
        norm.running_mean.copy_(mean + (noise[0] - 0.5) * variance.sqrt())
        norm.running_var.copy_(variance * (noise[1] + 0.5))

    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(near) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# Published figures

_SLIM = "slim does not count the scale and shift of the batch norms"
_V3_SMALL = "the paper's network has 1280 features before its classifier, the libraries' have 1024"
_MORE = "the source counts more than convolutions and linear layers, and does not specify what"
_README = "the README counts 0.6 operations per output more; the count here is the paper's own 312 M"
_PAPER = "the paper does not specify what it counts; torchvision prints the count given here"
_IMGCLSMOB = "the source also counts norms, activations and poolings"
_LAYER_NORM = "the source counts a layer norm as five operations per element"
_CUT = "the source truncates or rounds to fewer digits than it prints"

# (row, figure): by how many percent the count here is above the published figure, and why.
OTHER_COUNTS: dict[tuple[str, str], tuple[float, str]] = {
    ("mobilenetv2_100", "params"): (3.1, "3.47 M without batch norms, printed as 3.4"),
    ("mobilenetv2_100", "macs"): (0.3, _CUT),
    ("mobilenetv2_035", "params"): (1.0, _SLIM),
    ("mobilenetv2_050", "params"): (1.0, _SLIM),
    ("mobilenetv2_075", "params"): (1.0, _SLIM),
    ("mobilenetv2_130", "params"): (0.9, _SLIM),
    ("mobilenetv2_140", "params"): (0.8, _SLIM),
    ("mobilenetv3_small_100", "params"): (-12.3, _V3_SMALL),
    ("mobilenetv3_small_100", "macs"): (-14.4, "other versions of the paper are cited with 56 M"),
    ("mobilenetv3_small_075", "params"): (-14.9, _V3_SMALL),
    ("mobilenetv3_small_075", "macs"): (-1.4, _V3_SMALL),
    ("mobilenetv3_large_100", "params"): (1.5, _CUT),
    ("mobilenetv3_large_100", "macs"): (-1.1, _PAPER),
    ("semnasnet_035", "macs"): (-2.4, _README),
    ("semnasnet_050", "macs"): (-1.9, _README),
    ("semnasnet_075", "macs"): (-1.4, _README),
    ("semnasnet_140", "macs"): (-0.9, _README),
    ("efficientnet_b1", "macs"): (-1.9, _PAPER),
    ("efficientnet_b2", "params"): (-1.0, "with the batch norms' statistics, as TensorFlow counts: 9.18 M"),
    ("efficientnet_b4", "macs"): (4.6, _PAPER),
    ("efficientnet_b5", "macs"): (3.7, _PAPER),
    ("efficientnet_b7", "macs"): (2.0, _PAPER),
    ("tinynet_a", "macs"): (-0.6, _MORE),
    ("tinynet_b", "macs"): (-0.6, _MORE),
    ("efficientnet_lite0", "macs"): (-5.4, _MORE),
    ("efficientnet_lite1", "macs"): (-4.9, _MORE),
    ("efficientnet_lite2", "macs"): (-4.4, _MORE),
    ("efficientnet_lite3", "macs"): (-3.9, _MORE),
    ("efficientnet_lite4", "macs"): (-3.3, _MORE),
    ("efficientnetv2_m", "macs"): (-0.5, _MORE),
    ("efficientnetv2_l", "params"): (-0.8, "torchvision, with weights converted from it, prints the count given here"),
    ("efficientnetv2_l", "macs"): (-0.4, _MORE),
    ("resnet152", "macs"): (4.7, "11.3 G in the ResNet paper, which has the stride in the first 1x1"),
    ("seresnet50", "macs"): (5.7, "the paper has the stride in the first 1x1"),
    ("resnext101_64x4d", "params"): (-0.6, "83.46 M, rounded to 83.5 and then to 84"),
    ("shufflenetv2 1x", "macs"): (-0.7, _PAPER),
    ("preresnet20", "macs"): (-1.1, _IMGCLSMOB),
    ("preresnet164", "macs"): (-2.9, _IMGCLSMOB),
    ("se_preresnet164", "params"): (0.0, "imgclsmob has a norm after the stem and none before the pooling: 480 fewer"),
    ("se_preresnet164", "macs"): (-3.3, _IMGCLSMOB),
    ("vit_tiny_patch16_224", "macs"): (-0.5, _LAYER_NORM),
    ("vit_small_patch16_224", "macs"): (-0.2, _LAYER_NORM),
    ("vit_base_patch16_224", "macs"): (-0.1, _LAYER_NORM),
}


def figures(row: Row) -> dict[str, tuple[Decimal, Decimal]]:
    """(counted, published) of each figure that is published for the row, in millions."""
    counted = cost(network(row))
    both = {"params": (counted.params, row.published_params), "macs": (counted.macs, row.published_macs)}
    return {name: (Decimal(ours).scaleb(-6), theirs) for name, (ours, theirs) in both.items() if theirs is not None}


def as_printed(counted: Decimal, published: Decimal) -> bool:
    """Whether the published figure is the counted one, rounded to its last digit."""
    return abs(counted - published) <= Decimal(5).scaleb(published.as_tuple().exponent - 1)


# The page

_HEAD = """\
# Networks

This page lists the networks that a rounding rule of `conf/rounding` makes from a table of `conf/baseline`, and that a
library or a paper also has. This command writes the page:

    python docs/networks.py

It reads `scalesearch/networks.csv`, where comments at the top name the sources. `tests/test_families.py` measures
everything again.

- **made by**: the rounding rule, the multipliers of depth and width where they are not 1, and the resolution.
- **params**, in millions: counted here, counted in the library, published.
- **multiply-adds** of one image, in millions: counted here; counted by torch's `FlopCounterMode`, which gives the same
  number for the module built here and for the library's; published.
- **logits**: the largest difference between the library's logits and ours, in float32. Both networks have the same
  random weights and running statistics, and get two images at each of two resolutions. The logits are about 1.

"""

_NORMS = """\
## Another epsilon

What a norm adds to a variance is no part of the weights, and libraries differ in it. The `norm_epsilon` of a table is
that of a library. In these rows the library has another one, with which the logits were compared;
`baseline.norm_epsilon=` sets it:
"""

_COLUMNS = (
    *("family", "network", "made by", "library", "params", "params, library", "params, published"),
    *("multiply-adds", "multiply-adds, torch", "multiply-adds, published", "logits", "source"),
)


def page(measured: dict[str, Measurement]) -> str:
    """The text of docs/networks.md, for measurements by the name of the row."""
    lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
    for row in rows():
        found = measured[row.name]
        multipliers = {"depth": row.depth, "width": row.width}
        changed = [f"{name} {value:.4g}" for name, value in multipliers.items() if value != 1]
        shown = (
            row.baseline,
            row.name,
            ", ".join([row.rounding, *changed, f"{row.resolution} px"]),
            row.library or "none",
            millions(found.params),
            millions(found.library_params),
            published(row.published_params),
            millions(found.macs),
            millions(found.torch_macs),
            published(row.published_macs),
            "" if found.difference is None else f"{found.difference:.1g}",
            row.source,
        )
        lines.append(_line(shown))
    lines += ["", _NORMS]
    lines += [f"- {value:g}: {', '.join(names)}." for value, names in _other_epsilons(measured).items()]
    lines += ["", "## Published figures that count something else", ""]
    notes: dict[str, list[str]] = {}
    for (name, figure), (percent, why) in OTHER_COUNTS.items():
        notes.setdefault(why, []).append(f"{name} ({figure} {percent:+.1f} %)")
    lines += ["By how much the count here is above the published figure, beyond its rounding, and why:", ""]
    lines += [f"- {', '.join(names)}: {why}." for why, names in notes.items()]
    return _HEAD + "\n".join(lines) + "\n"


def _other_epsilons(measured: dict[str, Measurement]) -> dict[float, list[str]]:
    """The epsilon of a library, where it is not the table's, and the rows of which that is true."""
    found: dict[float, list[str]] = {}
    for row in rows():
        theirs = measured[row.name].library_epsilon
        if theirs is not None and theirs != network(row).norm_epsilon:
            found.setdefault(theirs, []).append(row.name)
    return found


def millions(count: int | None) -> str:
    """A count with all its digits, in millions; nothing for None."""
    return "" if count is None else f"{Decimal(count).scaleb(-6):,f}"


def published(figure: Decimal | None) -> str:
    """A figure of networks.csv without its exponent: 0.39e3 as 390."""
    return "" if figure is None else f"{figure:,f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(page({row.name: measure(row) for row in rows()}), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
