"""How long the commands take that should answer at once: medians in seconds, with the share that is Python itself.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 7
SCALESEARCH = str(Path(sys.executable).with_name("scalesearch"))
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "scalesearch --help": [SCALESEARCH, "--help"],
    "scalesearch cost": [SCALESEARCH, "cost"],
    "scalesearch plan": [SCALESEARCH, "plan"],
    "scalesearch plan experiment=nni_space": [SCALESEARCH, "plan", "experiment=nni_space"],
}


def main() -> None:
    """Print the table; the commands take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(ROUNDS):
            for name, command in COMMANDS.items():
                began = time.perf_counter()
                subprocess.run(command, cwd=directory, check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - began)
    python = statistics.median(seconds["python -c pass"])
    print("| command | median (s) | highest (s) | times an empty Python |\n|---|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| `{name}` | {median:.2f} | {max(values):.2f} | {median / python:.1f} |")


if __name__ == "__main__":
    main()
