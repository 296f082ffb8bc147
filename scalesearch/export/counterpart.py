"""The network of timm that is the same: its name there, or the call that makes it.

A claim is checked before it is made: what timm builds has parameters of the same shapes in the same order, the same
epsilon in every norm, and pads as we do.
"""

from __future__ import annotations

import csv
import importlib
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from scalesearch import network as networks
from scalesearch.model import build_on_meta, own_resolution
from scalesearch.network import AnyNetwork, Factory, Network, Stage, as_read, where
from scalesearch.pretrained import match
from scalesearch.scaling import Rounding, resize
from scalesearch.text import raised
from scalesearch.workspace import is_timm


class Counterpart(NamedTuple):
    """timm's network of the same function, up to the weights.

    name: under which timm knows it; None where it has none. code: a Python expression that makes it, after
    `import functools, timm, torch`; None where timm cannot make it, and `reason` says why not.
    """

    name: str | None
    code: str | None
    reason: str


def counterpart(network: AnyNetwork) -> Counterpart:
    """What timm has for `network`."""
    if isinstance(network, Factory):
        return _of_factory(network)
    if find_spec("timm") is None:
        return Counterpart(None, None, "not looked up: timm is not installed")
    for name in _names(network):
        for extra in ({}, _epsilon(network), {"pad_type": ""}):  # where its epsilon, or its padding, is not ours
            call = _Call("timm.create_model", (name,), _common(network) | extra)
            if not _difference(network, call):
                return Counterpart(name, _code(call), "")
    try:
        call = _described(network)
    except ValueError as error:
        return Counterpart(None, None, str(error))
    difference = _difference(network, call)
    return Counterpart(None, None, difference) if difference else Counterpart(None, _code(call), "")


def _of_factory(network: Factory) -> Counterpart:
    """A network of timm at its own size is timm's; all others are made by a function."""
    made = f"it is made by {network.function}, and not from a table"
    if not is_timm(network.function):
        return Counterpart(None, None, made)
    size = f"depth={network.depth:g}, width={network.width:g}, resolution={network.resolution}"
    if (network.depth, network.width, network.resolution) != (1, 1, own_resolution(network.function)):
        return Counterpart(None, None, f"it is made of {network.function} with {size}")
    name = network.function.partition(":")[2]
    more = {"num_classes": network.num_classes, "in_chans": network.in_channels}  # timm's own may be others
    return Counterpart(name, _code(_Call("timm.create_model", (name,), more)), "")


class _Name(NamedTuple):
    """Something of a library by its dotted name."""

    name: str


class _Call(NamedTuple):
    """A call of something of a library: run by `_made`, written as Python by `_code`."""

    function: str
    given: tuple[Any, ...]
    named: dict[str, Any]


def _made(value: Any) -> Any:
    if isinstance(value, _Name):
        library, _, rest = value.name.partition(".")
        return attrgetter(rest)(importlib.import_module(library))
    if isinstance(value, _Call):
        return _made(_Name(value.function))(*map(_made, value.given), **{k: _made(v) for k, v in value.named.items()})
    return {key: _made(part) for key, part in value.items()} if isinstance(value, dict) else value


def _code(value: Any) -> str:
    if isinstance(value, _Name):
        return value.name
    if isinstance(value, _Call):
        arguments = [*map(_code, value.given), *(f"{key}={_code(part)}" for key, part in value.named.items())]
        return f"{value.function}({', '.join(arguments)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_code(part)}" for key, part in value.items()) + "}"
    return repr(value)


def _difference(network: Network, call: _Call) -> str:
    """In what the network that timm makes is another one; empty where it is the same."""
    from timm.layers.conv2d_same import Conv2dSame

    try:
        with torch.device("meta"):
            theirs = _made(call)
    except Exception as error:  # of any type: timm checks little
        return f"timm does not make it: {raised(error)}"
    ours = build_on_meta(network)
    try:
        match(_shortcuts_last(theirs.state_dict()), ours)
    except ValueError as error:
        return f"the nearest that timm makes has other weights: {error}"
    epsilons = {module.eps for module in theirs.modules() if isinstance(module, nn.BatchNorm2d | nn.LayerNorm)}
    if epsilons - {network.norm_epsilon}:
        return f"norm_epsilon is {network.norm_epsilon:g}; timm's is {max(epsilons):g}"
    if any(isinstance(module, Conv2dSame) and module.kernel_size[0] % 2 for module in theirs.modules()):
        return "timm's pads as TensorFlow does"
    return ""


def _shortcuts_last(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Blocks in our order: timm lists the shortcut of a pre-activation block before its other layers.

    The `downsample` of a whole stage, as in ConvNeXt, is no shortcut, and stays.
    """
    stages = {name.partition(".blocks.")[0] for name in state if ".blocks." in name}
    blocks = {name: name.partition(".downsample.")[0] for name in state if ".downsample." in name}
    place = {name: index for index, name in enumerate(state)}
    last = {block: max(place[name] for name in state if name.startswith(f"{block}.")) for block in blocks.values()}
    ends = {name: last[block] for name, block in blocks.items() if block not in stages}
    return {name: state[name] for name in sorted(state, key=lambda name: (ends.get(name, place[name]), name in ends))}


def _names(network: Network) -> list[str]:
    """timm's names of networks with these rows, the nearest resolution first."""
    rows = (network.stem, network.stages, network.head, network.activation)
    same = [
        (abs(known.resolution - network.resolution), name)
        for name, known in _known()
        if (known.stem, known.stages, known.head, known.activation) == rows
    ]
    return [name for _, name in sorted(same)]


@lru_cache(maxsize=1)
def _known() -> tuple[tuple[str, Network], ...]:
    """Every network of networks.csv that timm has, with timm's name."""
    package = Path(__file__).parent.parent
    conf = next(path for path in (package / "conf", package.parent / "conf") if path.is_dir())  # a wheel, a checkout
    known = []
    lines = (package / "networks.csv").read_text(encoding="utf-8").splitlines()
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        library, _, name = row["library"].partition(":")
        if library == "timm":
            baseline = networks.load(conf / "baseline" / f"{row['baseline']}.yaml")
            rule = Rounding(**yaml.safe_load((conf / "rounding" / f"{row['rounding']}.yaml").read_text()))
            network = resize(baseline, depth=float(row["depth"]), width=float(row["width"]), rounding=rule)
            if isinstance(network, Network):
                known.append((name, replace(network, resolution=int(row["resolution"]))))
    return tuple(known)


def _common(network: Network) -> dict[str, Any]:
    """What differs from timm's usual 1000 classes of 3-channel images of 224 px without dropout."""
    vision_transformer = any(stage.block == "transformer" for stage in network.stages)
    given = {
        "num_classes": (network.num_classes, 1000),
        "in_chans": (network.in_channels, 3),
        "drop_rate": (as_read(network.dropout), 0),
        "img_size": (network.resolution if vision_transformer else 224, 224),
    }
    return {key: value for key, (value, usual) in given.items() if value != usual}


def _epsilon(network: Network) -> dict[str, Any]:
    """norm_epsilon as the functions that timm's names stand for take it; nothing where it is timm's usual one."""
    norms = {"transformer": "torch.nn.LayerNorm", "basic": "torch.nn.BatchNorm2d", "bottleneck": "torch.nn.BatchNorm2d"}
    norms |= dict.fromkeys(("preact_basic", "preact_bottleneck"), "timm.layers.BatchNormAct2d")
    block = network.stages[0].block
    if network.norm_epsilon == (1e-6 if block == "transformer" else 1e-5):
        return {}
    return {"norm_layer": _norm(norms[block], network)} if block in norms else {"bn_eps": network.norm_epsilon}


def _norm(name: str, network: Network) -> _Call:
    return _Call("functools.partial", (_Name(name),), {"eps": network.norm_epsilon})


_ACTIVATIONS = {
    "relu": _Name("torch.nn.ReLU"),
    "relu6": _Name("torch.nn.ReLU6"),
    "silu": _Name("torch.nn.SiLU"),
    "hardswish": _Name("torch.nn.Hardswish"),
    "gelu": _Name("timm.layers.GELU"),  # torch's does not take the `inplace` that timm gives to all
}


def _described(network: Network) -> _Call:
    """The call that gives `network` in timm, by its kind. Raises: ValueError: why there is none."""
    blocks = {stage.block for stage in network.stages}
    if blocks == {"transformer"}:
        return _vision_transformer(network)
    if len(blocks) == 1 and blocks <= {"basic", "bottleneck", "preact_basic", "preact_bottleneck"}:
        return _resnet(network)
    if blocks <= set(_MOBILE):
        return _mobile(network)
    if blocks == {"convnext"}:
        return _convnext(network)
    raise ValueError(f"timm has no network of {', '.join(sorted(blocks))} that is made from a list of stages")


def _vision_transformer(network: Network) -> _Call:
    first = network.stages[0]
    _need([stage.block for stage in network.stem] == ["patch_embed"], "the stem must be a patch_embed")
    _need([stage.block for stage in network.head] == ["class_token"], "the head must be a class_token")
    for row, stage in network.rows():
        if row.startswith("stages"):
            same = (stage.heads, stage.expand, stage.activation) == (first.heads, first.expand, first.activation)
            _need(same, f"all its transformers must be alike, and {where(row)} is not")
    named: dict[str, Any] = {
        "patch_size": network.stem[0].stride,
        "embed_dim": network.features,
        "depth": network.depth,
        "num_heads": first.heads,
        "mlp_ratio": as_read(first.expand),
        "act_layer": _ACTIVATIONS[first.activation or network.activation],
    }
    return _Call("timm.create_model", ("vit_tiny_patch16_224",), named | _epsilon(network) | _common(network))


def _convnext(network: Network) -> _Call:
    stem, model = network.stem[0], network.stages[0]
    _need([stage.block for stage in network.stem] == ["patch_norm"], "the stem must be a patch_norm")
    _need([stage.block for stage in network.head] == ["pooled_norm"], "the head must be a pooled_norm")
    _need(stem.channels == model.channels, f"stem.channels is {stem.channels}; there it is {model.channels}")
    strides = [stage.stride for stage in network.stages]
    _need(strides == [1, 2, 2, 2], f"the strides of the stages are {strides}; there they are [1, 2, 2, 2]")
    for row, stage in network.rows():
        if row.startswith("stages"):
            _need(stage.expand == 4, f"{where(row)}.expand is {stage.expand:g}; there it is 4")
            _need(stage.activation in (None, network.activation), f"{where(row)} has an activation of its own")
    named: dict[str, Any] = {
        "patch_size": stem.stride,
        "depths": tuple(stage.repeats for stage in network.stages),
        "dims": tuple(stage.channels for stage in network.stages),
        "kernel_sizes": tuple(stage.kernel for stage in network.stages),
        "act_layer": _ACTIVATIONS[network.activation],
        "norm_eps": network.norm_epsilon,
    }
    return _Call("timm.create_model", ("convnext_tiny",), named | _common(network))


def _resnet(network: Network) -> _Call:
    """ResNet with any repeats and channels, or ResNetV2 where the blocks are pre-activation ones."""
    first, rest = network.stem[0], network.stem[1:]
    model = network.stages[0]
    before, bottleneck = model.block.startswith("preact"), model.block.endswith("bottleneck")
    block = "conv" if before else "conv_norm"
    _need(
        (first.block, first.kernel, first.stride) == (block, 7, 2),
        f"its stem begins with a {block} of kernel 7 and stride 2",
    )
    _need(before or first.channels == 64, f"stem.channels is {first.channels}; there it is 64")
    _need(
        [(stage.block, stage.kernel, stage.stride) for stage in rest] == [("max_pool", 3, 2)],
        "its stem ends with a max_pool of kernel 3 and stride 2",
    )
    _need([stage.block for stage in network.head] == ["norm"] * before, "it has no such head")
    _need(len(network.stages) <= 4, f"it has 4 stages at most, and this has {len(network.stages)}")
    for index, stage in enumerate(network.stages):
        row = f"stages[{index}]"
        _need(stage.stride == (2 if index else 1), f"{row}.stride is {stage.stride}; there it is {2 if index else 1}")
        _need(stage.kernel == 3, f"{row}.kernel is {stage.kernel}; there it is 3")
        for field in ("expand", "groups", "squeeze_excite", "squeeze_divisor"):
            value, usual = getattr(stage, field), getattr(model, field)
            _need(value == usual, f"{row}.{field} is {value:g}; there all stages have the same, {usual:g}")
    own = [where(row) for row, stage in network.rows() if stage.activation not in (None, network.activation)]
    _need(not own, f"{', '.join(own)} has an activation of its own")
    channels = [stage.channels or 0 for stage in network.stages]
    named: dict[str, Any] = {"layers": tuple(stage.repeats for stage in network.stages), "channels": tuple(channels)}
    if before:
        _need(not model.squeeze_excite, "its blocks have no gate")
        named["stem_chs"] = first.channels
    if before and bottleneck:
        named["bottle_ratio"] = as_read(model.expand)
    elif bottleneck:
        uneven = [count for count in channels if count % 4]
        _need(not uneven, f"{uneven} channels of a bottleneck are no multiple of 4")
        named["channels"] = tuple(count // 4 for count in channels)
        base = 256 * model.expand / model.groups  # channels of a group, for 64 of timm's `channels`
        named |= {"cardinality": model.groups, "base_width": as_read(base)}
    if ratio := model.squeeze_excite:
        kept = {"rd_ratio": as_read(ratio), "rd_divisor": model.squeeze_divisor}
        squeeze = _Call("functools.partial", (_Name("timm.layers.SEModule"),), kept)
        usual = ratio == 1 / 16 and (model.squeeze_divisor == 8 or not any(count % 128 for count in channels))
        named["block_args"] = {"attn_layer": "se" if usual else squeeze}
    named["act_layer"] = _ACTIVATIONS[network.activation]
    name = f"resnet{'v2_' * before}{50 if bottleneck else 18}"
    return _Call("timm.create_model", (name,), named | _epsilon(network) | _common(network))


_MOBILE = {"conv_norm": "cn", "depthwise_separable": "dsa", "mbconv": "ir", "bneck": "ir"}
_MOBILE |= {"fused_mbconv": "er", "edge_residual": "er"}


def _mobile(network: Network) -> _Call:
    """EfficientNet's class, or MobileNetV3's where a linear layer comes after the pooling."""
    stem, *rows = network.stem, *network.stages, *network.head
    first = network.stem[0]
    late = bool(rows) and rows[-1].block == "pooled_linear"
    _need(
        len(stem) == 1 and (first.block, first.stride, first.activation) == ("conv_norm", 2, None),
        "its stem is a conv_norm of stride 2 with the network's activation",
    )
    named: dict[str, Any] = {"stem_size": first.channels}
    if late:
        _need(first.kernel == 3, f"stem.kernel is {first.kernel}; there it is 3")
        _need(network.total_stride <= 32, f"the total stride is {network.total_stride}; there it is 32 at most")
        _need(rows[-1].activation is None, "head.activation is not the network's")
        named["num_features"] = rows.pop().channels
    else:
        named |= {"stem_kernel_size": first.kernel, "num_features": 0}
        last = rows[-1]
        if (last.block, last.kernel, last.stride, last.activation) == ("conv_norm", 1, 1, None):
            named["num_features"] = rows.pop().channels
        if network.total_stride > 32:
            named["output_stride"] = network.total_stride
    gated = {stage.block for stage in rows if stage.squeeze_excite}
    _need(gated != {"mbconv", "bneck"}, "there all gates are of one kind, and mbconv's and bneck's differ")
    if "bneck" in gated:
        gate = {"gate_layer": "hard_sigmoid", "force_act_layer": _Name("torch.nn.ReLU")}
        gate["rd_round_fn"] = _Name("timm.layers.make_divisible")
        squeeze = _Name("timm.models._efficientnet_blocks.SqueezeExcite")
        named["se_layer"] = _Call("functools.partial", (squeeze,), gate)
        _need(late, "a gate of a share of the inner channels stands there only with a pooled_linear")
    elif late:
        named["se_from_exp"] = False
    module = "timm.models.mobilenetv3" if late else "timm.models.efficientnet"
    stages = [[_stage(stage, network)] for stage in rows]
    named["act_layer"] = _ACTIVATIONS[network.activation]
    named["norm_layer"] = _norm("torch.nn.BatchNorm2d", network)
    blocks = _Call(f"{module}.decode_arch_def", (stages,), {})
    return _Call(f"{module}.{'MobileNetV3' if late else 'EfficientNet'}", (blocks,), named | _common(network))


def _stage(stage: Stage, network: Network) -> str:
    """The row in timm's notation, such as ir_r2_k3_s2_e6_c24_se0.25."""
    kind, marks = _MOBILE[stage.block], [f"r{stage.repeats}", f"k{stage.kernel}", f"s{stage.stride}"]
    if stage.expand == 1 and kind == "ir":
        kind = "ds"
    elif stage.expand == 1 and stage.block == "fused_mbconv":
        _need(not stage.squeeze_excite, "a fused_mbconv of expand 1 has no gate there")
        kind = "cn"
        marks.append("skip")
    elif kind in ("ir", "er"):
        marks.append(f"e{as_read(stage.expand)!r}")
    marks.append(f"c{stage.channels}")
    if stage.squeeze_excite:
        marks.append(f"se{as_read(stage.squeeze_excite)!r}")
    if stage.activation not in (None, network.activation):
        codes = {"relu": "re", "relu6": "r6", "hardswish": "hs", "silu": "sw"}
        _need(stage.activation in codes, f"the activation of a row cannot be {stage.activation} there")
        marks.append(f"n{codes[str(stage.activation)]}")
    _need(stage.stride <= 2, f"a {stage.block} has the stride {stage.stride}; there it is 1 or 2")
    return "_".join((kind, *marks))


def _need(holds: bool, why: str) -> None:
    if not holds:
        raise ValueError(f"timm's nearest network differs: {why}")
