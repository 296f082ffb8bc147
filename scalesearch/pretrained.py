"""Weights that a training starts from: a library's pretrained ones, or those of a file.

`fetch` names them by place (row of the table, block of the row, layer). They then fit the network whose weights they
are whole, and one that is scaled from it in the layers whose shape has stayed. Nothing is unpickled: a file is
safetensors, or read by torch with `weights_only`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from scalesearch.model import build, build_on_meta
from scalesearch.network import AnyNetwork, Factory, Network, where
from scalesearch.text import near, raised


@dataclass(frozen=True, eq=False)
class Initial:
    """Weights by place, from `source` as the user wrote it; `content` is the safetensors file of them."""

    source: str
    tensors: Mapping[str, Tensor]

    @cached_property
    def content(self) -> bytes:
        return save({name: tensor.contiguous() for name, tensor in self.tensors.items()})

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content, 64 hexadecimal digits: part of the key of what is trained from it."""
        return hashlib.sha256(self.content).hexdigest()


class Overlap(NamedTuple):
    """How a network starts from given weights: of its `layers`, `taken` do.

    The others by name, a row or a block of which nothing is taken under its own: those of another shape, those that the
    weights do not have, and those that only the weights have.
    """

    layers: int
    taken: int
    reshaped: list[str]
    missing: list[str]
    unused: list[str]

    def __str__(self) -> str:
        words = [f"{self.taken} of {self.layers} layers start from them"]
        for why, names in (
            ("of another shape, not taken", self.reshaped),
            ("not in the weights", self.missing),
            ("only in the weights, not taken", self.unused),
        ):
            if names:
                words.append(f"{why}: {', '.join(map(where, names))}")
        return "; ".join(words)


def fetch(source: str, bases: Sequence[AnyNetwork], *, warn: Callable[[str], None]) -> Initial:
    """The weights of `source`, named by the places of the first of `bases` that all of them fit.

    Args:
        source: "timm:NAME" and "torchvision:NAME" (NAME.TAG where there are several) are fetched, or found in the
            library's cache; "timm:NAME@PATH" is a safetensors file of timm's; PATH one of ours.
        bases: tables or factories that the weights may be of. Number of classes, channels of the image and, of a vision
            transformer, the resolution may be others.
        warn: called where a library's network has the same weights and is not the same function.
    Raises: ValueError: the name is unknown, or the weights are of none of `bases`; it names the first layer that does
        not fit. OSError: a file cannot be fetched or read.
    """
    library, _, name = source.partition(":")
    module = _LIBRARIES[library](name) if library in _LIBRARIES else None
    theirs = _without_counters(_read(Path(source)) if module is None else module.state_dict())
    pair = _same_names if module is None else match
    refused: list[ValueError] = []
    for base in bases:
        if module is None and isinstance(base, Factory):
            return Initial(source, theirs)  # its own names already; what fits is taken
        try:
            fitted = _fitted(base, theirs)
            ours = pair(theirs, build_on_meta(fitted))
        except ValueError as error:
            refused.append(error)
            continue
        if module is not None:
            _compare(source, module, fitted, ours, warn)
        place = _places(fitted)
        return Initial(source, {place(name): tensor for name, tensor in ours.items()})
    raise ValueError(f"init={source} are not weights of {bases[0].name}: {refused[0]}")


def match(source: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The tensors of another library's network under the names of `module`'s state dict, in its shapes and types.

    They are paired in the order of both state dicts, in which libraries list layers as images go through them; learned
    tokens (1 x tokens x channels), which have no such order, come first. Axes of 1 at the end do not count, so that a
    1x1 convolution and a linear layer of the same size are the same; counters of batches are left out.

    Raises: ValueError: names the first pair of different shapes, or what one of the two has left over.
    """
    theirs = sorted(_without_counters(source).items(), key=lambda item: not _are_tokens(item[1]))
    ours = sorted(_without_counters(module.state_dict()).items(), key=lambda item: not _are_tokens(item[1]))
    for (their_name, tensor), (name, wanted) in zip(theirs, ours, strict=False):
        if _flat(tensor) != _flat(wanted):
            raise ValueError(f"{their_name} is {_shape(tensor)}, and {name} of the same place {_shape(wanted)}")
    if len(theirs) != len(ours):
        rest = [name for name, _ in (*theirs[len(ours) :], *ours[len(theirs) :])]
        raise ValueError(f"they have {len(theirs)} tensors, the network {len(ours)}; nothing is left for {rest[0]}")
    return {
        name: tensor.reshape(wanted.shape).to(wanted.dtype)
        for (_, tensor), (name, wanted) in zip(theirs, ours, strict=True)
    }


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that has `Initial.content`, and is named after its digest.

    Raises: ValueError: its content has another digest.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != path.stem:
        raise ValueError(f"the initial weights in {path} are damaged; delete that file and run the same command")
    return load(content)


def overlap(tensors: Mapping[str, Tensor], network: AnyNetwork) -> Overlap:
    """What `start` takes of the weights, before anything is trained."""
    place = _places(network)
    ours = _layers({place(name): tensor for name, tensor in build_on_meta(network).state_dict().items()})
    theirs = _layers(tensors)
    other = [layer for layer in ours if layer in theirs and theirs[layer] != ours[layer]]
    missing = [layer for layer in ours if layer not in theirs]
    unused = [layer for layer in theirs if layer not in ours]
    return Overlap(
        layers=len(ours),
        taken=len(ours) - len(other) - len(missing),
        reshaped=_in_short(other, ours),
        missing=_in_short(missing, ours),
        unused=_in_short(unused, theirs),
    )


def start(model: nn.Module, network: AnyNetwork, tensors: Mapping[str, Tensor]) -> None:
    """Copy into `model`, which is that of `network`, the layers that fit by place and by all of their shapes."""
    place = _places(network)
    state = {place(name): tensor for name, tensor in model.state_dict().items()}
    ours, theirs = _layers(state), _layers(tensors)
    with torch.no_grad():
        for layer, shapes in ours.items():
            if theirs.get(layer) == shapes:
                for name in shapes:
                    state[name].copy_(tensors[name])


def _timm(name: str) -> nn.Module:
    """timm's model with its weights: of a file where the name has "@PATH", else of the model's Hugging Face hub."""
    try:
        import timm
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ValueError(f"init=timm:{name} needs the timm package: pip install 'scalesearch[timm]'") from error
    known, _, file = name.partition("@")
    architecture, _, tag = known.partition(".")
    if not timm.is_model(architecture):
        raise ValueError(
            f"init=timm:{name}: timm has no model {architecture!r}{near(architecture, timm.list_models())}"
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ValueError(f"init=timm:{name}: timm has no weights {tag!r} of {architecture}{near(tag, tags)}")
    model = timm.create_model(known, pretrained=False)
    if not file:
        kept = timm.get_pretrained_cfg(known)
        if kept is None or not kept.hf_hub_id:
            others = [full.partition(".")[0] for full in timm.list_pretrained()]
            raise ValueError(f"init=timm:{name}: timm has no weights of it{near(architecture, others)}")
        try:
            file = hf_hub_download(kept.hf_hub_id, "model.safetensors")
        except Exception as error:  # of the hub's HTTP client, which differs by version
            raise OSError(
                f"cannot fetch model.safetensors of {kept.hf_hub_id} from the Hugging Face hub ({raised(error)}). "
                f"Fetch it where there is a network, for init=timm:{known}@PATH or the folder that HF_HUB_CACHE names"
            ) from error
    return _loaded(model, _read(Path(file)), f"timm's {known}")


def _torchvision(name: str) -> nn.Module:
    """torchvision's model with its weights; without a tag those that torchvision takes itself."""
    try:
        from torchvision import models
    except ImportError as error:
        raise ValueError(f"init=torchvision:{name} needs torchvision: pip install 'scalesearch[timm]'") from error
    architecture, _, tag = name.partition(".")
    known = models.list_models(module=models)
    if architecture not in known:
        raise ValueError(
            f"init=torchvision:{name}: torchvision has no model {architecture!r}{near(architecture, known)}"
        )
    kinds = {kind.name: kind for kind in models.get_model_weights(architecture)}
    if (tag and tag not in kinds) or not kinds:
        raise ValueError(f"init=torchvision:{name}: torchvision has no weights {tag!r} of it{near(tag, kinds)}")
    url = (kinds[tag] if tag else models.get_model_weights(architecture).DEFAULT).url
    try:
        state = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except OSError as error:
        raise OSError(
            f"cannot fetch {url} ({raised(error)}). Where there is a network, download that file and put it into "
            f"{Path(torch.hub.get_dir()) / 'checkpoints'}"
        ) from error
    except Exception as error:  # pickle's, zipfile's, torch's own
        raise ValueError(f"the file of torchvision's {name} is refused: {raised(error)}") from None
    model = models.get_model(architecture, weights=None)
    return _loaded(model, state, f"torchvision's {name}")


_LIBRARIES: dict[str, Callable[[str], nn.Module]] = {"timm": _timm, "torchvision": _torchvision}


def _loaded(model: nn.Module, state: Mapping[str, Tensor], of: str) -> nn.Module:
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:  # what is no table of tensors
        raise ValueError(f"the weights are not those of {of}: {raised(error)}") from None
    return model.eval()


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in the order of the numbers in their names, the classifier's last."""
    try:
        tensors = load(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}); other kinds are not read") from None
    order = sorted(tensors, key=lambda name: (name.startswith("classifier."), *map(int, re.findall(r"\d+", name))))
    return {name: tensors[name] for name in order}


def _same_names(source: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    ours = _without_counters(module.state_dict())
    for name, wanted in ours.items():
        if name not in source:
            raise ValueError(f"{name} is missing there")
        if source[name].shape != wanted.shape:
            raise ValueError(f"{name} is {_shape(source[name])} there; the network's is {_shape(wanted)}")
    if extra := [name for name in source if name not in ours]:
        raise ValueError(f"the network has no {extra[0]}")
    return dict(source)


def _fitted(network: AnyNetwork, tensors: Mapping[str, Tensor]) -> AnyNetwork:
    """The network with the classes, image channels and, where it has positions, the resolution of the weights."""
    kernels = [tensor for tensor in tensors.values() if tensor.ndim == 4]
    last = list(tensors.values())[-1:]
    if not kernels or last[0].ndim == 0:
        raise ValueError("they have no convolution, or end in a number")
    network = replace(network, in_channels=kernels[0].shape[1], num_classes=last[0].shape[0])
    positions = [tensor.shape[1] - 1 for tensor in tensors.values() if tensor.ndim == 3 and tensor.shape[1] > 1]
    if positions and isinstance(network, Network):
        network = replace(network, resolution=math.isqrt(positions[0]) * kernels[0].shape[-1])
    return network


def _compare(
    source: str, module: nn.Module, network: AnyNetwork, ours: Mapping[str, Tensor], warn: Callable[[str], None]
) -> None:
    """Warn where the same weights are not the same function: padding, epsilons and activations have no weights."""
    built = build(network)
    built.load_state_dict(dict(ours), strict=False)  # counters of batches are not there
    side = network.resolution
    image = torch.randn(1, network.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, given = module.eval()(image), built.eval()(image)
    difference, size = float((expected - given).abs().max()), float(expected.abs().max())
    if difference > 1e-3 * size:
        theirs, mine = _epsilons(module), _epsilons(built)
        why = "its padding or an activation differs"
        if theirs != mine:
            why = f"its norms have epsilon {theirs}, those of {network.name} {mine}"
        warn(
            f"init={source} has the layers of {network.name} and is not quite the same network: with equal weights "
            f"the logits of an image differ by {difference:.2g} of {size:.2g}; {why}. They are taken nevertheless"
        )


def _epsilons(module: nn.Module) -> str:
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d | nn.LayerNorm)]
    return ", ".join(f"{epsilon:g}" for epsilon in sorted({norm.eps for norm in norms}))


def _places(network: AnyNetwork) -> Callable[[str], str]:
    """A tensor's name by place, "stages.2.0.project.weight", of that in the state dict, "blocks.4.project.weight".

    A factory's network has no table; there both are the same.
    """
    if isinstance(network, Factory):
        return lambda name: name
    blocks = [place.name for place in network.places()]
    return lambda name: re.sub(r"^blocks\.(\d+)", lambda found: blocks[int(found[1])], name)


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, torch.Size]]:
    """Layer -> the names and shapes of its tensors: a layer is taken whole or not at all."""
    layers: dict[str, dict[str, torch.Size]] = {}
    for name, tensor in _without_counters(tensors).items():
        layers.setdefault(name.rpartition(".")[0] or name, {})[name] = tensor.shape
    return layers


def _in_short(names: Sequence[str], among: Iterable[str]) -> list[str]:
    """`names`, with one name for all that begin with it where none of `among` but they do."""
    others = [f"{name}." for name in among if name not in set(names)]
    short: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        prefixes = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        short[next(p for p in prefixes if not any(other.startswith(f"{p}.") for other in others))] = None
    return list(short)


def _without_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def _are_tokens(tensor: Tensor) -> bool:
    return tensor.ndim == 3 and len(tensor) == 1


def _flat(tensor: Tensor) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    return shape[:-2] if shape[-2:] == (1, 1) and not _are_tokens(tensor) else shape


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"
