"""multiply-adds, params and activations of a network, by stage"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from scalesearch.checks import between, checked
from scalesearch.text import plural
from scalesearch.workspace import Directory

if TYPE_CHECKING:
    from scalesearch.config import Groups
    from scalesearch.screen import Screen

GROUPS = {"baseline": "mobilenetv2", "rounding": "released"}
EXAMPLE = "scalesearch cost baseline=efficientnet_b0 depth=1.2 width=1.1 resolution=260"


@checked()
class Arguments:
    depth: Annotated[float, between(0.01, 100, "multiplier of the repeats")] = 1.0
    width: Annotated[float, between(0.01, 100, "multiplier of the channels")] = 1.0
    resolution: Annotated[int | None, between(1, 16_384, "side of the input in px; null: the baseline's own")] = None
    batch_size: Annotated[int, between(1, 65_536, "of the training step whose memory is given")] = 64
    latency: Annotated[bool, Field(description="measure the time of one image; else it is shown where it is known")] = (
        False
    )
    workspace: Annotated[Directory, Field(description="latencies are kept in it")] = Path("workspace")


def run(arguments: Arguments, groups: Groups, out: Screen) -> int:
    """A network's cost by stage, its memory and its latency."""
    from dataclasses import replace

    from scalesearch.budget import Profiler
    from scalesearch.cost import cost, uncounted
    from scalesearch.scaling import resize

    network = resize(groups.baseline, depth=arguments.depth, width=arguments.width, rounding=groups.rounding)
    if arguments.resolution is not None:
        network = replace(network, resolution=arguments.resolution)
    total = cost(network)
    profiler = Profiler(batch_size=arguments.batch_size, workspace=arguments.workspace, times=arguments.latency)
    answer = {
        "name": network.name,
        "macs": total.macs,
        "params": total.params,
        "activations": total.activations,
        **profiler.footprint(network)._asdict(),
        "batch_size": arguments.batch_size,
        "depth": arguments.depth,
        "width": arguments.width,
        "resolution": network.resolution,
        "blocks": network.depth,
        "rounding": groups.rounding.name,
        "stages": _stages(network),
        "uncounted": uncounted(network),
    }
    _show(answer, out)
    out.answer(answer)
    return 0


def _stages(network: Any) -> list[dict[str, Any]]:
    from scalesearch.cost import stage_costs
    from scalesearch.network import Network

    places = {place.row: place for place in network.places()} if isinstance(network, Network) else {}
    return [
        {
            "stage": name,
            "block": places[name].stage.block if name in places else "linear" if places else "factory",
            "repeats": places[name].stage.repeats if name in places else 1,
            "channels": places[name].channels if name in places else network.num_classes,
            "macs": part.macs,
            "params": part.params,
            "activations": part.activations,
        }
        for name, part in stage_costs(network)
    ]


def _show(answer: Mapping[str, Any], out: Screen) -> None:
    from scalesearch.commands._family import footprint_words
    from scalesearch.cost import uncounted_words

    rows = [
        stage
        | {name: f"{stage[name]:,}" for name in ("macs", "params", "activations")}
        | {"share": f"{100 * stage['macs'] / answer['macs']:.1f} %"}
        for stage in answer["stages"]
    ]
    columns = {name: name for name in ("stage", "block", "repeats", "channels")}
    columns |= {"macs": "multiply-adds", "share": "share", "params": "params", "activations": "activations"}
    out.table(f"{answer['name']} at {answer['resolution']} px", rows, columns)
    out.say(
        f"{answer['macs']:,} multiply-adds, {answer['params']:,} params, {answer['activations']:,} activations, "
        f"{plural(answer['blocks'], 'block')}, rounding {answer['rounding']}"
    )
    for line in uncounted_words(answer["uncounted"]):
        out.say(line)
    needs = footprint_words(answer)
    out.say(
        f"memory {needs['memory']} for one image, {needs['training_memory']} for a training step of "
        f"{answer['batch_size']}; latency "
        + (needs["latency_ms"] if answer["latency_ms"] is not None else "not measured (latency=true measures it)")
    )
