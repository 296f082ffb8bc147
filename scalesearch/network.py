"""The networks that are scaled: a table of stages, as the paper's Table 1 prints one.

`Stage` is a row, `Network` the table; `Factory` is a network that has a Python function instead. All are frozen
and hashable, so two triples of coefficients that round to the same table are equal, and a set finds that. A table is
checked when it is made.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

MAX_CHANNELS = 65_536
MAX_REPEATS = 1_000
MAX_RESOLUTION = 16_384
MAX_STRIDE = 64
ACTIVATIONS = ("relu", "relu6", "silu", "hardswish", "gelu")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A row of the table: `repeats` blocks of one kind, the first of which has the stride.

    Each block says in its class which of these it reads (`model.BLOCKS`); a row holds no other.
    channels: of its output; None where the block keeps as many as it gets (a norm, a pooling).
    expand: the ratio of a block's inner channels to its input (inverted residuals, transformers) or, below 1, to
        its output (bottlenecks).
    squeeze_excite: the ratio of the squeezed channels to the block's input (inverted residuals, as the released
        EfficientNet code has it), to its inner channels (MobileNetV3) or to its output; 0 means none.
    groups: of the kxk convolution. heads: of the attention, 0 where there is none. Both divide the channels they part.
    activation: None is the network's.
    """

    block: str
    channels: int | None = None
    repeats: int = 1
    kernel: int = 3
    stride: int = 1
    expand: float = 1.0
    squeeze_excite: float = 0.0
    groups: int = 1
    heads: int = 0
    activation: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.block, str):
            raise ValueError(f"block is {self.block!r}; it must be the name of a block")
        if self.channels is not None:
            _whole(self.channels, "channels", 1, MAX_CHANNELS)
        _whole(self.repeats, "repeats", 1, MAX_REPEATS)
        _whole(self.kernel, "kernel", 1, 31)
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; it must be odd")
        _whole(self.stride, "stride", 1, MAX_STRIDE)
        _ratio(self.expand, "expand", 1 / 64, 64)
        if self.squeeze_excite != 0:
            _ratio(self.squeeze_excite, "squeeze_excite", 1 / 64, 1)
        _whole(self.groups, "groups", 1, MAX_CHANNELS)
        _whole(self.heads, "heads", 0, MAX_CHANNELS)
        if self.activation is not None:
            _activation(self.activation)


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


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network: rows of the stem, stages, rows of the head, global pooling, dropout and a linear classifier.

    The name is for people; it takes no part in equality. `resolution` is the side of the square input in px,
    `norm_epsilon` what every norm adds to a variance.
    """

    name: str = field(compare=False)
    resolution: int
    stem: tuple[Stage, ...]
    stages: tuple[Stage, ...]
    head: tuple[Stage, ...] = ()
    activation: str
    in_channels: int = 3
    num_classes: int = 1000
    dropout: float = 0.0
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        _name(self.name)
        _whole(self.in_channels, "in_channels", 1, MAX_CHANNELS)
        _whole(self.num_classes, "num_classes", 1, 1_000_000)
        _whole(self.resolution, "resolution", 1, MAX_RESOLUTION)
        _ratio(self.dropout, "dropout", 0, 0.99)
        _ratio(self.norm_epsilon, "norm_epsilon", 1e-12, 1)
        _activation(self.activation)
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
                out = (resolution - 1) // stride + 1  # odd kernels, padded by half of them
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
        table: dict[str, Any] = {
            "resolution": self.resolution,
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
            "activation": self.activation,
            "dropout": _as_read(self.dropout),
        }
        if self.norm_epsilon != 1e-5:
            table["norm_epsilon"] = self.norm_epsilon
        for name, stages in (("stem", self.stem), ("stages", self.stages), ("head", self.head)):
            rows = [_row(stage) for stage in stages]
            if rows:
                table[name] = rows[0] if name != "stages" and len(rows) == 1 else rows
        return table

    def to_yaml(self, *, comment: str = "") -> str:
        """The text of a baseline file that `load` reads back as an equal network; a row a stage."""
        lines = [f"# {line}".rstrip() for line in comment.splitlines()]
        lines.append(f"name: {_flow(self.name)}")
        table = self.table()
        for key, value in table.items():
            if isinstance(value, list):
                lines += [f"{key}:", *(f"  - {_flow(row)}" for row in value)]
            else:
                lines.append(f"{key}: {_flow(value)}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, kw_only=True)
class Factory:
    """A network that a Python function of the user's makes, instead of a table.

    `function` is "package.module:name". It is called with depth and width, multipliers of what it makes for 1 and 1,
    with resolution, the side of the square input in px, and with in_channels and num_classes; it returns the
    `nn.Module` that turns images into logits. Rounding depth and width is its own business.
    """

    name: str = field(compare=False)
    function: str
    resolution: int
    depth: float = 1.0
    width: float = 1.0
    in_channels: int = 3
    num_classes: int = 1000

    def __post_init__(self) -> None:
        if not isinstance(self.function, str) or not re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", self.function):
            raise ValueError(f"factory is {self.function!r}; it must be written like my_package.my_net:make")
        _name(self.name)
        _whole(self.in_channels, "in_channels", 1, MAX_CHANNELS)
        _whole(self.num_classes, "num_classes", 1, 1_000_000)
        _whole(self.resolution, "resolution", 1, MAX_RESOLUTION)
        _ratio(self.depth, "depth", 1e-3, 1e3)
        _ratio(self.width, "width", 1e-3, 1e3)

    def table(self) -> dict[str, Any]:
        """As `Network.table`: plain values, from which `from_table` makes an equal one."""
        values = {f.name: _as_read(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "name"}
        return {"factory": values.pop("function")} | values

    def to_yaml(self, *, comment: str = "") -> str:
        """As `Network.to_yaml`."""
        lines = [f"# {line}".rstrip() for line in comment.splitlines()]
        lines += [f"{key}: {_flow(value)}" for key, value in ({"name": self.name} | self.table()).items()]
        return "\n".join(lines) + "\n"


AnyNetwork = Network | Factory


def from_table(table: Mapping[str, Any], *, name: str) -> AnyNetwork:
    """The network that a table of plain values describes; a `Factory` where it has the key `factory`.

    Errors: ValueError that names the network, the row and the field, what was given and what would be right.
    """
    if "factory" in table:
        return _from_factory(table, name=name)
    try:
        known = [f.name for f in dataclasses.fields(Network)]
        _known_keys(table, known, required=("resolution", "stem", "stages", "activation"))
        values = dict(table) | {"name": name}
        for part in ("stem", "stages", "head"):
            rows = table.get(part, ())
            if isinstance(rows, Mapping) and part != "stages":
                values[part] = (_stage(rows, part),)
            elif isinstance(rows, list | tuple):
                values[part] = tuple(_stage(row, f"{part}[{index}]") for index, row in enumerate(rows))
            else:
                raise ValueError(
                    f"{part} is {rows!r}; it must be a {'' if part == 'stages' else 'row or a '}list of rows"
                )
        return Network(**values)
    except ValueError as error:
        raise ValueError(f"baseline {name!r}: {error}") from None


def _from_factory(table: Mapping[str, Any], *, name: str) -> Factory:
    try:
        known = ["factory", *(f.name for f in dataclasses.fields(Factory) if f.name not in ("name", "function"))]
        _known_keys(table, known, required=("factory", "resolution"))
        values = {key: value for key, value in table.items() if key != "factory"}
        return Factory(name=name, function=table["factory"], **values)
    except ValueError as error:
        raise ValueError(f"baseline {name!r}: {error}") from None


def load(path: Path) -> AnyNetwork:
    """The network of a YAML file. Keys that are not the table's, such as `proxy`, are refused."""
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the network in {path}: {error}") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds no table of a network")
    return from_table({k: v for k, v in table.items() if k != "name"}, name=str(table.get("name", path.stem)))


def where(row: str) -> str:
    """A row's name as messages write it.

    >>> where("stages.2")
    'stages[2]'
    """
    return re.sub(r"\.(\d+)", r"[\1]", row)


def _stage(row: object, name: str) -> Stage:
    if not isinstance(row, Mapping):
        raise ValueError(f"{name} is {row!r}; it must be a row such as {{block: mbconv, channels: 16}}")
    try:
        _known_keys(row, [f.name for f in dataclasses.fields(Stage)], required=("block",))
        return Stage(**row)
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from None


def _row(stage: Stage) -> dict[str, Any]:
    defaults = {f.name: f.default for f in dataclasses.fields(Stage)}
    first = ("block", "repeats", "kernel", "stride", "expand", "channels", "squeeze_excite")
    order = (*first, *(name for name in defaults if name not in first))
    row = {key: getattr(stage, key) for key in order}
    return {key: _as_read(value) for key, value in row.items() if value != defaults[key]}


def _as_read(value: object) -> object:
    """6.0 as 6: a number has one spelling, however the YAML wrote it, or equal networks would have two keys."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flow(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1_000).strip().removesuffix("\n...")


def _known_keys(table: Mapping[str, Any], known: list[str], *, required: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise ValueError(f"{key} is not a known field{_nearest(str(key), known)}")
    for key in required:
        if key not in table:
            raise ValueError(f"{key} is missing")


def _nearest(word: object, known: list[str] | tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(word), known, n=1)
    return (f"; did you mean {close[0]!r}?" if close else "") + f" (known: {', '.join(known)})"


def _name(name: str) -> None:
    if not re.fullmatch(r"\w[\w .+-]{0,199}", name):  # variants are written to a file of this name
        raise ValueError(f"name is {name!r}; it must be of letters, digits, '_', '.', '+' and '-'")


def _whole(value: object, name: str, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")


def _activation(value: object) -> None:
    if value not in ACTIVATIONS:
        raise ValueError(f"activation is {value!r}{_nearest(value, ACTIVATIONS)}")


def _ratio(value: object, name: str, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}")
