"""What makes a proxy train faster on this machine: ratios of medians within one run, printed as a table.

    python benchmarks/training.py

Each row compares two ways of training the same proxy, taking turns, so that a noisy neighbour slows both.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml

from scalesearch.model import build
from scalesearch.network import Network, load
from scalesearch.scaling import Proxy, Rounding, shrink

CONF = Path(__file__).resolve().parent.parent / "conf"
ROUNDS, STEPS, BATCH = 7, 4, 64


def proxy(name: str) -> Network:
    """The default proxy of a baseline, for grey images of ten classes."""
    rounding = Rounding(**yaml.safe_load((CONF / "rounding" / "nearest.yaml").read_text()))
    small = Proxy(**yaml.safe_load((CONF / "proxy" / "small.yaml").read_text()))
    baseline = replace(load(CONF / "baseline" / f"{name}.yaml"), in_channels=1, num_classes=10)
    return shrink(baseline, small, rounding)[0]


def trainer(network: Network, *, channels_last: bool = True, bfloat16: bool = False) -> Callable[[], None]:
    """A function that takes a few training steps."""
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = build(network).to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True)
    x = torch.randn(BATCH, network.in_channels, network.resolution, network.resolution).contiguous(memory_format=layout)
    y = torch.randint(10, (BATCH,))

    def steps() -> None:
        for _ in range(STEPS):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = F.cross_entropy(model(x).float(), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    steps()
    return steps


def ratio(usual: Callable[[], None], other: Callable[[], None]) -> tuple[float, float, float]:
    """Median, lowest and highest of how many times faster `other` is, over rounds in which both take turns."""
    ratios = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        usual()
        between = time.perf_counter()
        other()
        ratios.append((between - began) / (time.perf_counter() - between))
    return statistics.median(ratios), min(ratios), max(ratios)


def two_workers(name: str) -> tuple[float, float, float]:
    """Two processes of one thread against one process of two threads, on the same number of images."""
    ratios = []
    for _ in range(3):
        single = _seconds([name, "2", "2"], 1)
        ratios.append(single / _seconds([name, "1", "1"], 2))
    return statistics.median(ratios), min(ratios), max(ratios)


def _seconds(arguments: list[str], processes: int) -> float:
    command = [sys.executable, __file__, "--steps", *arguments]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return max(float(process.communicate()[0]) for process in running)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs=3, help=argparse.SUPPRESS)
    if given := parser.parse_args().steps:
        name, threads, share = given[0], int(given[1]), int(given[2])
        torch.set_num_threads(threads)
        steps = trainer(proxy(name))
        began = time.perf_counter()
        for _ in range(10 * share):
            steps()
        print(time.perf_counter() - began)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads at most\n")
    print("| proxy | what | times faster: median (lowest to highest) |\n|---|---|---|")
    for name in sorted(path.stem for path in (CONF / "baseline").glob("*.yaml")):
        row = two_workers(name)
        print(f"| {name} | two workers of one thread, not one of two | {row[0]:.2f} ({row[1]:.2f} to {row[2]:.2f}) |")
        torch.set_num_threads(1)
        network = proxy(name)
        for what, other in {
            "channels_last, not contiguous": (trainer(network, channels_last=False), trainer(network)),
            "bfloat16 autocast, not float32": (trainer(network), trainer(network, bfloat16=True)),
        }.items():
            row = ratio(*other)
            print(f"| {name} | {what} | {row[0]:.2f} ({row[1]:.2f} to {row[2]:.2f}) |", flush=True)


if __name__ == "__main__":
    main()
