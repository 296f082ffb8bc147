"""Networks counted a second: `scalesearch.cost` beside fvcore, ptflops, torchinfo and torch's own counter.

    python benchmarks/counting.py
    pip install --target /tmp/counters fvcore ptflops torchinfo; PYTHONPATH=/tmp/counters python benchmarks/counting.py

A search counts every candidate of its grid, so a count begins at the table of a network: all but `scalesearch.cost`
need its module, built on the meta device where they can use that, and watch a forward pass of one image. Times are of
the processor, on one thread, as medians of turns in which all take part. The count is of multiply-adds; beside it
stands by how much it differs from that of convolutions and linear layers, which `scalesearch.cost` counts and the paper
prints.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from training import CONF

from scalesearch.cost import cost
from scalesearch.machine import processor
from scalesearch.model import build, build_on_meta
from scalesearch.network import Network, load
from scalesearch.scaling import Coefficients, Rounding, scale

BASELINES = ("mobilenetv2", "efficientnet_b0", "resnet50")
PHIS = (0, 2, 4)
PAPER = Coefficients(1.2, 1.1, 1.15)  # of EfficientNet


def made(network: Network, device: str) -> tuple[nn.Module, Tensor]:
    """The module for inference, and an image."""
    module = (build_on_meta if device == "meta" else build)(network).eval()
    side = network.resolution
    return module, torch.empty(1, network.in_channels, side, side, device=device)


def scalesearch(network: Network) -> int:
    cost.cache_clear()
    return cost(replace(network)).macs  # a new one: nothing of it is known


def torch_counter(network: Network) -> int:
    module, image = made(network, "meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(image)
    return counter.get_total_flops() // 2


def fvcore(network: Network) -> int:
    from fvcore.nn import FlopCountAnalysis

    module, image = made(network, "cpu")  # its tracing fails on the meta device
    analysis = FlopCountAnalysis(module, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return int(analysis.total())


def ptflops(network: Network, backend: str) -> int:
    from ptflops import get_model_complexity_info

    module, image = made(network, "cpu" if backend == "pytorch" else "meta")  # that backend counts others on meta
    quiet = {"as_strings": False, "print_per_layer_stat": False, "verbose": False, "backend": backend}
    with contextlib.redirect_stdout(io.StringIO()):  # it warns of what it is given by name
        found, _ = get_model_complexity_info(
            module, tuple(image.shape[1:]), input_constructor=lambda _: {"x": image}, **quiet
        )
    return int(found)


def torchinfo(network: Network) -> int:
    from torchinfo import summary

    module, image = made(network, "meta")
    return int(summary(module, input_data=image, verbose=0, device="meta").total_mult_adds)


COUNTERS: dict[str, tuple[str, Callable[[Network], int]]] = {  # with the package that each needs
    "scalesearch.cost": ("scalesearch", scalesearch),
    "torch FlopCounterMode": ("torch", torch_counter),
    "fvcore": ("fvcore", fvcore),
    "ptflops (aten)": ("ptflops", lambda network: ptflops(network, "aten")),
    "ptflops (pytorch)": ("ptflops", lambda network: ptflops(network, "pytorch")),
    "torchinfo": ("torchinfo", torchinfo),
}


def networks() -> list[Network]:
    """The baselines, scaled with the paper's coefficients."""
    rounding = Rounding(**yaml.safe_load((CONF / "rounding" / "released.yaml").read_text()))
    found = []
    for name in BASELINES:
        baseline = load(CONF / "baseline" / f"{name}.yaml")
        for phi in PHIS:
            scaled = scale(baseline, PAPER, phi, rounding=rounding)
            assert isinstance(scaled, Network)
            found.append(replace(scaled, name=name))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="of all counters (default: 7)")
    turns = parser.parse_args().turns
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    packages = {package: importlib.util.find_spec(package) is not None for package, _ in COUNTERS.values()}
    for package in (name for name, there in packages.items() if not there):
        print(f"without {package}, which is not installed: pip install --target /tmp/counters {package}")
    versions = [f"{name} {importlib.metadata.version(name)}" for name, there in packages.items() if there]
    print(f"{processor()}, {', '.join(versions)}, one thread, {turns} turns\n")
    print("| network | px | counter | networks a second | multiply-adds | beyond convolutions and linear layers |")
    print("|---|---|---|---|---|---|")
    counters = {name: count for name, (package, count) in COUNTERS.items() if packages[package]}
    for network in networks():
        seconds: dict[str, list[float]] = {name: [] for name in counters}
        counts = {name: count(network) for name, count in counters.items()}  # and what each makes once
        for _ in range(turns):
            for name, count in counters.items():
                began = time.process_time()
                count(network)
                seconds[name].append(time.process_time() - began)
        own = counts["scalesearch.cost"]
        for name, taken in seconds.items():
            more = "none" if counts[name] == own else f"{100 * (counts[name] / own - 1):+.4f} %"
            cells = [network.name, network.resolution, name, f"{1 / statistics.median(taken):,.1f}", counts[name], more]
            print(f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else cell for cell in cells)} |", flush=True)


if __name__ == "__main__":
    main()
