from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from scalesearch import figures
from scalesearch.figures.study import accuracy_against_macs, coefficients_parallel, family_cost, split_triangle
from scalesearch.training import named

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

pytestmark = pytest.mark.xdist_group("figures")  # which are drawn once

SINGLE = [(2.0, 1.0, 1.0), (1.0, 1.4, 1.0), (1.0, 1.0, 1.4), (1.2, 1.1, 1.15)]


def candidates_table(count: int, failed: int = 0) -> pd.DataFrame:
    """The 1x network and `count` candidates around twice its cost, the last `failed` of them without an accuracy."""
    random = np.random.default_rng(count)
    drawn = [tuple(random.choice([1.05, 1.1, 1.2, 1.3], 3).tolist()) for _ in range(count)]
    triples = [(1.0, 1.0, 1.0), *(SINGLE + drawn)[:count]]
    ratio = np.concatenate([[1.0], random.uniform(1.85, 2.15, count)])
    accuracy = np.concatenate([[0.86], random.uniform(0.87, 0.88, count)])
    table = pd.DataFrame(triples, columns=["alpha", "beta", "gamma"])
    table.insert(0, "candidate", ["baseline", *(f"c{i + 1:02d}" for i in range(count))])
    table["triples"] = [json.dumps([triple]) for triple in triples]
    table["macs"], table["macs_ratio"] = (5.6e6 * ratio).astype(int), ratio
    table["val_accuracy_mean"] = accuracy
    table["val_accuracy_low"], table["val_accuracy_high"] = accuracy - 0.002, accuracy + 0.003
    if failed:
        table.loc[len(table) - failed :, ["val_accuracy_mean", "val_accuracy_low", "val_accuracy_high"]] = np.nan
    best = table["val_accuracy_mean"].idxmax()
    table["chosen"] = table.index == best
    close = table["val_accuracy_mean"] > table["val_accuracy_mean"].max() - 0.002
    table["tied"] = close & ~table["chosen"]
    return table


def family_table(phis: list[float]) -> pd.DataFrame:
    phi = np.array(phis, float)
    return pd.DataFrame(
        {
            "phi": phi,
            "nominal_ratio": 2**phi,
            "product_ratio": 1.92**phi,
            "macs_ratio": np.where(phi == 0, 1, 2.1**phi),
            "depth": (16 * 1.2**phi).astype(int),
            "resolution": (224 * 1.15**phi).astype(int),
        }
    )


def decision_table(candidates: pd.DataFrame) -> pd.DataFrame:
    """The same candidates as a decision has them; the fewer the accuracies, the fewer the rows."""
    table = candidates[candidates["val_accuracy_mean"].notna() & (candidates["candidate"] != "baseline")].copy()
    score = np.exp(2000 * (table["val_accuracy_mean"] - table["val_accuracy_mean"].max()))
    table["probability_best"] = score / score.sum()
    table["expected_regret"] = table["val_accuracy_mean"].max() - table["val_accuracy_mean"] + 0.0003
    return table.rename(columns={"tied": "as_good"})


CASES = {
    "usual": {"candidates": candidates_table(14), "family": family_table([0, 1, 2, 3, 4])},
    "some failed": {"candidates": candidates_table(14, failed=3), "family": family_table([0, 0.4, 1.7])},
    "all failed": {"candidates": candidates_table(3, 2).assign(val_accuracy_mean=np.nan), "family": family_table([0])},
    "one candidate": {"candidates": candidates_table(1), "family": family_table([0])},
    "only the 1x network": {"candidates": candidates_table(2, failed=2), "family": family_table([0])},
    "no 1x network": {"candidates": candidates_table(5).iloc[1:], "family": family_table([0, 7])},
    "all equal": {"candidates": candidates_table(8).assign(val_accuracy_mean=0.8), "family": family_table([0, 1])},
    "sixty": {"candidates": candidates_table(60), "family": family_table(list(range(8)))},
    "one seed": {
        "candidates": candidates_table(6).assign(val_accuracy_low=np.nan, val_accuracy_high=np.nan),
        "family": family_table([2, 0, 1]),
    },
}

for tables in CASES.values():
    tables["decision"] = decision_table(tables["candidates"])


def part(figure: Figure, gid: str) -> Any:
    """The one artist of that name."""
    (found,) = figure.findobj(lambda artist: artist.get_gid() == gid)
    return found


def texts(figure: Figure) -> list[str]:
    from matplotlib.text import Text

    found = [artist for artist in figure.findobj(Text) if isinstance(artist, Text)]
    return [text.get_text() for text in found if text.get_text()]


TITLE = "mobilenetv2, 2x"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """The files of a case, which are drawn once."""
    place = tmp_path_factory.mktemp("written")
    return cache(lambda case: figures.draw_all(CASES[case], place / case / "figures", title=TITLE))


def test_a_figure_is_found_by_its_file() -> None:
    folder = Path(figures.__file__).parent / "study"
    assert list(figures.FIGURES) == sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    assert {figure.TABLE for figure in figures.FIGURES.values()} == set(CASES["usual"])


@pytest.mark.parametrize("case", CASES)
def test_every_figure_is_written_as_png_and_as_svg(case: str, written: Callable[[str], list[Path]]) -> None:
    files = written(case)
    assert [file.name for file in files] == [f"{name}.{kind}" for name in figures.FIGURES for kind in ("png", "svg")]
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert image.width >= 3.3 * 200
                assert image.height >= 2 * 200
                assert len(np.unique(np.asarray(image.convert("L")))) > 10
                assert "Software" not in image.info
        else:
            text = "".join(ElementTree.parse(file).getroot().itertext())
            assert TITLE in text


def test_svg_has_the_axis_labels_as_text(written: Callable[[str], list[Path]]) -> None:
    from matplotlib.text import Annotation

    files = {file.name: file for file in written("usual")}
    for name, drawing in figures.FIGURES.items():
        figure = drawing.draw(drawing.data(CASES["usual"][drawing.TABLE]))
        labels = {label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel()) if label}
        texts_of = [text for axes in figure.axes for text in axes.texts if not isinstance(text, Annotation)]
        labels |= {text.get_text() for text in texts_of}
        assert labels, name
        found = {e.text for e in ElementTree.parse(files[f"{name}.svg"]).iter() if e.tag.endswith("}text")}
        assert labels <= found, name


def test_the_same_tables_give_the_same_bytes_and_so_do_those_read_back_from_csv(
    written: Callable[[str], list[Path]], tmp_path: Path
) -> None:
    first, tables = written("some failed"), CASES["some failed"]
    for name, table in tables.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    read = {name: pd.read_csv(tmp_path / f"{name}.csv") for name in tables}
    for how, given in (("again", tables), ("read back", read)):
        second = figures.draw_all(given, tmp_path / how, title=TITLE)
        assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second], how


def test_threads_and_the_users_settings_do_not_change_a_figure(
    written: Callable[[str], list[Path]], tmp_path: Path
) -> None:
    import matplotlib

    alone = written("one candidate")
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "path", "axes.grid": False}):
        before = dict(matplotlib.rcParams)
        with ThreadPoolExecutor(2) as pool:
            draw = partial(figures.draw_all, CASES["one candidate"], title=TITLE)
            many = list(pool.map(lambda i: draw(tmp_path / str(i)), range(2)))
        assert dict(matplotlib.rcParams) == before
    for files in many:
        assert [file.read_bytes() for file in files] == [file.read_bytes() for file in alone]


def test_neither_importing_nor_drawing_needs_pyplot(tmp_path: Path) -> None:
    program = (
        "import sys; from scalesearch import figures; assert 'matplotlib' not in sys.modules\n"
        "import pandas, pathlib; table = pandas.read_csv(sys.argv[1])\n"
        "figures.draw_all({'family': table}, pathlib.Path(sys.argv[2]), title='')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    CASES["usual"]["family"].to_csv(tmp_path / "family.csv", index=False)
    subprocess.run([sys.executable, "-c", program, tmp_path / "family.csv", tmp_path], check=True)
    assert sorted(file.suffix for file in tmp_path.glob("family_cost.*")) == [".png", ".svg"]


def test_only_figures_of_the_given_tables_are_drawn(tmp_path: Path) -> None:
    files = figures.draw_all({"family": CASES["usual"]["family"]}, tmp_path, title="")
    drawn = {file.stem for file in files}
    assert drawn == {name for name, drawing in figures.FIGURES.items() if drawing.TABLE == "family"}


def test_an_unknown_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no figure reads a table 'trails', only candidates, decision or family"):
        figures.draw_all({"trails": CASES["usual"]["family"]}, tmp_path, title="")


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_missing_column_is_named(name: str) -> None:
    drawing = figures.FIGURES[name]
    column = "expected_regret" if drawing.TABLE == "decision" else "macs_ratio"
    table = CASES["usual"][drawing.TABLE].drop(columns=column)
    with pytest.raises(ValueError, match=f"needs the column '{column}'"):
        drawing.data(table)


def test_an_empty_family_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        family_cost.data(CASES["usual"]["family"].iloc[:0])


@pytest.mark.parametrize("case", ["usual", "some failed", "one candidate", "no 1x network", "sixty", "one seed"])
def test_points_and_bars_are_the_tables(case: str) -> None:
    table = CASES[case]["candidates"]
    figure = accuracy_against_macs.draw(accuracy_against_macs.data(table))
    table = table[table["val_accuracy_mean"].notna()]
    is_baseline = table["candidate"] == "baseline"
    roles = {
        "baseline": is_baseline,
        "chosen": table["chosen"],
        "tied": table["tied"],
        "other": ~is_baseline & ~table["chosen"] & ~table["tied"],
    }
    for role, rows in roles.items():
        if not rows.any():
            assert f"points-{role}" not in {artist.get_gid() for artist in figure.findobj()}
            continue
        points = np.asarray(part(figure, f"points-{role}").get_offsets())
        np.testing.assert_allclose(points[:, 0], table["macs"][rows] / 1e6)
        np.testing.assert_allclose(points[:, 1], 100 * table["val_accuracy_mean"][rows])
        bars = np.array(part(figure, f"intervals-{role}").get_segments()).reshape(-1, 2, 2)
        has = rows & table["val_accuracy_low"].notna()
        np.testing.assert_allclose(bars[:, 0, 1], 100 * table["val_accuracy_low"][has])
        np.testing.assert_allclose(bars[:, 1, 1], 100 * table["val_accuracy_high"][has])
        np.testing.assert_allclose(bars[:, :, 0], np.stack([table["macs"][has] / 1e6] * 2, axis=1))
        axes = part(figure, f"points-{role}").axes
        for (low, high), column in ((axes.get_xlim(), points[:, 0]), (axes.get_ylim(), points[:, 1])):
            assert np.all((low < column) & (column < high))


@pytest.mark.parametrize(("name", "drawn"), [("accuracy_against_macs", 12), ("coefficients_parallel", 11)])
def test_who_failed_is_said_in_the_figure(name: str, drawn: int) -> None:
    drawing = figures.FIGURES[name]
    numbers = drawing.data(CASES["some failed"]["candidates"])
    assert (len(numbers.candidate), numbers.left_out) == (drawn, ("c12", "c13", "c14"))
    assert "failed: 3 (c12, c13, c14)" in " ".join(texts(drawing.draw(numbers))).replace("\n", " ")


def test_a_title_is_taken_as_it_is(tmp_path: Path) -> None:
    title = r"a $\bad$ one, 100 % & <more>"
    (_, svg) = figures.draw_all({"family": CASES["usual"]["family"]}, tmp_path, title=title)
    assert title in {e.text for e in ElementTree.parse(svg).iter() if e.tag.endswith("}text")}


@pytest.mark.parametrize("draw", ["accuracy_against_macs", "coefficients_parallel"])
def test_a_figure_of_another_metric_has_its_name(draw: str) -> None:
    drawing, table = figures.FIGURES[draw], CASES["usual"]["candidates"]
    usual = drawing.data(table)
    for metric, title in {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy", "own:recall": "recall"}.items():
        numbers = drawing.data(named(table, metric))
        for name, values in numbers._asdict().items():
            if name not in ("score", "axes"):
                assert np.array_equal(values, getattr(usual, name))
        words = texts(drawing.draw(numbers))
        assert f"validation {title} (%)" in words
        assert not any("accuracy" in one.replace("balanced accuracy", "") for one in words)


@pytest.mark.parametrize("draw", ["accuracy_against_macs", "coefficients_parallel"])
def test_a_figure_without_any_accuracy_says_so(draw: str) -> None:
    drawing = figures.FIGURES[draw]
    assert "no candidate has a finished training" in texts(
        drawing.draw(drawing.data(CASES["all failed"]["candidates"]))
    )


@pytest.mark.parametrize(
    ("missing", "words"), [(0, "confidence intervals."), (2, "2 of 7 have none"), (7, "No intervals")]
)
def test_missing_intervals_are_said_in_the_figure(missing: int, words: str) -> None:
    table = candidates_table(6)
    table.loc[: missing - 1, ["val_accuracy_low", "val_accuracy_high"]] = np.nan
    figure = accuracy_against_macs.draw(accuracy_against_macs.data(table))
    assert words in " ".join(texts(figure)).replace("\n", " ")


def test_the_plain_candidates_and_the_chosen_are_labelled() -> None:
    table = candidates_table(4).assign(chosen=False, tied=False)
    table.loc[4, "chosen"] = True
    numbers = accuracy_against_macs.data(table)
    expected = ("", "depth only (c01)", "width only (c02)", "resolution only (c03)", "compound (c04)")
    assert numbers.label == expected
    assert numbers.role == ("baseline", "other", "other", "other", "chosen")
    assert set(expected[1:]) <= set(texts(accuracy_against_macs.draw(numbers)))


def test_a_candidate_is_of_the_plainest_kind_of_its_triples() -> None:
    table = candidates_table(1)
    table.loc[1, "triples"] = "[[1.95, 1.05, 1.0], [2.0, 1, 1.0]]"
    assert accuracy_against_macs.data(table).label == ("", "depth only (c01)")


@pytest.mark.parametrize("case", ["usual", "sixty", "all equal"])
def test_labels_of_points_do_not_overlap_and_lie_inside(case: str) -> None:
    from matplotlib.text import Text

    for name in ("accuracy_against_macs", "family_cost"):
        drawing = figures.FIGURES[name]
        numbers = drawing.data(CASES[case][drawing.TABLE])
        figure: Any = drawing.draw(numbers)
        figure.draw_without_rendering()
        renderer = figure.canvas.get_renderer()
        labels = [text for axes in figure.axes for text in axes.texts if text.get_text() in numbers.label]
        assert len(labels) == sum(map(bool, numbers.label))
        boxes = [Text.get_window_extent(text, renderer) for text in labels]  # the text alone, without its leader
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        for text, box in zip(labels, boxes, strict=True):
            inside = text.axes.get_window_extent(renderer).padded(2)
            assert inside.x0 < box.x0
            assert box.x1 < inside.x1
            assert inside.y0 < box.y0
            assert box.y1 < inside.y1


def test_the_axis_is_broken_only_where_the_1x_network_is_far_away() -> None:
    def axes_with_points(table: pd.DataFrame) -> int:
        figure = accuracy_against_macs.draw(accuracy_against_macs.data(table))
        return len(figure.axes)

    near = candidates_table(5)
    near["macs"] = [5_600_000, 5_700_000, 7_000_000, 8_000_000, 9_000_000, 11_000_000]
    assert axes_with_points(candidates_table(5)) == 2
    assert axes_with_points(near) == 1


@pytest.mark.parametrize(("factor", "label"), [(1, "multiply-adds (M)"), (100, "multiply-adds (G)")])
def test_cost_has_the_unit_that_fits(factor: int, label: str) -> None:
    table = candidates_table(5)
    table["macs"] *= factor
    figure = accuracy_against_macs.draw(accuracy_against_macs.data(table))
    assert label in [axes.get_xlabel() for axes in figure.axes]
    assert "counted ratio to the 1x network" in texts(figure)


@pytest.mark.parametrize("case", ["usual", "some failed", "one candidate", "all equal", "sixty"])
def test_parallel_lines_are_the_tables(case: str) -> None:
    table = CASES[case]["candidates"]
    figure = coefficients_parallel.draw(coefficients_parallel.data(table))
    table = table[table["val_accuracy_mean"].notna() & (table["candidate"] != "baseline")]
    names = {"alpha (depth)": "alpha", "beta (width)": "beta", "gamma (resolution)": "gamma"}
    for at, (label, column) in enumerate(
        {**names, "counted ratio to 1x": "macs_ratio", "accuracy (%)": "val_accuracy_mean"}.items()
    ):
        assert label in texts(figure)
        low, high = part(figure, f"axis {label}").get_ylim()
        heights = np.array([part(figure, f"line {name}").get_ydata()[at] for name in table["candidate"]])
        values = table[column] * (100 if column == "val_accuracy_mean" else 1)
        np.testing.assert_allclose(low + heights * (high - low), values)
        assert np.all((heights > 0) & (heights < 1))
    lines = {row.candidate: part(figure, f"line {row.candidate}") for row in table.itertuples()}
    chosen = table["candidate"][table["chosen"]].item()
    assert all(lines[chosen].get_linewidth() > line.get_linewidth() for name, line in lines.items() if name != chosen)
    assert all(lines[chosen].get_zorder() > line.get_zorder() for name, line in lines.items() if name != chosen)
    assert {name for name, line in lines.items() if line.is_dashed()} == set(table["candidate"][table["tied"]])


@pytest.mark.parametrize("case", ["usual", "some failed", "one candidate", "one seed"])
def test_family_points_and_lines_are_the_tables(case: str) -> None:
    table = CASES[case]["family"].sort_values("phi")
    figure = family_cost.draw(family_cost.data(table))
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    np.testing.assert_allclose(part(figure, "counted").get_offsets(), table[["phi", "macs_ratio"]])
    np.testing.assert_allclose(part(figure, "nominal").get_xydata(), table[["phi", "nominal_ratio"]])
    np.testing.assert_allclose(part(figure, "product").get_xydata(), table[["phi", "product_ratio"]])
    for resolution, depth in zip(table["resolution"], table["depth"], strict=True):
        assert f"{resolution} px, {depth} blocks" in texts(figure)


@pytest.mark.parametrize("case", ["usual", "some failed", "all failed", "one candidate", "sixty"])
def test_the_triangle_has_each_candidate_at_its_shares_of_the_cost(case: str) -> None:
    table = CASES[case]["decision"]
    numbers = split_triangle.data(table)
    figure = split_triangle.draw(numbers)
    (alpha, beta, gamma), corners = table[["alpha", "beta", "gamma"]].to_numpy(float).T, split_triangle.CORNERS
    np.testing.assert_allclose(numbers.shares.sum(1), 1)
    np.testing.assert_allclose(numbers.shares[:, 1], 2 * np.log(beta) / np.log(alpha * beta**2 * gamma**2))
    drawn = 0
    for group in split_triangle.GROUPS:
        rows = np.array([one == group for one in numbers.group], dtype=bool)
        if rows.any():
            points = part(figure, f"points-{group}")
            drawn += len(points.get_offsets())
            np.testing.assert_allclose(np.asarray(points.get_offsets()), numbers.shares[rows] @ [*corners.values()])
            sizes = points.get_sizes()
            assert list(np.argsort(sizes)) == list(np.argsort(numbers.probability_best[rows]))
    assert drawn == len(table)
    if len(table) > 3:
        for place, name in enumerate(("depth", "width", "resolution")):  # the first three have one dimension alone
            np.testing.assert_allclose(numbers.shares[place] @ [*corners.values()], corners[name], atol=1e-12)
