"""networks with their weights as YAML and safetensors, ONNX and torch.export programs, each checked"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from scalesearch.checks import Must, between, checked
from scalesearch.commands import variants
from scalesearch.text import count
from scalesearch.workspace import DONE, Directory, InitialWeights

if TYPE_CHECKING:
    from scalesearch.config import Groups
    from scalesearch.network import AnyNetwork
    from scalesearch.screen import Row, Screen
    from scalesearch.study import TrainedCandidate

GROUPS = variants.GROUPS
EXAMPLE = "scalesearch export study=NAME candidate=chosen 'formats=[yaml,onnx]'"


@checked(kw_only=True)
class Arguments(variants.Arguments):
    candidate: Annotated[
        Annotated[str, Field(min_length=1)] | None,
        Must("null or a candidate of the study, such as c03, or chosen, or baseline"),
        Field(description="exported as it was trained in its study"),
    ] = None
    weights: Annotated[
        Annotated[str, Field(min_length=1)] | None,
        Must("null or the path of a .safetensors file"),
        Field(description="of the one variant; null: freshly initialised, untrained"),
    ] = None
    init: Annotated[InitialWeights | None, Field(description="or weights to start from")] = None
    seed: Annotated[int, between(0, 2**32 - 1, "of weights that are freshly initialised")] = 0
    formats: Annotated[
        Sequence[str],
        Must("a list, such as formats=[yaml,onnx,torch]"),
        Field(description="yaml, with the weights as safetensors, is always written"),
    ] = ("yaml", "onnx", "torch")
    directory: Annotated[Directory | None, Field(description="null: exports in the workspace")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("candidate", "weights", "init") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} each say which weights are exported; give one of them")
        if self.candidate is not None and self.study is None:
            raise ValueError(f"candidate is {self.candidate!r}; of which study? study=NAME is missing")
        if self.candidate is not None and (self.phis is not None or self.limits.given()):
            raise ValueError(f"candidate {self.candidate} is exported as it was trained; leave phis and budget out")


def run(arguments: Arguments, groups: Groups, out: Screen) -> int:
    """Networks with their weights as files, each compared with the network itself."""
    from scalesearch import export, pretrained
    from scalesearch.commands._family import PAPERS_WORDS
    from scalesearch.scaling import PAPERS
    from scalesearch.study import Study

    trained, initial = None, None
    if arguments.candidate is not None:
        trained = Study.read(arguments.workspace, arguments.study).trained(arguments.candidate)
        networks = [trained.network]
    else:
        family = variants.family_of(arguments, groups, phis=(1,))
        networks = [variant.network for variant in family.variants]
        if family.coefficients == PAPERS and any(variant.phi for variant in family.variants):
            out.say(PAPERS_WORDS)
        if arguments.init is not None:
            initial = pretrained.fetch(arguments.init, [family.baseline], warn=out.warn)
    if arguments.weights is not None and len(networks) > 1:
        raise ValueError(f"weights is one file, and {len(networks)} networks are exported; give one phi")
    rows = [_exported(network, arguments, trained, initial, out) for network in networks]
    _show(rows, out)
    out.answer({"tolerance": export.TOLERANCE, "networks": rows})
    return DONE


def _exported(
    network: AnyNetwork, arguments: Arguments, trained: TrainedCandidate | None, initial: Any, out: Screen
) -> dict[str, Any]:
    from scalesearch import export
    from scalesearch.cost import cost
    from scalesearch.variants import free_name

    root = arguments.directory or arguments.workspace / "exports"
    name = free_name(network, lambda name: root / name / f"{name}.yaml")
    if name != network.name:
        out.say(f"{root / network.name} has another network of the name {network.name}; this one is exported as {name}")
        network = replace(network, name=name)
    out.say(f"{network.name} ...")
    file = None if arguments.weights is None else Path(arguments.weights).expanduser()
    module, origin = export.filled(
        network, file=file if trained is None else trained.weights, initial=initial, seed=arguments.seed
    )
    if trained is not None:
        accuracy = f"validation accuracy {100 * trained.val_accuracy:.2f} %"
        origin = f"of {trained.id} of study {arguments.study}, {accuracy}"
    made, counted = export.counterpart(network), cost(network)
    comment = export.comment(network, counted, origin, made, None if trained is None else trained.data)
    directory = root / network.name
    weights = directory / f"{network.name}.safetensors"
    before = weights.read_bytes() if weights.is_file() else None
    written = export.write(network, module, directory, formats=arguments.formats, comment=comment)
    if before is not None and before != weights.read_bytes():
        out.warn(f"{weights} of an earlier export had other weights; it was replaced")
    left = sorted({path.name for path in directory.glob(f"{network.name}.*")} - {one.file.name for one in written})
    if left:
        out.warn(f"{directory} holds {', '.join(left)} of an earlier export, which may have other weights")
    return {
        "name": network.name,
        "resolution": network.resolution,
        "macs": counted.macs,
        "params": counted.params,
        "weights": origin,
        "directory": str(directory),
        "files": {one.kind: str(one.file) for one in written},
        "bytes": {one.kind: one.num_bytes for one in written},
        "largest_difference": {one.kind: one.largest_difference for one in written},
        "load": export.load_call(network, written[0].file),
        "timm": made._asdict(),
    }


def _show(exported: Sequence[Row], out: Screen) -> None:
    """What was written, how far each format's logits are from the network's, and what timm calls the network."""
    rows = [
        {
            "name": row["name"],
            "params": count(row["params"]),
            "resolution": str(row["resolution"]),
            "timm": row["timm"]["name"] or ("by a call" if row["timm"]["code"] else "none"),
            **{kind: _difference(row["largest_difference"].get(kind)) for kind in ("onnx", "torch")},
        }
        for row in exported
    ]
    columns = {"name": "network", "params": "params", "resolution": "px", "onnx": "ONNX differs by"}
    out.table("Exported networks", rows, columns | {"torch": "torch.export differs by", "timm": "in timm"})
    for row in exported:
        out.say(f"{row['name']}: weights {row['weights']}")
        out.say(f"  in timm: {row['timm']['code'] or 'none; ' + row['timm']['reason']}")
        out.say(f"  {row['load']} gives the torch module")


def _difference(value: float | None) -> str:
    return "-" if value is None else f"{value:.1g}"
