from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn

import scalesearch
from scalesearch import cli
from scalesearch.cost import cost
from scalesearch.data import DataSpec
from scalesearch.data import load as load_data
from scalesearch.export import Written, counterpart, write
from scalesearch.export.counterpart import _known, _shortcuts_last
from scalesearch.ledger import Ledger
from scalesearch.model import BLOCKS, build
from scalesearch.network import Factory, Network, Stage, from_table
from scalesearch.network import load as load_network
from scalesearch.pretrained import match
from scalesearch.scaling import Rounding, resize
from scalesearch.training import evaluate, save_weights

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.xdist_group("export")]  # they share a study


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
            {"block": "basic", "channels": 24, "stride": 2, "squeeze_excite": 0.25},
            {"block": "bottleneck", "channels": 32, "repeats": 2, "expand": 0.5, "groups": 4, "squeeze_excite": 0.25},
        ],
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


@pytest.mark.parametrize(("module", "said"), [(Moody(), "gives other logits"), (Stubborn(), "cannot express mine")])
@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_file_that_is_not_the_network_is_not_written(module: nn.Module, said: str, kind: str, tmp_path: Path) -> None:
    network = Factory(name="mine", function="nowhere:make", resolution=8, num_classes=10)
    with pytest.raises(RuntimeError, match=said):
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
    ("formats", "said"),
    [(["onx"], "did you mean 'onnx'"), (["yaml", "jpeg"], "formats has 'jpeg' .known: yaml, onnx, torch.")],
)
def test_a_format_that_nobody_knows_is_refused(formats: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
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


@pytest.mark.parametrize(("make", "said"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_loaded_is_refused_by_name(
    make: Callable[[Path], Path], said: str, exported: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    copied(tmp_path, "a")
    (tmp_path / "a.safetensors").write_bytes((exported / "residual_phi1.5.safetensors").read_bytes())
    with pytest.raises(ValueError, match=said):
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


# timm's network of the same function.


def made_by(code: str) -> nn.Module:
    return eval(code, {"timm": timm, "torch": torch, "functools": functools})


def same_logits(network: Network, code: str) -> float:
    """The largest difference of logits of about 1, with the weights of timm's network copied over."""
    theirs = randomised(made_by(code))
    ours = build(network).eval()
    state = _shortcuts_last(theirs.state_dict())
    missing, unexpected = ours.load_state_dict(match(state, ours), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    images = images_for(network, 2)
    with torch.no_grad():
        expected, logits = theirs(images), ours(images)
    return float((logits - expected).abs().max() / expected.abs().max())


RULE = Rounding(name="nearest", depth="nearest", divisor=8, limit=0.9, resolution="nearest")
KEPT = replace(RULE, stem="kept")  # timm's ResNets begin with 64 channels


@pytest.mark.parametrize(
    ("name", "rule", "depth", "width"),
    [
        ("mobilenetv1", RULE, 1.3, 0.6),
        ("mobilenetv2", RULE, 1.2, 1.1),
        ("mobilenetv3_small", RULE, 1.4, 1.2),
        ("mobilenetv3_large", RULE, 1, 1.3),
        ("mnasnet_a1", RULE, 1.2, 1.4),
        ("efficientnet_b0", RULE, 0.7, 1.25),
        ("efficientnetv2_b0", RULE, 0.5, 0.5),
        ("efficientnetv2_s", RULE, 0.3, 0.5),
        ("resnet18", KEPT, 1.5, 0.5),
        ("resnet50", KEPT, 0.6, 0.75),
        ("seresnet50", KEPT, 0.5, 0.5),
        ("resnext50", KEPT, 0.5, 1),
        ("vit_tiny", RULE, 0.5, 1.3),
    ],
)
def test_a_variant_that_has_no_name_in_timm_has_a_call(
    name: str, rule: Rounding, depth: float, width: float, baselines: dict[str, Network]
) -> None:
    scaled = resize(baselines[name], depth=depth, width=width, rounding=rule)
    assert isinstance(scaled, Network)
    network = replace(scaled, resolution=64, num_classes=11, in_channels=2, dropout=0.1)
    made = counterpart(network)
    assert (made.name, made.reason) == (None, "")
    assert made.code is not None
    assert same_logits(network, made.code) <= 1e-4


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("efficientnet_b0", {}, "efficientnet_b0"),
        ("efficientnetv2_b0", {}, "tf_efficientnetv2_b0"),
        ("mobilenetv3_large", {}, "mobilenetv3_large_100"),
        ("resnet50", {"norm_epsilon": 1e-3}, "resnet50"),
        ("vit_tiny", {"norm_epsilon": 1e-5}, "vit_tiny_patch16_224"),
    ],
)
def test_a_network_that_timm_knows_has_its_name(
    name: str, fields: dict[str, Any], expected: str, baselines: dict[str, Network]
) -> None:
    network = replace(baselines[name], resolution=64, num_classes=3, in_channels=1, dropout=0.0, **fields)
    made = counterpart(network)
    assert (made.name, made.reason) == (expected, "")
    assert made.code is not None
    assert made.code.startswith(f"timm.create_model('{expected}', ")
    assert same_logits(network, made.code) <= 1e-4


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_every_row_that_timm_has_is_found_under_its_name(every: int) -> None:
    known = _known()
    assert len(known) > 50
    for name, network in known[::every]:
        assert counterpart(network).name == name


def changed(network: Network, row: int, **fields: Any) -> Network:
    stages = list(network.stages)
    stages[row] = replace(stages[row], **fields)
    return replace(network, stages=tuple(stages))


INEXPRESSIBLE = {
    "a stem of stride 1": ("mobilenetv2", lambda n: replace(n, stem=(replace(n.stem[0], stride=1),)), "stem"),
    "expansions that are no multiple of 8": (
        "mobilenetv2",
        lambda n: changed(n, 1, channels=26),
        "is 84 x 14|other weights",
    ),
    "a gate of another kind": ("efficientnet_b0", lambda n: changed(n, 1, block="bneck"), "all gates are of one kind"),
    "a row's activation": ("efficientnet_b0", lambda n: changed(n, 2, activation="gelu"), "cannot be gelu"),
    "a stride of 4": ("mobilenetv2", lambda n: changed(n, 1, stride=4), "stride 4"),
    "a stem of 72 channels": ("resnet50", lambda n: resize(n, width=1.1, rounding=RULE), "stem.channels is 72"),
    "a kernel": ("resnet18", lambda n: changed(n, 2, kernel=5), r"stages\[2\].kernel is 5"),
    "CIFAR's stem": ("preresnet29", lambda n: n, "kernel 7 and stride 2"),
    "different heads": ("vit_tiny", lambda n: replace(n, stages=(n.stages[0], replace(n.stages[0], heads=4))), "alike"),
    "stages of two kinds": ("resnet50", lambda n: changed(n, 0, block="basic", expand=1.0), "basic, bottleneck"),
}


@pytest.mark.parametrize(("name", "change", "why"), INEXPRESSIBLE.values(), ids=INEXPRESSIBLE)
def test_what_timm_cannot_make_is_said(
    name: str, change: Callable[[Network], Network], why: str, baselines: dict[str, Network]
) -> None:
    made = counterpart(change(baselines[name]))
    assert (made.name, made.code) == (None, None)
    assert re.search(why, made.reason), made.reason


def test_without_timm_nothing_is_claimed(baselines: dict[str, Network], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert counterpart(baselines["resnet50"]) == (None, None, "not looked up: timm is not installed")


def test_a_preactivation_network_has_its_call() -> None:
    stem = (Stage(block="conv", kernel=7, stride=2, channels=24), Stage(block="max_pool", stride=2))
    rows: dict[str, list[dict[str, Any]]] = {
        "preact_bottleneck": [
            {"channels": 64, "repeats": 2, "expand": 0.25},
            {"channels": 96, "stride": 2, "expand": 0.25},
        ],
        "preact_basic": [{"channels": 32, "repeats": 2}, {"channels": 48, "stride": 2}],
    }
    for block, given in rows.items():
        stages = tuple(Stage(block=block, **row) for row in given)
        network = Network(
            name="v2", resolution=64, stem=stem, stages=stages, head=(Stage(block="norm"),), activation="relu"
        )
        code = counterpart(network).code
        assert code is not None
        assert same_logits(network, code) <= 1e-4


# The command.

PHI = ("coefficients.alpha=1.2", "coefficients.beta=1.1", "coefficients.gamma=1.15")
SMALL = ("baseline=mobilenetv2", "baseline.resolution=32", "baseline.num_classes=5", *PHI)
# One candidate and the 1x network, an epoch each.
SEARCH = (
    *("data=digits", "data.num_train=320", "recipe=quick", "recipe.seeds=1", "recipe.epochs=1", "tracking=none"),
    *("recipe.batch_size=16", "proxy.resolution=8", "executor.workers=1", "phis=[1]", "budget.tolerance=9"),
    *(
        f"grid.{axis}={{start:{value},stop:{value},step:1}}"
        for axis, value in (("alpha", 1), ("beta", 1.4), ("gamma", 1))
    ),
)


def command(*arguments: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of the command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv = sys.argv
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    sys.argv = argv
    assert isinstance(ended.value.code, int)
    return ended.value.code, out.getvalue(), err.getvalue()


def exports(*arguments: str) -> list[dict[str, Any]]:
    code, out, err = command("export", *arguments, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert answer["tolerance"] == 1e-4
    return answer["networks"]


def test_the_variants_are_exported_untrained_and_say_so(tmp_path: Path) -> None:
    base, scaled = exports(*SMALL, "phis=[0,1]", "formats=[yaml]", f"workspace={tmp_path}")
    assert [base["name"], scaled["name"]] == ["mobilenetv2", "mobilenetv2_phi1"]
    for row in (base, scaled):
        directory = tmp_path / "exports" / row["name"]
        assert Path(row["directory"]) == directory
        assert sorted(map(str, directory.iterdir())) == sorted(row["files"].values())
        network = load_network(Path(row["files"]["yaml"]))
        assert (row["macs"], row["params"]) == (cost(network).macs, cost(network).params)
        head = [line for line in Path(row["files"]["yaml"]).read_text().splitlines() if line.startswith("#")]
        assert "# weights: UNTRAINED: freshly initialised with seed 0" in head
        assert f"# timm: {row['timm']['code']}" in head
        assert row["weights"] == "UNTRAINED: freshly initialised with seed 0"
    assert base["timm"]["name"] == "mobilenetv2_100"

    first = scalesearch.load(base["files"]["yaml"]).state_dict()
    for seed, same in ((0, True), (1, False)):
        again = exports(*SMALL, "phis=[0]", "formats=[yaml]", f"seed={seed}", f"directory={tmp_path / str(seed)}")
        state = scalesearch.load(again[0]["directory"]).state_dict()
        assert torch.equal(state["classifier.weight"], first["classifier.weight"]) is same


def test_files_of_an_earlier_export_are_pointed_at(tmp_path: Path) -> None:
    directory = tmp_path / "mobilenetv2"
    directory.mkdir()
    (directory / "mobilenetv2.onnx").write_bytes(b"earlier")
    words = ("export", *SMALL, "phis=[0]", "formats=[yaml]", f"directory={tmp_path}")
    code, _, err = command(*words)
    assert code == 0
    assert "holds mobilenetv2.onnx of an earlier export" in err
    (directory / "mobilenetv2.onnx").unlink()
    assert "earlier" not in command(*words)[2]


def test_the_variant_that_meets_a_budget_is_exported(tmp_path: Path) -> None:
    (row,) = exports(*SMALL, "budget.macs=8M", "formats=[yaml]", f"directory={tmp_path}")
    assert 0.98 * 8e6 <= row["macs"] <= 8e6
    assert cost(load_network(Path(row["files"]["yaml"]))).macs == row["macs"]


@pytest.mark.parametrize(("how", "formats"), [("weights", "yaml,onnx,torch"), ("init", "yaml")])
def test_given_weights_are_exported(how: str, formats: str, baselines: dict[str, Network], tmp_path: Path) -> None:
    network = replace(baselines["resnet18"], resolution=32, num_classes=5)
    module, file = randomised(build(network)), tmp_path / "given.safetensors"
    save_weights(module, file)
    asked = ("baseline=resnet18", "baseline.resolution=32", "baseline.num_classes=5", "phis=[0]", f"{how}={file}")
    (row,) = exports(*asked, f"formats=[{formats}]", f"directory={tmp_path / how}")
    assert "given.safetensors" in row["weights"]
    assert "UNTRAINED" not in row["weights"]
    assert set(row["files"]) == set(row["bytes"]) == {"safetensors", *formats.split(",")}
    images = images_for(network, 2)
    with torch.no_grad():
        logits = module(images)
        assert torch.equal(scalesearch.load(row["directory"])(images), logits)
    if "onnx" in formats:
        assert 0 < row["largest_difference"]["onnx"] <= 1e-4
        session = onnxruntime.InferenceSession(row["files"]["onnx"], providers=["CPUExecutionProvider"])
        assert abs(session.run(None, {"images": images.numpy()})[0] - logits.numpy()).max() <= 1e-4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("formats=[onx]", "did you mean 'onnx'"),
        ("formats=onnx", r"formats is 'onnx'; it must be a list"),
        ("formats=[1]", r"it must be a list, such as formats="),
        ("weights=missing.safetensors", r"weights is 'missing.safetensors'; there is no such file"),
        ("weights=3", "weights is 3; it must be null or the path"),
        ("weights={other} phis=[0,1]", "weights is one file, and 2 networks are asked for"),
        ("weights={other} phis=[0]", "other.safetensors are not those of mobilenetv2: "),
        ("weights={other} init={other}", "weights and init each say which weights"),
        ("candidate=c01", "candidate is 'c01'; of which study"),
        ("seed=-1", "seed is -1; it must be a whole number"),
        ("seed=1.5", "seed is 1.5"),
        ("init=timm", "init is 'timm'; it must be null, timm:NAME"),
        ("format=[onnx]", "did you mean 'formats'"),
        ("directory={other}", "which is a file"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(given: str, said: str, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_weights(nn.Linear(2, 2), other)
    words = given.format(other=other).split()
    code, out, err = command("export", *SMALL, f"workspace={tmp_path / 'new'}", *words)
    assert (code, out.count("Exported")) == (2, 0)
    assert re.search(said, err), err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]


def test_a_file_that_cannot_be_right_ends_with_the_code_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net_moody.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Moody(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.linear = nn.Linear(3, 1000)\n\n    def forward(self, x):\n"
        "        return self.linear(x.mean((2, 3)) + torch.rand_like(x[:, :, 0, 0]))\n\n\n"
        "def make(**given):\n    return Moody()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code, _, err = command("export", "baseline.factory=net_moody:make", *PHI, "baseline.resolution=8", "phis=[0]")
    sys.modules.pop("net_moody", None)
    assert code == 7, err
    assert "gives other logits than the network" in err
    assert not (tmp_path / "workspace").exists()


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the workspace of two studies: "table" of a MobileNetV2, "mine" of a function."""
    directory = tmp_path_factory.mktemp("searched")
    (directory / "net_searched.py").write_text(textwrap.dedent(SEARCHED))
    before, path = Path.cwd(), [*sys.path]
    os.chdir(directory)
    try:
        for study, baseline in (("table", "baseline=mobilenetv2"), ("mine", "baseline.factory=net_searched:make")):
            small = ("proxy.width=0.25", "proxy.depth=0.5", "proxy.total_stride=4") if study == "table" else ()
            code, _, err = command("run", *SEARCH, *small, baseline, f"study={study}")
            assert code == 0, err
        yield directory
    finally:
        os.chdir(before)
        sys.path[:] = path
        sys.modules.pop("net_searched", None)


SEARCHED = """
    from torch import nn

    def make(depth, width, resolution, num_classes, in_channels):
        channels = max(1, round(8 * width))
        sizes = [in_channels] + [channels] * max(1, round(2 * depth))
        layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sizes, sizes[1:])]
        pooled = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, *pooled, nn.Linear(channels, num_classes))
"""


@pytest.mark.parametrize(("study", "given"), [("table", ()), ("mine", ("baseline.factory=net_searched:make",))])
@pytest.mark.parametrize("candidate", ["chosen", "baseline"])
def test_a_candidate_is_exported_as_it_was_trained(
    study: str, given: tuple[str, ...], candidate: str, searched: Path, tmp_path: Path
) -> None:
    formats = "formats=[yaml,onnx,torch]" if candidate == "chosen" else "formats=[yaml]"
    (row,) = exports(f"study={study}", f"candidate={candidate}", f"directory={tmp_path}", formats, *given)
    name = "c01" if candidate == "chosen" else candidate
    assert row["name"] == f"{study}_{name}"
    for kind in ("onnx", "torch") if candidate == "chosen" else ():
        assert row["largest_difference"][kind] <= 1e-4

    evaluations = json.loads((searched / "workspace" / "studies" / study / "evaluations.json").read_bytes())
    key = next(e["key"] for e in evaluations["evaluations"] if (e["candidate"], e["seed"]) == (name, 0))
    record = json.loads(Ledger(searched / "workspace").weights_path(key).with_suffix(".json").read_bytes())
    data = load_data(DataSpec("digits", num_train=320, num_val=record["result"]["num_val"]))
    head = Path(row["files"]["yaml"]).read_text()
    assert f"mean [{data.mean[0]:.6g}], divided by std [{data.std[0]:.6g}], those of digits" in head
    assert f"validation accuracy {100 * record['result']['val_accuracy']:.2f} %" in head

    network = load_network(Path(row["files"]["yaml"]))
    module = eval(row["load"], {"scalesearch": scalesearch})
    _, correct = evaluate(module, network, data, split="val", device="cpu")
    assert correct.mean() == record["result"]["val_accuracy"]


def test_a_candidate_that_is_not_there_is_refused(searched: Path, tmp_path: Path) -> None:
    for given, said in (
        (("study=table", "candidate=c7"), "candidate is 'c7'; study 'table' has chosen, baseline, c01"),
        (("study=tabel", "candidate=c01"), "did you mean 'table'"),
        (("study=table", "candidate=c01", "weights=x.safetensors"), "candidate and weights each say"),
        (("study=table", "candidate=c01", "phis=[1]"), "leave phis and budget out"),
        (("study=table", "candidate=c01", "budget.macs=1M"), "leave phis and budget out"),
    ):
        code, _, err = command("export", *given, f"directory={tmp_path / 'new'}")
        assert code == 2
        assert said in err
        assert not (tmp_path / "new").exists()


def test_a_study_does_not_name_what_is_run(searched: Path, tmp_path: Path) -> None:
    script = "from scalesearch.cli import main; main()"
    words = ["export", "study=mine", "candidate=chosen", f"directory={tmp_path}", "formats=[yaml]"]
    ended = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=searched, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    assert "Name it yourself: baseline.factory=net_searched:make" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_weights_without_their_data_are_exported_all_the_same(searched: Path, tmp_path: Path) -> None:
    settings = searched / "workspace" / "studies" / "table" / "settings.yaml"
    before = settings.read_text()
    settings.write_text(before.replace("num_train: 320", "num_train: 321"))
    try:
        (row,) = exports("study=table", "candidate=c01", f"directory={tmp_path}", "formats=[yaml]")
    finally:
        settings.write_text(before)
    assert "mean" not in row["weights"]
    assert "normalised as in the training of the weights" in Path(row["files"]["yaml"]).read_text()
