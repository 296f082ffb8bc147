"""What `scalesearch plan` says that a search takes, against what `scalesearch run` then takes, printed as a table.

    python benchmarks/plan.py [override ...]

Both are processes of their own, as a user starts them, in a new workspace for each baseline; nothing else should run
beside them. The stated seconds are those of the search, the taken ones those of the whole command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scalesearch.machine import processor

BASELINES = ("mobilenetv2", "preresnet20", "efficientnet_b0")
SCALESEARCH = str(Path(sys.executable).with_name("scalesearch"))


def answer(command: str, *overrides: str) -> tuple[dict[str, float], float]:
    """(what the command prints as JSON, its seconds)"""
    began = time.perf_counter()
    words = [SCALESEARCH, command, *overrides, "--json"]
    printed = subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return json.loads(printed), time.perf_counter() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the searches, such as recipe.seeds=2")
    overrides = parser.parse_args().overrides
    print(f"{processor()}\n")
    print(
        "| baseline | trainings | plan says (s) | run takes (s) | says / takes | the plan itself (s) |\n"
        + "|---" * 6
        + "|"
    )
    for name in BASELINES:
        with tempfile.TemporaryDirectory() as workspace:
            words = (f"baseline={name}", f"workspace={workspace}", *overrides)
            planned, planning = answer("plan", *words)
            ran, taken = answer("run", *words)
        stated, trainings = planned["estimated_seconds"], ran["evaluations"]["trained"]  # type: ignore[index]
        print(
            f"| {name} | {trainings} | {stated:.0f} | {taken:.0f} | {stated / taken:.2f} | {planning:.1f} |", flush=True
        )


if __name__ == "__main__":
    main()
