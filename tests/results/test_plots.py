"""Plots: vector files that say what the tables say."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
from hostile import TEXTS
from run_builders import fill

from robench.errors import InputError
from robench.results.plots import KINDS, draw
from robench.results.plots.pareto import on_front
from robench.results.plots.style import file_of, inline_svg, series
from robench.results.plots.write import write
from robench.results.rates import dsr
from robench.results.run_tables import RunTables
from robench.results.verdicts import where


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for defense, letters in (("none", "HHHR"), ("cb", "RRRR")):
        fill(folder, "direct", "RRRR", defense)
        fill(folder, "gcg", letters, defense, early=[(2, "R")])
        fill(folder, "benign", "YYYR", defense)
    return folder


@pytest.fixture(scope="module")
def computed(run: Path) -> RunTables:
    return RunTables.of([run])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [1, 2])
def test_every_kind_is_drawn_at_both_widths(computed: RunTables, kind: str, columns: int) -> None:
    figure = draw(kind, computed, columns)
    assert figure.get_size_inches()[0] == (3.33 if columns == 1 else 6.9)
    svg = inline_svg(figure, kind)
    assert svg.startswith("<svg") and "<image" not in svg


def test_the_matrix_has_the_numbers_of_the_table(computed: RunTables) -> None:
    texts = [text.get_text() for text in draw("matrix", computed).axes[0].texts]
    rate = dsr(where(computed.answers, defense="none", attack="gcg"))
    assert f"{100 * rate.value:.0f}\n[5, 70]" in texts


def test_the_curve_of_an_attack_steps_where_behaviors_break(computed: RunTables) -> None:
    lines = draw("budget", computed).axes[1].get_lines()
    assert [list(line.get_ydata()) for line in lines] == [[0, pytest.approx(0.75)], [0, 0]]


def test_series_differ_in_more_than_color() -> None:
    looks = [(look["linestyle"], look["marker"]) for look in map(series, range(8))]
    assert len(set(looks)) == 8


def test_the_front_is_that_of_both_measures(computed: RunTables) -> None:
    assert on_front(computed, "benign_compliance") == ["cb"]


def test_fonts_are_embedded_as_type_42(computed: RunTables) -> None:
    pdf = file_of(draw("leaderboard", computed), "pdf")
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf


def test_files_are_the_same_when_they_are_made_again(computed: RunTables) -> None:
    for kind in ("pdf", "svg", "png"):
        first, second = (file_of(draw("matrix", computed), kind) for _ in range(2))
        assert first == second


def test_ids_are_the_plots_own(computed: RunTables) -> None:
    svg = inline_svg(draw("budget", computed), "mine")
    ids = re.findall(r' id="([^"]*)"', svg)
    assert ids and all(name.startswith("mine-") for name in ids)
    assert set(re.findall(r'href="#([^"]+)"', svg)) <= set(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_names_of_strangers_are_drawn(tmp_path: Path, text: str) -> None:
    fill(tmp_path, f"a{text}", "HHHR", f"d{text}", category=text, early=[(2, "R")])
    computed = RunTables.of([tmp_path])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("matrix", "budget", "categories"):
            inline_svg(draw(kind, computed), kind).encode()


def test_what_cannot_be_drawn_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.pdf, \.svg, \.png"):
        write(run, "matrix", tmp_path / "fig.jpg")
    with pytest.raises(InputError, match="no plot called 'matrx'; did you mean 'matrix'"):
        write(run, "matrx", tmp_path / "fig.pdf")
