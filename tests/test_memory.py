from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import case
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from scalesearch import memory as memory_module
from scalesearch.cost import cost
from scalesearch.memory import memory, peak
from scalesearch.model import build, trust
from scalesearch.network import Factory, Network

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = (
    *("mobilenetv1", "mobilenetv2", "mobilenetv3_small", "efficientnet_b0", "efficientnetv2_b0"),
    *("resnet18", "resnext50", "se_preresnet29", "vit_tiny"),
)


def measured(run: Callable[[], object]) -> int:
    """The most bytes that `run` allocates at a time on the CPU, as torch's profiler records them."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as recorded:
        run()
    assert recorded.profiler is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest


def measured_inference(module: nn.Module, images: Tensor) -> int:
    module.eval()

    def run() -> None:
        with torch.no_grad():
            module(images)

    run()  # what torch makes once and keeps
    return measured(run)


def measured_training(module: nn.Module, images: Tensor) -> int:
    module.train()
    labels = torch.zeros(len(images), dtype=torch.long)

    def run() -> None:
        F.cross_entropy(module(images), labels).backward()

    run()
    module.zero_grad(set_to_none=True)
    return measured(run)


def images_of(network: Network, batch_size: int) -> Tensor:
    return torch.rand(batch_size, network.in_channels, network.resolution, network.resolution)


@pytest.mark.parametrize(("resolution", "batch_size"), [(64, 2), (96, 1)])
@pytest.mark.parametrize("name", FAMILIES)
def test_inference_is_what_the_profiler_measures(
    name: str, resolution: int, batch_size: int, baselines: dict[str, Network]
) -> None:
    network = replace(baselines[name], resolution=resolution)
    real = measured_inference(build(network), images_of(network, batch_size))
    assert memory(network, batch_size=batch_size).activations == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize(("resolution", "batch_size"), [(64, 8), (96, 2)])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_step_is_what_the_profiler_measures(
    name: str, resolution: int, batch_size: int, baselines: dict[str, Network]
) -> None:
    network = replace(baselines[name], resolution=resolution)
    real = measured_training(build(network), images_of(network, batch_size))
    stated = memory(network, batch_size=batch_size).training_activations
    assert stated == pytest.approx(real, rel=0.1)


SMALL_MAPS = """
import random, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from test_memory import images_of, measured_training
from dataclasses import replace
from torch import nn
from scalesearch.machine import instructions
from scalesearch.memory import memory, peak
from scalesearch.model import build
from scalesearch.network import load

torch.set_num_threads(1)
print(" ".join(sorted(instructions())) or "neither")
resnet = replace(load(Path(sys.argv[2])), resolution=64)
pairs = [("resnet18", memory(resnet, batch_size=8).training_activations,
          measured_training(build(resnet), images_of(resnet, 8)))]
chance = random.Random(0)
for _ in range(24):
    kernel, channels, batch = chance.choice([3, 5, 7]), chance.choice([8, 16, 24, 32, 64]), chance.choice([2, 4, 8])
    side, groups = chance.randint(1, min(4, kernel - 1)), chance.choice([1, 2, channels // 2, channels])
    module = nn.Sequential(
        nn.Conv2d(3, channels, 1), nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )
    images = torch.rand(batch, 3, side, side)
    real = measured_training(module, images)
    stated = peak(module.to("meta"), images.to("meta"), training=True)
    pairs.append((f"{channels=} {kernel=} {groups=} {side=} {batch=}", stated, real))
for name, stated, real in pairs:
    if abs(stated - real) > 0.1 * real + 8192:  # of a few kB, what rounds up to pages
        print(name, stated, real)
"""


@pytest.mark.parametrize("most", ["AVX2", "DEFAULT"])
def test_both_sets_of_instructions_need_what_is_said_on_small_maps(most: str) -> None:
    """In a process of its own, since oneDNN reads once which instructions it may use."""
    here = Path(__file__).parent
    words = [sys.executable, "-c", SMALL_MAPS, str(here), str(here.parent / "conf" / "baseline" / "resnet18.yaml")]
    message = subprocess.run(
        words,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": most},
    )
    found, *off = message.stdout.splitlines()
    assert off == [], found
    assert most != "AVX2" or found == "neither"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_second_thread_makes_convolutions_copy_more(threads: int, baselines: dict[str, Network]) -> None:
    network = replace(baselines["mobilenetv1"], resolution=64)
    torch.set_num_threads(threads)
    real = measured_inference(build(network), images_of(network, 2))
    here, one, two = (memory(network, batch_size=2, threads=given).activations for given in (None, 1, 2))
    assert here == (one, two)[threads - 1] == pytest.approx(real, rel=0.02)
    assert one < 0.5 * two


@pytest.mark.parametrize("width", [4, 12, 24])
def test_channels_of_any_number_are_what_the_profiler_measures(width: int, baselines: dict[str, Network]) -> None:
    base = baselines["mobilenetv2"]
    stages = tuple(replace(stage, channels=width, repeats=1) for stage in base.stages)
    network = replace(base, stages=stages, resolution=64)
    real = measured_inference(build(network), images_of(network, 4))
    assert memory(network, batch_size=4).activations == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize("left_out", ["copies of convolutions", "the end of a tensor"])
def test_the_profiler_shows_what_is_left_out(
    left_out: str, baselines: dict[str, Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = replace(baselines["mobilenetv2"], resolution=96)
    real = measured_inference(build(network), images_of(network, 2))
    with torch.device("meta"):
        module, images = build(network).eval(), torch.empty(2, 3, 96, 96)
    if left_out == "copies of convolutions":
        monkeypatch.setattr(memory_module, "_CONVOLUTIONS", ())
        assert peak(module, images) < 0.91 * real
    else:
        monkeypatch.setattr(memory_module.weakref, "ref", lambda referent, callback: referent)
        assert peak(module, images) > 1.5 * real


class Chain(nn.Module):
    """Eight linear layers of 256 features, with whatever is done to the features in between."""

    def __init__(self, between: Callable[[Tensor], Tensor], *, kept: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(256, 256) for _ in range(8))
        self.between = between
        self.kept = kept

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        for layer in self.layers:
            if self.kept:
                x = self.between(layer(x))
            else:
                x = checkpoint(lambda x, layer=layer: self.between(layer(x)), x, use_reentrant=False)
        return x


CHAINS: dict[str, Callable[[], nn.Module]] = {
    "new tensors": lambda: Chain(lambda x: torch.relu(x) + 1),
    "in place": lambda: Chain(lambda x: torch.relu_(x)),
    "in place, with a copy for the backward pass": lambda: Chain(lambda x: F.silu(x, inplace=True)),
    "views": lambda: Chain(lambda x: x.view(-1, 16, 16).transpose(1, 2).flip(1).transpose(1, 2).flatten(1)),
    "chunks": lambda: Chain(lambda x: torch.cat([part * 2 for part in x.chunk(4, 1)], 1)),
    "checkpoints": lambda: Chain(lambda x: F.gelu(x).sigmoid().tanh(), kept=False),
    "dropout": lambda: Chain(lambda x: F.dropout(x, 0.5)),
    "a layer norm": lambda: Chain(lambda x: F.layer_norm(x, x.shape[1:])),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_module_of_the_users_is_what_the_profiler_measures(name: str) -> None:
    images = torch.rand(512, 1, 16, 16)
    module = CHAINS[name]()
    inference, training = measured_inference(module, images), measured_training(module, images)
    module, images = module.to("meta"), images.to("meta")
    assert peak(module, images) == pytest.approx(inference, rel=0.01)
    assert peak(module, images, training=True) == pytest.approx(training, rel=0.03)


def test_the_bytes_of_two_linear_layers() -> None:
    with torch.device("meta"):
        module, images = nn.Sequential(nn.Flatten(), nn.Linear(100, 300), nn.Linear(300, 7)), torch.empty(10, 1, 10, 10)
    assert peak(module, images) == 4 * 10 * (300 + 7)


class Attending(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.options = options

    def forward(self, images: Tensor) -> Tensor:
        x = self.linear(images)  # (B, heads, tokens, 32)
        return F.scaled_dot_product_attention(x, x, x, **self.options).mean((1, 2))


@pytest.mark.parametrize(
    ("options", "fused"),
    [({}, True), ({"is_causal": True}, True), ({"scale": 0.5}, True), ({"dropout_p": 0.1}, False)],
)
def test_attention_never_holds_the_weights_of_all_pairs(options: dict[str, object], fused: bool) -> None:
    module, images = Attending(**options), torch.rand(1, 32, 512, 32)
    inference, training = measured_inference(module, images), measured_training(module, images)
    module, images = module.to("meta"), images.to("meta")
    weights = 4 * 32 * 512**2
    assert peak(module, images) == pytest.approx(inference, rel=0.1)
    assert peak(module, images, training=True) == pytest.approx(training, rel=0.2)  # but for the CPU's workspace
    assert (peak(module, images, training=True) < weights) == fused


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("operation", list(memory_module._SHORTCUTS), ids=str)
def test_a_shortcut_makes_what_torch_makes_on_the_cpu(operation: torch._ops.OpOverload, affine: bool) -> None:
    x = torch.ones(2, 6, 5, 5)
    weight, bias, mean, variance = torch.ones(4, 6)
    scale, shift = (weight, bias) if affine else (None, None)
    cases: dict[str, list[tuple[object, ...]]] = {
        "native_batch_norm": [(x, scale, shift, mean, variance, training, 0.1, 1e-5) for training in (True, False)],
        "native_batch_norm_backward": [
            (x, x, scale, mean, variance, mean, variance, True, 1e-5, [wanted, affine, affine])
            for wanted in (True, False)
        ],
        "hardtanh_": [(x, 0, 6)],
        "hardswish_": [(x,)],
        "hardtanh_backward": [(x, x, 0, 6)],
        "hardswish_backward": [(x, x)],
        "convolution": [
            (x, torch.ones(4, 6 // groups, 3, 2), None, [stride, 1], [1, 0], [1, dilation], False, [0, 0], groups)
            for stride, dilation, groups in ((1, 1, 1), (2, 2, 2))
        ]
        + [(x, torch.ones(6, 4, 3, 3), torch.ones(4), [2, 2], [1, 1], [1, 1], True, [1, 1], 1)],
        "convolution_backward": [
            (x, x, torch.ones(6, 6, 3, 3), [6] if bias else None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted)
            for bias, wanted in ((True, [True] * 3), (False, [False, True, False]))
        ],
        "add": [(x, x), (x, 1), (x, x[:, :, :1, :1]), (x[:, :, :1, :1], x)],
        "mul": [(x, x), (x, 2.0), (2.0 * torch.ones(()), x), (x.mean((2, 3), keepdim=True), x)],
        "div": [(x, 2.0)],
        **{key: [(x,)] for key in ("sigmoid", "silu_")},
        **{key: [(x, x)] for key in ("silu_backward", "sigmoid_backward")},
        "mean": [(x, [2, 3]), (x, [-1], True), (x, None)],
        "addmm": [(weight, x[0, 0, :, :4], torch.ones(4, 6)[:, :6])],
        "_log_softmax": [(x[0, 0], 1, False)],
        "_log_softmax_backward_data": [(x[0, 0], x[0, 0], 1, torch.float32)],
        "nll_loss_backward": [(x.sum(), x[0, 0], torch.zeros(5, dtype=torch.long), None, 1, -100, x.sum())],
        "nll_loss_forward": [(x[0, 0], torch.zeros(5, dtype=torch.long), None, 1, -100)],
    }
    for given in cases[operation.overloadpacket.__name__]:
        ours, torchs = memory_module._SHORTCUTS[operation](*given), operation(*given)
        for one, other in zip(*(made if isinstance(made, tuple) else (made,) for made in (ours, torchs)), strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert (one.shape, one.dtype, one.is_contiguous()) == (other.shape, other.dtype, other.is_contiguous())
                assert (one is x) == (other is x)


def test_parts_add_up(baselines: dict[str, Network]) -> None:
    network = replace(baselines["efficientnet_b0"], resolution=64)
    module = build(network)
    found = memory(network, batch_size=4)
    images = 4 * 4 * 3 * 64**2
    assert found.weights == sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    assert found.weights > 4 * cost(network).params  # the statistics of the norms
    assert found.inference == found.weights + images + found.activations
    momentum, labels = 4 * cost(network).params, 4 * 8
    assert found.training == found.weights + momentum + images + labels + found.training_activations
    assert found.training_activations > 4 * cost(network).params  # the gradients


def test_more_images_and_more_pixels_take_more(baseline: Network) -> None:
    if isinstance(baseline, Factory):
        pytest.skip("a factory is the user's")
    small = replace(baseline, resolution=max(32, baseline.total_stride))
    larger = memory(replace(small, resolution=3 * small.resolution), batch_size=2)
    assert larger.activations > memory(small).activations
    assert larger.weights >= memory(small).weights
    assert larger.inference > memory(small).inference


def test_nothing_is_allocated(baselines: dict[str, Network]) -> None:
    base = baselines["resnet50"]
    wide = replace(base, stages=tuple(replace(stage, channels=16 * stage.channels) for stage in base.stages))
    assert memory(wide).weights > 10 << 30
    assert measured(lambda: memory(wide, batch_size=2).training) < 1 << 20


def test_torchs_generator_is_left_alone(baselines: dict[str, Network]) -> None:
    network = replace(baselines["efficientnet_b0"], resolution=32, dropout=0.3)
    before = torch.get_rng_state()
    assert memory(network, batch_size=5).training > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_what_was_found_is_kept(baselines: dict[str, Network], monkeypatch: pytest.MonkeyPatch) -> None:
    network = replace(baselines["mobilenetv2"], resolution=32)
    once = memory(network).inference, memory(network, batch_size=2).training
    monkeypatch.setattr(memory_module, "build_on_meta", None)
    again = replace(network, name="by another name")
    assert (memory(again).inference, memory(again, batch_size=2).training) == once


def test_a_factory_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net_for_memory.py").write_text(
        "from torch import nn\n"
        "def make(depth, width, resolution, num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * resolution**2, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    trust("net_for_memory:make")
    network = Factory(name="net", function="net_for_memory:make", resolution=8, in_channels=2, num_classes=5)
    found = memory(network, batch_size=3)
    assert (found.weights, found.activations) == (4 * (128 * 5 + 5), 4 * 3 * 5)
    assert found.training > 3 * found.weights


def test_a_step_that_batch_norm_refuses_names_the_network(baselines: dict[str, Network]) -> None:
    network = replace(baselines["mobilenetv2"], resolution=32)
    with pytest.raises(ValueError, match="'mobilenetv2' cannot take a training step with batch_size 1: Expected more"):
        _ = memory(network).training
    assert memory(network).inference > 0


def test_a_batch_size_that_is_none_is_refused(baselines: dict[str, Network]) -> None:
    for given in (0, -1, 1.5, True, None):
        with case(given), pytest.raises(ValueError, match=r"batch_size is .*; it must be a whole number of at least 1"):
            memory(baselines["mobilenetv2"], batch_size=given)  # type: ignore[arg-type]


@pytest.mark.parametrize("on_meta", ["module", "images"])
def test_a_module_with_memory_is_refused(on_meta: str) -> None:
    module, images = nn.Linear(2, 2), torch.empty(1, 2)
    module = module.to("meta") if on_meta == "module" else module
    images = images.to("meta") if on_meta == "images" else images
    with pytest.raises(ValueError, match="is on the device cpu; module and images must be on the meta device"):
        peak(module, images)
