"""What the last release wrote is read, goes on and has its keys: files of the user's, which nobody can change back.

    python tests/test_released.py

prints tests/released/keys.csv anew; tests/released/workspace was made by `COMMAND` of version 0.1.0, then its images,
databases and weights were removed.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Ended

from scalesearch.evaluation import Evaluation
from scalesearch.ledger import Measured
from scalesearch.machine import environment
from scalesearch.network import load
from scalesearch.scaling import Coefficients, Proxy, Rounding, scale, shrink
from scalesearch.training import Recipe

RELEASED = Path(__file__).parent / "released"
CONF = Path(__file__).parent.parent / "conf"
COMMAND = (
    "run baseline=preresnet_tiny data=digits recipe=quick recipe.epochs=0.5 recipe.seeds=2 recipe.autocast=off "
    "data.num_val=200 search=grid selection=best budget.tolerance=0.05 tracking=none study=released "
    "workspace=w"
)


def key(baseline: str, proxy: str, rounding: str, recipe: str, triple: str, seed: int, init: str, epochs: str) -> str:
    """The key of an evaluation on images of the fingerprint "f" * 64."""
    parts = {
        name: yaml.safe_load((CONF / name / f"{choice}.yaml").read_text())
        for name, choice in (("proxy", proxy), ("rounding", rounding), ("recipe", recipe))
    }
    parts["recipe"].pop("seeds")
    if epochs:
        parts["recipe"]["epochs"] = json.loads(epochs)
    small, grain = shrink(
        load(CONF / "baseline" / f"{baseline}.yaml"), Proxy(**parts["proxy"]), Rounding(**parts["rounding"])
    )
    network = scale(small, Coefficients(*map(float, triple.split())), 1, rounding=grain)
    return Evaluation(network, Recipe(**parts["recipe"]), "f" * 64, seed, init or None).key


def test_evaluations_have_the_keys_of_the_release() -> None:
    rows = list(csv.DictReader((RELEASED / "keys.csv").read_text().splitlines()))
    assert len(rows) == 20
    for row in rows:
        expected = row.pop("key")
        assert key(**(row | {"seed": int(row["seed"])})) == expected, row  # type: ignore[arg-type]


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The released workspace as "w" in the working directory, with its latencies as if measured on this machine."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(RELEASED / "workspace", "w")
    path = Path("w/latency.json")
    (known,) = json.loads(path.read_text()).values()
    path.unlink()
    here = environment()
    latencies = Measured(path, f"{here['host']}, {here['device']}, torch {here['torch']}")
    for name, value in known.items():
        latencies.put(name, value)
    return Path("w/studies/released")


@pytest.mark.usefixtures("in_this_process")
def test_a_released_study_goes_on_and_its_files_are_the_same(released: Path, command: Callable[..., Ended]) -> None:
    before = {path.name: path.read_bytes() for path in released.iterdir() if path.is_file()}
    code, answer, message = command(f"{COMMAND} --json")
    assert code == 0, message
    assert answer["evaluations"] == {"trained": 0, "reused": 10, "failed": 0}
    changed = {name for name, content in before.items() if (released / name).read_bytes() != content}
    # the machine, how many this command has trained, and other words for the same numbers
    assert changed <= {"environment.json", "result.json", "report.md"}
    numbers = re.compile(r"\|.*|[-+]?\d[\d.]*|    scalesearch .*")  # and whole tables and commands
    report = re.sub(r"The most frequent class alone .*\n", "", (released / "report.md").read_text())  # unknown then
    report = report.replace(" selection=best", "")  # which is not the default any more
    report = re.sub(r"## Which split\?.*?(?=\n## )", "", report, flags=re.DOTALL)  # there was no estimate then
    assert numbers.findall(report) == numbers.findall(before["report.md"].decode())
    old, new = json.loads(before["result.json"]), json.loads((released / "result.json").read_text())
    added = {name: new.pop(name) for name in ("decision", "majority_share", "not_learnt", "without_interval")}
    assert old | {"evaluations": new["evaluations"]} == new
    assert added["decision"]["chosen"] == old["chosen"]["id"]
    assert added["majority_share"]["validation"] == pytest.approx(0.1, abs=0.01)


@pytest.mark.usefixtures("in_this_process")
def test_a_released_study_is_read_by_every_command_that_reads_one(
    released: Path, command: Callable[..., Ended]
) -> None:
    code, answer, message = command("status study=released workspace=w --json")
    assert (code, answer["state"], answer["evaluations"]["done"]) == (0, "finished", 10), message
    result = json.loads((released / "result.json").read_text())
    code, answer, message = command("report study=released workspace=w --json")
    assert code == 0, message
    assert answer["budget"]["chosen"] == result["chosen"]["id"]
    code, answer, message = command("variants study=released workspace=w --json")
    assert code == 0, message
    assert answer["coefficients"]["alpha"] == result["chosen"]["alpha"]
    code, answer, message = command("reproduce fidelity study=released workspace=w dry_run=true candidates=2 --json")
    assert code == 0, message
    assert {row["id"] for row in answer["candidates"]} >= {result["chosen"]["id"]}


if __name__ == "__main__":
    NAMES = ("baseline", "proxy", "rounding", "recipe", "triple", "seed", "init", "epochs")
    CASES = [
        ("mobilenetv2", "small", "nearest", "default", "1.2 1.1 1.15", "0", "", ""),
        ("mobilenetv2", "small", "nearest", "default", "1 1 1", "3", "", ""),
        ("mobilenetv2", "small", "nearest", "default", "1.2 1.1 1.15", "1", "", "1"),
        ("mobilenetv2", "small", "nearest", "default", "1.2 1.1 1.15", "1", "", "0.5"),
        ("mobilenetv2", "none", "released", "imagenet", "2 1 1", "0", "", ""),
        ("mobilenetv1", "none", "fine", "cifar", "1 1.4 1", "7", "", ""),
        ("mobilenetv3_large", "small", "nearest", "scenes", "1 1 1.4", "0", "", ""),
        ("mobilenetv3_small", "none", "released", "imagenet", "1.2 1.1 1.15", "0", "a" * 64, ""),
        ("efficientnet_b0", "none", "released", "imagenet", "1.2 1.1 1.15", "0", "", ""),
        ("efficientnet_b7", "none", "released", "imagenet", "1 1 1", "999", "", ""),
        ("efficientnetv2_s", "small", "nearest", "default", "1.1 1.2 1.1", "0", "", ""),
        ("efficientnet_lite0", "none", "released", "default", "1 1 1", "0", "", ""),
        ("mnasnet_a1", "none", "nearest", "default", "1.3 1 1.1", "2", "", ""),
        ("preresnet20", "none", "fine", "cifar", "1.26 1.122 1.122", "0", "", ""),
        ("preresnet_tiny", "none", "fine", "scenes", "1.26 1.122 1.122", "0", "", ""),
        ("se_preresnet29", "none", "fine", "cifar", "2 1 1", "0", "b" * 64, "0.25"),
        ("resnet50", "none", "nearest", "imagenet", "1.2 1.1 1.15", "0", "", ""),
        ("resnext50", "none", "nearest", "imagenet", "1 1 1", "0", "", ""),
        ("vit_tiny", "none", "nearest", "default", "1.5 1 1", "0", "", ""),
        ("vit_small", "none", "nearest", "imagenet", "1 1 1.5", "0", "", ""),
    ]
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow((*NAMES, "key"))
    table.writerows((*one, key(*one[:5], int(one[5]), *one[6:])) for one in CASES)  # type: ignore[arg-type]
    print(written.getvalue(), end="")
