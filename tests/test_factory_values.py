"""A function's network is what its weights say, and answers for each image by itself: each way in which it may not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import Ended
from factories import forgotten, made, write
from learning import TRAIN

from scalesearch.cost import check_training
from scalesearch.model import build
from scalesearch.training import check_values, load_weights, save_weights
from scalesearch.training.values import _close

BEFORE = """
import functools, random
import numpy as np

class Base(nn.Module):
    def __init__(self, depth, width, resolution, num_classes, in_channels):
        super().__init__()
        channels = max(4, int(8 * width))
        self.convolution = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.last = nn.Linear(channels, num_classes)
        self.set_up(channels)

    def set_up(self, channels): pass
    def middle(self, x): return x
    def forward(self, x): return self.last(self.middle(F.relu(self.convolution(x))).mean((2, 3)))
"""
OTHER_WEIGHTS = "values that are no parameters or buffers"
MIXED = "images must not mix"
WRONG = {  # the body of a class, what is said
    "drawn, and a plain attribute": (
        "def set_up(self, channels): self.mask = torch.randn(channels, 1, 1)\n"
        "def middle(self, x): return x * self.mask",
        OTHER_WEIGHTS,
    ),
    "drawn, and in a list": (
        "def set_up(self, channels): self.mask = [torch.randn(1)]\ndef middle(self, x): return x * self.mask[0]",
        OTHER_WEIGHTS,
    ),
    "drawn by numpy": (
        "def set_up(self, channels): self.mask = np.random.rand(channels).astype('f4')\n"
        "def middle(self, x): return x * torch.as_tensor(self.mask)[:, None, None]",
        OTHER_WEIGHTS,
    ),
    "drawn by Python": (
        "def set_up(self, channels): self.scale = random.random()\ndef middle(self, x): return x * self.scale",
        OTHER_WEIGHTS,
    ),
    "drawn by what a function closes over": (
        "def set_up(self, channels):\n    scale = random.random()\n    self.scaled = lambda x: x * scale\n"
        "def middle(self, x): return self.scaled(x)",
        OTHER_WEIGHTS,
    ),
    "a buffer that is not kept": (
        "def set_up(self, channels): self.register_buffer('average', torch.zeros(1), persistent=False)\n"
        "def middle(self, x):\n"
        "    if self.training: self.average = 0.9 * self.average + x.mean().detach()\n"
        "    return x + self.average",
        OTHER_WEIGHTS,
    ),
    "a count of training steps": (
        "def set_up(self, channels): self.steps = 0\ndef middle(self, x):\n"
        "    self.steps += self.training\n    return x * (1 + self.steps)",
        OTHER_WEIGHTS,
    ),
    "dropout when it is evaluated": ("def middle(self, x): return F.dropout(x, 0.5)", "draws random numbers"),
    "noise": ("def middle(self, x): return x + torch.rand_like(x)", "draws random numbers"),
    "statistics of the batch": ("def middle(self, x): return F.batch_norm(x, None, None, training=True)", MIXED),
    "a norm that stays in training": (
        "def set_up(self, channels): self.norm = nn.BatchNorm2d(channels)\ndef middle(self, x): return self.norm(x)\n"
        "def train(self, mode=True): return super().train(True)",
        MIXED,
    ),
    "a softmax over images": ("def middle(self, x): return x * x.mean((1, 2, 3), keepdim=True).softmax(0)", MIXED),
    "a mean over images": ("def middle(self, x): return x - x.mean(0)", MIXED),
    "state that is no tensor": (
        "def get_extra_state(self): return {'steps': 1}\ndef set_extra_state(self, state): pass",
        "keeps _extra_state, a dict, beside its weights",
    ),
}
MADE_BEFORE = {
    "cached": "@functools.lru_cache\ndef inner(*sizes): return Base(*sizes)",
    "a global network": (
        "ALL = {}\ndef inner(*sizes):\n    return ALL.setdefault((sizes, str(torch.empty(0).device)), Base(*sizes))"
    ),
    "a layer of another": (
        "LAST = {}\ndef inner(*sizes):\n    made = Base(*sizes)\n"
        "    made.last = LAST.setdefault((sizes, str(torch.empty(0).device)), made.last)\n    return made"
    ),
}
RIGHT = {
    "plain": "",
    "a table of sines": (
        "def set_up(self, channels): self.table = torch.arange(channels).sin()[:, None, None]\n"
        "def middle(self, x): return x + self.table.to(x.device)"
    ),
    "a mask that is a buffer": (
        "def set_up(self, channels): self.register_buffer('mask', torch.randn(channels, 1, 1))\n"
        "def middle(self, x): return x * self.mask"
    ),
    "a count that only training looks at": (
        "def set_up(self, channels): self.steps = 0\ndef middle(self, x):\n"
        "    self.steps += self.training\n    return x * self.steps if self.training else x"
    ),
    "dropout": "def middle(self, x): return F.dropout(x, 0.5, self.training)",
    "norms": (
        "def set_up(self, channels): self.norms = nn.Sequential(nn.BatchNorm2d(channels), nn.GroupNorm(2, channels))\n"
        "def middle(self, x): return self.norms(x)"
    ),
    "a spectral norm": (
        "def set_up(self, channels):\n    self.convolution = nn.utils.parametrizations.spectral_norm(self.convolution)"
    ),
    "a weight norm": (
        "def set_up(self, channels): self.convolution = nn.utils.parametrizations.weight_norm(self.convolution)"
    ),
    "weights that share memory": (
        "def set_up(self, channels):\n    self.one = nn.Parameter(torch.ones(3))\n"
        "    self.other = nn.Parameter(self.one.data)\n"
        "def middle(self, x): return x * self.one.sum() * self.other.sum()"
    ),
    "a transposed weight": (
        "def set_up(self, channels): self.one = nn.Parameter(torch.randn(5, 3).t())\n"
        "def middle(self, x): return x * self.one.sum()"
    ),
    "complex weights": (
        "def set_up(self, channels): self.one = nn.Parameter(torch.randn(channels, 1, 1, dtype=torch.complex64))\n"
        "def middle(self, x): return (x * self.one).abs()"
    ),
    "buffers of all kinds": (
        "def set_up(self, channels):\n    self.register_buffer('one', torch.arange(3))\n"
        "    self.register_buffer('other', torch.zeros(0))\n    self.register_buffer('none', None)\n"
        "    self.register_buffer('flag', torch.tensor(True))"
    ),
    "attention": (
        "def set_up(self, channels): self.attention = nn.MultiheadAttention(channels, 2, batch_first=True)\n"
        "def middle(self, x):\n    tokens = x.flatten(2).transpose(1, 2)\n"
        "    return self.attention(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)"
    ),
    "a view": "def forward(self, x): return self.last(F.adaptive_avg_pool2d(self.convolution(x), 1).view(len(x), -1))",
    "a module of no length": "def __len__(self): return 0",
    "a lock": "def set_up(self, channels):\n    import threading\n    self.lock = threading.Lock()",
    "no number": "def middle(self, x): return x * float('nan')",  # which a training tells as it diverges
    "one answer": "def middle(self, x): return 0 * x",
}


MAKE = "return Mine(depth, width, resolution, num_classes, in_channels)"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with forgotten():
        yield


def _of_class(body: str) -> str:
    lines = "\n".join(f"    {line}" for line in (body or "pass").splitlines())
    return f"{BEFORE}\nclass Mine(Base):\n{lines}\n"


def _written(name: str) -> str:
    """A function of one of the tables, in a module of its own."""
    module = f"values_{[*WRONG, *MADE_BEFORE, *RIGHT].index(name)}"
    if name in MADE_BEFORE:
        body = "return inner(depth, width, resolution, num_classes, in_channels)"
        return write(Path(), module, body, before=f"{BEFORE}\n{MADE_BEFORE[name]}\n")
    return write(Path(), module, MAKE, before=_of_class(WRONG[name][0] if name in WRONG else RIGHT[name]))


@pytest.mark.parametrize("name", [*WRONG, *MADE_BEFORE])
def test_what_its_weights_do_not_say_is_refused(name: str) -> None:
    function = _written(name)

    def tried() -> None:
        network = made(function, in_channels=1, resolution=8)
        check_training(network)
        check_values(network)

    with pytest.raises(ValueError, match=function) as refused:
        tried()
    words = WRONG[name][1] if name in WRONG else "it returns weights that it has returned before"
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", RIGHT)
def test_what_its_weights_say_is_trained(name: str) -> None:
    network = made(_written(name), in_channels=1, resolution=8)
    check_training(network)
    check_values(network)
    images = torch.randn(3, 1, 8, 8)
    first = build(network).eval()
    save_weights(first, Path("weights.safetensors"))
    with torch.no_grad():
        assert _close(first(images), load_weights(network, Path("weights.safetensors")).eval()(images))


def test_it_is_refused_before_anything_is_trained(
    in_this_process: None, command: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    function = _written("a softmax over images")
    words = [word for word in TRAIN if not word.startswith(("baseline", "proxy"))]
    for first in ("train", "run", "plan"):
        code, _, message = command(first, *words, f"baseline.factory={function}", "proxy=none", "data=digits")
        assert code == 2, message
        assert MIXED in message
        assert not list(Path().glob("workspace/evaluations/*/*"))


def test_a_network_with_a_view_is_trained_in_the_layout_that_it_takes(
    in_this_process: None, command: Callable[..., Ended]
) -> None:
    """`view` refuses what channels_last images come to; training goes on in the usual layout, with its numbers."""
    function = write(
        Path.cwd(),
        "viewed",
        "channels = max(4, int(8 * width))\n"
        "convolution = nn.Conv2d(in_channels, channels, 3, 2, 1)\n"
        "layers = convolution, nn.Linear(channels * (resolution // 2) ** 2, num_classes)\n"
        "return Net(lambda self, x: self.layers[1](F.relu(self.layers[0](x)).view(len(x), -1)), *layers)",
    )
    words = [word for word in TRAIN if not word.startswith(("baseline=", "proxy"))]
    words += [f"baseline.factory={function}", "proxy=none", "baseline.resolution=8", "recipe.seeds=1"]
    came = [command("train", *words, f"recipe.channels_last={given}") for given in ("true", "false")]
    for one in came:
        assert one.code == 0, one.output
    assert came[0].answer["val_accuracy_mean"] == came[1].answer["val_accuracy_mean"]
