"""Memory as `scalesearch.memory` computes it against what torch's profiler measures on the CPU, printed as a table.

    python benchmarks/memory.py [baseline ...]

Compared is what one forward pass of one image, and one training step of BATCH images, allocate at the peak beyond
weights, momentum and images. Networks above MOST_MACS are computed and not run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch.profiler import ProfilerActivity, profile

from scalesearch.cost import cost
from scalesearch.memory import memory
from scalesearch.model import build
from scalesearch.network import Network, load
from scalesearch.scaling import Rounding, resize

CONF = Path(__file__).resolve().parent.parent / "conf"
BATCH, MOST_MACS, MIB = 8, 5e9, 1 << 20


def networks(names: list[str]) -> list[Network]:
    """The baselines named, or all; and EfficientNet-B7, the largest of the paper."""
    found = []
    for path in sorted((CONF / "baseline").glob("*.yaml")):
        if (not names and path.stem != "factory") or path.stem in names:
            network = load(path)
            assert isinstance(network, Network)
            found.append(network)
            if path.stem == "efficientnet_b0":
                rounding = Rounding(**yaml.safe_load((CONF / "rounding" / "released.yaml").read_text()))
                larger = resize(network, depth=3.1, width=2.0, resolution=600 / 224, rounding=rounding)
                found.append(replace(larger, name="efficientnet_b7"))
    return found


def measured(run: Callable[[], object]) -> int:
    """The most bytes that `run` allocates at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as recorded:
        run()
    assert recorded.profiler is not None
    now = highest = 0
    events = (event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest


def measured_inference(network: Network) -> int:
    module = build(network).eval()
    image = torch.rand(1, network.in_channels, network.resolution, network.resolution)
    with torch.no_grad():
        module(image)  # what torch makes once and keeps
        return measured(lambda: module(image))


def measured_training(network: Network, *, channels_last: bool = False, bfloat16: bool = False) -> int:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    module = build(network).train().to(memory_format=layout)  # type: ignore[call-overload]
    images = torch.rand(BATCH, network.in_channels, network.resolution, network.resolution)
    images, labels = images.contiguous(memory_format=layout), torch.zeros(BATCH, dtype=torch.long)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = module(images).float()
        F.cross_entropy(logits, labels).backward()

    step()
    module.zero_grad(set_to_none=True)
    return measured(step)


def row(network: Network) -> str:
    """A row of the table: for each of the two what was computed, in how long, and how that compares."""
    cells = [f"{network.name} ({network.resolution} px)"]
    for compute, run in (
        (lambda: memory(network).activations, measured_inference),
        (lambda: memory(network, batch_size=BATCH).training_activations, measured_training),
    ):
        began = time.process_time()  # of this process alone: neighbours do not count
        computed = compute()
        seconds = time.process_time() - began
        real = run(network) if cost(network).macs <= MOST_MACS else None
        cells += [f"{computed / MIB:,.1f}", f"{real / MIB:,.1f}" if real else "-"]
        cells += [f"{computed / real:.3f}" if real else "-", f"{1_000 * seconds:.0f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="baselines; all without any")
    names = parser.parse_args().networks
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, {torch.backends.cpu.get_cpu_capability()}\n")
    print("| network | one image: computed (MiB) | measured | ratio | ms to compute", end="")
    print(f" | step of {BATCH}: computed (MiB) | measured | ratio | ms to compute |\n" + "|---" * 9 + "|")
    memory(replace(load(CONF / "baseline" / "mobilenetv2.yaml"), resolution=32)).inference  # noqa: B018 - torch's own start
    for network in networks(names):
        print(row(network), flush=True)


if __name__ == "__main__":
    main()
