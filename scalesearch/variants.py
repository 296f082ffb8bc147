"""The family of scaled networks that follows from the chosen coefficients (arXiv:1905.11946, section 3.3, step 2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from scalesearch.budget import Footprint, Profiler
from scalesearch.cost import Cost, cost
from scalesearch.ledger import write_atomic
from scalesearch.network import AnyNetwork, load
from scalesearch.scaling import Coefficients, Rounding, scale


class Move(NamedTuple):
    """A departure from the rule of rounding, such as ("stages[3].repeats", 4, 5), that uses a budget up."""

    what: str
    before: float
    after: float

    def __str__(self) -> str:
        return f"{self.what} {self.before:g} -> {self.after:g}"


@dataclass(frozen=True)
class Variant:
    """The baseline scaled to one phi and trimmed by `moves`; `macs_ratio` is its counted cost over that of the
    baseline itself, `footprint` None where it was not measured."""

    phi: float
    network: AnyNetwork
    cost: Cost
    macs_ratio: float
    moves: tuple[Move, ...] = ()
    footprint: Footprint | None = None


def family(
    network: AnyNetwork, coefficients: Coefficients, phis: Sequence[float], *, rounding: Rounding
) -> list[Variant]:
    """The variants at `phis`, each once and in rising order, with their counted costs; phi = 0 is the baseline itself.

    Raises: ValueError: with the phi at which there is no such network.
    """
    base = cost(network).macs
    variants = []
    for phi in sorted({float(phi) + 0.0 for phi in phis}):  # -0.0 is 0
        # repr, not :g, which would give two phis that differ in the seventh digit one file
        name = network.name if phi == 0 else f"{network.name}_phi{repr(phi).removesuffix('.0')}"
        try:
            scaled = scale(network, coefficients, phi, rounding=rounding, name=name)
            counted = cost(scaled)
        except ValueError as error:
            raise ValueError(f"phi {phi:g}: {error}") from None
        variants.append(Variant(phi, scaled, counted, counted.macs / base))
    return variants


def free_name(network: AnyNetwork, file: Callable[[str], Path]) -> str:
    """The network's name; with eight digits of its digest behind it where `file(name)` describes another network, so
    that neither replaces the other. The same network gets the same name again."""
    path = file(network.name)
    try:
        taken = path.exists() and load(path) != network
    except ValueError:  # edited, or cut off: not ours to replace
        taken = True
    if not taken:
        return network.name
    digest = hashlib.sha256(json.dumps(network.table(), sort_keys=True).encode()).hexdigest()
    return f"{network.name}-{digest[:8]}"


def apart(variants: Sequence[Variant], directory: Path) -> list[Variant]:
    """The variants, renamed where a file in `directory` has that name for another network (`free_name`)."""
    names = [free_name(variant.network, lambda name: _file(directory, name)) for variant in variants]
    return [
        replace(variant, network=replace(variant.network, name=name))
        for variant, name in zip(variants, names, strict=True)
    ]


def measured(variants: Sequence[Variant], profiler: Profiler) -> list[Variant]:
    """The variants with their footprints, in memory and time."""
    return [replace(variant, footprint=profiler.footprint(variant.network)) for variant in variants]


def family_rows(
    variants: Sequence[Variant], coefficients: Coefficients, directory: Path
) -> list[dict[str, str | int | float | None]]:
    """One row per variant: name, phi, nominal and counted cost ratios, sizes, the footprint where it was measured, and
    the file that `write` makes of it."""
    return [
        {
            "name": variant.network.name,
            "phi": variant.phi,
            "nominal_ratio": 2.0**variant.phi,
            "product_ratio": coefficients.product**variant.phi,
            "macs": variant.cost.macs,
            "macs_ratio": variant.macs_ratio,
            "params": variant.cost.params,
            "activations": variant.cost.activations,
            **(variant.footprint._asdict() if variant.footprint else {}),
            "depth": variant.network.depth,
            "resolution": variant.network.resolution,
            "file": str(_file(directory, variant.network.name)),
        }
        for variant in variants
    ]


def write(
    variants: Sequence[Variant], coefficients: Coefficients, directory: Path, *, rounding: Rounding, comment: str = ""
) -> None:
    """One YAML per variant in `directory`/baseline: `--config-dir directory baseline=NAME` loads it in any command.

    Its head tells how it was made, and then `comment`.
    """
    for variant in variants:
        depth, width, resolution = coefficients.multipliers(variant.phi)
        made = (
            f"{variant.network.name}: phi = {variant.phi:g}, alpha (depth) = {coefficients.alpha:g}, "
            f"beta (width) = {coefficients.beta:g}, gamma (resolution) = {coefficients.gamma:g}\n"
            f"multipliers: depth {depth:.4g}, width {width:.4g}, resolution {resolution:.4g}; "
            f"rounding: {rounding.name}\n"
            f"{variant.cost.macs:,} multiply-adds ({variant.macs_ratio:.3f} x the baseline), "
            f"{variant.cost.params:,} params, {variant.cost.activations:,} activations"
        )
        text = variant.network.to_yaml(comment=f"{made}\n{comment}".rstrip())
        write_atomic(_file(directory, variant.network.name), text.encode())


def _file(directory: Path, name: str) -> Path:
    return directory / "baseline" / f"{name}.yaml"
