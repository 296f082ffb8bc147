"""Depth and width of timm's networks: which arguments of its classes they multiply, by the names that timm gives these.

Of a family without such arguments nothing is multiplied: `probing` finds that, and takes the dimension out of the grid.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_DEPTH_FACTORS = ("depth_mult", "deepen_factor")
_WIDTH_FACTORS = ("width_mult", "widen_factor", "width_factor", "scale", "width")
_BLOCKS = (
    *("depths", "depth", "layers", "num_blocks", "depth_list", "num_blocks_list", "serial_depths", "parallel_depth"),
    *("transformer_depths", "block_config", "stages", "block_per_stage", "k_sec", "d"),
)
_CHANNELS = (
    *("dims", "dim", "embed_dim", "embed_dims", "base_dim", "base_dims", "channels", "widths", "width_list", "c"),
    *("out_chs", "num_channels", "stage_conv_chs", "stage_out_chs", "growth_rate", "growth_rates", "w0"),
)
_BESIDE = (  # multiplied where one of the others is: alone they are no width of the network
    *("stem_chs", "stem_width", "stem_hidden_dim", "num_init_features", "init_channels", "inner_dim", "hidden_sizes"),
    *("partial_dim", "intermediate_size", "head_widths", "num_features", "feature_dim", "transformer_dim", "wa"),
)
_HEADS = ("num_heads", "heads", "num_heads_outer", "head_dim")
_READ = ("round_chs_fn", "block_args", "se_downsamples")
_HEAD = 32
_NOT_OURS = ("norm_kwargs", "attn_kwargs", "self_attn_kwargs", "feature_info", "head")


class Factors(NamedTuple):
    """What the blocks of each stage and the channels are multiplied by; 1 leaves every argument as it is."""

    depth: float
    width: float

    def blocks(self, number: int) -> int:
        """Blocks of a stage, rounded up, as in the paper.

        >>> Factors(1.2, 1).blocks(5), Factors(0.1, 1).blocks(2), Factors(2, 1).blocks(0)
        (6, 1, 0)
        """
        return math.ceil(round(number * self.depth, 9))

    def channels(self, number: int, parts: int = 1) -> int:
        """Channels: the nearest multiple of 8 that `parts` divide too, the next one where that takes off a tenth.

        Of fewer than 80 channels it is a multiple of 4, of fewer than 40 of 2: a small network has a fine grain. A
        number that is no such multiple itself stays one of what both share.

        >>> Factors(1, 0.5).channels(192), Factors(1, 0.5).channels(192, 12), Factors(1, 0.5).channels(76)
        (96, 96, 38)
        >>> Factors(1, 1.3).channels(64), Factors(1, 1.3).channels(640), Factors(1, 1).channels(27)
        (80, 832, 27)
        """
        if self.width == 1:
            return number
        wanted = number * self.width
        grain = next((grain for grain in (8, 4, 2) if 10 * grain <= wanted), 1)
        step = math.gcd(number, math.lcm(grain, parts))
        rounded = max(step, int(wanted + step / 2) // step * step)
        return rounded + step if rounded < 0.9 * wanted else rounded


def scaled(made: Callable[..., Any], given: Mapping[str, Any], factors: Factors) -> dict[str, Any]:
    """The arguments for `made`, a class of timm, with which its network is `factors` as deep and wide as with `given`.

    Arguments that were left out and have a usual value are multiplied too.
    """
    read = {*_DEPTH_FACTORS, *_WIDTH_FACTORS, *_BLOCKS, *_CHANNELS, *_BESIDE, *_HEADS, *_READ}
    own = {name: value for name, value in _defaults(made).items() if name in read}
    both = own | dict(given)
    done = _values(both, factors)
    for name in ("model_cfg", "cfg"):
        if name in both:
            done[name] = _config(both[name], factors)
    changed = {name for name in done if name in given or done[name] != both[name]}
    return {name: done[name] for name in done if name in changed}


def _defaults(made: Callable[..., Any]) -> dict[str, Any]:
    """The usual values of a class's arguments."""
    return {row.name: row.default for row in _arguments(made) if row.default not in (row.empty, None)}


def takes_size(made: Callable[..., Any]) -> bool:
    """Whether a class of timm is told the side of its images."""
    return any(row.name == "img_size" for row in _arguments(made))


def _arguments(made: Callable[..., Any]) -> list[inspect.Parameter]:
    """Of a class, and where it hands some on, of the class above it."""
    found: dict[str, inspect.Parameter] = {}
    for cls in made.__mro__[:-1] if isinstance(made, type) else (made,):
        rows = inspect.signature(cls).parameters
        found = dict(rows) | found
        if not any(row.kind is row.VAR_KEYWORD for row in rows.values()):
            break
    return list(found.values())


def _config(config: Any, factors: Factors) -> Any:
    """A configuration of timm's: dataclasses, mappings and lists of these, to any depth."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}
        return dataclasses.replace(config, **_walked(fields, factors))
    if isinstance(config, Mapping):
        return _walked(dict(config), factors)
    if isinstance(config, list) and all(isinstance(one, int | str) for one in config):
        return _runs(config, factors)
    if isinstance(config, list | tuple):
        return type(config)(_config(one, factors) for one in config)
    return config


def _walked(fields: dict[str, Any], factors: Factors) -> dict[str, Any]:
    if "blocks" in fields:
        fields = {name: value for name, value in fields.items() if name != "width_factor"} | {"c": 1}
    done = _values(fields, factors)
    for name, value in fields.items():
        if _is_stage(name, value):
            done[name] = [factors.blocks(one) if place == 3 else one for place, one in enumerate(value)]
            done[name][:3] = [factors.channels(one) for one in value[:3]]
            done["stem_chs"] = _each(fields["stem_chs"], factors.channels)
        elif name not in _NOT_OURS and _holds_configs(value):
            done[name] = _config(value, factors)
    if "blocks" in fields:
        del done["c"]
    if {"w0", "wa", "depth"} <= fields.keys():  # the line of a RegNet's widths ends where it did
        done["wa"] *= fields["depth"] / done["depth"]
    return done


def _is_stage(name: str, value: Any) -> bool:
    """Whether this is a stage as HGNet writes it: channels that come in, inner ones, those that go out, blocks, ..."""
    return bool(re.fullmatch(r"stage\d", name)) and isinstance(value, list | tuple) and len(value) == 8


def _holds_configs(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_configs(one) for one in value)
    return isinstance(value, Mapping) or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def _values(fields: Mapping[str, Any], factors: Factors) -> dict[str, Any]:
    """`fields`, with those of a name above multiplied."""
    done = dict(fields)
    if "round_chs_fn" in fields:
        _convolutional(done, factors)
        return done
    depth_factor = next((name for name in _DEPTH_FACTORS if name in fields), None)
    width_factor = next((name for name in _WIDTH_FACTORS if _is_factor(name, fields)), None)
    if depth_factor:
        done[depth_factor] = fields[depth_factor] * factors.depth if factors.depth != 1 else fields[depth_factor]
    else:
        for name in set(_BLOCKS) & fields.keys():
            done[name] = _each(fields[name], factors.blocks)
            if "mlp_ratios" in fields:
                done["mlp_ratios"] = _by_block(fields["mlp_ratios"], fields[name], done[name])
        if "cfgs" in fields:
            done["cfgs"] = [_repeated(stage, factors) for stage in fields["cfgs"]]
    if width_factor:
        done[width_factor] = fields[width_factor] * factors.width if factors.width != 1 else fields[width_factor]
    elif set(_CHANNELS) & fields.keys():
        for name in {*_CHANNELS, *_BESIDE} & fields.keys():
            done[name] = _channels(name, fields, factors)
    return done


def _is_factor(name: str, fields: Mapping[str, Any]) -> bool:
    """`scale` and `width` are names of other things as well."""
    shared = {"scale": "depths", "width": "cfgs"}
    return name in fields and isinstance(fields[name], int | float) and (name not in shared or shared[name] in fields)


def _each(value: Any, change: Callable[[int], int]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_each(one, change) for one in value)
    return change(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _by_block(values: Any, before: Any, after: Any) -> Any:
    """Values of which a stage may have one for each of its blocks: the last one again for blocks that are added."""
    if not isinstance(values, list | tuple) or not isinstance(before, list | tuple) or len(values) != len(before):
        return values
    return type(values)(
        type(one)(one[min(place, len(one) - 1)] for place in range(new))
        if isinstance(one, list | tuple) and len(one) == old
        else one
        for one, old, new in zip(values, before, after, strict=True)
    )


def _channels(name: str, fields: Mapping[str, Any], factors: Factors) -> Any:
    """Wide by `factors`: to a multiple of 8 that the heads, or the groups, divide."""
    value = fields[name]
    if isinstance(value, float):
        return value * factors.width
    if name not in _CHANNELS:
        return _each(value, factors.channels)
    if "se_downsamples" in fields:  # FastViT: a convolution between stages has a group for each channel that comes in
        first = factors.channels(value[0], 4 if "attention" in fields.get("token_mixers", ()) else 1)
        return type(value)(first * one // value[0] for one in value)
    parts = _parts(value, fields)
    if isinstance(value, list | tuple) and len(parts) == len(value):
        each = [functools.partial(factors.channels, parts=one) for one in parts]
        return type(value)(_each(one, change) for one, change in zip(value, each, strict=True))
    return _each(value, functools.partial(factors.channels, parts=math.lcm(*parts)))


def _parts(value: Any, fields: Mapping[str, Any]) -> list[int]:
    """What must divide the channels; one for each stage where the heads are given so."""
    if fields.get("gs") and isinstance(fields["gs"], int):  # channels of a group, of br times the channels
        return [max(1, round(fields["gs"] / fields.get("br", 1)))]
    if "w0" in fields:  # of a RegNet, which takes multiples of 8 alone
        return [8]
    if any(getattr(one, "__name__", "") == "Attention" for one in _listed(fields.get("token_mixers"))):
        return [_HEAD]  # of a MetaFormer's attention, whose class has no argument for it
    if "transformer_cfg" in fields:
        return [int(fields["transformer_cfg"].dim_head)]
    if "head_dim" in fields and isinstance(fields["head_dim"], int) and "num_heads" not in fields:
        return [fields["head_dim"]]
    heads = next((fields[name] for name in _HEADS[:3] if name in fields), 1)
    if isinstance(heads, int):
        return [4 * heads if heads > 1 else 1]  # positions that are turned have four parts a head
    if isinstance(value, int):  # of the first stage; each stage has twice the channels of the one before
        return [math.lcm(*(number // math.gcd(number, 2**stage) for stage, number in enumerate(heads)))]
    return [number if isinstance(number, int) else 1 for number in heads]


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _convolutional(arguments: dict[str, Any], factors: Factors) -> None:
    """The table of EfficientNet, MobileNet and their kin: lists of blocks, whose channels a function rounds."""
    stages, rounding = arguments["block_args"], arguments["round_chs_fn"]
    arguments["block_args"] = [_repeated(stage, factors) for stage in stages]
    if factors.width == 1:
        return
    given = rounding.keywords.get("multiplier", 1.0) if isinstance(rounding, functools.partial) else 1.0
    arguments["round_chs_fn"] = functools.partial(rounding, multiplier=given * factors.width)
    for name in ("num_features", "head_chs"):
        if arguments.get(name):
            arguments[name] = factors.channels(arguments[name])


def _repeated(stage: list[Any], factors: Factors) -> list[Any]:
    """As many blocks as the stage is to have: its last one again, without its stride, or the first ones."""
    number = factors.blocks(len(stage))
    if number <= len(stage):
        return list(stage[:number])
    last = copy.deepcopy(stage[-1])
    if isinstance(last, dict):
        last["stride"] = 1
    else:
        last[-1] = 1
    return [*stage, *(copy.deepcopy(last) for _ in range(number - len(stage)))]


def _runs(layers: list[int | str], factors: Factors) -> list[int | str]:
    """The layers of a VGG: numbers of channels, and "M" between its stages."""
    done: list[int | str] = []
    run: list[int] = []
    for layer in [*layers, ""]:
        if isinstance(layer, int):
            run.append(factors.channels(layer))
            continue
        if run:
            done += [run[min(place, len(run) - 1)] for place in range(factors.blocks(len(run)))]
        done += [layer] if layer else []
        run = []
    return done
