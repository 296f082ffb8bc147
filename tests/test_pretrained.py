"""Weights to start from: real libraries, real files; what a network would fetch is put where it would be kept."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from conftest import recipe
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from scalesearch import pretrained
from scalesearch.evaluation import Evaluation
from scalesearch.ledger import Ledger, evaluation_key
from scalesearch.model import build, trust
from scalesearch.network import Factory, Network, Stage
from scalesearch.scaling import Rounding, resize
from scalesearch.training import save_weights

pytestmark = pytest.mark.usefixtures("one_thread")

RULE = Rounding(name="nearest", depth="ceil", divisor=8, limit=0.9, resolution="nearest")
TINY = Network(
    name="tiny",
    resolution=16,
    num_classes=7,
    activation="relu",
    stem=(Stage(block="conv_norm", channels=8, stride=2),),
    stages=(
        Stage(block="mbconv", channels=8, repeats=2, squeeze_excite=0.25, expand=2),
        Stage(block="basic", channels=16, repeats=2, stride=2),
    ),
    head=(Stage(block="conv_norm", kernel=1, channels=24),),
)
VIT = Network(
    name="small_vit",
    resolution=32,
    num_classes=5,
    activation="gelu",
    norm_epsilon=1e-6,
    stem=(Stage(block="patch_embed", channels=16, stride=8),),
    stages=(Stage(block="transformer", channels=16, heads=2, expand=4, repeats=2),),
    head=(Stage(block="class_token"),),
)


class Bomb:
    """What a pickle may be: reading it with pickle makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


@torch.no_grad()
def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with norms and statistics that differ from each other, as after a training."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            around_one = "var" in name or name.endswith("weight")
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + (0.75 if around_one else -0.25))
    return model.eval()


def file_of(model: nn.Module, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


def silent(text: str) -> None:
    raise AssertionError(f"nothing to warn of, yet: {text}")


def largest_difference(one: nn.Module, other: nn.Module, side: int, channels: int = 3) -> float:
    """Of the logits of an image, relative to the largest of them."""
    image = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, given = one.eval()(image), other.eval()(image)
    return float((expected - given).abs().max() / expected.abs().max())


def started(network: Any, initial: pretrained.Initial) -> nn.Module:
    model = build(network)
    pretrained.start(model, network, initial.tensors)
    return model


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[nn.Module, str]:
    """A trained network of the table `TINY`, and the file of its weights."""
    model = shaken(build(TINY))
    save_weights(model, tmp_path / "tiny.safetensors")
    return model, str(tmp_path / "tiny.safetensors")


# --- a library's weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "baseline"),
    [
        ("mobilenetv2_100", "mobilenetv2"),
        ("efficientnet_b0", "efficientnet_b0"),
        ("resnet18", "resnet18"),
        ("vit_tiny_patch16_224", "vit_tiny"),
    ],
)
def test_timms_weights_give_timms_logits(
    name: str, baseline: str, baselines: dict[str, Network], tmp_path: Path
) -> None:
    network = baselines[baseline]
    theirs = shaken(timm.create_model(name))
    path = file_of(theirs, tmp_path / "model.safetensors")
    initial = pretrained.fetch(f"timm:{name}@{path}", [network], warn=silent)
    assert largest_difference(theirs, started(network, initial), network.resolution) < 1e-4
    fit = pretrained.overlap(initial.tensors, network)
    assert fit.taken == fit.layers
    assert not fit.reshaped + fit.missing + fit.unused


@pytest.mark.parametrize(
    ("name", "baseline"), [("mobilenet_v2", "mobilenetv2"), ("mnasnet1_0.IMAGENET1K_V1", "mnasnet_b1")]
)
def test_torchvisions_weights_give_torchvisions_logits(
    name: str, baseline: str, baselines: dict[str, Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, architecture = baselines[baseline], name.partition(".")[0]
    theirs = shaken(torchvision.models.get_model(architecture))
    weights = torchvision.models.get_model_weights(architecture)
    url = weights.DEFAULT.url if "." not in name else weights["IMAGENET1K_V1"].url
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(theirs.state_dict(), tmp_path / "hub" / "checkpoints" / Path(url).name)
    initial = pretrained.fetch(f"torchvision:{name}", [network], warn=silent)
    assert largest_difference(theirs, started(network, initial), 64) < 1e-4


def test_torchvisions_vision_transformer_is_matched_though_it_lists_its_positions_later() -> None:
    theirs = shaken(
        VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=64, num_classes=5
        )
    )
    torch.nn.init.normal_(theirs.heads.head.weight)
    ours = build(VIT)
    assert ours.load_state_dict(pretrained.match(theirs.state_dict(), ours)).missing_keys == []
    assert largest_difference(theirs, ours, 32) < 1e-4


def test_an_epsilon_that_differs_is_said(baselines: dict[str, Network], tmp_path: Path) -> None:
    path = file_of(shaken(timm.create_model("tf_efficientnet_b0")), tmp_path / "model.safetensors")
    message: list[str] = []
    pretrained.fetch(f"timm:tf_efficientnet_b0@{path}", [baselines["efficientnet_b0"]], warn=message.append)
    assert len(message) == 1
    assert "its norms have epsilon 0.001, those of efficientnet_b0 1e-05" in message[0]


def test_padding_that_differs_is_said(baselines: dict[str, Network], tmp_path: Path) -> None:
    path = file_of(shaken(timm.create_model("tf_efficientnet_b0")), tmp_path / "model.safetensors")
    message: list[str] = []
    network = replace(baselines["efficientnet_b0"], norm_epsilon=1e-3)
    pretrained.fetch(f"timm:tf_efficientnet_b0@{path}", [network], warn=message.append)
    assert len(message) == 1
    assert "its padding or an activation differs" in message[0]


def test_another_network_is_refused_with_the_first_layer_that_does_not_fit(
    baselines: dict[str, Network], tmp_path: Path
) -> None:
    path = file_of(timm.create_model("resnet18"), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"are not weights of resnet50: layer1\.0\.conv1\.weight is 64 x 64 x 3 x 3"):
        pretrained.fetch(f"timm:resnet18@{path}", [baselines["resnet50"]], warn=silent)


def test_a_network_that_goes_on_is_refused() -> None:
    shorter = build(replace(TINY, head=()))
    first = dict(list(shorter.state_dict().items())[:-2])
    with pytest.raises(ValueError, match=r"nothing is left for blocks\.5\.conv\.weight"):
        pretrained.match(first, build(TINY))
    with pytest.raises(ValueError, match=r"nothing is left for classifier\.weight"):
        pretrained.match(shorter.state_dict(), nn.Sequential(*list(shorter.children())[:1]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm:resnett18", "timm has no model 'resnett18'; did you mean 'resnet18'?"),
        ("timm:resnet18.a1_in1", "timm has no weights 'a1_in1' of resnet18; did you mean 'a1_in1k'?"),
        ("timm:mobilenetv2_075", r"timm has no weights of it; did you mean 'mobilenetv2_0\d\d'"),
        ("torchvision:resnet19", "torchvision has no model 'resnet19'; did you mean 'resnet18'?"),
        ("torchvision:resnet18.V3", "torchvision has no weights 'V3' of it .*IMAGENET1K_V1"),
    ],
)
def test_a_name_that_nobody_knows_is_refused_with_the_nearest(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pretrained.fetch(source, [TINY], warn=silent)


def test_without_a_network_torchvision_says_where_to_put_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody is there
    with pytest.raises(OSError, match=rf"cannot fetch https://\S+resnet18\S+ .*put it into {tmp_path}"):
        pretrained.fetch("torchvision:resnet18", [TINY], warn=silent)


HUB = """
import sys
from pathlib import Path
from scalesearch import pretrained
from scalesearch.network import load
try:
    print(pretrained.fetch(sys.argv[1], [load(Path(sys.argv[2]))], warn=print).digest)
except (OSError, ValueError) as error:
    print(type(error).__name__, error)
"""


def from_hub(source: str, cache: Path) -> str:
    """What comes of `fetch` in a process that knows no network: the hub's client reads its settings once."""
    baseline = Path(__file__).parent.parent / "conf" / "baseline" / "mobilenetv2.yaml"
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", HUB, source, str(baseline)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return ended.stdout.strip()


def hub_file(cache: Path) -> Path:
    """Where the hub's client keeps the weights of timm's mobilenetv2_100."""
    repository = cache / "models--timm--mobilenetv2_100.ra_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return repository / "snapshots" / ("0" * 40) / "model.safetensors"


def test_what_the_hubs_cache_has_is_found_without_a_network(baselines: dict[str, Network], tmp_path: Path) -> None:
    path = file_of(timm.create_model("mobilenetv2_100"), hub_file(tmp_path))
    initial = pretrained.fetch(f"timm:mobilenetv2_100@{path}", [baselines["mobilenetv2"]], warn=silent)
    assert from_hub("timm:mobilenetv2_100", tmp_path) == initial.digest


def test_what_it_does_not_have_is_an_error_with_the_way_to_it(tmp_path: Path) -> None:
    message = from_hub("timm:mobilenetv2_100", tmp_path)
    assert message.startswith("OSError cannot fetch model.safetensors of timm/mobilenetv2_100.ra_in1k")
    assert "init=timm:mobilenetv2_100@PATH" in message
    assert "HF_HUB_CACHE" in message


# --- nothing is unpickled ---------------------------------------------------------------------------------------------


def test_a_pickle_in_place_of_safetensors_is_refused_and_not_read(tmp_path: Path) -> None:
    mark = tmp_path / "it was read"
    path = hub_file(tmp_path)
    torch.save({"conv_stem.weight": Bomb(mark)}, path)
    message = from_hub("timm:mobilenetv2_100", tmp_path)
    assert message.startswith("ValueError")
    assert "is no safetensors file" in message
    for source in (f"timm:mobilenetv2_100@{path}", str(path)):
        with pytest.raises(ValueError, match="is no safetensors file"):
            pretrained.fetch(source, [TINY], warn=silent)
    assert not mark.exists()


def test_a_pickle_in_torchvisions_place_is_refused_and_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, places = tmp_path / "it was executed", tmp_path / "hub" / "checkpoints"
    places.mkdir(parents=True)
    torch.save({"conv1.weight": Bomb(mark)}, places / Path(torchvision.models.ResNet18_Weights.DEFAULT.url).name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="the file of torchvision's resnet18 is refused"):
        pretrained.fetch("torchvision:resnet18", [TINY], warn=silent)
    assert not mark.exists()


# --- a file of ours, and networks that are not quite those of the weights --------------------------------------------


def test_a_file_of_ours_gives_all_its_weights_back(tiny: tuple[nn.Module, str]) -> None:
    theirs, source = tiny
    assert largest_difference(theirs, started(TINY, pretrained.fetch(source, [TINY], warn=silent)), 16) == 0


def test_a_file_may_be_of_the_network_that_is_trained_instead_of_the_baseline(tiny: tuple[nn.Module, str]) -> None:
    theirs, source = tiny
    initial = pretrained.fetch(source, [VIT, TINY], warn=silent)
    assert largest_difference(theirs, started(TINY, initial), 16) == 0
    with pytest.raises(ValueError, match=r"are not weights of small_vit: blocks\.0\.class_token\.weight is missing"):
        pretrained.fetch(source, [VIT], warn=silent)


def test_a_deeper_network_takes_each_block_at_its_place(tiny: tuple[nn.Module, str]) -> None:
    theirs, source = tiny
    deeper = resize(TINY, depth=1.5, rounding=RULE)
    initial = pretrained.fetch(source, [TINY], warn=silent)
    fit = pretrained.overlap(initial.tensors, deeper)
    assert (fit.reshaped, fit.missing, fit.unused) == ([], ["stages.0.2", "stages.1.2"], [])
    assert (
        str(fit)
        == f"{fit.taken} of {fit.layers} layers start from them; not in the weights: stages[0][2], stages[1][2]"
    )
    torch.manual_seed(0)
    before = build(deeper).state_dict()
    torch.manual_seed(0)
    after = started(deeper, initial).state_dict()
    place = {0: 0, 1: 1, 2: 2, 4: 3, 5: 4, 7: 5}  # block of the deeper one -> block of the baseline
    for name, tensor in after.items():
        block = int(name.split(".")[1]) if name.startswith("blocks.") else None
        if name.endswith("num_batches_tracked"):
            continue
        if block is None or block in place:
            expected = theirs.state_dict()[name.replace(f"blocks.{block}.", f"blocks.{place.get(block, 0)}.")]  # type: ignore[arg-type]
        else:
            expected = before[name]
        assert torch.equal(tensor, expected), name


def test_a_shallower_network_says_what_it_leaves(tiny: tuple[nn.Module, str]) -> None:
    _, source = tiny
    tensors = pretrained.fetch(source, [TINY], warn=silent).tensors
    fit = pretrained.overlap(tensors, resize(TINY, depth=0.5, rounding=RULE))
    assert (fit.taken, fit.missing, fit.unused) == (fit.layers, [], ["stages.0.1", "stages.1.1"])


def test_a_wider_network_says_that_nothing_fits(tiny: tuple[nn.Module, str]) -> None:
    _, source = tiny
    initial, wider = pretrained.fetch(source, [TINY], warn=silent), resize(TINY, width=2, rounding=RULE)
    fit = pretrained.overlap(initial.tensors, wider)
    assert (fit.taken, fit.reshaped) == (0, ["stem", "stages", "head", "classifier"])
    torch.manual_seed(0)
    before = build(wider).state_dict()
    torch.manual_seed(0)
    after = started(wider, initial).state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("changed", "left"),
    [
        ({"num_classes": 3}, ["classifier"]),
        ({"in_channels": 1}, ["stem.conv"]),
        ({"resolution": 24}, []),
    ],
)
def test_other_classes_or_channels_leave_one_layer(
    changed: dict[str, int], left: list[str], tiny: tuple[nn.Module, str]
) -> None:
    _, source = tiny
    other = replace(TINY, **changed)  # type: ignore[arg-type]
    for bases in ([TINY], [other]):  # the weights are whole for a table with other classes as well
        fit = pretrained.overlap(pretrained.fetch(source, bases, warn=silent).tensors, other)
        assert (fit.reshaped, fit.missing, fit.unused) == (left, [], [])


def test_a_vision_transformer_of_another_resolution_leaves_its_positions(tmp_path: Path) -> None:
    theirs = build(VIT)
    save_weights(theirs, tmp_path / "vit.safetensors")
    larger = replace(VIT, resolution=48)
    for bases in ([VIT], [larger]):
        initial = pretrained.fetch(str(tmp_path / "vit.safetensors"), bases, warn=silent)
        assert pretrained.overlap(initial.tensors, larger).reshaped == ["stem.position"]
        assert pretrained.overlap(initial.tensors, VIT).reshaped == []


def test_a_layer_is_taken_whole_or_not_at_all() -> None:
    network = replace(TINY, head=())
    tensors: dict[str, Tensor] = {"classifier.weight": torch.ones(7, 16), "classifier.bias": torch.ones(3)}
    model = build(network)
    before = model.classifier.weight.clone()
    pretrained.start(model, network, tensors)
    assert torch.equal(model.classifier.weight, before)
    assert pretrained.overlap(tensors, network).taken == 0


def make(depth: float, width: float, resolution: int, num_classes: int, in_channels: int) -> nn.Module:
    """What a user's own module may offer."""
    return timm.create_model("resnet18", num_classes=num_classes, in_chans=in_channels)


def test_a_network_that_a_function_makes_takes_a_librarys_weights_and_its_own(tmp_path: Path) -> None:
    factory = Factory(name="mine", function=f"{__name__}:make", resolution=64, num_classes=10)
    trust(factory.function)
    theirs = shaken(timm.create_model("resnet18"))
    path = file_of(theirs, tmp_path / "model.safetensors")
    for source in (f"timm:resnet18@{path}", str(path)):
        initial = pretrained.fetch(source, [factory], warn=silent)
        assert pretrained.overlap(initial.tensors, factory).reshaped == ["fc"]
        whole = replace(factory, num_classes=1000)
        assert largest_difference(theirs, started(whole, initial), 64) < 1e-5


# --- the file that workers read, and the key --------------------------------------------------------------------------


def test_the_file_is_named_by_its_content_and_a_damaged_one_is_refused(
    tiny: tuple[nn.Module, str], tmp_path: Path
) -> None:
    initial, ledger = pretrained.fetch(tiny[1], [TINY], warn=silent), Ledger(tmp_path)
    path = ledger.initial_path(initial.digest)
    ledger.keep_initial(initial.digest, initial.content)
    read = pretrained.read(path)
    assert read.keys() == initial.tensors.keys()
    assert all(torch.equal(tensor, initial.tensors[name]) for name, tensor in read.items())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged; delete that file"):
        pretrained.read(path)
    ledger.keep_initial(initial.digest, initial.content)
    assert pretrained.read(path).keys() == read.keys()


def test_equal_weights_have_one_digest_whichever_way_they_came(tiny: tuple[nn.Module, str], tmp_path: Path) -> None:
    copied = tmp_path / "copied.safetensors"
    copied.write_bytes(Path(tiny[1]).read_bytes())
    digests = {pretrained.fetch(source, [TINY], warn=silent).digest for source in (tiny[1], str(copied))}
    assert len(digests) == 1
    with torch.no_grad():
        tiny[0].classifier.bias[0] += 1
    save_weights(tiny[0], copied)
    assert pretrained.fetch(str(copied), [TINY], warn=silent).digest not in digests


def test_initial_weights_change_the_key_and_their_absence_does_not() -> None:
    plain = {"network": TINY.table(), "recipe": recipe().values(), "data": "d", "seed": 0}
    assert Evaluation(TINY, recipe(), "d", 0).key == evaluation_key(plain)
    keys = {Evaluation(TINY, recipe(), "d", 0, init).key for init in (None, "a" * 64, "b" * 64)}
    assert len(keys) == 3
