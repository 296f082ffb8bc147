"""The networks that are scaled: a table of stages, as the paper's Table 1 prints one.

`Stage` is a row, `Network` the table. Both are frozen and hashable, so two triples of coefficients that
round to the same network are equal, and a set finds that. A table is checked when it is made.
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
ACTIVATIONS = ("relu", "relu6", "silu", "hardswish", "gelu")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A row of the table: `repeats` blocks of one kind, the first of which has the stride.

    `expand` is the ratio of a block's inner channels to its input (inverted residuals) or, below 1, to its
    output (bottlenecks). `squeeze_excite` is the ratio of the squeezed channels to the block's input
    (inverted residuals, as the released EfficientNet code has it) or output; 0 means none.
    """

    block: str
    channels: int
    repeats: int = 1
    kernel: int = 3
    stride: int = 1
    expand: float = 1.0
    squeeze_excite: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.block, str):
            raise ValueError(f"block is {self.block!r}; it must be the name of a block")
        _whole(self.channels, "channels", 1, MAX_CHANNELS)
        _whole(self.repeats, "repeats", 1, MAX_REPEATS)
        _whole(self.kernel, "kernel", 1, 31)
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; it must be odd")
        _whole(self.stride, "stride", 1, 4)
        if self.stride == 3:
            raise ValueError("stride is 3; it must be 1, 2 or 4")
        _ratio(self.expand, "expand", 1 / 64, 64)
        if self.squeeze_excite != 0:
            _ratio(self.squeeze_excite, "squeeze_excite", 1 / 64, 1)


class Place(NamedTuple):
    """Where one block stands: what goes in, what comes out, and the network's activation."""

    name: str
    stage: Stage
    in_channels: int
    stride: int
    in_resolution: int
    resolution: int  # side of the output, px
    activation: str


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network: stem, stages, head, global pooling and a linear classifier.

    The name is for people; it takes no part in equality. `resolution` is the side of the square input in px.
    """

    name: str = field(compare=False)
    resolution: int
    stem: Stage
    stages: tuple[Stage, ...]
    head: Stage
    activation: str
    in_channels: int = 3
    num_classes: int = 1000
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w .+-]{0,199}", self.name):  # variants are written to a file of this name
            raise ValueError(f"name is {self.name!r}; it must be of letters, digits, '_', '.', '+' and '-'")
        _whole(self.in_channels, "in_channels", 1, MAX_CHANNELS)
        _whole(self.num_classes, "num_classes", 1, 1_000_000)
        _whole(self.resolution, "resolution", 1, MAX_RESOLUTION)
        _ratio(self.dropout, "dropout", 0, 0.99)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}{_nearest(self.activation, ACTIVATIONS)}")
        if not self.stages:
            raise ValueError("stages is empty; a network needs one row at least")
        if self.resolution < self.total_stride:
            raise ValueError(
                f"resolution is {self.resolution} px, smaller than the total stride {self.total_stride}: "
                "raise the resolution or drop a stride"
            )

    @cached_property
    def total_stride(self) -> int:
        return math.prod(stage.stride for stage in (self.stem, *self.stages, self.head))

    @property
    def depth(self) -> int:
        """Blocks in all stages, stem and head not counted."""
        return sum(stage.repeats for stage in self.stages)

    def rows(self) -> Iterator[tuple[str, Stage]]:
        """(name, row) of stem, stages and head, in the order of the forward pass."""
        yield "stem", self.stem
        for index, stage in enumerate(self.stages):
            yield f"stages.{index}", stage
        yield "head", self.head

    def places(self) -> Iterator[Place]:
        """The table resolved into blocks: the one walk that building and costing share."""
        channels, resolution = self.in_channels, self.resolution
        for row, stage in self.rows():
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                out = (resolution - 1) // stride + 1  # odd kernels, padded by half of them
                name = f"{row}.{repeat}" if row.startswith("stages") else row
                yield Place(name, stage, channels, stride, resolution, out, self.activation)
                channels, resolution = stage.channels, out

    def table(self) -> dict[str, Any]:
        """The network as plain values, defaults left out: what a YAML holds and a ledger key is made of."""
        return {
            "resolution": self.resolution,
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
            "activation": self.activation,
            "dropout": _as_read(self.dropout),
            "stem": _row(self.stem),
            "stages": [_row(stage) for stage in self.stages],
            "head": _row(self.head),
        }

    def to_yaml(self, *, comment: str = "") -> str:
        """The text of a baseline file that `load` reads back as an equal network; a row a stage."""
        lines = [f"# {line}".rstrip() for line in comment.splitlines()]
        lines.append(f"name: {_flow(self.name)}")
        table = self.table()
        for key, value in table.items():
            if key == "stages":
                lines += ["stages:", *(f"  - {_flow(row)}" for row in value)]
            else:
                lines.append(f"{key}: {_flow(value)}")
        return "\n".join(lines) + "\n"


def from_table(table: Mapping[str, Any], *, name: str) -> Network:
    """The network that a table of plain values describes.

    Errors: ValueError that names the network, the row and the field, what was given and what would be right.
    """
    try:
        known = [f.name for f in dataclasses.fields(Network)]
        _known_keys(table, known, required=("resolution", "stem", "stages", "head", "activation"))
        values = dict(table) | {"name": name}
        if not isinstance(table["stages"], list | tuple):
            raise ValueError(f"stages is {table['stages']!r}; it must be a list of rows")
        values["stages"] = tuple(_stage(row, f"stages[{index}]") for index, row in enumerate(table["stages"]))
        for row in ("stem", "head"):
            values[row] = _stage(table[row], row)
        return Network(**values)
    except ValueError as error:
        raise ValueError(f"baseline {name!r}: {error}") from None


def load(path: Path) -> Network:
    """The network of a YAML file. Keys that are not the table's, such as `proxy`, are refused."""
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the network in {path}: {error}") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds no table of a network")
    return from_table({k: v for k, v in table.items() if k != "name"}, name=str(table.get("name", path.stem)))


def _stage(row: object, where: str) -> Stage:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is {row!r}; it must be a row such as {{block: mbconv, channels: 16}}")
    try:
        _known_keys(row, [f.name for f in dataclasses.fields(Stage)], required=("block", "channels"))
        return Stage(**row)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None


def _row(stage: Stage) -> dict[str, Any]:
    defaults = {f.name: f.default for f in dataclasses.fields(Stage)}
    order = ("block", "repeats", "kernel", "stride", "expand", "channels", "squeeze_excite")
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


def _whole(value: object, name: str, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")


def _ratio(value: object, name: str, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}")
