"""What networks of timm do here, measured: one of each of many families, into docs/timm.md.

    python docs/timm_networks.py            # every row: about a minute each
    python docs/timm_networks.py dla34      # these rows alone

tests/test_timm.py counts the columns that need no training again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from timm.models import model_entrypoint

from scalesearch.model import FactoryError, build, own_resolution
from scalesearch.network import Factory
from scalesearch.probing import unscaled, with_grain

PAGE = Path(__file__).with_name("timm.md")
NAMES = (
    *("convnext_atto", "efficientnet_b0", "mobilenetv3_small_100", "mobilenetv4_conv_small", "ghostnet_100"),
    *("starnet_s1", "rexnet_100", "regnetx_002", "resnet18", "resnetv2_18", "hgnet_tiny", "densenet121"),
    *("cs3darknet_s", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "pvt_v2_b0", "mixer_s32_224"),
    *("efficientformerv2_s0", "fastvit_t8", "mobilevit_xxs", "dla34", "dpn48b", "inception_v3"),
)
MARK, END = "<!-- rows: python docs/timm_networks.py -->\n", "<!-- end of rows -->\n"
COMMANDS = {
    "plan": "plan data=digits grid=quick search=grid budget.tolerance=0.25",
    "training": "train data=digits proxy=small recipe=quick recipe.epochs=2 recipe.seeds=1 tracking=none",
    "export": "export phis=[0] baseline.num_classes=10",
}
HEAD = ("name", "family", "params", "px", "in steps of", "depth", "width", *COMMANDS)


def network(name: str) -> Factory:
    """timm's own, for the images and classes that timm gives it."""
    function = f"timm:{name}"
    return Factory(name=f"timm-{name}", function=function, resolution=own_resolution(function))


def counted(name: str) -> list[str]:
    """The columns up to width, which need no training."""
    made = with_grain(network(name))
    assert isinstance(made, Factory)
    with torch.device("meta"):
        params = sum(weight.numel() for weight in build(made).parameters())
    without = unscaled(made)
    family = model_entrypoint(name).__module__.rpartition(".")[2]
    dimensions = ("no" if dimension in without else "yes" for dimension in ("depth", "width"))
    return [name, family, f"{params:,}", str(made.resolution), str(made.resolution_multiple), *dimensions]


def measured(name: str) -> list[str]:
    """What the three commands come to, in a word each, or the message that they end with."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        for kind, words in COMMANDS.items():
            where = "directory" if kind == "export" else "workspace"
            command = [sys.executable, "-m", "scalesearch", *words.split(), f"baseline=timm:{name}"]
            ended = subprocess.run([*command, f"{where}={place}", "--json"], capture_output=True, text=True)
            message = next((line for line in ended.stderr.splitlines() if line.startswith("scalesearch: ")), "")
            found.append(_word(kind, ended.returncode, ended.stdout, message.removeprefix("scalesearch: ")))
    return found


def _word(kind: str, code: int, out: str, message: str) -> str:
    if code not in (0, 8):  # 8: trained, and nothing learnt in 32 steps
        return message.partition(". ")[0].replace("|", "/")
    answer = json.loads(out)
    if kind == "plan":
        number = len(answer["candidates"])
        return f"{number} network{'s' * (number != 1)}"
    if kind == "training":
        return f"{answer['evaluations']['trained']} trained, {answer['network']['resolution']} px"
    return ", ".join(sorted(answer["networks"][0]["files"]))


def rows(text: str) -> dict[str, list[str]]:
    """The rows of the page by name."""
    lines = text.partition(MARK)[2].partition(END)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip(): [cell.strip() for cell in row] for row in cells}


def page(text: str, found: dict[str, list[str]]) -> str:
    """The page with these rows."""
    before, _, rest = text.partition(MARK)
    lines = [HEAD, ["---"] * len(HEAD), *(found[name] for name in NAMES if name in found)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return before + MARK + table + END + rest.partition(END)[2]


def main() -> None:
    for name in sys.argv[1:] or NAMES:
        try:
            row = counted(name) + measured(name)
        except FactoryError as error:
            raise SystemExit(f"{name}: {error}") from error
        text = PAGE.read_text()
        PAGE.write_text(page(text, rows(text) | {name: row}))


if __name__ == "__main__":
    main()
