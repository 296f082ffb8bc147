from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import scalesearch
from scalesearch.export import Written, write
from scalesearch.model import BLOCKS, build
from scalesearch.network import Factory, Network, from_table
from scalesearch.network import load as load_network

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS = {
    "mobile": {
        "resolution": 32,
        "activation": "hardswish",
        "num_classes": 7,
        "stem": {"block": "conv_norm", "stride": 2, "channels": 8},
        "stages": [
            {"block": "depthwise_separable", "channels": 16, "activation": "relu6"},
            {"block": "mbconv", "channels": 16, "repeats": 2, "squeeze_excite": 0.25, "activation": "silu"},
            {"block": "mbconv", "channels": 24, "stride": 2, "kernel": 5, "expand": 6, "squeeze_excite": 0.25},
            {"block": "fused_mbconv", "channels": 24, "repeats": 2},
            {"block": "fused_mbconv", "channels": 32, "expand": 4, "squeeze_excite": 0.25, "activation": "gelu"},
            {"block": "edge_residual", "channels": 32, "repeats": 2},
            {"block": "folded_mbconv", "channels": 32, "stride": 2, "repeats": 2, "squeeze_excite": 0.25},
            {"block": "bneck", "channels": 32, "expand": 3, "repeats": 2, "squeeze_excite": 0.25},
        ],
        "head": [
            {"block": "conv_norm", "kernel": 1, "channels": 48},
            {"block": "pooled_linear", "channels": 40},
        ],
    },
    "residual": {
        "resolution": 32,
        "activation": "relu",
        "in_channels": 1,
        "dropout": 0.3,
        "stem": [
            {"block": "conv_norm", "kernel": 7, "stride": 2, "channels": 16},
            {"block": "max_pool", "stride": 2},
        ],
        "stages": [
            {"block": "basic", "channels": 16, "repeats": 2},
            {"block": "basic", "channels": 24, "stride": 2, "squeeze_excite": 0.25, "squeeze_divisor": 4},
            {"block": "bottleneck", "channels": 32, "repeats": 2, "expand": 0.5, "groups": 4, "squeeze_excite": 0.25},
            {"block": "regnet", "channels": 32, "repeats": 2, "expand": 1, "groups": 4, "squeeze_excite": 0.25},
        ],
    },
    "universal": {
        "resolution": 32,
        "activation": "relu",
        "stem": {"block": "conv_norm", "stride": 2, "channels": 8},
        "stages": [
            {"block": "uib", "channels": 16, "stride": 2, "kernel": 5, "expand": 3, "first_kernel": 5},
            {"block": "uib", "channels": 16, "repeats": 2, "kernel": 3, "expand": 2},
            {"block": "uib", "channels": 16, "kernel": 1, "expand": 4, "first_kernel": 3},
            {"block": "shuffle", "channels": 18, "stride": 2, "repeats": 2},
            {"block": "shuffle", "channels": 15, "repeats": 2},
            {"block": "ghost", "channels": 16, "stride": 2, "expand": 3, "repeats": 2, "squeeze_excite": 0.25},
            {"block": "ghost", "channels": 15, "expand": 2.3},
        ],
        "head": {"block": "pooled_conv_norm", "channels": 40},
    },
    "patches": {
        "resolution": 32,
        "activation": "gelu",
        "norm_epsilon": 1e-6,
        "stem": {"block": "patch_norm", "stride": 2, "channels": 8},
        "stages": [
            {"block": "convnext", "channels": 8, "kernel": 7, "expand": 4},
            {"block": "convnext", "channels": 12, "stride": 2, "repeats": 2, "kernel": 5, "expand": 2},
            {"block": "space_to_depth", "channels": 16, "stride": 4},
        ],
        "head": {"block": "pooled_norm"},
    },
    "preactivation": {
        "resolution": 16,
        "activation": "relu",
        "num_classes": 10,
        "norm_epsilon": 0.001,
        "stem": {"block": "conv", "channels": 8},
        "stages": [
            {"block": "preact_basic", "channels": 8},
            {
                "block": "preact_bottleneck",
                "channels": 16,
                "stride": 2,
                "repeats": 2,
                "expand": 0.25,
                "squeeze_excite": 0.5,
            },
        ],
        "head": {"block": "norm"},
    },
    "transformer": {
        "resolution": 32,
        "activation": "gelu",
        "num_classes": 5,
        "stem": {"block": "patch_embed", "stride": 8, "channels": 24},
        "stages": [{"block": "transformer", "channels": 24, "repeats": 2, "heads": 3, "expand": 4}],
        "head": {"block": "class_token"},
    },
}


def of(name: str) -> Network:
    network = from_table(NETWORKS[name], name=name)
    assert isinstance(network, Network)
    return network


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight and statistic drawn anew: a norm that begins at zero would hide the branch that it ends."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        drawn = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(drawn.abs() + 0.5)
        elif tensor.ndim < 2:
            tensor.copy_(0.2 * drawn + (1.0 if name.endswith("weight") else 0.0))
        else:
            tensor.copy_(drawn / tensor[0].numel() ** 0.5)
    return module.eval()


def images_for(network: Network, batch: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, network.in_channels, network.resolution, network.resolution, generator=generator)


def by_kind(written: list[Written]) -> dict[str, Written]:
    return {one.kind: one for one in written}


def test_the_networks_here_hold_every_block() -> None:
    assert {stage.block for name in NETWORKS for _, stage in of(name).rows()} == set(BLOCKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_format_gives_the_logits_of_the_network(name: str, tmp_path: Path) -> None:
    network, module = of(name), randomised(build(of(name)))
    written = by_kind(write(network, module, tmp_path, comment="made by a test"))
    suffixes = {"yaml": "yaml", "safetensors": "safetensors", "onnx": "onnx", "torch": "pt2"}
    assert {kind: one.file for kind, one in written.items()} == {
        kind: tmp_path / f"{name}.{suffix}" for kind, suffix in suffixes.items()
    }
    assert {path: path.stat().st_size for path in tmp_path.iterdir()} == {o.file: o.num_bytes for o in written.values()}
    assert written["yaml"].largest_difference is None
    assert written["safetensors"].largest_difference == 0
    assert load_network(written["yaml"].file) == network

    session = onnxruntime.InferenceSession(written["onnx"].file, providers=["CPUExecutionProvider"])
    program = torch.export.load(written["torch"].file).module()
    again = scalesearch.load(written["yaml"].file)
    for batch in (1, 2, 5):
        images = images_for(network, batch)
        with torch.no_grad():
            logits = module(images)
            assert logits.std() > 0.1
            assert torch.equal(again(images), logits)
            assert (program(images) - logits).abs().max() <= 1e-4
        onnx = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        assert (onnx - logits).abs().max() <= 1e-4


class Moody(nn.Module):
    """Another network each time that it runs: what is traced is never what it is compared with."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3))) + torch.rand(1)


class Stubborn(nn.Module):
    """Does what its images say, which no graph can express."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))


@pytest.mark.parametrize(("module", "message"), [(Moody(), "gives other logits"), (Stubborn(), "cannot express mine")])
@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_file_that_is_not_the_network_is_not_written(
    module: nn.Module, message: str, kind: str, tmp_path: Path
) -> None:
    network = Factory(name="mine", function="nowhere:make", resolution=8, num_classes=10)
    with pytest.raises(RuntimeError, match=message):
        write(network, module, tmp_path / "new", formats=[kind])
    assert not (tmp_path / "new").exists()


def test_weights_that_two_layers_share_are_written_and_read(tmp_path: Path) -> None:
    def make(depth: float, width: float, resolution: int, num_classes: int, in_channels: int) -> nn.Module:
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64))
        module[2].weight = module[1].weight
        return module

    network = Factory(name="tied", function="nowhere:make", resolution=8, in_channels=1, num_classes=64)
    module = make(1, 1, 8, 64, 1)
    write(network, module, tmp_path, formats=["yaml"])
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(scalesearch.load(tmp_path, factory=make)(images), module(images))


@pytest.mark.parametrize(
    ("formats", "message"),
    [(["onx"], "did you mean 'onnx'"), (["yaml", "jpeg"], "formats has 'jpeg' .known: yaml, onnx, torch.")],
)
def test_a_format_that_nobody_knows_is_refused(formats: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write(of("transformer"), build(of("transformer")), tmp_path / "new", formats=formats)
    assert not (tmp_path / "new").exists()


def test_more_weights_than_an_onnx_file_holds_are_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        module = nn.Linear(30_000, 20_000)
    with pytest.raises(ValueError, match=r"has 2.4 GB of weights.*leave onnx out"):
        write(of("transformer"), module, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_onnx_without_its_packages_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = of("transformer")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"onnx needs onnxscript: pip install 'scalesearch.export.'"):
        write(network, build(network), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    write(network, build(network), tmp_path / "new", formats=["yaml"])


# The way back.


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported") / "residual_phi1.5"  # names have dots
    network = replace(of("residual"), name="residual_phi1.5")
    write(network, randomised(build(network)), directory, formats=["yaml"])
    return directory


@pytest.mark.parametrize("name", ["", "residual_phi1.5.yaml", "residual_phi1.5.safetensors"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_network_is_loaded_by_any_of_its_paths(name: str, kind: type, exported: Path) -> None:
    module = scalesearch.load(kind(exported / name))
    network, images = of("residual"), images_for(of("residual"), 2)
    assert not module.training
    with torch.no_grad():
        assert torch.equal(module(images), randomised(build(network))(images))


def test_nothing_heavy_is_imported_before_load_is_asked_for() -> None:
    code = "import scalesearch, sys; print('torch' in sys.modules); scalesearch.load; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "True"]


def without(file: str, directory: Path) -> Path:
    (directory / file).unlink()
    return directory / ("a.yaml" if file != "a.yaml" else "a.safetensors")


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no weights": (lambda at: without("a.safetensors", at), r"a\.safetensors is missing; .* its weights in NAME\.safe"),
    "no table": (lambda at: without("a.yaml", at), r"a\.yaml is missing"),
    "nothing": (lambda at: at / "b.yaml", r"b\.yaml is missing"),
    "another kind": (lambda at: at / "a.onnx", r"must be a directory, or a file NAME\.yaml"),
    "an empty directory": (lambda at: at / "empty", "it holds none"),
    "two of them": (lambda at: copied(at, "b"), r"it holds a\.yaml, b\.yaml; give the path of one"),
    "others' weights": (lambda at: copied(at, "a", table="transformer"), r"a\.safetensors are not those of a: "),
    "no safetensors": (lambda at: overwritten(at / "a.safetensors"), r"a\.safetensors are not those of a: "),
    "no table inside": (lambda at: overwritten(at / "a.yaml"), r"a\.yaml holds no table"),
}


def copied(directory: Path, name: str, table: str = "residual") -> Path:
    network = replace(of(table), name=name)
    (directory / f"{name}.yaml").write_text(network.to_yaml())
    if name != "a":
        (directory / f"{name}.safetensors").write_bytes((directory / "a.safetensors").read_bytes())
    return directory


def overwritten(path: Path) -> Path:
    path.write_bytes(b"nonsense")
    return path


@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_loaded_is_refused_by_name(
    make: Callable[[Path], Path], message: str, exported: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    copied(tmp_path, "a")
    (tmp_path / "a.safetensors").write_bytes((exported / "residual_phi1.5.safetensors").read_bytes())
    with pytest.raises(ValueError, match=message):
        scalesearch.load(make(tmp_path))


MINE = """
    import sys
    from torch import nn

    sys.modules["was_run"] = sys

    def make(depth, width, resolution, num_classes, in_channels):
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * resolution**2, num_classes))
"""


def test_a_function_that_a_file_names_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "net_for_export.py").write_text(textwrap.dedent(MINE))
    network = Factory(name="mine", function="net_for_export:make", resolution=8, num_classes=10)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    file = by_kind(write(network, module, tmp_path, comment="a test's"))["yaml"].file
    with pytest.raises(ValueError, match=r"made by net_for_export:make.*not run.*factory="):
        scalesearch.load(file)
    assert "was_run" not in sys.modules

    images = torch.randn(3, 3, 8, 8)
    try:
        with torch.no_grad():
            assert torch.equal(scalesearch.load(file, factory="net_for_export:make")(images), module(images))
        assert "was_run" in sys.modules
    finally:
        for name in ("was_run", "net_for_export"):
            sys.modules.pop(name, None)
    with pytest.raises(ValueError, match="nowhere_at_all cannot be imported"):
        scalesearch.load(file, factory="nowhere_at_all:make")


def test_a_factory_for_a_table_is_refused(exported: Path) -> None:
    with pytest.raises(ValueError, match="is a table: leave factory out"):
        scalesearch.load(exported, factory="my_net:make")
