"""Writing a module as YAML and safetensors, ONNX and a `torch.export` program, each checked; and reading the first.

Everything is made and checked in memory before a file appears: one that is there has passed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensors_as_bytes
from torch import Tensor, nn

from scalesearch import network as networks
from scalesearch.cost import Cost
from scalesearch.data import Data
from scalesearch.export.counterpart import Counterpart
from scalesearch.ledger import write_atomic
from scalesearch.model import build, trust
from scalesearch.network import AnyNetwork, Factory
from scalesearch.pretrained import Initial, overlap, start
from scalesearch.text import near, raised
from scalesearch.training import load_weights
from scalesearch.workspace import is_timm

FORMATS = ("yaml", "onnx", "torch")
TOLERANCE = 1e-4
"""The largest difference of logits that is let through, relative to the largest logit where that is above 1."""

_ONNX_BYTES = 2_000_000_000  # a protocol buffer holds 2 GiB at most, the graph included


def filled(network: AnyNetwork, *, file: Path | None, initial: Initial | None, seed: int) -> tuple[nn.Module, str]:
    """The module of `network` with the weights of `file`, or else of the layers of `initial` that fit, or else drawn
    from `seed`; and words on where they come from.

    Raises: ValueError: the weights of the file are others, or no layer of `initial` fits.
    """
    if file is not None:
        if not file.is_file():
            raise ValueError(f"weights is {str(file)!r}; there is no such file")
        return load_weights(network, file), f"of {file.name}"
    torch.manual_seed(seed)
    module, words = build(network), f"UNTRAINED: freshly initialised with seed {seed}"
    if initial is None:
        return module, words
    taken = overlap(initial.tensors, network)
    if not taken.taken:
        raise ValueError(f"init={initial.source}: no layer of {network.name} fits ({taken})")
    start(module, network, initial.tensors)
    rest = "" if taken.taken == taken.layers else "; the others are UNTRAINED"
    return module, f"of {initial.source}: {taken}{rest}"


def comment(network: AnyNetwork, counted: Cost, origin: str, made: Counterpart, data: Data | None) -> str:
    """The head of an exported YAML: what the network is, where its weights are from, what its images must be."""
    shape = f"(B, {network.in_channels}, {network.resolution}, {network.resolution})"
    normalised = "normalised as in the training of the weights, which is no part of the network"
    if data is not None:
        mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (data.mean, data.std))
        normalised = f"pixels in 0..1 minus mean [{mean}], divided by std [{std}], those of {data.description.name}"
    return "\n".join(
        [
            f"{network.name}: {counted.macs:,} multiply-adds, {counted.params:,} params",
            f"weights: {origin}",
            f"images: float32 {shape}, {normalised}; logits of {network.num_classes} classes",
            f"torch module: {load_call(network, Path(f'{network.name}.yaml'))}",
            f"timm: {made.code}" if made.code else f"timm: none; {made.reason}",
        ]
    )


def load_call(network: AnyNetwork, file: Path) -> str:
    """The line of Python that gives the module back from the YAML or the weights in `file`."""
    function = ""
    if isinstance(network, Factory) and not is_timm(network.function):
        function = f", factory={network.function!r}"
    return f"scalesearch.load({str(file)!r}{function})"


class Written(NamedTuple):
    """A file, and what it was checked for.

    kind: "yaml", "safetensors", "onnx" or "torch".
    largest_difference: of its logits from the module's for random images in batches of 1 and 3; 0 for weights, which
        are read back bit for bit; None where there are no numbers to compare.
    """

    kind: str
    file: Path
    num_bytes: int
    largest_difference: float | None


def write(
    network: AnyNetwork, module: nn.Module, directory: Path, *, formats: Sequence[str] = FORMATS, comment: str = ""
) -> list[Written]:
    """Write `module`, which `network` describes, as files of the network's name; those of that name are replaced.

    NAME.yaml and NAME.safetensors, from which `load` makes it again, always; NAME.onnx (input "images", output
    "logits") and NAME.pt2 (`torch.export.load`) where `formats` has "onnx" and "torch". Images are float32 of
    (B, in_channels, resolution, resolution) for any B, normalised as in the training: mean and standard deviation are
    no part of the network. The module is on the CPU, and left in evaluation mode.

    Raises: ValueError: a format is not known, or cannot be written here. RuntimeError: a network cannot be expressed in
        it, or gives other logits. Nothing has been written then.
    """
    _check_formats(network, module, formats)
    module.eval()
    state = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    contents = {"yaml": network.to_yaml(comment=comment).encode(), "safetensors": tensors_as_bytes(state)}
    again = read_tensors(contents["safetensors"])
    if again.keys() != state.keys() or any(not _same(again[name], state[name]) for name in state):
        raise RuntimeError(f"the weights of {network.name} do not come back from safetensors as they were")
    differences = {"safetensors": 0.0}
    if {"onnx", "torch"} & set(formats):
        program = _program(network, module)
        if "onnx" in formats:
            contents["onnx"] = _onnx(network, program)
            differences["onnx"] = _checked(network, module, _run_onnx(contents["onnx"]), "ONNX")
        if "torch" in formats:
            buffer = io.BytesIO()
            torch.export.save(program, buffer)
            contents["torch"] = buffer.getvalue()
            buffer.seek(0)
            differences["torch"] = _checked(network, module, torch.export.load(buffer).module(), "torch.export")
    written = []
    for kind, content in contents.items():
        file = directory / f"{network.name}.{'pt2' if kind == 'torch' else kind}"
        write_atomic(file, content)
        written.append(Written(kind, file, len(content), differences.get(kind)))
    return written


def load(path: str | Path, *, factory: str | Callable[..., nn.Module] | None = None) -> nn.Module:
    """The module of an exported network, in evaluation mode on the CPU; a plain `torch.nn.Module`.

    Args:
        path: of NAME.yaml, of NAME.safetensors, or of a directory that holds one exported network.
        factory: of a network that a function made, that function, or its "package.module:name", which is imported.
            What a file names is not imported by itself; only a network of timm needs no word.
    Raises: ValueError: a file is missing, or the weights do not fit the network.
    """
    table, weights = _pair(Path(path))
    network = networks.load(table)
    if isinstance(network, Factory):
        if factory is None and not is_timm(network.function):
            raise ValueError(
                f"the network in {table} is made by {network.function}, and what a file names is not run; "
                f'if you trust it: load(..., factory="{network.function}"), or pass the function'
            )
        function = factory if isinstance(factory, str) else network.function
        trust(function, factory if callable(factory) else None)
        return load_weights(replace(network, function=function), weights)
    if factory is not None:
        raise ValueError(f"factory is {factory!r}; the network in {table} is a table: leave factory out")
    return load_weights(network, weights)


def _pair(path: Path) -> tuple[Path, Path]:
    """The YAML and the weights that `path` means."""
    if path.is_dir():
        tables = sorted(table for table in path.glob("*.yaml") if _beside(table, ".safetensors").exists())
        if len(tables) != 1:
            found = ", ".join(table.name for table in tables) or "none"
            raise ValueError(
                f"{path} must hold one network, NAME.yaml and NAME.safetensors; it holds {found}"
                + ("; give the path of one" if tables else "")
            )
        path = tables[0]
    if path.suffix not in (".yaml", ".safetensors"):
        raise ValueError(f"path is {str(path)!r}; it must be a directory, or a file NAME.yaml or NAME.safetensors")
    table, weights = _beside(path, ".yaml"), _beside(path, ".safetensors")
    for file, other in ((table, "its network"), (weights, "its weights")):
        if not file.is_file():
            raise ValueError(f"{file} is missing; a network is NAME.yaml with {other} in NAME{file.suffix} beside it")
    return table, weights


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name.removesuffix(path.suffix) + suffix)  # names have dots: mobilenetv2_phi1.5


def _check_formats(network: AnyNetwork, module: nn.Module, formats: Sequence[str]) -> None:
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"formats has {name!r}{near(name, FORMATS)}")
    if "onnx" not in formats:
        return
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"the format onnx needs {', '.join(missing)}: pip install 'scalesearch[export]', or leave it out of formats"
        )
    num_bytes = sum(tensor.nbytes for tensor in module.state_dict().values())
    if num_bytes > _ONNX_BYTES:
        raise ValueError(
            f"{network.name} has {num_bytes / 1e9:.1f} GB of weights, and an ONNX file holds 2 at most; "
            "leave onnx out of formats"
        )


def _images(network: AnyNetwork, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, network.in_channels, network.resolution, network.resolution, generator=generator)


def _program(network: AnyNetwork, module: nn.Module) -> torch.export.ExportedProgram:
    """The module as a graph of torch operators; its first dimension may be of any size."""
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            return torch.export.export(module, (_images(network, 2),), dynamic_shapes=({0: batch},))
    except Exception as error:  # of any type: whatever a user's module does in its forward pass
        raise RuntimeError(f"torch.export cannot express {network.name}: {raised(error)}") from error


def _onnx(network: AnyNetwork, program: torch.export.ExportedProgram) -> bytes:
    try:
        made: Any = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["images"], output_names=["logits"]
        )
        return bytes(made.model_proto.SerializeToString())
    except Exception as error:  # as above
        raise RuntimeError(f"ONNX cannot express {network.name}: {raised(error)}") from error


def _run_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _checked(network: AnyNetwork, module: nn.Module, other: Callable[[Tensor], Tensor], what: str) -> float:
    """The largest difference of the logits of `other` from those of `module`. Raises: RuntimeError: above TOLERANCE."""
    largest = 0.0
    for batch in (1, 3):
        images = _images(network, batch)
        with torch.no_grad():
            ours, theirs = module(images), other(images)
        difference = float((ours - theirs).abs().max())
        allowed = TOLERANCE * max(1.0, float(ours.abs().max()))
        if not difference <= allowed:  # nan is no agreement
            raise RuntimeError(
                f"the {what} of {network.name} gives other logits than the network: they differ by {difference:.2g}, "
                f"and may by {allowed:.2g}; nothing was written"
            )
        largest = max(largest, difference)
    return largest


def _same(a: Tensor, b: Tensor) -> bool:  # bit for bit: nan is equal to itself
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
