"""`scalesearch export`: variants, given weights, and candidates of a study as they were trained."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from test_export import images_for, randomised
from torch import nn

import scalesearch
from scalesearch import cli
from scalesearch.cost import cost
from scalesearch.data import DataSpec
from scalesearch.data import load as load_data
from scalesearch.ledger import Ledger
from scalesearch.model import build
from scalesearch.network import Network
from scalesearch.network import load as load_network
from scalesearch.training import evaluate, save_weights

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.xdist_group("export")]  # they share a study

PHI = ("coefficients.alpha=1.2", "coefficients.beta=1.1", "coefficients.gamma=1.15")
SMALL = ("baseline=mobilenetv2", "baseline.resolution=32", "baseline.num_classes=5", *PHI)
# One candidate and the 1x network, each trained until it has learnt something.
SEARCH = (
    *("data=digits", "data.num_train=320", "recipe=quick", "recipe.seeds=1", "recipe.epochs=16", "tracking=none"),
    *(
        "recipe.batch_size=16",
        "recipe.flip=false",
        "proxy.resolution=8",
        "executor.workers=1",
        "phis=[1]",
        "budget.tolerance=9",
    ),
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
    requested = ("baseline=resnet18", "baseline.resolution=32", "baseline.num_classes=5", "phis=[0]", f"{how}={file}")
    (row,) = exports(*requested, f"formats=[{formats}]", f"directory={tmp_path / how}")
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
    ("given", "message"),
    [
        ("formats=[onx]", "did you mean 'onnx'"),
        ("formats=onnx", r"formats is 'onnx'; it must be a list"),
        ("formats=[1]", r"formats\[0\] is 1; it must be a string"),
        ("weights=missing.safetensors", r"weights is 'missing.safetensors'; there is no such file"),
        ("weights=3", "weights is 3; it must be null or the path"),
        ("weights={other} phis=[0,1]", "weights is one file, and 2 networks are exported"),
        ("weights={other} phis=[0]", "other.safetensors are not those of mobilenetv2: "),
        ("weights={other} init={other}", "weights and init each say which weights"),
        ("candidate=c01", "candidate is 'c01'; of which study"),
        ("seed=-1", "seed is -1; it must be a whole number"),
        ("seed=1.5", "seed is 1.5"),
        ("init=timm", "init is 'timm'; it must be null, timm:NAME"),
        ("format=[onnx]", "did you mean 'formats'"),
        ("directory={other}", "is a file; it must be the path of a directory"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    given: str, message: str, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    save_weights(nn.Linear(2, 2), other)
    words = given.format(other=other).split()
    code, out, err = command("export", *SMALL, f"workspace={tmp_path / 'new'}", *words)
    assert (code, out.count("Exported")) == (2, 0)
    assert re.search(message, err), err
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
    for given, message in (
        (("study=table", "candidate=c7"), "candidate is 'c7'; study 'table' has chosen, baseline, c01"),
        (("study=tabel", "candidate=c01"), "did you mean 'table'"),
        (("study=table", "candidate=c01", "weights=x.safetensors"), "candidate and weights each say"),
        (("study=table", "candidate=c01", "phis=[1]"), "leave phis and budget out"),
        (("study=table", "candidate=c01", "budget.macs=1M"), "leave phis and budget out"),
    ):
        code, _, err = command("export", *given, f"directory={tmp_path / 'new'}")
        assert code == 2
        assert message in err
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
