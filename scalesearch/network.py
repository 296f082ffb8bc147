"""The networks that are scaled: a table of stages, as the paper's Table 1 prints one.

`Stage` is a row, `Network` the table; `Factory` is a network that has a Python function instead. All are frozen
and hashable, so two triples of coefficients that round to the same table are equal, and a set finds that. A table is
checked when it is made.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import yaml

from scalesearch.checks import Must, between, checked, known
from scalesearch.text import one_line

MAX_CHANNELS = 65_536
MAX_REPEATS = 1_000
MAX_RESOLUTION = 16_384
MAX_STRIDE = 64
Activation = Literal["relu", "relu6", "silu", "hardswish", "gelu"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
Side = Annotated[int, between(1, MAX_RESOLUTION)]
Classes = Annotated[int, between(1, 1_000_000), Must("a whole number from 1 to 1000000")]
CUT = frozenset({"patch_embed", "patch_norm", "convnext", "space_to_depth"})
"""Blocks that cut their input into patches of `stride` px and leave out what fills none; all others pad it."""


@checked(kw_only=True)
class Stage:
    """A row of the table: `repeats` blocks of one kind, the first of which has the stride.

    Each block says in its class which of these it reads (`model.BLOCKS`); a row holds no other.
    channels: of its output; None where the block keeps as many as it gets (a norm, a pooling).
    expand: the ratio of a block's inner channels to its input (inverted residuals, transformers) or, below 1, to
        its output (bottlenecks).
    squeeze_excite: the ratio of the squeezed channels to the block's input (inverted residuals, as the released
        EfficientNet code has it), to its inner channels (MobileNetV3) or to its output; 0 means none.
    squeeze_divisor: of which the squeezed channels of a residual block are the nearest multiple.
    groups: of the kxk convolution. heads: of the attention, 0 where there is none. Both divide the channels they part.
    first_kernel: of a depthwise convolution before the expansion (MobileNetV4); 0 means none.
    activation: None is the network's.
    """

    block: Annotated[str, Must("the name of a block")]
    channels: Annotated[int, between(1, MAX_CHANNELS)] | None = None
    repeats: Annotated[int, between(1, MAX_REPEATS)] = 1
    kernel: Annotated[int, between(1, 31)] = 3
    stride: Annotated[int, between(1, MAX_STRIDE)] = 1
    expand: Annotated[float, between(1 / 64, 64)] = 1.0
    squeeze_excite: Annotated[float, between(0, 1)] = 0.0
    squeeze_divisor: Annotated[int, between(1, 256)] = 1
    groups: Annotated[int, between(1, MAX_CHANNELS)] = 1
    heads: Annotated[int, between(0, MAX_CHANNELS)] = 0
    first_kernel: Annotated[int, between(0, 31)] = 0
    activation: Activation | None = None

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; it must be odd")
        if self.first_kernel and self.first_kernel % 2 == 0:
            raise ValueError(f"first_kernel is {self.first_kernel}; it must be 0, or odd")
        if 0 < self.squeeze_excite < 1 / 64:
            raise ValueError(f"squeeze_excite is {self.squeeze_excite}; it must be 0, or a number from 1/64 to 1")


class Place(NamedTuple):
    """Where one block stands: what goes in, what comes out, and what the network has of its own."""

    name: str
    row: str  # the row of the table, as `Network.rows` names it
    stage: Stage
    in_channels: int
    channels: int
    stride: int
    in_resolution: int
    resolution: int  # side of the output, px
    activation: str
    norm_epsilon: float


@checked(kw_only=True)
class Network:
    """A network: rows of the stem, stages, rows of the head, global pooling, dropout and a linear classifier.

    The name is for people; it takes no part in equality. `resolution` is the side of the square input in px,
    `norm_epsilon` what every norm adds to a variance.
    """

    name: str = field(compare=False)
    resolution: Side
    stem: tuple[Stage, ...]
    stages: tuple[Stage, ...]
    head: tuple[Stage, ...] = ()
    activation: Activation
    in_channels: Annotated[int, between(1, MAX_CHANNELS)] = 3
    num_classes: Classes = 1000
    dropout: Annotated[float, between(0, 0.99)] = 0.0
    norm_epsilon: Annotated[float, between(1e-12, 1)] = 1e-5

    def __post_init__(self) -> None:
        _check_name(self.name)
        for name in ("stem", "stages"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; a network needs one row at least")
        for row, stage in self.rows():
            if not row.startswith("stages") and stage.repeats != 1:
                raise ValueError(f"{where(row)}.repeats is {stage.repeats}; only stages repeat their block")
        if self.resolution < self.total_stride:
            raise ValueError(
                f"resolution is {self.resolution} px, smaller than the total stride {self.total_stride}: "
                "raise the resolution or drop a stride"
            )

    @cached_property
    def total_stride(self) -> int:
        return math.prod(stage.stride for _, stage in self.rows())

    @property
    def depth(self) -> int:
        """Blocks in all stages, stem and head not counted."""
        return sum(stage.repeats for stage in self.stages)

    def rows(self) -> Iterator[tuple[str, Stage]]:
        """(name, row) of stem, stages and head, in the order of the forward pass.

        Names are stem, stages.0, stages.1, head; where the stem or the head has several rows, stem.0, stem.1.
        """
        for name, stages in (("stem", self.stem), ("stages", self.stages), ("head", self.head)):
            for index, stage in enumerate(stages):
                yield name if name != "stages" and len(stages) == 1 else f"{name}.{index}", stage

    def places(self) -> Iterator[Place]:
        """The table resolved into blocks: the one walk that building and costing share."""
        channels, resolution = self.in_channels, self.resolution
        for row, stage in self.rows():
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                padded = 0 if stage.block in CUT else stride - 1  # odd kernels are padded by half of them
                out = (resolution + padded) // stride
                yield Place(
                    name=f"{row}.{repeat}" if row.startswith("stages") else row,
                    row=row,
                    stage=stage,
                    in_channels=channels,
                    channels=stage.channels or channels,
                    stride=stride,
                    in_resolution=resolution,
                    resolution=out,
                    activation=stage.activation or self.activation,
                    norm_epsilon=self.norm_epsilon,
                )
                channels, resolution = stage.channels or channels, out

    @property
    def features(self) -> int:
        """Channels that the classifier gets."""
        given = [stage.channels for _, stage in self.rows() if stage.channels is not None]
        return given[-1] if given else self.in_channels

    def table(self) -> dict[str, Any]:
        """The network as plain values, defaults left out: what a YAML holds and a ledger key is made of."""
        names = ("resolution", "in_channels", "num_classes", "activation", "dropout")
        table = {name: as_read(getattr(self, name)) for name in names}
        if self.norm_epsilon != 1e-5:
            table["norm_epsilon"] = self.norm_epsilon
        for name, stages in (("stem", self.stem), ("stages", self.stages), ("head", self.head)):
            rows = [_row(stage) for stage in stages]
            if rows:
                table[name] = rows[0] if name != "stages" and len(rows) == 1 else rows
        return table

    def to_yaml(self, *, comment: str = "") -> str:
        """The text of a baseline file that `load` reads back as an equal network; one line per stage."""
        return _yaml(self, comment)


@checked(kw_only=True)
class Factory:
    """A network that a Python function of the user's makes, instead of a table.

    `function` is "package.module:name", or "timm:name" of a network of timm. It is called with depth and width,
    multipliers of what it makes for 1 and 1, with resolution, the side of the square input in px, and with in_channels
    and num_classes; it returns the `nn.Module` that turns images into logits. Rounding depth and width is its own
    business. A resolution is a multiple of `resolution_multiple` px, depth and width of `depth_multiple` and
    `width_multiple`; 0: of any number.
    """

    name: str = field(compare=False)
    function: Annotated[str, Must("written like my_package.my_net:make")]
    resolution: Side
    depth: Annotated[float, between(1e-3, 1e3)] = 1.0
    width: Annotated[float, between(1e-3, 1e3)] = 1.0
    in_channels: Annotated[int, between(1, MAX_CHANNELS)] = 3
    num_classes: Classes = 1000
    resolution_multiple: Annotated[int, between(1, 256)] = 1
    depth_multiple: Annotated[float, between(0, 1e3)] = 0.0
    width_multiple: Annotated[float, between(0, 1e3)] = 0.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", self.function):
            raise ValueError(f"factory is {self.function!r}; it must be written like my_package.my_net:make")
        _check_name(self.name)

    def table(self) -> dict[str, Any]:
        """As `Network.table`: plain values, from which `from_table` makes an equal one."""
        values = {f.name: as_read(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "name"}
        for name, usual in (("resolution_multiple", 1), ("depth_multiple", 0), ("width_multiple", 0)):
            if values[name] == usual:
                del values[name]
        return {"factory": values.pop("function")} | values

    def to_yaml(self, *, comment: str = "") -> str:
        """As `Network.to_yaml`."""
        return _yaml(self, comment)


AnyNetwork = Network | Factory


def from_table(table: Mapping[str, Any], *, name: str) -> AnyNetwork:
    """The network that a table of plain values describes; a `Factory` where it has the key `factory`.

    Raises: ValueError: with the network, the row and the field, what was given and what would be right.
    """
    values = {key: value for key, value in table.items() if key != "name"}
    try:
        if "factory" in values:
            known(values, ["factory", *(f.name for f in dataclasses.fields(Factory) if f.name != "function")], "")
            return Factory(name=name, function=values.pop("factory"), **values)
        known(values, [f.name for f in dataclasses.fields(Network)], "")
        values |= {part: _stages(values[part], part) for part in ("stem", "stages", "head") if part in values}
        return Network(name=name, **values)
    except ValueError as error:
        raise ValueError(f"baseline {name!r}: {error}") from None


def load(path: Path) -> AnyNetwork:
    """The network of a YAML file. Keys that are not the table's, such as `proxy`, are refused."""
    try:
        table = yaml.safe_load(checked_yaml(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"cannot read the network in {path}: {one_line(error)}") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds no table of a network")
    return from_table({k: v for k, v in table.items() if k != "name"}, name=str(table.get("name", path.stem)))


_MOST_VALUES = 100_000


def checked_yaml(text: str) -> str:
    """The text, where it is YAML whose aliases do not multiply.

    A few lines of aliases of aliases come to billions of values, which whatever walks them never gets through.
    Raises: ValueError for more than 100,000 values.
    """
    if "*" not in text or "&" not in text:
        return text
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = _MOST_VALUES + 1  # until it is known: a node inside itself has no end
            inside = node.value if isinstance(node, yaml.CollectionNode) else ()
            parts = [part for pair in inside for part in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is not None and size(node) > _MOST_VALUES:
        raise ValueError(f"its aliases come to more than {_MOST_VALUES:,} values")
    return text


def where(row: str) -> str:
    """A row's name as messages write it.

    >>> where("stages.2")
    'stages[2]'
    """
    return re.sub(r"\.(\d+)", r"[\1]", row)


def _stages(rows: object, part: str) -> tuple[Stage, ...]:
    if isinstance(rows, Mapping) and part != "stages":
        return (_stage(rows, part),)
    if not isinstance(rows, list | tuple):
        raise ValueError(f"{part} is {rows!r}; it must be a {'' if part == 'stages' else 'row or a '}list of rows")
    return tuple(_stage(row, f"{part}[{index}]") for index, row in enumerate(rows))


def _stage(row: object, name: str) -> Stage:
    if not isinstance(row, Mapping):
        raise ValueError(f"{name} is {row!r}; it must be a row such as {{block: mbconv, channels: 16}}")
    try:
        known(row, list(DEFAULTS), "")
        return Stage(**row)
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from None


DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(Stage)}
"""What each field of a row is where a table leaves it out."""
_FIRST = ("block", "repeats", "kernel", "stride", "expand", "channels", "squeeze_excite")
_ORDER = (*_FIRST, *(name for name in DEFAULTS if name not in _FIRST))  # of the fields in a written row


def _row(stage: Stage) -> dict[str, Any]:
    return {key: as_read(value) for key in _ORDER if (value := getattr(stage, key)) != DEFAULTS[key]}


def as_read(value: Any) -> Any:
    """6.0 as 6: a number has one spelling, however the YAML wrote it, or equal networks would have two keys."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _yaml(network: AnyNetwork, comment: str) -> str:
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    for key, value in ({"name": network.name} | network.table()).items():
        if isinstance(value, list):
            lines += [f"{key}:", *(f"  - {_flow(row)}" for row in value)]
        else:
            lines.append(f"{key}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def _flow(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1_000).strip().removesuffix("\n...")


def _check_name(name: str) -> None:
    if not re.fullmatch(r"\w[\w .+-]{0,199}", name):  # variants are written to a file of this name
        raise ValueError(f"name is {name!r}; it must be of letters, digits, '_', '.', '+' and '-'")
