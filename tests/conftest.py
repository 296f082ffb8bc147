"""What several test files share: the networks, roundings and proxies of conf/, found by their files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from scalesearch.network import Network, load
from scalesearch.scaling import Proxy, Rounding

CONF = Path(__file__).parent.parent / "conf"
REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(params=sorted((CONF / "baseline").glob("*.yaml")), ids=lambda path: path.stem)
def baseline(request: pytest.FixtureRequest) -> Network:
    """Every baseline of conf/baseline in turn, so that a new one is tested as soon as its file is there."""
    return load(request.param)


@pytest.fixture(scope="session")
def baselines() -> dict[str, Network]:
    return {path.stem: load(path) for path in (CONF / "baseline").glob("*.yaml")}


@pytest.fixture(scope="session")
def roundings() -> dict[str, Rounding]:
    return {path.stem: Rounding(**yaml.safe_load(path.read_text())) for path in (CONF / "rounding").glob("*.yaml")}


@pytest.fixture(scope="session")
def proxies() -> dict[str, Proxy]:
    return {path.stem: Proxy(**yaml.safe_load(path.read_text())) for path in (CONF / "proxy").glob("*.yaml")}


@pytest.fixture(scope="session")
def reference() -> Callable[[str], list[dict[str, str]]]:
    """The rows of a table of tests/reference, by its name; reference/README.md says where each comes from."""

    def rows(name: str) -> list[dict[str, str]]:
        with (REFERENCE / f"{name}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    return rows


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: small modules gain nothing from more, and tests may run beside each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
