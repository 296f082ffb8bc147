"""What a training of the default search spends its time on, and the memory of a worker.

    python benchmarks/shares.py
    python benchmarks/shares.py resnet18 --turns 3

Each proxy has a process of its own, of one thread. Data and augmentation: all batches of a training, made and not
trained on. Evaluation: the 10,000 validation images. Times are of the processor, as medians of turns. Driver: what
benchmarks/driver.py measures an evaluation for a search of 100, by the clock, as a share of a training. Forward passes
of evaluation and training have multiply-adds in the ratio of the last column but one (backward counts twice), so that
is the share of evaluation where all of them take equally long. Memory is what is resident at the peak.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from loops import NETWORKS, settings
from training import proxy

from scalesearch.machine import freed_memory_kept, processor
from scalesearch.model import build
from scalesearch.training import evaluate, train
from scalesearch.training.images import Batches

EVALUATIONS = 100  # of the search whose driver is timed


def measured(name: str, turns: int) -> dict[str, float]:
    """Seconds of a training and of its parts, and MiB at the peak."""
    torch.set_num_threads(1)
    recipe, data = settings()
    network = proxy(name)
    model, place = build(network).to(memory_format=torch.channels_last), torch.device("cpu")  # type: ignore[call-overload]
    steps = recipe.num_steps(len(data.train_images))

    def batches() -> None:
        made = Batches(data, recipe, network.resolution, place, torch.channels_last)
        for epoch in range(-(-steps // made.steps)):
            for _ in made.epoch(0, epoch, 0, min(made.steps, steps - epoch * made.steps)):
                pass

    parts = {
        "training": lambda: train(network, recipe, data, seed=0, device="cpu", precision="float32"),
        "data": batches,
        "evaluation": lambda: evaluate(model, network, data, split="val", device="cpu"),
    }
    taken: dict[str, list[float]] = {part: [] for part in parts}
    for turn in range(turns + 1):  # the first one chooses and compiles
        for part, run in parts.items():
            began = time.process_time()
            with freed_memory_kept():
                run()
            if turn:
                taken[part].append(time.process_time() - began)
    found = {part: statistics.median(times) for part, times in taken.items()}
    trained, scored = 3 * steps * recipe.batch_size, len(data.val_images)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found | {"least": scored / (trained + scored), "peak": peak}


def driver() -> float:
    """Seconds of the driver an evaluation."""
    from driver import seconds

    with tempfile.TemporaryDirectory() as directory:
        return seconds(EVALUATIONS, Path(directory), "mlflow") / EVALUATIONS


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="baselines whose default proxies are trained")
    parser.add_argument("--turns", type=int, default=5, help="(default: 5)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.networks[0], given.turns)))
        return
    waited = driver()
    print(f"{processor()}, torch {torch.__version__}, one thread, {given.turns} turns")
    print(f"driver: {1_000 * waited:.1f} ms an evaluation\n")
    print("| proxy | training and evaluation (s) | data and augmentation | evaluation", end="")
    print(" | evaluation by multiply-adds | driver | MiB of a worker |\n" + "|---" * 7 + "|")
    for name in given.networks:
        command = [sys.executable, __file__, "--one", name, "--turns", str(given.turns)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        whole = found["training"]  # which scores at its end
        shares = [
            100 * one for one in (found["data"] / whole, found["evaluation"] / whole, found["least"], waited / whole)
        ]
        cells = [f"{share:.1f} %" for share in shares]
        print(f"| {name} | {whole:.2f} | {' | '.join(cells)} | {found['peak']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
