"""The words that a study's settings come to compose to these settings again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import composed
from omegaconf import OmegaConf

from scalesearch.command_line import overrides

# The words that a study's settings come to.


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("recipe=quick",),
        ("experiment=first_search",),
        ("experiment=nni_space", "data.root='/a b/it\\'s'"),
        ("search=race", "search.compute=0.7", "study=7", "init=timm:mobilenetv2_100", "budget.macs=600M"),
        (
            "baseline=vit_tiny",
            "proxy=none",
            "baseline.name=own",
            "baseline.norm_epsilon=1e-3",
            "selection.metric=params",
        ),
        (
            "baseline=preresnet29",
            "baseline.name=mine",
            "baseline.stages=[{block:preact,repeats:2,channels:16},{block:preact,stride:2,channels:32}]",
            "+baseline.norm_epsilon=1e-4",
            "rounding=mobilenet",
        ),
        ("grid=nni", "grid.beta={start:1.05,stop:1.2,step:0.05}", "selection=cheapest_tied", "phis=[0.5,1]"),
    ],
    ids=" ".join,
)
def test_overrides_of_settings_compose_to_the_same_settings(words: tuple[str, ...]) -> None:
    settings = OmegaConf.to_container(composed("run", *words))
    assert isinstance(settings, dict)
    values: dict[str, Any] = {str(key): value for key, value in settings.items()}
    found = overrides(values, "run", workspace=Path("workspace"))
    assert OmegaConf.to_container(composed("run", *found)) == settings
    assert len(found) <= len(words) + 6, "as few as will do"


WORDS_TO_QUOTE = [
    "a b",
    "it's",
    'say "x"',
    "my_net:make",
    "timm:a.b@/x y",
    "back\\slash",
    'b\\"q',
    "end\\",
    "1e5",
    "true",
    "a=b",
    "",
    "a,b",
    "[x]",
    "ä",
]


def test_a_word_is_read_back_as_it_was() -> None:
    settings = OmegaConf.to_container(composed("run"))
    assert isinstance(settings, dict)
    for name in WORDS_TO_QUOTE:
        values: dict[str, Any] = {str(key): value for key, value in settings.items()} | {"init": name}
        values["executor"] = {"name": "local"}
        values["data"] = {**values["data"], "cache": name}
        read = composed("run", *overrides(values, "run", workspace=Path(name or "workspace")))
        assert (read.init, read.data.cache, read.workspace) == (name, name, name or "workspace"), name
