"""Writes docs/experiments.md, the gallery, from what experiments/ has recorded: python docs/experiments.py"""

from __future__ import annotations

import json
import re
from pathlib import Path

from scalesearch.config import from_yaml
from scalesearch.paper import EXPERIMENTS
from scalesearch.text import duration

ROOT = Path(__file__).resolve().parent.parent
INTRODUCTION = """\
# The paper's experiments, at equal counted cost

`python docs/experiments.py` writes this page from the tables in [experiments/](../experiments). Each experiment
is one command. It continues where it stopped, and shares its trainings with every other experiment and with the
search. `scalesearch plan NAME` shows beforehand what it would train and how long that would take. Everything below
was trained on two CPU cores with AVX-512 and bfloat16. A command has `recipe.autocast=bfloat16` if its trainings
were made in bfloat16. Without this setting a timing decides (`auto`), and a processor without the instructions
uses float32.

Networks that are compared cost the same **counted** multiply-adds, within 3 %. One solver brings all of them to
that cost. It applies the rounding rule first, and then the fewest departures from the rule (`moves` in
results.csv). A single dimension is scaled alone. A mix of two dimensions, and compound scaling, split each
doubling equally between their dimensions. No coefficient was tuned for the figures. Accuracies are means over
seeds on 10,000 validation images. Intervals are at 95 %, with the variation between seeds pooled over all
networks of an experiment. Differences are taken seed by seed and image by image. In figure8 the best single
dimension is chosen on the same images on which it is then compared, which favours it over compound scaling.

Most experiments use [data=fashion_scenes](../conf/data/fashion_scenes.yaml) with
[preresnet_tiny](../conf/baseline/preresnet_tiny.yaml), a residual network of three blocks. It is small enough for
two cores. It was chosen by hand, before these runs, so that its three dimensions are worth about the same. On
plain Fashion-MNIST, at twice the cost, the leaders tie ([first_search](../experiments/first_search/README.md)).

| experiment | question |
|---|---|
"""
TRIED = """\
## What else was tried, and what was not

{two_blocks}
Not tried: four epochs instead of two, coefficients found by our own search instead of equal shares,
MobileNetV2's blocks in figure8, and 16 times the cost. The configurations below are for tests on a GPU: networks
that are fully trained, on photographs, at costs where depth is not limited by two epochs of training.

## Configurations for a GPU, not run

| command | question |
|---|---|
"""


def gallery() -> str:
    """The page. Order: that of `EXPERIMENTS`."""
    recorded = {name: json.loads((folder(name) / "finding.json").read_text()) for name in EXPERIMENTS if there(name)}
    lines = [INTRODUCTION.rstrip()]
    lines += [f"| [{name}](#{name}) | {entry['question']} |" for name, entry in recorded.items()]
    for name, entry in recorded.items():
        pictures = "\n\n".join(f"![{name}](../experiments/{name}/figures/{figure})" for figure in entry["figures"])
        cost = (
            f"{entry['trainings']} trainings ({entry['seeds']} seeds), {duration(entry['train_seconds'])} of "
            "training on one thread each, shared with the others"
            if entry["trainings"]
            else "nothing is trained"
        )
        lines += [
            "",
            f"## {name}",
            "",
            f"{entry['question']} `{entry['command']}`: {cost}.",
            "",
            f"**Ours.** {entry['finding']}",
            "",
            f"**The paper.** {entry['paper']}.",
            "",
            pictures,
            "",
            *(f"- {sentence}" for sentence in entry["caveats"]),
            "",
            f"Tables: [README](../experiments/{name}/README.md).",
        ]
    two = ROOT / "experiments" / "figure8_two_blocks" / "finding.json"
    words = ""
    if two.exists():
        words = (
            "Two blocks per stage ([figure8_two_blocks](../experiments/figure8_two_blocks/README.md)), where compound "
            f"scaling is less lopsided at 4 times the cost: {json.loads(two.read_text())['finding']}\n"
        )
    lines += ["", TRIED.format(two_blocks=words).rstrip()]
    for path in sorted((ROOT / "conf" / "experiment").glob("*.yaml")):
        if head := re.search(r"# Command: (.*)\n# Not run", path.read_text()):
            lines.append(f"| `{head[1]}` | {from_yaml(path)['experiment']['question']} |")
    return "\n".join(lines) + "\n"


def folder(name: str) -> Path:
    return ROOT / "experiments" / name


def there(name: str) -> bool:
    return (folder(name) / "finding.json").exists()


if __name__ == "__main__":
    (ROOT / "docs" / "experiments.md").write_text(gallery())
