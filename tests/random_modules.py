"""Bounded, seeded random networks of a user's: what their function says, and whether it must work.

A network has a stem, one to four stages of random layers with random shapes, and a head. Half of them have one fault,
which leaves no network that could be trained, or one oddity, which is none of anybody's business and must work.
"""

from __future__ import annotations

import random
from typing import NamedTuple

ACTIVATIONS = ("ReLU", "SiLU", "Hardswish", "GELU", "LeakyReLU", "Sigmoid", "Identity")

BEFORE = """
import math

calls = []

class Residual(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.inner(x)

class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.down = nn.Conv2d(channels, max(1, channels // 4), 1)
        self.up = nn.Conv2d(max(1, channels // 4), channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))

class Attention(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x):
        images, channels, rows, columns = x.shape
        tokens = self.qkv(x.flatten(2).transpose(1, 2)).reshape(images, rows * columns, 3, self.heads, -1)
        mixed = F.scaled_dot_product_attention(*tokens.permute(2, 0, 3, 1, 4))
        y = self.out(mixed.transpose(1, 2).reshape(images, rows * columns, channels))
        return x + y.transpose(1, 2).reshape(x.shape)

class Dense(nn.Module):
    def __init__(self, channels, more):
        super().__init__()
        self.layer = nn.Conv2d(channels, more, 3, padding=1)

    def forward(self, x):
        return torch.cat([x, F.silu(self.layer(x))], 1)

class Shuffle(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layer = nn.Conv2d(channels // 2, channels // 2, 3, padding=1, groups=channels // 2)

    def forward(self, x):
        left, right = x.chunk(2, 1)
        return torch.stack([left, self.layer(right)], 2).flatten(1, 2)

class Through(nn.Module):
    def __init__(self, net, function):
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x):
        return self.function(self.net, x)
"""

# A fault: (what stands before the layers, what becomes of the network `net`). No network is left that can be trained.
FAULTS = {
    "another number of channels": ("in_channels += 1", ""),
    "no head": ("", "net = net[:-3]"),
    "other classes": ("num_classes += 3", ""),
    "a tuple": ("", "net = Through(net, lambda net, x: (net(x), x))"),
    "a list": ("", "net = Through(net, lambda net, x: [net(x)])"),
    "a mapping": ("", "net = Through(net, lambda net, x: {'logits': net(x)})"),
    "nothing": ("", "net = Through(net, lambda net, x: None)"),
    "a number": ("", "net = Through(net, lambda net, x: 3.0)"),
    "whole numbers": ("", "net = Through(net, lambda net, x: net(x).argmax(1))"),
    "complex numbers": ("", "net = Through(net, lambda net, x: torch.complex(net(x), net(x)))"),
    "one image's logits": ("", "net = Through(net, lambda net, x: net(x)[0])"),
    "more rows": ("", "net = Through(net, lambda net, x: net(x).repeat(2, 1))"),
    "auxiliary logits": ("", "net = Through(net, lambda net, x: (net(x), net(x)) if net.training else net(x))"),
    "a name that is not there": ("", "net = Through(net, lambda net, x: net(missing))"),
    "numpy": ("", "net = Through(net, lambda net, x: torch.from_numpy(net(x).numpy()))"),
    "detached": ("", "net = Through(net, lambda net, x: net(x).detach())"),
    "no gradient": ("", "net = Through(net, torch.no_grad()(lambda net, x: net(x)))"),
    "frozen": ("", "net.requires_grad_(False)"),
    "images changed": ("", "net = Through(net, lambda net, x: net(x.mul_(2)))"),
    "double": ("", "net = net.double()"),
    "another device": ("", "net = net.to('cuda:99')"),
    "a random number of layers": ("import random", "net.append(nn.Linear(num_classes, random.randrange(10**6)))"),
    "layers of an earlier call": (
        "",
        "calls.append(1); net.extend(nn.Linear(num_classes, num_classes) for _ in calls)",
    ),
    "a class": ("", "net = nn.Sequential"),
    "a function": ("", "net = lambda x: x"),
    "an exit": ("", "import sys; sys.exit('no such network')"),
    "an exit in the forward pass": ("", "net = Through(net, lambda net, x: exit(3))"),
    "a recursion": ("", "again = lambda: again(); again()"),
    "a message of several lines": ("", "raise RuntimeError('first line\\nsecond line\\n\\n  third')"),
    "an empty message": ("", "raise ValueError"),
    "an assertion": ("", "assert depth > 100"),
    "a message that cannot be printed": ("", "raise ValueError('\\udc80 \\x1b[31m')"),
    "an exception that cannot be shown": ("", "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})()"),
    "an exception group": ("", "raise ExceptionGroup('several', [ValueError('one'), TypeError('two')])"),
    "a keyboard's interrupt is none of it": ("", "raise StopIteration"),
    "a batch of one size": ("", "net = Through(net, lambda net, x: net(x).view(64, num_classes))"),
    "batch norm of one value": ("", "net[-1] = nn.Sequential(nn.Unflatten(1, (1, -1)), nn.BatchNorm2d(1))"),
    "an embedding": ("", "net.insert(0, nn.Embedding(8, 3))"),
    "dropout when it is evaluated": ("", "net = Through(net, lambda net, x: F.dropout(net(x), 0.5))"),
    "a softmax over images": ("", "net = Through(net, lambda net, x: net(x) * (9 * net(x)).softmax(0))"),
    "less the mean over images": ("", "net = Through(net, lambda net, x: net(x) - net(x).mean(0))"),
    "a drawn mask that is no buffer": (
        "",
        "mask = torch.rand(num_classes); net = Through(net, lambda net, x: net(x) * mask)",
    ),
    "a count of its calls": (
        "",
        "count = []; net = Through(net, lambda net, x: (count.append(1), net(x) * len(count))[1])",
    ),
    "an earlier network": ("", "calls.append(net); net = calls[0]"),
    "in a list": ("", "hidden = [net]; net = Through(nn.Identity(), lambda net, x: hidden[0](x))"),
}

# An oddity: the same, and the network must work.
ODDITIES = {
    "it prints": ("print('made')", "net = Through(net, lambda net, x: (print(x.shape), net(x))[1])"),
    "it warns": ("import warnings; warnings.warn('odd')", ""),
    "a branch on the images": ("", "net = Through(net, lambda net, x: net(x) if x.sum() > 0 else net(-x))"),
    "dropout": ("", "net.insert(len(net) - 1, nn.Dropout(0.3))"),
    "its own mode": ("", "net.eval()"),
    "spectral norm": ("", "net[0] = nn.utils.parametrizations.spectral_norm(net[0])"),
    "weight norm": ("", "net[0] = nn.utils.parametrizations.weight_norm(net[0])"),
    "a lazy head": ("", "net[-1] = nn.LazyLinear(num_classes)"),
    "shared weights": ("", "twice = nn.Linear(num_classes, num_classes); net.extend([twice, twice])"),
    "a hook": ("", "net[0].register_forward_hook(lambda module, given, made: made * 1.0)"),
    "unused weights": ("", "net.spare = nn.Parameter(torch.ones(3)); net = Through(net, lambda net, x: net(x))"),
    "part frozen": ("", "net[0].requires_grad_(False)"),
    "a buffer": ("", "net.register_buffer('seen', torch.zeros(1))"),
    "a seed of its own": ("torch.manual_seed(7)", ""),
    "a mixed order of dimensions": (
        "",
        "net = Through(net, lambda net, x: net(x.contiguous(memory_format=torch.channels_last)))",
    ),
    "noise": ("", "net = Through(net, lambda net, x: net(x + 0.01 * net.training * torch.randn_like(x)))"),
    "half of the images' size": ("", "net = Through(net, lambda net, x: net(F.interpolate(x, scale_factor=0.5)))"),
    "a check of the size": ("assert resolution % 4 == 0", ""),
    "keywords": ("", "net.note = {'a': [1, 2], 'b': object}"),
    "einsum": ("", "net = Through(net, lambda net, x: net(torch.einsum('bchw->bchw', x)))"),
    "gradient checkpoints": (
        "",
        "from torch.utils.checkpoint import checkpoint as again; "
        "net = Through(net, lambda net, x: again(net, x, use_reentrant=False))",
    ),
}


class Written(NamedTuple):
    """A network: the body of its function; what is wrong or odd with it; whether it must work."""

    body: str
    what: str
    works: bool


def written(seed: int) -> Written:
    """The network of a seed, the same on every machine. Faults and oddities come in turn, so that each is seen."""
    draw = random.Random(seed)
    lines = [
        "wide = lambda channels: max(8, 8 * round(channels * width / 8))",
        "deep = lambda repeats: max(1, math.ceil(repeats * depth))",
        *_layers(draw),
        "net = nn.Sequential(*net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, num_classes))",
    ]
    kind = seed % 4
    what, (before, after), works = "plain", ("", ""), True
    if kind == 1:
        what, (before, after) = list(ODDITIES.items())[seed // 4 % len(ODDITIES)]
    elif kind > 1:
        what, (before, after) = list(FAULTS.items())[(2 * (seed // 4) + kind - 2) % len(FAULTS)]
        works = False
    return Written("\n".join([*filter(None, [before]), *lines, *filter(None, [after]), "return net"]), what, works)


def _layers(draw: random.Random) -> list[str]:
    """Lines that make `net`, a list of layers, with `c` channels at its end; no map is smaller than one pixel."""
    stem, size = draw.choice(("3, 2, 1", "3, padding=1", "4, 4", "7, 2, 3")), draw.choice((8, 16, 24))
    lines = ["net, c = [], in_channels", f"net += [nn.Conv2d(c, wide({size}), {stem})]; c = wide({size})"]
    for _ in range(draw.randint(1, 4)):
        repeats, channels = draw.randint(1, 3), draw.choice((8, 16, 24, 40))
        if draw.random() < 0.7:
            lines.append(f"net += [nn.Conv2d(c, wide({channels}), 3, 2, 1)]; c = wide({channels})")
        layer = draw.choice(
            (
                "Residual(nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU())",
                "Residual(nn.Conv2d(c, 2 * c, 1), nn.ReLU6(), nn.Conv2d(2 * c, c, 1))",
                "nn.Conv2d(c, c, 5, padding=2, groups=c)",
                "nn.Conv2d(c, c, 3, padding=2, dilation=2, bias=False)",
                "nn.Conv2d(c, c, (1, 3), padding=(0, 1), groups=2)",
                "Residual(nn.GroupNorm(4, c), nn.Conv2d(c, c, 1), nn.GELU())",
                "Gate(c)",
                "Attention(c, 4)",
                "Shuffle(c)",
                "nn.MaxPool2d(3, 1, 1)",
                "nn.Sequential(nn.ConvTranspose2d(c, c, 2, 2), nn.AvgPool2d(2))",
            )
        )
        lines.append(f"net += [{layer} for _ in range(deep({repeats}))]")
        if draw.random() < 0.3:
            lines.append("net += [Dense(c, 8)]; c += 8")
        lines.append(f"net += [nn.{draw.choice(ACTIVATIONS)}()]")
    return lines
