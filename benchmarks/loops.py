"""Trials a minute of `scalesearch` beside loops that people write or import: the same network, data and recipe.

    python benchmarks/loops.py                                  # three proxies, five turns: 20 minutes on two cores
    python benchmarks/loops.py mobilenetv2 --turns 3
    pip install --target /tmp/lightning lightning; PYTHONPATH=/tmp/lightning python benchmarks/loops.py

A trial is a training of the default recipe on Fashion-MNIST and the scoring of its validation images. Each form has two
processes of one thread, which the default search has on two cores; they train two seeds at a time, and the forms take
turns. Data are loaded and everything is imported before. Times are those of the processor, which neighbours on the same
machine change less than those of the clock: on an idle machine they are the same, as no form waits for anything. The
loops of others are in benchmarks/others/loops.py, each in its best shape. Each form trains in the precision that took
it less time in a first turn, which counts for nothing else.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import replace

import torch
import yaml
from others import loops
from training import CONF, proxy

from scalesearch.data import Data, DataSpec, load
from scalesearch.machine import environment, native_precisions, processor, torch_device
from scalesearch.network import Network
from scalesearch.training import Recipe, train

NETWORKS = ("mobilenetv2", "efficientnet_b0", "preresnet29")
PROCESSES = 2  # of a form


def scalesearch(network: Network, recipe: Recipe, data: Data, seed: int, precision: str, device: torch.device) -> float:
    return train(network, recipe, data, seed=seed, device=str(device), precision=precision).val_accuracy


FORMS = {
    "scalesearch": scalesearch,
    "plain loop": loops.plain,
    "expert's loop": loops.expert,
    "timm": loops.timm,
    "lightning": loops.lightning,
}
PACKAGES = ("timm", "lightning")  # those without are left out


def settings() -> tuple[Recipe, Data]:
    """What the default search trains with."""
    recipe = yaml.safe_load((CONF / "recipe" / "default.yaml").read_text())
    spec = yaml.safe_load((CONF / "data" / "fashion_mnist.yaml").read_text())
    del recipe["seeds"]
    return Recipe(**recipe), load(DataSpec(**spec), check=False)


def serve(form: str, name: str, device: torch.device) -> None:
    """Answers each line of standard input, [seed, precision, epochs], with [accuracy, seconds, MiB at the peak]."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    recipe, data = settings()
    network, clock = proxy(name), time.process_time if device.type == "cpu" else time.perf_counter
    for line in sys.stdin:
        seed, precision, epochs = json.loads(line)
        began = clock()
        accuracy = FORMS[form](network, replace(recipe, epochs=epochs), data, seed, precision, device)
        taken = clock() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps([accuracy, taken, peak]), file=answers, flush=True)


class Team:
    """The processes of a form, which train together."""

    def __init__(self, form: str, name: str, device: torch.device, processes: int = PROCESSES) -> None:
        command = [sys.executable, __file__, name, "--serve", form, "--device", str(device)]
        self._precisions = [one for one in native_precisions(device) if one != "float16"]  # others scale no loss
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(processes)]
        self.precision, self.peak = "float32", 0.0

    def trained(self, seed: int, epochs: float, precision: str | None = None) -> tuple[float, list[float]]:
        """Seconds of a training, and the accuracies: each process has its own seed, from `seed` on."""
        for number, process in enumerate(self._processes):
            process.stdin.write(json.dumps([seed + number, precision or self.precision, epochs]) + "\n")
            process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for process in self._processes]
        accuracies, seconds, peaks = zip(*answers, strict=True)
        self.peak = max(peaks)
        return statistics.mean(seconds), list(accuracies)

    def choose(self) -> None:
        """The precision that takes less time, once everything has been imported and chosen."""
        self.trained(0, 0.02)
        taken = {name: self.trained(0, 0.5, name)[0] for name in self._precisions}
        self.precision = min(taken, key=lambda name: taken[name])

    def end(self) -> None:
        for process in self._processes:
            process.communicate()


def compared(name: str, forms: list[str], turns: int, device: torch.device) -> None:
    """Print the rows of a network."""
    recipe, _ = settings()
    teams = {form: Team(form, name, device) for form in forms}
    for team in teams.values():
        team.choose()
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    accuracies: dict[str, list[float]] = {form: [] for form in forms}
    for turn in range(turns):
        for form, team in teams.items():
            taken, found = team.trained(PROCESSES * turn, recipe.epochs)
            seconds[form].append(taken)
            accuracies[form] += found
    for form, team in teams.items():
        team.end()
        ratios = sorted(other / own for own, other in zip(seconds["scalesearch"], seconds[form], strict=True))
        cells = [name, form, team.precision, f"{60 * PROCESSES / statistics.median(seconds[form]):.1f}"]
        cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        percent = [100 * one for one in accuracies[form]]
        error = statistics.stdev(percent) / len(percent) ** 0.5
        cells += [f"{statistics.mean(percent):.2f} +- {error:.2f} %", f"{team.peak:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="baselines whose default proxies are trained")
    parser.add_argument("--turns", type=int, default=5, help="of all forms, each training two seeds (default: 5)")
    parser.add_argument("--device", default="cpu", help="such as cuda; timed by the clock there")
    parser.add_argument("--serve", choices=FORMS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    try:
        place = torch_device(given.device)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if given.serve:
        serve(given.serve, given.networks[0], place)
        return
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    for name in missing:
        print(
            f"without {name}, which is not installed: pip install --target /tmp/{name} {name}, PYTHONPATH=/tmp/{name}"
        )
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", *PACKAGES) if name not in missing]
    device = "" if place.type == "cpu" else f", {environment()['device']}"
    print(f"{processor()}{device}, {', '.join(versions)}, {PROCESSES} processes of one thread, {given.turns} turns\n")
    print("| proxy | form | precision | trials a minute | times the time of scalesearch (lowest to highest)", end="")
    print(" | validation accuracy | MiB of a process at the peak |\n" + "|---" * 7 + "|", flush=True)
    settings()  # fetched before it is timed
    for name in given.networks:
        compared(name, [form for form in FORMS if form not in missing], given.turns, place)


if __name__ == "__main__":
    main()
