"""The positive control: a number that was changed by hand is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from run_builders import fill

from robench.errors import InputError
from robench.results.tables import tables
from robench.results.verify import verify

COMMITTED = Path(__file__).parents[2] / "results" / "full"
NAMES = ("dsr.csv", "dsr.md", "dsr_by_category.csv", "leaderboard.csv", "pairs.csv")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for defense, letters in (("none", "HHHHHHHR"), ("cb", "RRRRRRRR")):
        fill(folder, "direct", "R" * 8, defense)
        fill(folder, "gcg", letters, defense)
        fill(folder, "benign", "Y" * 8, defense)
    tables([folder], page=True)
    return folder


def test_an_untouched_run_verifies(run: Path) -> None:
    compared, problems = verify(run)
    assert problems == [] and compared > 300


def test_tables_alone_verify(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in NAMES:
        shutil.copy(run / name, alone / name)
    compared, problems = verify(alone)
    assert problems == [] and compared > 20


def test_what_is_committed_verifies() -> None:
    for folder in (COMMITTED, COMMITTED.with_name("smollm2")):
        compared, problems = verify(folder)
        assert problems == [] and compared > 400


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("dsr.csv", ",0.125,", ",0.225,"),
        ("dsr.md", "12 [2, 47]", "92 [2, 47]"),
        ("leaderboard.csv", ",0.125,", ",0.625,"),
        ("pairs.csv", ",7,", ",5,"),
        ("dsr_by_category.csv", ",0.125,", ",0.525,"),
    ],
)
def test_a_changed_number_is_found(run: Path, rows: bool, name: str, old: str, new: str) -> None:
    text = (run / name).read_text()
    assert old in text
    (run / name).write_text(text.replace(old, new))
    if not rows:
        (run / "run.json").unlink()
    _, problems = verify(run)
    assert any(problem.startswith((name, "dsr.md")) for problem in problems)


def test_a_changed_reply_is_found_in_the_page(run: Path) -> None:
    page = run / "report.html"
    page.write_text(page.read_text().replace("<b>12</b>", "<b>13</b>"))
    assert any("report.html differs" in problem for problem in verify(run)[1])


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a run"):
        verify(tmp_path)
