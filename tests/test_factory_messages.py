"""What a function, its network or its forward pass does wrong is named: where, for which size, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import factories
import pytest
import torch
from conftest import Ended, case
from torch.utils.flop_counter import FlopCounterMode

from scalesearch.cost import check_training, cost, needs_values, uncounted
from scalesearch.memory import memory
from scalesearch.model import FactoryError, build, identity


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    with factories.forgotten():
        yield tmp_path


CONV = "nn.Conv2d(in_channels, 8, 3, padding=1)"
LAST = "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)"
POOLED = "self.layers[1](self.layers[0](x).mean((2, 3)))"
NET = f"{CONV}, nn.Linear(8, num_classes)"
# what is wrong -> (the body of make, what the message has of: what was raised or given, the place, the remedy)
WRONG = {
    "a name that is not there": ("return nn.Sequentiall()", ["AttributeError", "line 18"]),
    "a name in the forward pass": (f"def run(self, x):\n    return missing(x)\nreturn Net(run, {NET})", ["line 19"]),
    "a division by zero": ("return nn.Conv2d(in_channels, int(8 / (width - 1)), 3)", ["ZeroDivisionError"]),
    "float channels": ("return nn.Linear(in_channels, 8.5 * width)", ["TypeError", "whole numbers"]),
    "a stem that is too large": (
        f"return nn.Sequential(nn.Conv2d(in_channels, 8, 17), {LAST})",
        ["images of 16 px are too small", "proxy.resolution", "layer 0 (Conv2d)"],
    ),
    "a pooling that is too large": (
        f"return nn.Sequential({CONV}, *[nn.MaxPool2d(2) for _ in range(5)], {LAST})",
        ["images of 16 px are too small", "layer 5 (MaxPool2d)"],
    ),
    "a fixed size": (
        f"return nn.Sequential({CONV}, nn.Flatten(), nn.Linear(8 * 32 * 32, num_classes))",
        ["AdaptiveAvgPool2d", "layer 2 (Linear)"],
    ),
    "three channels": (f"in_channels = 1\nreturn nn.Sequential({CONV}, {LAST})", ["in_channels", "3 here"]),
    "another number of classes": (
        f"num_classes = 1000\nreturn nn.Sequential({CONV}, {LAST})",
        ["gives (1, 1000)", "(1, 10)", "pass num_classes on"],
    ),
    "maps": (f"return {CONV}", ["gives (1, 8, 16, 16)", "pool over rows and columns"]),
    "a tuple": (f"return Net(lambda self, x: ({POOLED}, x), {NET})", ["a tuple of tensors", "return the logits alone"]),
    "a mapping": (f"return Net(lambda self, x: dict(logits={POOLED}), {NET})", ["a dict of tensors", "alone"]),
    "an object": (
        f"import dataclasses\nOut = dataclasses.make_dataclass('Out', ['logits'])\n"
        f"return Net(lambda self, x: Out({POOLED}), {NET})",
        ["a Out of tensors", "alone"],
    ),
    "nothing": (f"return Net(lambda self, x: None, {NET})", ["gives a NoneType"]),
    "predictions": (
        f"return Net(lambda self, x: ({POOLED} > 0), {NET})",
        ["floating-point numbers, not as torch.bool"],
    ),
    "auxiliary logits": (
        f"return Net(lambda self, x: ({POOLED}, {POOLED}) if self.training else {POOLED}, {NET})",
        ["a tuple of tensors", "2 images in training mode"],
    ),
    "groups": (
        f"return nn.Sequential(nn.Conv2d(in_channels, 8, 3, groups=2), {LAST})",
        ["must be divisible by groups", "round channels to a multiple"],
    ),
    "double precision": (f"return nn.Sequential({CONV}, {LAST}).double()", ["float32"]),
    "a device": (f"return nn.Sequential({CONV}, {LAST}).to('cuda:77')", ["leave the device to scalesearch"]),
    "no weights": ("return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())", ["gives (1, 3)"]),
    "nothing to train": (
        f"return nn.Sequential({CONV}, {LAST}).requires_grad_(False)",
        ["no parameters to train"],
    ),
    "nothing to count": (
        "return Net(lambda self, x: F.pad(torch.fft.rfft2(x).abs().mean((2, 3)) * self.scale, (0, num_classes - 3)), "
        "scale=nn.Parameter(torch.ones(1)))",
        ["no multiply-adds", "aten._fft_r2c"],
    ),
    "layers in a list": (f"return Net(lambda self, x: {POOLED}, {NET}, more=[{CONV}])", ["plain list", "ModuleList"]),
    "probabilities": (
        f"return nn.Sequential({CONV}, {LAST}, nn.Softmax(1))",
        ["ends in a softmax", "return the logits"],
    ),
    "probabilities of each label": (
        f"return Net(lambda self, x: torch.sigmoid({POOLED}), {NET})",
        ["ends in a sigmoid", "return the logits"],
    ),
    "probabilities in training alone": (
        f"return Net(lambda self, x: {POOLED}.softmax(1) if self.training else {POOLED}, {NET})",
        ["ends in a softmax", "return the logits"],
    ),
    "another network for one image": (
        f"return Net(lambda self, x: {POOLED} if len(x) > 1 else self.layers[1](self.layers[2](x).mean((2, 3))), "
        f"{NET}, nn.Conv2d(in_channels, 8, 1))",
        ["multiply-adds for 1, 2 and 3 images", "must not depend on how many"],
    ),
    "compiled": (f"return torch.compile(nn.Sequential({CONV}, {LAST}))", ["torch.compile", "return it uncompiled"]),
    "compiled in part": (f"return nn.Sequential(torch.compile({CONV}), {LAST})", ["torch.compile"]),
    "double precision by default": (
        f"torch.set_default_dtype(torch.float64)\nreturn nn.Sequential({CONV}, {LAST})",
        ["float32"],
    ),
    "images changed": (
        f"return Net(lambda self, x: self.layers[1](self.layers[0](x.sub_(1)).mean((2, 3))), {NET})",
        ["changes its images in place"],
    ),
    "an operation in place, which the backward pass meets": (
        f"def run(self, x):\n    x = self.layers[0](x).sigmoid()\n    y = x * x\n    x.add_(1)\n"
        f"    return self.layers[1](y.mean((2, 3)))\nreturn Net(run, {NET})",
        ["training step", "work on a copy", "line 20"],
    ),
    "a backward pass of its own": (
        "class Twice(torch.autograd.Function):\n"
        "    forward = staticmethod(lambda ctx, x: 2 * x)\n"
        "    @staticmethod\n    def backward(ctx, grad):\n        return grad.missing()\n"
        f"return Net(lambda self, x: self.layers[1](Twice.apply(self.layers[0](x)).mean((2, 3))), {NET})",
        ["training step", "line 22"],
    ),
    "no way back": (
        f"return Net(lambda self, x: {POOLED}.detach(), {NET})",
        ["training step", "without .detach() or torch.no_grad()"],
    ),
    "chance": (
        "import random\nreturn nn.Sequential(nn.Conv2d(in_channels, 8, 3), *[nn.Conv2d(8, 8, 1) for _ in "
        f"range(random.randrange(1, 10**3))], {LAST})",
        ["another network when it is called again"],
    ),
    "a global count": (
        "calls.append(1)\nreturn nn.Sequential(nn.Conv2d(in_channels, 8, 3), *[nn.Conv2d(8, 8, 1) for _ in calls], "
        f"{LAST})",
        ["another network when it is called again", "global variable"],
    ),
    "a class": ("return nn.Identity", ["returned the class Identity"]),
    "an exit": ("raise SystemExit(3)", ["raised SystemExit: 3"]),
    "its own words": ("raise ValueError('resolution must be a multiple of 32')", ["must be a multiple of 32"]),
}


def refusal(body: str, name: str, **more: float) -> str:
    network = factories.made(factories.write(Path(), name, body, before="calls = []"), **more)  # type: ignore[arg-type]
    with pytest.raises(ValueError) as refused:  # noqa: PT011, PT012 - the words are compared
        cost(network)
        check_training(network)
    return str(refused.value)


def test_what_is_wrong_is_named_with_its_place_the_size_and_a_remedy() -> None:
    for number, (what, (body, expected)) in enumerate(WRONG.items()):
        with case(what):
            message = refusal(body, f"wrong{number}")
            assert message.startswith(f"wrong{number}:make")
            assert "\n" not in message
            for words in expected:
                assert words in message, f"{words!r} is not in {message!r}"
            if " raised " in message and what != "no way back":
                assert "depth=1, width=1, resolution=16" in message
                assert re.search(rf"wrong{number}\.py, line \d+|layer [\w.]+ \(\w+\)", message), message


def test_the_same_fault_is_one_line_on_the_command_line(command: Callable[..., Ended]) -> None:
    function = factories.write(Path(), "refused", WRONG["a stem that is too large"][0])
    code, _, output = command(f"cost baseline.factory={function} baseline.resolution=16")
    assert code == 2
    assert output.count("\n") == 1
    assert "layer 0 (Conv2d)" in output


# what runs only with values, on the CPU: each gives logits
REAL = {
    "a branch": "x = x * 2 if x.mean() > 100 else x",
    "an item": "x = x * x.std().item()",
    "a mask": "x = x + x[x > 0].mean()",
    "a tensor of the CPU": "x = x + torch.arange(x.shape[-1])",
    "numpy": "x = x + torch.from_numpy(x.detach().numpy().copy())",
}


def test_a_forward_pass_that_needs_values_is_counted_with_real_tensors() -> None:
    plain = factories.made(factories.write(Path(), "plain", f"return Net(lambda self, x: {POOLED}, {NET})"))
    assert not needs_values(plain)
    for number, (what, line) in enumerate(REAL.items()):
        with case(what):
            body = f"def run(self, x):\n    {line}\n    return {POOLED}\nreturn Net(run, {NET})"
            network = factories.made(factories.write(Path(), f"real{number}", body))
            assert needs_values(network)
            assert cost(network) == cost(plain)
            check_training(network)
            few, many = (memory(network, batch_size=size, threads=1, avx512=False) for size in (2, 8))
            assert few.inference >= memory(plain, batch_size=2, threads=1, avx512=False).inference
            assert many.training > few.training


def test_attention_on_real_tensors_is_counted_as_on_the_meta_device() -> None:
    body = """
        def run(self, x):
            tokens = self.layers[0](x).flatten(2).transpose(1, 2)
            {line}
            return self.layers[1](self.layers[2](tokens, tokens, tokens)[0].mean(1))
        attention = nn.MultiheadAttention(8, 2, batch_first=True)
        return Net(run, nn.Conv2d(in_channels, 8, 4, 4), nn.Linear(8, num_classes), attention)
    """
    functions = [
        factories.write(Path(), f"attends{line[:1]}", body.format(line=line)) for line in ("", "x.sum().item()")
    ]
    meta, real = (factories.made(function) for function in functions)
    assert (needs_values(meta), needs_values(real)) == (False, True)
    assert cost(meta) == cost(real)


def test_lazy_layers_are_made_and_have_a_key() -> None:
    body = "return nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(num_classes))"
    network = factories.made(factories.write(Path(), "lazy", body))
    check_training(network)
    assert cost(network).params == 3 * 8 * 9 + 8 + 16 + 8 * 14**2 * 10 + 10
    assert build(network).training
    assert identity(network) == identity(network)


# functional code, and the same with modules: the outputs of convolutions and linear layers
FUNCTIONAL = {
    "conv2d": (
        "F.conv2d(x, self.a, padding=1).mean((2, 3)) @ self.b",
        "a=nn.Parameter(torch.ones(8, in_channels, 3, 3)), b=nn.Parameter(torch.ones(8, num_classes))",
        8 * 16 * 16,
    ),
    "a standardised weight": (
        "F.conv2d(x, (self.a - self.a.mean()) / self.a.std(), padding=1).mean((2, 3)) @ self.b",
        "a=nn.Parameter(torch.randn(8, in_channels, 3, 3)), b=nn.Parameter(torch.ones(8, num_classes))",
        8 * 16 * 16,
    ),
    "linear on tokens": (
        "F.linear(x.flatten(2).transpose(1, 2), self.a).mean(1) @ self.b",
        "a=nn.Parameter(torch.ones(8, in_channels)), b=nn.Parameter(torch.ones(8, num_classes))",
        8 * 16 * 16,
    ),
    "einsum": (
        "torch.einsum('bchw,ck->bk', x, self.a) @ self.b",
        "a=nn.Parameter(torch.ones(in_channels, 8)), b=nn.Parameter(torch.ones(8, num_classes))",
        8,
    ),
    "transposed": (
        "F.conv_transpose2d(x, self.a, stride=2).mean((2, 3)) @ self.b",
        "a=nn.Parameter(torch.ones(in_channels, 8, 2, 2)), b=nn.Parameter(torch.ones(8, num_classes))",
        8 * 32 * 32,
    ),
    "attention": (  # of whose products, as of a table's, there are no activations
        "(lambda t: (t @ t.transpose(1, 2) @ t).mean(1) @ self.b)(F.linear(x.flatten(2).transpose(1, 2), self.a))",
        "a=nn.Parameter(torch.ones(8, in_channels)), b=nn.Parameter(torch.ones(8, num_classes))",
        8 * 16 * 16,
    ),
}


def test_activations_of_functional_code_are_counted() -> None:
    for number, (what, (line, weights, activations)) in enumerate(FUNCTIONAL.items()):
        with case(what):
            network = factories.made(
                factories.write(Path(), f"fun{number}", f"return Net(lambda self, x: {line}, {weights})")
            )
            counted = cost(network)
            assert counted.activations == activations + 10
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                build(network)(torch.zeros(1, 3, 16, 16))
            assert counted.macs == counter.get_total_flops() // 2
            assert uncounted(network) == {}


# an operation that no counter knows -> its name
UNCOUNTED = {
    "x = torch.fft.irfft2(torch.fft.rfft2(x))": "aten._fft_c2r",
    "x = torch.fft.fft(torch.fft.fft(x)).real": "aten._fft_c2c",
    "x = x + nn.functional.bilinear(x, x, self.w)": "aten._trilinear",
    "x = x + torch.cdist(x, x)": "aten._cdist_forward",
    "x = x + torch.linalg.inv(x + 9 * torch.eye(16))": "aten.linalg_inv_ex",
    "x = (x.unsqueeze(-1) * x.unsqueeze(-2)).sum(-1)": "aten.mul",
    "x = x + torch.mv(x[0, 0], x[0, 0, 0])": "aten.mv",
    "x = torch.ops.mine.scan(x)": "mine.scan",
    "x = x + nn.LSTM(16, 16, batch_first=True)(x[:, 0])[0].unsqueeze(1)": "aten.mkldnn_rnn_layer",
}


def test_what_no_counter_knows_is_named_on_the_screen(command: Callable[..., Ended]) -> None:
    library = torch.library.Library("mine", "DEF")
    library.define("scan(Tensor x) -> Tensor")
    library.impl("scan", lambda x: x.clone(), "CompositeExplicitAutograd")
    for number, (line, name) in enumerate(UNCOUNTED.items()):
        with case(line):
            made = f"Net(run, {NET}, w=nn.Parameter(torch.ones(16, 16, 16)))"
            body = f"def run(self, x):\n    {line}\n    return {POOLED}\nreturn {made}"
            function = factories.write(Path(), f"uncounted{number}", body)
            found = uncounted(factories.made(function))
            assert name in found, found
    function = factories.write(
        Path(), "spectral", f"return Net(lambda self, x: {POOLED.replace('(x)', '(torch.fft.rfft2(x).real)')}, {NET})"
    )
    code, answer, output = command(f"cost baseline.factory={function} baseline.resolution=16 --json")
    assert code == 0
    assert list(answer["uncounted"]) == ["aten._fft_r2c"]
    assert "not counted: aten._fft_r2c (1 call)" in output


def test_a_fault_of_the_code_is_told_from_a_size_that_cannot_be() -> None:
    for what, fault in (
        ("a name that is not there", True),
        ("an exit", True),
        ("its own words", False),
        ("groups", False),
    ):
        with case(what):
            name = f"fault_{what[:8].replace(' ', '_').replace(chr(39), '')}"
            network = factories.made(factories.write(Path(), name, WRONG[what][0]))
            with pytest.raises(FactoryError) as refused:
                cost(network)
            assert refused.value.fault == fault
