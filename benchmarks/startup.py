"""How long commands take until they answer: medians in seconds, and as multiples of Python's and of torch's own start.

An answer is the first line that is written. `plan` has then shown its candidates, and goes on to time some of them.

python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 7
SCALESEARCH = str(Path(sys.executable).with_name("scalesearch"))
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "print()"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch; print()"],
    "scalesearch --help": [SCALESEARCH, "--help"],
    "scalesearch cost": [SCALESEARCH, "cost"],
    "scalesearch plan": [SCALESEARCH, "plan"],
    "scalesearch plan experiment=nni_space": [SCALESEARCH, "plan", "experiment=nni_space"],
}


def main() -> None:
    """Print the table; the commands take turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(ROUNDS):
            for name, command in COMMANDS.items():
                began = time.perf_counter()
                with subprocess.Popen(
                    command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                ) as process:
                    assert process.stdout is not None
                    process.stdout.readline()
                    seconds[name].append(time.perf_counter() - began)
                    process.terminate()
                    process.stdout.read()
    python, torch = (statistics.median(list(seconds.values())[place]) for place in (0, 1))
    print(
        "| command | median (s) | highest (s) | times an empty Python | times `import torch` |\n|---|---|---|---|---|"
    )
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| `{name}` | {median:.2f} | {max(values):.2f} | {median / python:.1f} | {median / torch:.2f} |")


if __name__ == "__main__":
    main()
