"""Networks of timm as baselines: the same network at depth 1 and width 1, the next size for other multipliers."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import factories
import pytest
import timm
import torch
from conftest import Ended, case, script
from timm.models import model_entrypoint
from torch import nn

import scalesearch
from scalesearch.config import network_of
from scalesearch.cost import computation
from scalesearch.model import FactoryError, build, factory, identity, own_resolution, timm_models
from scalesearch.network import Factory, load
from scalesearch.workspace import DONE, NOTHING_LEARNT

Command = Callable[..., Ended]
DOCS = Path(__file__).parent.parent / "docs"
timm_page = script(DOCS / "timm_networks.py")


@functools.cache
def families() -> dict[str, list[str]]:
    """The names of timm by family, which is a module of it."""
    found: dict[str, list[str]] = {}
    for name in timm.list_models():
        found.setdefault(model_entrypoint(name).__module__.rpartition(".")[2], []).append(name)
    return found


def some(names: Iterable[str], every: int) -> list[Any]:
    """All of them as parameters of a test; all but every so many-th are slow, for `make test-all`."""
    return [
        pytest.param(name, marks=[] if place % every == 0 else pytest.mark.slow) for place, name in enumerate(names)
    ]


def network(name: str, **values: float) -> Factory:
    function = f"timm:{name}"
    given = {"resolution": own_resolution(function), "num_classes": 1000, "in_channels": 3} | values
    return Factory(name=f"timm-{name}", function=function, **given)  # type: ignore[arg-type]


def shapes(module: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in module.state_dict().items()]


def params(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    with factories.forgotten():
        yield


def test_the_prefix_of_timms_names_stands_in_one_place() -> None:
    root = Path(scalesearch.__file__).parent
    literal = re.compile(r"""['"]timm:['"]""")
    assert [path.name for path in root.rglob("*.py") if literal.search(path.read_text())] == ["workspace.py"]


def test_timm_has_the_families() -> None:
    assert len(families()) >= 90


@pytest.mark.parametrize("family", some(sorted(families()), 8))
def test_at_depth_one_and_width_one_the_network_of_every_family_is_timms(family: str) -> None:
    name = min(families()[family], key=len)
    with torch.device("meta"):
        ours, theirs = build(network(name)), timm.create_model(name, num_classes=1000)
    assert shapes(ours) == shapes(theirs)
    assert str(ours) == str(theirs)


# What a family's own depth and width do to the number of weights at twice the depth and at twice the width: more
# (True), nothing (False), or a size that cannot be (None).
FAMILIES = {
    "convnext_atto": (True, True),
    "resnet18": (True, True),
    "resnetv2_18": (True, True),
    "regnetx_002": (True, True),
    "efficientnet_b0": (True, True),
    "mobilenetv3_small_100": (True, True),
    "ghostnet_100": (True, True),
    "vit_tiny_patch16_224": (True, True),
    "deit_tiny_patch16_224": (True, True),
    "swin_tiny_patch4_window7_224": (True, True),
    "pvt_v2_b0": (True, True),
    "mixer_s32_224": (True, True),
    "convmixer_768_32": (True, True),
    "densenet121": (True, True),
    "vovnet39a": (True, True),
    "hgnet_tiny": (True, True),
    "hrnet_w18_small": (True, True),
    "rexnet_100": (True, True),
    "nf_resnet50": (True, True),
    "cs3darknet_s": (True, True),
    "mobilevit_xxs": (True, True),
    "repvgg_a0": (True, True),
    "coatnet_0_224": (True, True),
    "efficientformerv2_s0": (True, True),
    "fastvit_t8": (True, True),
    "starnet_s1": (True, True),
    "vgg11": (True, True),
    "xcit_nano_12_p16_224": (True, True),
    "caformer_s18": (True, True),
    "cait_xxs24_224": (True, True),  # a layer of it is handed a weight, and not only images
    "pit_ti_224": (True, True),
    "dla34": (False, True),
    "dpn68": (True, False),
    "legacy_seresnet18": (True, False),
    "inception_v3": (False, False),
    "vit_base_mci_224": (True, None),
}


@pytest.mark.parametrize("name", some(FAMILIES, 5))  # the last one, at which width cannot be, among them
def test_depth_and_width_multiply_what_the_family_has(name: str) -> None:
    for dimension, more in zip(("depth", "width"), FAMILIES[name], strict=True):
        with case(dimension), torch.device("meta"):
            own = params(build(network(name)))
            if more is None:
                with pytest.raises(FactoryError, match="must match embed dim"):
                    build(network(name, **{dimension: 2.0}))
                continue
            twice, half = (params(build(network(name, **{dimension: factor}))) for factor in (2.0, 0.5))
            assert (twice > own, half < own) == (more, more)
            for factor in (0.5, 1.3):  # a forward pass, which refuses sizes that do not fit together
                assert computation(network(name, **{dimension: factor}))
            if more and dimension == "width":
                assert 1.3 * own < twice < 4.1 * own


def test_blocks_are_rounded_up_and_channels_stay_divisible_by_the_heads() -> None:
    for depth, blocks in ((0.1, 2), (0.5, 6), (1.0, 12), (1.01, 13), (1.5, 18)):
        with case(depth), torch.device("meta"):
            assert len(build(network("vit_tiny_patch16_224", depth=depth)).blocks) == blocks  # type: ignore[arg-type]
    for step in range(3, 40, 3):
        with case(step), torch.device("meta"):
            made = build(network("vit_tiny_patch16_224", width=step / 10))
            assert abs(made.embed_dim - 192 * step / 10) <= max(12, 19.2 * step / 10)  # type: ignore[operator]
            assert build(network("swin_tiny_patch4_window7_224", width=step / 10)) is not None


def test_names_that_timm_does_not_know_are_refused_with_the_nearest(command: Command) -> None:
    for given, words in (
        ("baseline=timm:convnext_ato", "timm has no network 'convnext_ato'; did you mean 'convnext_atto'?"),
        ("baseline=timm:convnext_atto.d2_in1k", "leave the tag of its weights out: timm:convnext_atto"),
        ("baseline=timm", "like timm:convnext_atto"),
        ("baseline=resnet18,timm:resnet18", "networks of timm beside others"),
    ):
        with case(given):
            ended = command("plan", given, "data=digits")
            assert ended.code == 2
            assert words in ended.output
            assert "Traceback" not in ended.output


def test_without_timm_the_command_that_installs_it_is_given(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_models, "find_spec", lambda name: None)
    ended = command("cost", "baseline=timm:convnext_atto")
    assert (ended.code, ended.output.count("\n")) == (2, 1)
    assert "pip install 'scalesearch[timm]'" in ended.output


def test_the_key_has_the_name_and_the_version_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    small, other = network("test_convnext"), network("test_convnext2")
    first = identity(small)
    assert first["factory"] == "timm:test_convnext"
    assert identity(network("test_convnext", depth=0.99)) == first  # the same blocks
    assert identity(network("test_convnext", depth=2)) != first
    assert identity(other) != first
    factory.structure.cache_clear()
    monkeypatch.setattr(factory, "version", lambda: "0.0.0")
    assert identity(small)["structure"] != first["structure"]


def test_a_file_may_name_a_network_of_timm(command: Command, tmp_path: Path) -> None:
    given = ("baseline=timm:test_convnext", "baseline.num_classes=10", "phis=[0]", f"directory={tmp_path}", "--json")
    ended = command("export", *given, "formats=[yaml,onnx,torch]")
    assert ended.code == 0, ended.output
    (made,) = ended.answer["networks"]
    described = load(Path(made["files"]["yaml"]))
    assert isinstance(described, Factory)
    assert (described.function, described.resolution) == ("timm:test_convnext", 160)
    assert "timm: timm.create_model('test_convnext', num_classes=10" in Path(made["files"]["yaml"]).read_text()
    with factories.forgotten():
        module = scalesearch.load(made["directory"])
    assert module(torch.zeros(2, 3, 160, 160)).shape == (2, 10)
    assert shapes(module) == shapes(timm.create_model("test_convnext", num_classes=10))


def test_sizes_that_timm_refuses_are_points_that_cannot_be() -> None:
    """An AttributeError of timm's is about arguments that do not fit together, and no fault of the user's code."""
    with pytest.raises(FactoryError) as raised:
        build(network("mobilenetv5_300m", depth=0.5))
    assert not raised.value.fault


def test_the_name_of_a_timm_network_is_no_tables() -> None:
    made = network_of({"factory": "timm:resnet18", "resolution": None}, trusted=False)
    assert (made.name, made.resolution) == ("timm-resnet18", 224)


def test_a_search_on_a_network_of_timm_ends(command: Command, tmp_path: Path) -> None:
    words = ("baseline=timm:test_convnext", "data=digits", "recipe=quick", "recipe.epochs=1", "recipe.seeds=1")
    words += ("data.num_train=256", "data.num_val=200", "phis=[1]", "grid.alpha.step=0.5", "grid.gamma.step=0.2")
    small = ("search=grid", "proxy=none", "baseline.resolution=32", "budget.tolerance=0.4", f"workspace={tmp_path}")
    grid = ("grid=quick", "tracking=none")
    ended = command("run", *words, *small, *grid, "--json")
    assert ended.code in (DONE, NOTHING_LEARNT), ended.output  # of so few images little is learnt
    assert ended.answer


def test_the_page_shows_what_networks_of_twenty_families_come_to() -> None:
    """The page is as its script writes it."""
    text = (DOCS / "timm.md").read_text()
    found = timm_page.rows(text)
    assert tuple(found) == timm_page.NAMES
    assert timm_page.page(text, found) == text
    assert len({row[1] for row in found.values()}) >= 20
    for name, row in found.items():
        with case(name):
            assert all(row[7:])
            assert len(row) == len(timm_page.HEAD)


@pytest.mark.parametrize("name", some(timm_page.NAMES, 5))
def test_a_row_of_the_page_is_what_is_counted(name: str) -> None:
    """What needs no training."""
    assert timm_page.rows((DOCS / "timm.md").read_text())[name][:7] == timm_page.counted(name)
