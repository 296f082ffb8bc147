"""What a GPU does with trainings of proxies: images a second, its share of the peak, and several trainings at a time.

    python benchmarks/gpu.py
    python benchmarks/gpu.py resnet18 resnet50 --resolutions 32 64 --batch 256
    python benchmarks/loops.py --device cuda        # beside the loops that people write or import

The step is that of `scalesearch.training`: float32 by TF32 and the half precision that the GPU does not emulate,
channels_last, a fused optimiser. The peak is that of a product of matrices of 8,192 x 8,192 in the same precision.
Several trainings at a time are processes of their own, as the workers of a search are. Without a GPU nothing is
measured.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from loops import NETWORKS, Team, settings
from training import proxy

from scalesearch.cost import cost
from scalesearch.machine import HALF, environment, gpu_settings, native_precisions
from scalesearch.model import build
from scalesearch.network import Network

AT_ONCE = (1, 2, 4, 8, 16)


def milliseconds(run: Callable[[], object], turns: int = 20) -> float:
    """Median time of a call on the GPU, after some that choose algorithms."""
    taken = []
    for turn in range(turns + 5):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()  # type: ignore[no-untyped-call]
        run()
        ended.record()  # type: ignore[no-untyped-call]
        ended.synchronize()  # type: ignore[no-untyped-call]
        if turn >= 5:
            taken.append(began.elapsed_time(ended))  # type: ignore[no-untyped-call]
    return statistics.median(taken)


def peak(precision: str) -> float:
    """Multiply-adds a second of a product of matrices."""
    side = 8192
    one, other = torch.randn(2, side, side, device="cuda", dtype=HALF.get(precision, torch.float32)).unbind()
    return side**3 / milliseconds(lambda: one @ other) * 1_000


def step(network: Network, precision: str, batch: int) -> Callable[[], None]:
    """A training step on images that are on the GPU."""
    torch.manual_seed(0)
    model = build(network).to("cuda", memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True)
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "float16")
    side = network.resolution
    x = torch.randn(batch, network.in_channels, side, side, device="cuda").contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,), device="cuda")

    def run() -> None:
        with torch.autocast("cuda", HALF.get(precision), enabled=precision in HALF):
            loss = F.cross_entropy(model(x).float(), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return run


def rates(names: list[str], resolutions: list[int], batch: int, precisions: tuple[str, ...]) -> None:
    """Print images a second by network, resolution and precision."""
    print("| proxy | px | precision | ms a step | images a second | share of the peak |\n" + "|---" * 6 + "|")
    with gpu_settings():
        best = {precision: peak(precision) for precision in precisions}
        for name in names:
            for side in resolutions:
                network = replace(proxy(name), resolution=side)
                for precision in precisions:
                    taken = milliseconds(step(network, precision, batch))
                    share = 3 * cost(network).macs * batch / taken * 1_000 / best[precision]
                    cells = [name, f"{side}", precision, f"{taken:.2f}", f"{1_000 * batch / taken:,.0f}"]
                    print(f"| {' | '.join(cells)} | {100 * share:.1f} % |", flush=True)


def sharing(names: list[str], turns: int) -> None:
    """Print trials a minute with several trainings at a time."""
    recipe, _ = settings()
    print("\n| proxy | trainings at a time | precision | trials a minute | MiB of the GPU |\n" + "|---" * 5 + "|")
    for name in names:
        for processes in AT_ONCE:
            team = Team("scalesearch", name, torch.device("cuda"), processes)
            team.choose()
            taken = statistics.median(team.trained(turn * processes, recipe.epochs)[0] for turn in range(turns))
            free, total = torch.cuda.mem_get_info()
            team.end()
            cells = [name, str(processes), team.precision, f"{60 * processes / taken:.1f}"]
            print(f"| {' | '.join(cells)} | {(total - free) / 2**20:,.0f} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help="baselines whose default proxies are used")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[16, 20, 28], help="px (default: 16 20 28)")
    parser.add_argument("--batch", type=int, default=64, help="images of a step (default: 64)")
    parser.add_argument("--turns", type=int, default=5, help="trainings of each process (default: 5)")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch sees no CUDA GPU here: nothing was measured")
        return
    here = environment()
    shown = ", ".join(f"{name} {here[name]}" for name in ("device", "torch", "cuda", "cudnn"))
    print(f"{shown}; batches of {given.batch}\n")
    rates(given.networks, given.resolutions, given.batch, native_precisions(torch.device("cuda")))
    sharing(given.networks, given.turns)


if __name__ == "__main__":
    main()
