from __future__ import annotations

import dataclasses
import hashlib
import json
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import case
from hypothesis import given
from hypothesis import strategies as st

from scalesearch.network import ACTIVATIONS, Network, Stage, from_table, load, where
from scalesearch.scaling import Rounding, resize

TABLE: dict[str, Any] = {
    "resolution": 32,
    "activation": "relu6",
    "stem": {"block": "conv_norm", "channels": 8, "stride": 2},
    "stages": [
        {"block": "mbconv", "channels": 16, "repeats": 2, "expand": 4},
        {"block": "mbconv", "channels": 24, "repeats": 3, "kernel": 5, "stride": 2, "expand": 6},
    ],
    "head": {"block": "conv_norm", "channels": 64, "kernel": 1},
}


def table(row: str = "", **changes: object) -> dict[str, Any]:
    """TABLE with fields of the network changed, or those of one row: "stem", "head", or the index of a stage."""
    stages = [dict(stage) for stage in TABLE["stages"]]
    new = {**TABLE, "stages": stages, "stem": dict(TABLE["stem"]), "head": dict(TABLE["head"])}
    part = stages[int(row)] if row.isdigit() else new[row] if row else new
    part.update(changes)
    return new


def without(field: str, row: str = "") -> dict[str, Any]:
    new = table()
    del (new["stages"][int(row)] if row.isdigit() else new[row] if row else new)[field]
    return new


def rows(repeats: st.SearchStrategy[int]) -> st.SearchStrategy[Stage]:
    """Rows with every field, whether their block reads it or not: that is for `model.layers` to say."""
    return st.builds(
        Stage,
        block=st.text(min_size=1, max_size=20),
        channels=st.none() | st.integers(1, 65_536),
        repeats=repeats,
        kernel=st.sampled_from([1, 3, 5, 7]),
        stride=st.sampled_from([1, 2]),
        expand=st.one_of(st.integers(1, 8), st.floats(1 / 64, 64)),
        squeeze_excite=st.one_of(st.just(0.0), st.floats(1 / 64, 1)),
        squeeze_divisor=st.integers(1, 16),
        groups=st.integers(1, 64),
        heads=st.integers(0, 64),
        first_kernel=st.sampled_from([0, 3, 5]),
        activation=st.none() | st.sampled_from(ACTIVATIONS),
    )


ends = st.lists(rows(st.just(1)), max_size=3).map(tuple)
networks = st.builds(
    Network,
    name=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_ .+-]{0,20}", fullmatch=True),
    resolution=st.integers(2**11, 2**14),
    stem=ends.filter(bool),
    stages=st.lists(rows(st.integers(1, 40)), min_size=1, max_size=5).map(tuple),
    head=ends,
    activation=st.sampled_from(ACTIVATIONS),
    in_channels=st.integers(1, 4),
    num_classes=st.integers(1, 1000),
    dropout=st.floats(0, 0.99),
    norm_epsilon=st.sampled_from([1e-5, 1e-3, 1]) | st.floats(1e-12, 1),
)


def test_every_baseline_survives_its_own_yaml(baselines: dict[str, Network], tmp_path: Path) -> None:
    for baseline in baselines.values():
        with case(baseline.name):
            path = tmp_path / "again.yaml"
            path.write_text(baseline.to_yaml(comment="two lines\n\nof comment: # yes"))
            again = load(path)
            assert again == baseline
            assert again.name == baseline.name
            assert again.table() == baseline.table()


def test_every_scaled_baseline_survives_its_own_yaml(
    baselines: dict[str, Network], roundings: dict[str, Rounding], tmp_path: Path
) -> None:
    """Scaled by the roundings in turn."""
    path = tmp_path / "again.yaml"
    for baseline, rounding in zip(baselines.values(), cycle(roundings.values()), strict=False):
        with case(baseline.name, rounding):
            for width, depth, resolution in ((1.1, 1.2, 1.15), (0.5, 0.5, 0.7), (3, 1, 1)):
                scaled = resize(baseline, width=width, depth=depth, resolution=resolution, rounding=rounding)
                path.write_text(scaled.to_yaml())
                assert load(path) == scaled


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("mobilenetv2", "c0842c22e69a8299d44ec8314adf6ccc971107c7f43ba4eaaae9e75df58a98ff"),
        ("efficientnet_b0", "b41a54f080af23c8d4a67755bdc2193088eabeb2c778593f58a15e9cc1066a92"),
    ],
)
def test_a_table_that_has_been_trained_keeps_its_key(name: str, digest: str, baselines: dict[str, Network]) -> None:
    """What a new field adds to every table would make each evaluation of every ledger be trained again."""
    text = json.dumps(baselines[name].table(), sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_baseline_files_are_named_as_their_networks(baselines: dict[str, Network]) -> None:
    assert {stem: network.name for stem, network in baselines.items()} == {stem: stem for stem in baselines}


@given(networks)
def test_any_network_survives_its_own_yaml(network: Network) -> None:
    read = yaml.safe_load(network.to_yaml())
    name = read.pop("name")
    assert name == network.name
    assert from_table(read, name=name) == network
    assert from_table(network.table(), name="another") == network


def test_a_name_that_yaml_would_read_as_something_else_survives(tmp_path: Path) -> None:
    for name in ["yes", "3", "null", "1e3", "2026-01-01", "a - b", "ünï"]:
        with case(name):
            path = tmp_path / "network.yaml"
            path.write_text(from_table(TABLE, name=name).to_yaml(), encoding="utf-8")
            assert load(path).name == name


def test_networks_are_equal_whatever_their_names_and_however_numbers_are_written() -> None:
    one = from_table(TABLE, name="one")
    other = from_table(table("0", expand=4.0, kernel=3, squeeze_excite=0.0), name="other")
    assert one == other
    assert len({one, other}) == 1
    assert one.table() == other.table()


def test_networks_that_differ_in_one_field_are_not_equal() -> None:
    cases = [
        ("", "resolution", 48),
        ("", "activation", "silu"),
        ("0", "expand", 3),
        ("stem", "kernel", 5),
        ("head", "channels", 8),
        ("", "norm_epsilon", 1e-3),
        ("0", "activation", "silu"),
        ("0", "groups", 2),
        ("0", "heads", 2),
        ("", "head", []),
        ("", "stem", [TABLE["stem"], {"block": "max_pool"}]),
    ]
    for row, field, value in cases:
        with case(row, field, value):
            network, other = from_table(TABLE, name="net"), from_table(table(row, **{field: value}), name="net")
            assert network != other
            assert network.table() != other.table()


def test_a_row_is_a_list_of_one_row() -> None:
    listed = table() | {"stem": [TABLE["stem"]], "head": [TABLE["head"]]}
    assert from_table(listed, name="net") == from_table(TABLE, name="net")


def test_a_network_may_have_no_head() -> None:
    for head in [{}, {"head": []}, {"head": ()}]:
        with case(head):
            network = from_table(without("head") | head, name="net")
            assert network.head == ()
            assert network.features == 24
            assert "head" not in network.table()


def test_rows_are_named_alone_or_by_their_number() -> None:
    pool = {"block": "max_pool", "stride": 2}
    network = from_table(table() | {"stem": [TABLE["stem"], pool]}, name="net")
    assert [row for row, _ in network.rows()] == ["stem.0", "stem.1", "stages.0", "stages.1", "head"]
    assert [where(row) for row, _ in network.rows()] == ["stem[0]", "stem[1]", "stages[0]", "stages[1]", "head"]


def test_a_row_without_channels_keeps_what_it_gets() -> None:
    pool, norm = {"block": "max_pool", "stride": 2}, {"block": "norm"}
    network = from_table(table() | {"stem": [TABLE["stem"], pool], "head": norm}, name="net")
    places = list(network.places())
    assert [(place.in_channels, place.channels) for place in (places[1], places[-1])] == [(8, 8), (24, 24)]
    assert network.features == 24


def test_a_rows_activation_goes_before_the_networks() -> None:
    network = from_table(table("1", activation="silu"), name="net")
    assert [place.activation for place in network.places()] == ["relu6"] * 3 + ["silu"] * 3 + ["relu6"]


def test_places_follow_the_forward_pass() -> None:
    places = list(from_table(TABLE, name="net").places())
    assert [place.name for place in places] == [
        "stem",
        *("stages.0.0", "stages.0.1"),
        *("stages.1.0", "stages.1.1", "stages.1.2"),
        "head",
    ]
    assert [place.in_channels for place in places] == [3, 8, 16, 16, 24, 24, 24]
    assert [place.stride for place in places] == [2, 1, 1, 2, 1, 1, 1]
    assert [place.in_resolution for place in places] == [32, 16, 16, 16, 8, 8, 8]
    assert [place.resolution for place in places] == [16, 16, 16, 8, 8, 8, 8]


def test_depth_and_total_stride_are_of_the_table() -> None:
    network = from_table(TABLE, name="net")
    assert network.depth == 5
    assert network.total_stride == 4


def test_a_wrong_value_is_refused_by_row_and_field() -> None:
    cases = [
        ("1", "stride", 0, r"stages\[1\]\.stride is 0"),
        ("1", "stride", 65, r"stages\[1\]\.stride is 65; it must be a whole number from 1 to 64"),
        ("stem", "stride", 2.0, r"stem\.stride is 2\.0; it must be a whole number"),
        ("1", "repeats", 0, r"stages\[1\]\.repeats is 0; it must be a whole number from 1"),
        ("1", "repeats", 2.0, r"stages\[1\]\.repeats is 2\.0; it must be a whole number"),
        ("1", "repeats", True, r"stages\[1\]\.repeats is True"),
        ("0", "kernel", 4, r"stages\[0\]\.kernel is 4; it must be odd"),
        ("0", "kernel", -1, r"stages\[0\]\.kernel is -1"),
        ("stem", "channels", 10**9, r"stem\.channels is 1000000000; it must be null or a whole number from 1 to 65536"),
        ("head", "channels", 0, r"head\.channels is 0"),
        ("0", "channels", "16", r"stages\[0\]\.channels is '16'; it must be null or a whole number"),
        ("0", "channels", 16.0, r"stages\[0\]\.channels is 16\.0"),
        ("0", "channels", 65_537, r"stages\[0\]\.channels is 65537; it must be null or a whole number from 1 to 65536"),
        ("1", "repeats", 1001, r"stages\[1\]\.repeats is 1001; it must be a whole number from 1 to 1000"),
        ("stem", "repeats", 2, r"stem\.repeats is 2; only stages repeat their block"),
        ("head", "repeats", 3, r"head\.repeats is 3; only stages repeat their block"),
        ("0", "groups", 0, r"stages\[0\]\.groups is 0; it must be a whole number from 1"),
        ("0", "groups", 2.0, r"stages\[0\]\.groups is 2\.0"),
        ("0", "heads", -1, r"stages\[0\]\.heads is -1; it must be a whole number from 0"),
        ("0", "activation", "silo", r"stages\[0\]\.activation is 'silo'; did you mean 'silu'"),
        ("head", "activation", 3, r"head\.activation is 3"),
        ("0", "expand", float("nan"), r"stages\[0\]\.expand is nan; it must be a number from"),
        ("0", "expand", float("inf"), r"stages\[0\]\.expand is inf"),
        ("0", "expand", 0, r"stages\[0\]\.expand is 0"),
        ("0", "expand", True, r"stages\[0\]\.expand is True"),
        ("0", "squeeze_excite", 1.5, r"stages\[0\]\.squeeze_excite is 1\.5; it must be a number from .* to 1"),
        ("0", "squeeze_excite", -0.25, r"stages\[0\]\.squeeze_excite is -0\.25"),
        ("0", "block", 3, r"stages\[0\]\.block is 3; it must be the name of a block"),
        ("0", "block", ["mbconv"], r"stages\[0\]\.block is \['mbconv'\]"),
        ("0", "block", None, r"stages\[0\]\.block is None"),
        ("0", "channel", 16, r"stages\[0\]\.channel is not a known key; did you mean 'channels'\?"),
        ("0", "_target_", "os.system", r"stages\[0\]\._target_ is not a known key"),
        ("", "resolution", 3, r"resolution is 3 px, smaller than the total stride 4: raise the resolution or drop"),
        ("", "resolution", 10**6, r"resolution is 1000000; it must be"),
        ("", "resolution", "224", r"resolution is '224'"),
        ("", "activation", "rel", r"activation is 'rel'; did you mean 'relu"),
        ("", "activation", ["relu"], r"activation is \['relu'\]"),
        ("", "dropout", 1, r"dropout is 1; it must be a number from 0 to 0\.99"),
        ("", "dropout", float("nan"), r"dropout is nan"),
        ("", "num_classes", 0, r"num_classes is 0; it must be a whole number from 1 to 1000000"),
        ("", "in_channels", 0, r"in_channels is 0"),
        ("", "norm_epsilon", 0, r"norm_epsilon is 0; it must be a number from 1e-12 to 1"),
        ("", "norm_epsilon", float("nan"), r"norm_epsilon is nan"),
        ("", "norm_epsilon", "tiny", r"norm_epsilon is 'tiny'"),
        ("", "stem", [], r"stem is empty; a network needs one row at least"),
        ("", "stem", 3, r"stem is 3; it must be a row or a list of rows"),
        ("", "stem", "conv_norm", r"stem is 'conv_norm'; it must be a row or a list of rows"),
        ("", "stem", [TABLE["stem"], 3], r"stem\[1\] is 3; it must be a row such as"),
        ("", "stem", [TABLE["stem"], {"block": "max_pool", "stride": 0}], r"stem\[1\]\.stride is 0"),
        ("", "stem", [TABLE["stem"], {"block": "max_pool", "repeats": 2}], r"stem\[1\]\.repeats is 2; only stages"),
        ("", "head", 7, r"head is 7; it must be a row or a list of rows"),
        ("", "head", [TABLE["head"], {"block": "conv", "channel": 8}], r"head\[1\]\.channel is not a known key"),
        ("", "stages", [], r"stages is empty; a network needs one row at least"),
        ("", "stages", 3, r"stages is 3; it must be a list of rows"),
        ("", "stages", {"block": "mbconv"}, r"stages is \{.*\}; it must be a list of rows"),
        ("", "stages", ["mbconv"], r"stages\[0\] is 'mbconv'; it must be a row such as"),
        ("", "stem", None, r"stem is None; it must be a row"),
        ("", "stage", [], r"stage is not a known key; did you mean 'stages'\?"),
        ("", "proxy", {}, r"proxy is not a known key"),
    ]
    for row, field, value, message in cases:
        with case(row, field, value, message), pytest.raises(ValueError, match=f"^baseline 'net': {message}"):
            from_table(table(row, **{field: value}), name="net")


def test_a_missing_field_is_named_with_its_row() -> None:
    cases = [
        *(("", field, "") for field in ("resolution", "stem", "stages", "activation")),
        *(("1", "block", r"stages\[1\]\."), ("stem", "block", r"stem\."), ("head", "block", r"head\.")),
    ]
    for row, field, place in cases:
        with case(row, field), pytest.raises(ValueError, match=f"^baseline 'net': {place}{field} is missing$"):
            from_table(without(field, row), name="net")


def test_a_name_that_is_no_file_name_is_refused() -> None:
    for name in ["", "../outside", "a/b", "/etc/x", ".hidden", "two\nlines", "x" * 201]:
        with case(name), pytest.raises(ValueError, match="name is"):
            from_table(TABLE, name=name)


def test_yaml_that_is_no_table_is_refused(tmp_path: Path) -> None:
    for text in ["", "just words", "- a\n- list\n", "3\n", "null\n"]:
        with case(text):
            path = tmp_path / "network.yaml"
            path.write_text(text)
            with pytest.raises(ValueError, match=r"network\.yaml holds no table of a network"):
                load(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for data in [b"stem: [", b"a: b: c", b"\xff\xfe\x00", b"name: \x00", b"{[a]: 1, {}: 2}"]:
        with case(data):
            path = tmp_path / "network.yaml"
            path.write_bytes(data)
            with pytest.raises(ValueError, match=r"cannot read the network in .*network\.yaml"):
                load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the network in .*none\.yaml"):
        load(tmp_path / "none.yaml")


def test_python_tags_are_refused_and_not_executed(tmp_path: Path) -> None:
    cases = [
        "!!python/object/apply:pathlib.Path.touch [{path}]",
        "!!python/object/apply:os.mkdir ['{path}']",
        "!!python/object/new:os.mkdir ['{path}']",
        "!!python/name:os.mkdir",
    ]
    for tag in cases:
        with case(tag):
            made = tmp_path / "made"
            path = tmp_path / "network.yaml"
            path.write_text(from_table(TABLE, name="net").to_yaml() + f"dropout: {tag.format(path=made)}\n")
            with pytest.raises(ValueError, match="cannot read the network in"):
                load(path)
            assert not made.exists()


def test_a_table_cannot_be_changed() -> None:
    network = from_table(TABLE, name="net")
    with pytest.raises(dataclasses.FrozenInstanceError):
        network.resolution = 64  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        network.stem[0].channels = 64  # type: ignore[misc]
