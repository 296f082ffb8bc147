"""The files that `scalesearch init` writes: a network of one's own as a table, and as a Python function."""

from __future__ import annotations

import textwrap
from pathlib import Path

from scalesearch.ledger import write_atomic
from scalesearch.model import BLOCKS


def write(name: str, directory: Path) -> list[Path]:
    """Write `directory`/NAME: baseline/NAME.yaml, baseline/NAME_factory.yaml and NAME.py. Returns their paths.

    Raises: ValueError: one of them is there already.
    """
    root = directory / name
    texts = {
        root / "baseline" / f"{name}.yaml": _TABLE.format(name=name, blocks=_blocks()),
        root / "baseline" / f"{name}_factory.yaml": _FACTORY.format(name=name),
        root / f"{name}.py": _FUNCTION,
    }
    for path in texts:
        if path.exists():
            raise ValueError(f"{path} is there already; nothing was written. Choose another name or directory=DIR")
    for path, text in texts.items():
        write_atomic(path, text.encode())
    return list(texts)


def _blocks() -> str:
    """What may stand in a row, as comments: taken from the blocks themselves, so that it is true."""
    lines = []
    for name, block in BLOCKS.items():
        first = (block.__doc__ or "").strip().partition("\n\n")[0]
        text = f"{name} ({', '.join(block.fields) or 'nothing else'}): {' '.join(first.split())}"
        lines += textwrap.wrap(text, 115, initial_indent="#   ", subsequent_indent="#     ")
    return "\n".join(lines)


_TABLE = """\
# {name}: what it is, where it is published, how many params and multiply-adds it has.
#   scalesearch cost --config-dir {name} baseline={name}
#   scalesearch run --config-dir {name} baseline={name}
#
# A network is a table: a stem, stages of `repeats` equal blocks, a head; then come global average pooling, dropout
# and a linear classifier. Depth scales the repeats of the stages, width every number of channels, resolution the side
# of the input. The first block of a row has its stride. Left out are: repeats 1, kernel 3, stride 1, expand 1,
# squeeze_excite 0 (no gate), squeeze_divisor 1, groups 1, heads 1, first_kernel 0, activation (the network's).
#
# Blocks, and the fields that each reads:
{blocks}
name: {name}
resolution: 224 # side of the square input in px; no smaller than the product of all strides
in_channels: 3 # a search sets this and num_classes to those of its data
num_classes: 1000
activation: relu # relu, relu6, silu, hardswish or gelu
dropout: 0.0
# norm_epsilon: 1.0e-5
stem: {{block: conv_norm, kernel: 3, stride: 2, channels: 32}} # or a list of rows, as the stages
stages:
  - {{block: mbconv, repeats: 1, kernel: 3, stride: 1, expand: 1, channels: 16}}
  - {{block: mbconv, repeats: 2, kernel: 3, stride: 2, expand: 4, channels: 24, squeeze_excite: 0.25}}
  - {{block: mbconv, repeats: 3, kernel: 5, stride: 2, expand: 4, channels: 48, squeeze_excite: 0.25}}
  - {{block: bottleneck, repeats: 3, stride: 2, expand: 0.25, channels: 192}}
head: {{block: conv_norm, kernel: 1, channels: 640}} # may be left out
"""

_FACTORY = """\
# {name} as a Python function: {name}/{name}.py, called with other multipliers for every candidate.
#   scalesearch run --config-dir {name} baseline={name}_factory
# It is the same network as that of: scalesearch run baseline.factory={name}.{name}:make
# The function is imported, that is, run: from the working directory, or installed.
name: {name}_factory
factory: {name}.{name}:make
resolution: 224 # of the baseline; the function gets that of the candidate
in_channels: 3 # a search sets this and num_classes to those of its data
num_classes: 1000
"""

_FUNCTION = '''\
"""A network whose depth, width and resolution scalesearch chooses."""

from torch import nn


def make(depth: float, width: float, resolution: int, num_classes: int, in_channels: int) -> nn.Module:
    """The network; it turns (B, in_channels, resolution, resolution) images into (B, num_classes) logits.

    depth and width are multipliers: 1 is the baseline, a proxy is below it. How they are rounded is decided here;
    multipliers that give the same layers are one candidate, which is trained once. `resolution`, in px, is for
    networks that must know it.
    """
    channels = [max(4, 4 * round(base * width / 4)) for base in (32, 64, 128)]
    repeats = max(1, round(2 * depth))

    layers: list[nn.Module] = []
    for before, after in zip([in_channels, *channels], channels):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        for _ in range(repeats):
            layers += [nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], num_classes))
'''
