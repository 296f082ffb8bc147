"""`scalesearch train`, and `init` of it and of `run`, as a user has them: real processes, real files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from scalesearch.cli import main
from scalesearch.model import build
from scalesearch.network import load
from scalesearch.training import save_weights
from scalesearch.workspace import DONE, NOTHING_LEARNT

# MLflow's own: it leaves sqlite connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

SCALESEARCH = str(Path(sys.executable).with_name("scalesearch"))
TINY = """# A network for tests. scalesearch train baseline=tiny
name: tiny
resolution: 8
in_channels: 1
num_classes: 10
activation: relu
stem: {block: conv_norm, channels: 8}
stages:
  - {block: mbconv, channels: 12, expand: 2, stride: 2, repeats: 2}
"""
QUICK = (
    *("data=digits", "data.num_train=200", "data.num_val=100", "recipe.epochs=1", "recipe.seeds=2"),
    *("recipe.batch_size=50", "recipe.autocast=off", "executor.workers=1", "tracking=none"),
)
# These trainings are as short as they can be, and whether anything was learnt in them is not what is tested.
TRAINED = (DONE, NOTHING_LEARNT)
STILL = ("recipe.learning_rate=1e-8", "recipe.momentum=0", "recipe.weight_decay=0", "recipe.batch_size=200")


class Ended(NamedTuple):
    code: int
    answer: dict[str, Any]
    error: str


class User:
    """Somebody with a directory of their own, who gives commands and reads what is said."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.place, self._monkeypatch, self._capsys = place, monkeypatch, capsys
        (place / "my" / "baseline").mkdir(parents=True)
        (place / "my" / "baseline" / "tiny.yaml").write_text(TINY)

    def begin(self, command: str, *overrides: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [SCALESEARCH, command, "--config-dir", "my", "baseline=tiny", *QUICK, *overrides, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.place,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )

    def gives(self, command: str, *overrides: str, **environment: str) -> Ended:
        with self.begin(command, *overrides, **environment) as process:
            out, err = process.communicate(timeout=300)
        assert "Traceback" not in err, err
        return Ended(process.returncode, json.loads(out) if out else {}, err)

    def asks(self, command: str, *overrides: str) -> Ended:
        """In this process, without the seconds that a new one takes to import its libraries."""
        code = 0
        self._monkeypatch.chdir(self.place)
        try:
            main([command, "--config-dir", "my", "baseline=tiny", *QUICK, *overrides, "--json"])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = self._capsys.readouterr()
        return Ended(code, json.loads(out) if out else {}, err)

    def weights(self, answer: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
        return load_file(self.place / answer["seeds"][seed]["weights"])


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> User:
    return User(tmp_path, monkeypatch, capsys)


def test_a_network_is_trained_and_not_a_second_time(user: User, request: pytest.FixtureRequest) -> None:
    first = user.gives("train")
    assert first.code in TRAINED, first.error
    assert first.answer["evaluations"] == {"trained": 2, "reused": 0, "failed": 0}
    accuracies = [row["val_accuracy"] for row in first.answer["seeds"]]
    assert [row["seed"] for row in first.answer["seeds"]] == [0, 1]
    assert first.answer["val_accuracy_mean"] == pytest.approx(sum(accuracies) / 2)
    assert first.answer["val_accuracy_low"] <= min(accuracies) <= max(accuracies) <= first.answer["val_accuracy_high"]
    assert first.answer["test_accuracy"] is None
    assert first.answer["network"]["num_classes"] == 10
    assert user.weights(first.answer, 0).keys() == build(load(user.place / "my/baseline/tiny.yaml")).state_dict().keys()
    assert "validation accuracy: " in first.error

    request.getfixturevalue("in_this_process")  # from here on
    again = user.asks("train", "test=true", "recipe.seeds=3")  # goes on with what is missing
    assert again.answer["evaluations"] == {"trained": 1, "reused": 2, "failed": 0}
    assert again.answer["test_accuracy"]["seeds"] == 3
    assert again.answer["seeds"][:2] == first.answer["seeds"]


@pytest.mark.usefixtures("in_this_process")
def test_depth_width_resolution_and_proxy_are_those_of_the_network_that_is_trained(user: User) -> None:
    ended = user.asks(
        *("train", "depth=2", "width=2", "resolution=12", "proxy=small", "proxy.width=1", "recipe.seeds=1"),
        "recipe=quick",
    )
    table = ended.answer["network"]
    assert (table["resolution"], table["stem"]["channels"], table["stages"][0]["channels"]) == (12, 16, 24)
    assert table["stages"][0]["repeats"] == 2  # twice the half that is the proxy's
    assert ended.answer["val_accuracy_low"] is None
    assert "(1 seed: no interval)" in ended.error


def test_an_interrupted_training_goes_on_with_the_same_command(user: User, request: pytest.FixtureRequest) -> None:
    long = ("data.num_train=100", "recipe.epochs=20", "recipe.seeds=3")
    with user.begin("train", *long) as process:
        until = time.monotonic() + 120
        while not list((user.place / "workspace").glob("evaluations/*/*.json")):
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert not out
    assert "the same command goes on" in err
    request.getfixturevalue("in_this_process")
    ended = user.asks("train", *long)
    assert ended.code in TRAINED, ended.error
    assert ended.answer["evaluations"]["reused"] >= 1
    assert sum(ended.answer["evaluations"].values()) == 3


@pytest.mark.usefixtures("in_this_process")
def test_a_failure_is_kept_until_it_is_retried(user: User) -> None:
    diverging = ("recipe.learning_rate=100", "recipe.epochs=3", "recipe.momentum=0.99", "recipe.seeds=1")
    first = user.asks("train", *diverging)
    assert first.code == 4
    assert first.answer["val_accuracy_mean"] is None
    assert first.answer["seeds"][0]["weights"] is None
    assert "diverged" in first.answer["seeds"][0]["reason"]
    assert f"seed 0: failed: {first.answer['seeds'][0]['reason']}" in first.error
    (record,) = (user.place / "workspace").glob("evaluations/*/*.json")
    before = record.stat().st_mtime_ns
    assert user.asks("train", *diverging).code == 4
    assert record.stat().st_mtime_ns == before
    assert "1 failed training is run again" in user.asks("train", *diverging, "retry=true").error
    assert record.stat().st_mtime_ns != before


NONSENSE = {
    "test=1": "test is 1; it must be true or false",
    "resolution=1": "resolution is 1 px, smaller than the total stride 2",
    "recipe.seeds=0": "recipe.seeds is 0",
    "grid.alpha.step=0.1": "'grid.alpha.step' is not a known key",
    "phis=[1]": "'phis' is not a known key",
    "init=tim:x": "init is 'tim:x'; it must be null, timm:NAME, torchvision:NAME, or the path of a .safetensors",
    "init=weights.pth": "init is 'weights.pth'; it must be null",
    "init=gone.safetensors": "init is 'gone.safetensors'; there is no file gone.safetensors",
    "init=timm:resnet18@gone": "there is no file gone",
    "init=timm:resnet19": "timm has no model 'resnet19'; did you mean 'resnet18",
}


def test_nonsense_is_refused_before_anything_is_written(user: User) -> None:
    for override, message in NONSENSE.items():
        ended = user.asks("train", override)
        assert (ended.code, ended.answer) == (2, {}), override
        assert message in ended.error, override
        assert not (user.place / "workspace").exists(), override


def test_without_a_network_a_library_s_weights_are_an_error_of_the_environment(user: User) -> None:
    ended = user.gives("train", "init=timm:resnet18", HF_HUB_CACHE=str(user.place / "empty"), HF_HUB_OFFLINE="1")
    assert ended.code == 7
    assert ended.error.count("\n") == 1
    assert ended.error.startswith("scalesearch: cannot fetch model.safetensors of timm/resnet18")
    assert not (user.place / "workspace").exists()


@pytest.mark.usefixtures("in_this_process")
def test_a_training_starts_from_timm_s_weights_and_says_once_which_it_did_not_take(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = timm.create_model("mobilenetv2_100")
    commit = user.place / "hub" / "models--timm--mobilenetv2_100.ra_in1k" / "snapshots" / ("0" * 40)
    commit.mkdir(parents=True)
    (commit.parents[1] / "refs").mkdir()
    (commit.parents[1] / "refs" / "main").write_text("0" * 40)
    save_file(theirs.state_dict(), commit / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(user.place / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    few = ("data.num_train=20", "data.num_val=20", "recipe.batch_size=20")
    deeper = ("baseline=mobilenetv2", "resolution=32", "depth=1.3", *STILL, *few)
    ended = user.asks("train", *deeper, "init=timm:mobilenetv2_100")
    assert ended.code in TRAINED, ended.error
    (message,) = [line for line in ended.error.splitlines() if "start from them" in line]
    assert message.startswith("init=timm:mobilenetv2_100: of mobilenetv2 103 of 151 layers")
    assert "of another shape, not taken: stem.conv, classifier" in message  # images of one channel, ten classes
    assert "not in the weights: stages[0][1], stages[1][2]" in message
    assert ended.answer["init"]["source"] == "timm:mobilenetv2_100"
    assert [path.stem for path in (user.place / "workspace" / "initial").iterdir()] == [ended.answer["init"]["sha256"]]
    pairs = {
        "blocks.1.project.weight": "blocks.0.0.conv_pw.weight",  # stages[0][0]
        "blocks.3.expand.weight": "blocks.1.0.conv_pw.weight",  # stages[1][0], behind the new stages[0][1]
        "blocks.4.depthwise.weight": "blocks.1.1.conv_dw.weight",
    }
    for seed in (0, 1):
        trained = user.weights(ended.answer, seed)
        for ours, name in pairs.items():
            assert torch.allclose(trained[ours], theirs.state_dict()[name], atol=1e-5), ours
    plain = user.asks("train", *deeper)
    assert plain.answer["evaluations"]["trained"] == 2  # another training, under another key
    assert {row["key"] for row in plain.answer["seeds"]}.isdisjoint(row["key"] for row in ended.answer["seeds"])


def test_weights_of_which_nothing_fits_are_refused(user: User) -> None:
    save_weights(build(load(user.place / "my" / "baseline" / "tiny.yaml")), user.place / "tiny.safetensors")
    ended = user.asks("train", "width=4", "init=tiny.safetensors")
    assert ended.code == 2
    assert "has no layer of that shape" in ended.error
    assert not (user.place / "workspace").exists()


@pytest.mark.usefixtures("in_this_process")
def test_a_search_starts_from_given_weights_and_is_another_study(user: User) -> None:
    torch.manual_seed(7)
    save_weights(build(load(user.place / "my" / "baseline" / "tiny.yaml")), user.place / "tiny.safetensors")
    overrides = (
        *(
            "proxy=none",
            "tracking=none",
            "recipe.seeds=1",
            "grid.alpha={start:1,stop:2,step:1}",
            "grid.beta={start:1,stop:1,step:1}",
        ),
        *("grid.gamma={start:1,stop:1.5,step:0.5}", "grid.product_tolerance=0.5", "budget.tolerance=0.9", "phis=[1]"),
    )
    first = user.asks("run", *overrides, *STILL, "init=tiny.safetensors")
    assert first.code == 8, first.error  # of so small a rate nothing is learnt
    (message,) = [line for line in first.error.splitlines() if "start from them" in line]
    assert "of tiny 15 of 15 layers start from them" in message
    assert "of the candidates 56 to 100 % of the layers do" in first.error
    again = user.asks("run", *overrides, *STILL, "init=tiny.safetensors")  # from the ledger: no worker is started
    assert again.answer["evaluations"] == {"trained": 0, "reused": 3, "failed": 0}
    plain = user.asks("plan", *overrides, *STILL)
    assert plain.answer["study"] != first.answer["study"]
    renamed = user.asks("run", *overrides, *STILL, f"study={first.answer['study']}")
    assert renamed.code == 2
    assert "was begun with other settings (init)" in renamed.error
