from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import CONF, case
from hypothesis import given
from hypothesis import strategies as st

from scalesearch.budget import METRICS, Budget, Footprint, Limits, Profiler, parse, words, written
from scalesearch.cli import main
from scalesearch.cost import cost
from scalesearch.memory import memory
from scalesearch.network import Network, Stage, load

TINY = Network(
    name="tiny",
    resolution=16,
    stem=(Stage(block="conv_norm", channels=8, stride=2),),
    stages=(Stage(block="mbconv", channels=16, repeats=2, expand=2),),
    activation="relu",
    num_classes=10,
)
LARGER = replace(TINY, name="larger", stages=(replace(TINY.stages[0], channels=64, repeats=6, expand=6),))


# The budget of a search


def test_the_edges_of_a_budget_belong_to_it() -> None:
    for ratio, admitted in [(2, True), (2.2, True), (1.8, True), (2.2 + 1e-6, False), (1.8 - 1e-6, False), (0, False)]:
        with case(ratio, admitted):
            assert Budget(2.0, 0.1).admits(ratio) is admitted
    assert Budget(3.0, 0.0).admits(3.0)
    assert not Budget(3.0, 0.0).admits(3.0001)


def test_a_budget_out_of_range_is_refused_by_its_key() -> None:
    for values, refusal in (((0, 0.1), "macs_ratio is 0; .* from 0.001"), ((2, -1), "tolerance is -1; .* from 0 to")):
        with case(values), pytest.raises(ValueError, match=rf"budget\.{refusal}"):
            Budget(*values)


# Quantities


def test_quantities_are_read_as_people_write_them() -> None:
    cases: dict[str, dict[Any, float]] = {
        "macs": {"300M": 300e6, "1.5G": 1.5e9, "1.5 g": 1.5e9, 3e8: 3e8, "3e8": 3e8},
        "params": {"800k": 800e3, 5_288_548: 5_288_548, ".5M": 5e5},
        "memory": {"512MiB": 512 * 2**20, "2GB": 2e9, "512mib": 512 * 2**20, 1024: 1024},
        "training_memory": {"1.5GiB": 1.5 * 2**30},
        "latency_ms": {20: 20, "0.5": 0.5, "20ms": 20},
    }
    for metric, texts in cases.items():
        for text, number in texts.items():
            with case(metric, text):
                assert parse(text, metric) == pytest.approx(number, rel=1e-15)


def test_what_is_no_quantity_is_refused_by_its_key() -> None:
    nan, inf = math.nan, math.inf
    wrong = [True, 0, -1, "-5M", "", "M", "300X", "1M2", "1,5G", "nan", nan, inf, [1], {"a": 1}, "1e99", "20 %"]
    for text, metric in product(wrong, METRICS):
        refusal = re.escape(f"budget.{metric} is {text!r}; it must be ")
        with case(text, metric), pytest.raises(ValueError, match=refusal):
            parse(text, metric)


def test_a_unit_of_something_else_is_refused() -> None:
    cases = [
        ("memory", "512M", "bytes such as 512MiB or 2GB"),  # of 1000 or of 1024?
        ("macs", "300MB", "a number such as 300M or 1.5G"),
        ("params", "5MiB", "a number such as 800k or 5.3M"),
        ("latency_ms", "20s", "milliseconds such as 20 or 0.5"),
    ]
    for metric, text, right in cases:
        with case(metric, text, right), pytest.raises(ValueError, match=f"must be {right}$"):
            parse(text, metric)


@given(st.sampled_from(list(METRICS)), st.integers(1, 10**14))
def test_what_is_written_is_read_back(metric: str, number: int) -> None:
    text = written(metric, number)
    assert parse(text, metric) == pytest.approx(number, rel=1e-14)
    assert len(text) <= len(str(number))
    assert re.fullmatch(r"[\w.]+", text)  # it stands in the name of a file


def test_people_read_three_digits() -> None:
    shown = {
        ("macs", 300_774_272): "301 M",
        ("macs", 999): "999",
        ("params", 5_288_548): "5.29 M",
        ("memory", 1023 * 2**20): "1023 MiB",
        ("memory", 2**30): "1 GiB",
        ("latency_ms", 0.123456): "0.123 ms",
        ("latency_ms", 1234.5): "1234 ms",
        ("latency_ms", None): "-",
    }
    assert {key: words(*key) for key in shown} == shown


# Limits


def test_each_metric_is_what_its_module_says(tmp_path: Path) -> None:
    profiler = Profiler(batch_size=8, workspace=tmp_path)
    values = {name: metric(TINY, profiler) for name, metric in METRICS.items()}
    assert values["macs"] == cost(TINY).macs
    assert values["params"] == cost(TINY).params
    assert values["memory"] == memory(TINY, threads=1).inference
    assert values["training_memory"] == memory(TINY, batch_size=8, threads=1).training
    assert values["latency_ms"] == profiler.latency_ms(TINY) > 0
    assert profiler.footprint(TINY) == Footprint(*(values[name] for name in Footprint._fields))
    assert Limits(**values).use(TINY, profiler) == dict.fromkeys(METRICS, 1.0)


def test_the_largest_share_is_the_one_that_counts() -> None:
    profiler = Profiler(batch_size=8)
    macs, params = cost(TINY).macs, cost(TINY).params
    assert Limits(macs=2 * macs, params=4 * params).most(TINY, profiler) == (0.5, "macs")
    assert Limits(macs=4 * macs, params=2 * params).most(TINY, profiler) == (0.5, "params")
    assert Limits().given() == {}


def test_nothing_is_timed_for_a_network_that_has_too_many_multiply_adds(tmp_path: Path) -> None:
    profiler = Profiler(batch_size=8, workspace=tmp_path)
    limits = Limits(latency_ms=1e6, macs=cost(TINY).macs / 2)
    assert limits.most(TINY, profiler) == (2, "macs")
    assert not (tmp_path / "latency.json").exists()
    assert limits.use(TINY, profiler)["latency_ms"] < 1
    assert (tmp_path / "latency.json").exists()


def test_limits_are_the_name_of_a_file() -> None:
    assert str(Limits(macs=150e6)) == "macs150M"
    every = Limits(macs=150e6, params=5.3e6, memory=2.0**29, training_memory=2e9, latency_ms=0.5)
    assert str(every) == "macs150M_params5.3M_memory512MiB_training_memory2GB_latency_ms0.5"


# Latencies


def test_a_latency_is_measured_once_for_a_workspace(tmp_path: Path) -> None:
    first = Profiler(batch_size=8, workspace=tmp_path).latency_ms(TINY)
    assert Profiler(batch_size=4, workspace=tmp_path).latency_ms(replace(TINY, name="other")) == first
    path = tmp_path / "latency.json"
    kept = json.loads(path.read_text())
    (machine,) = kept
    ((key, value),) = kept[machine].items()
    assert value == first
    path.write_text(json.dumps({machine: {key: 123.25}, "another machine": {key: 4.5}}))
    profiler = Profiler(batch_size=8, workspace=tmp_path)
    assert profiler.latency_ms(TINY) == 123.25
    profiler.latency_ms(LARGER)
    assert json.loads(path.read_text())["another machine"] == {key: 4.5}
    assert len(json.loads(path.read_text())[machine]) == 2


def test_a_damaged_file_of_latencies_is_begun_anew(tmp_path: Path) -> None:
    for content in ["", "{", "[]", "3", '{"a": 3}', '{"a": {"b": "c"}}', "\xff"]:
        with case(content):
            (tmp_path / "latency.json").write_text(content, encoding="latin-1")
            measured = Profiler(batch_size=8, workspace=tmp_path).latency_ms(TINY)
            assert Profiler(batch_size=8, workspace=tmp_path).latency_ms(TINY) == measured


def test_two_commands_keep_what_both_have_measured(tmp_path: Path) -> None:
    one, other = Profiler(batch_size=8, workspace=tmp_path), Profiler(batch_size=8, workspace=tmp_path)
    values = [one.latency_ms(TINY), other.latency_ms(LARGER), one.latency_ms(replace(TINY, resolution=32))]
    (kept,) = json.loads((tmp_path / "latency.json").read_text()).values()
    assert list(kept.values()) == pytest.approx(values)  # the one has never read what the other measured


def test_without_a_workspace_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    profiler = Profiler(batch_size=8)
    assert profiler.latency_ms(TINY) == profiler.latency_ms(TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_is_too_large_is_not_timed_for_a_table() -> None:
    long = replace(LARGER, resolution=4096, stages=(replace(LARGER.stages[0], channels=256),))
    assert cost(long).macs > 1e11
    footprint = Profiler(batch_size=1).footprint(long)
    assert footprint.latency_ms is None
    assert footprint.training_memory > footprint.memory > 0


def test_a_network_that_the_machine_has_no_memory_for_is_not_built() -> None:
    huge = replace(TINY, stages=(replace(TINY.stages[0], channels=65_536, repeats=100, expand=64),))
    with pytest.raises(ValueError, match="tiny cannot be timed: it needs more than half of this machine's memory"):
        Profiler(batch_size=1).latency_ms(huge)
    assert Profiler(batch_size=1).footprint(huge).latency_ms is None


def test_cost_says_what_the_network_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def asked(*words: str) -> tuple[dict[str, Any], str]:
        with pytest.raises(SystemExit):
            main(["cost", "baseline=preresnet20", "batch_size=3", "--json", *words])
        out, message = capsys.readouterr()
        return json.loads(out), message

    quick, message = asked()
    assert quick["latency_ms"] is None  # at once: nothing is timed that nobody wants
    assert "latency not measured (latency=true measures it)" in message
    assert list(tmp_path.iterdir()) == []
    answer, message = asked("latency=true")
    assert answer == quick | {"latency_ms": answer["latency_ms"]}
    assert asked()[0] == answer  # known from the workspace
    network = load(CONF / "baseline" / "preresnet20.yaml")
    assert answer["memory"] == memory(network, threads=1).inference
    assert answer["training_memory"] == memory(network, batch_size=3, threads=1).training
    assert answer["latency_ms"] > 0
    for name in Footprint._fields:
        assert words(name, answer[name]) in message
