"""timm's network of the same function: its name or its call, compared by the logits."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from test_export import images_for, randomised
from torch import nn

from scalesearch.export import counterpart
from scalesearch.export.counterpart import _known, _shortcuts_last
from scalesearch.model import build
from scalesearch.network import Network, Stage
from scalesearch.pretrained import match
from scalesearch.scaling import Rounding, resize

pytestmark = pytest.mark.usefixtures("one_thread")


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
        ("efficientnetv2_rw_s", RULE, 0.3, 0.5),
        ("resnet18", KEPT, 1.5, 0.5),
        ("resnet50", KEPT, 0.6, 0.75),
        ("seresnet18", KEPT, 1.5, 0.5),
        ("seresnet50", KEPT, 0.5, 0.5),
        ("resnext50", KEPT, 0.5, 1),
        ("vit_tiny", RULE, 0.5, 1.3),
        ("convnext_atto", RULE, 0.5, 0.7),
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
    "wider patches": ("convnext_atto", lambda n: replace(n, stem=(replace(n.stem[0], channels=48),)), "there it is 40"),
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
