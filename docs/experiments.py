"""Writes docs/experiments.md, the gallery, from what experiments/ has recorded: python docs/experiments.py"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from scalesearch import screen
from scalesearch.paper import EXPERIMENTS

ROOT = Path(__file__).resolve().parent.parent
INTRODUCTION = """\
# The paper's experiments, at equal counted cost

`python docs/experiments.py` writes this page from the tables in [experiments/](../experiments). Each experiment
is one command, goes on where it stopped, and shares its trainings with every other and with the search;
`scalesearch plan NAME` says beforehand what it would train and how long that would take. Everything below was
trained on two CPU cores with AVX-512 and bfloat16; `recipe.autocast=bfloat16` stands in a command where its
trainings were made in that. Without it a timing decides (`auto`), and a processor without the instructions takes
float32.

Networks that are compared cost the same **counted** multiply-adds, within 3 %. One solver brings all of them
there: the rule of rounding first, then the fewest departures from it (`moves` in results.csv). A single
dimension is scaled alone, a mix of two and compound scaling split a doubling equally between theirs: no
coefficient was tuned for the figures. Accuracies are of 10,000 validation images, means over seeds; intervals
are at 95 %, with the variation between seeds pooled over an experiment's networks, and differences are taken
seed by seed and image by image. In figure8 the best single dimension is chosen on the images that it is then
compared on, which favours it over compound scaling.

The setting is [data=fashion_scenes](../conf/data/fashion_scenes.yaml) with
[preresnet_tiny](../conf/baseline/preresnet_tiny.yaml), a residual network of three blocks: small enough for two
cores, and chosen, by hand and before these runs, so that its three dimensions are worth about the same. On
plain Fashion-MNIST at twice the cost the leaders tie ([first_search](../experiments/first_search/README.md)).

| experiment | question |
|---|---|
"""
TRIED = """\
## What else was tried, and what was not

{two_blocks}
Not tried: four epochs instead of two, coefficients found by our own search instead of equal shares,
MobileNetV2's blocks in figure8, and 16 times the cost. What a GPU would have to show is in the configurations
below: networks that are trained to their end, on photographs, at costs where depth is not held back by two
epochs.

## Configurations for a GPU, not run

| command | question |
|---|---|
"""


def gallery() -> str:
    """The page. Order: that of `EXPERIMENTS`."""
    recorded = {name: json.loads((folder(name) / "finding.json").read_text()) for name in EXPERIMENTS if there(name)}
    lines = [INTRODUCTION.rstrip()]
    lines += [f"| [{name}](#{name}) | {entry['asks']} |" for name, entry in recorded.items()]
    for name, entry in recorded.items():
        pictures = "\n\n".join(f"![{name}](../experiments/{name}/figures/{figure})" for figure in entry["figures"])
        cost = (
            f"{entry['trainings']} trainings ({entry['seeds']} seeds), {screen.duration(entry['train_seconds'])} of "
            "training on one thread each, shared with the others"
            if entry["trainings"]
            else "nothing is trained"
        )
        lines += [
            "",
            f"## {name}",
            "",
            f"{entry['asks']} `{entry['command']}`: {cost}.",
            "",
            f"**Ours.** {entry['finding']}",
            "",
            f"**The paper.** {entry['paper']}.",
            "",
            pictures,
            "",
            *(f"- {sentence}" for sentence in entry["rests_on"]),
            "",
            f"Tables: [README](../experiments/{name}/README.md).",
        ]
    two = ROOT / "experiments" / "figure8_two_blocks" / "finding.json"
    said = ""
    if two.exists():
        said = (
            "Two blocks a stage ([figure8_two_blocks](../experiments/figure8_two_blocks/README.md)), where compound "
            f"scaling is less lopsided at 4 times the cost: {json.loads(two.read_text())['finding']}\n"
        )
    lines += ["", TRIED.format(two_blocks=said).rstrip()]
    for path in sorted((ROOT / "experiments").glob("*.yaml")):
        head: Any = re.search(r"# Question: (.*)\n# Command: (.*)\n# Not run", path.read_text())
        if head:
            lines.append(f"| `{head[2]}` | {head[1]} |")
    return "\n".join(lines) + "\n"


def folder(name: str) -> Path:
    return ROOT / "experiments" / name


def there(name: str) -> bool:
    return (folder(name) / "finding.json").exists()


if __name__ == "__main__":
    (ROOT / "docs" / "experiments.md").write_text(gallery())
