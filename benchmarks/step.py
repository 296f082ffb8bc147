"""What a training step takes: as torch does it, with the memory kept that it frees, and with the kernels in C.

    python benchmarks/step.py
    python benchmarks/step.py resnet18 mobilenetv3_large
    python benchmarks/step.py --resolutions 16 20 28

Each form has a process of its own, of one thread, and the three take turns. Times are those of the processor, which a
neighbour on the same machine changes less than those of the clock; ratios are medians within a turn. Images a second
are those with the kernels. The peak is that of a product of matrices of 1,024 x 1,024 in float32, timed before and
after each row: of the two the better.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from training import BATCH, proxy

from scalesearch.cost import cost
from scalesearch.kernels import accelerate
from scalesearch.machine import freed_memory_kept, processor
from scalesearch.model import build

FORMS = ("torch", "memory kept", "kernels")
NETWORKS = ("mobilenetv2", "efficientnet_b0", "preresnet29")
TURNS, STEPS = 7, 8


def serve(form: str, name: str, side: int) -> None:
    """Answers each line of standard input with the milliseconds of a step, as a mean of some."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = replace(proxy(name), resolution=side)
    layout = torch.channels_last
    model = build(network).to(memory_format=layout).train()  # type: ignore[call-overload]
    forward = accelerate(model, layout) if form == "kernels" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True)
    x = torch.randn(BATCH, network.in_channels, side, side).contiguous(memory_format=layout)
    y = torch.randint(10, (BATCH,))
    with nullcontext() if form == "torch" else freed_memory_kept():
        for _ in sys.stdin:
            began = time.process_time()
            for _ in range(STEPS):
                F.cross_entropy(forward(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
            print(1_000 * (time.process_time() - began) / STEPS, flush=True)


def times(name: str, side: int) -> list[list[float]]:
    """Milliseconds of a step of each form, turn by turn."""
    command = [sys.executable, __file__, name, "--resolutions", str(side), "--serve"]
    running = [
        subprocess.Popen([*command, form], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for form in FORMS
    ]

    def turn() -> list[float]:
        taken = []
        for process in running:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            taken.append(float(process.stdout.readline()))
        return taken

    turn()  # kernels are compiled and chosen
    found = [turn() for _ in range(TURNS)]
    for process in running:
        process.communicate()
    return found


def peak() -> float:
    """G multiply-adds a second of a product of matrices on one thread."""
    one, other = torch.randn(2, 1024, 1024).unbind()
    taken = []
    for _ in range(60):
        began = time.process_time()
        one @ other
        taken.append(time.process_time() - began)
    return 1024**3 / min(taken) / 1e9


def row(name: str, side: int) -> str:
    """A row of the table."""
    network = replace(proxy(name), resolution=side)
    best = peak()
    found = times(name, side)
    best = max(best, peak())
    plain, kept, kernels = (statistics.median(turn[form] for turn in found) for form in range(3))
    ratios = sorted(turn[0] / turn[2] for turn in found)
    work = 3 * cost(network).macs * BATCH / 1e9  # backward it is twice the forward pass
    cells = [name, f"{side}", f"{plain:.1f}", f"{kept:.1f}", f"{kernels:.1f}"]
    cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    cells.append(f"{1_000 * BATCH / kernels:,.0f}")
    cells.append(f"{100 * work / plain * 1_000 / best:.0f} to {100 * work / kernels * 1_000 / best:.0f} %")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="baselines whose default proxies are trained")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[16, 20, 28], help="px (default: 16 20 28)")
    parser.add_argument("--serve", choices=FORMS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.networks[0], given.resolutions[0])
        return
    torch.set_num_threads(1)
    print(f"{processor()}, torch {torch.__version__}, one thread, batches of {BATCH}, {TURNS} turns\n")
    print("| proxy | px | torch (ms) | memory kept | kernels | times faster (lowest to highest)", end="")
    print(" | images a second | share of the peak |\n" + "|---" * 8 + "|")
    for name in given.networks:
        for side in given.resolutions:
            print(row(name, side), flush=True)


if __name__ == "__main__":
    main()
