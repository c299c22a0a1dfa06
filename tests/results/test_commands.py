"""The commands that look at a run, as they are typed: what they print, and how they refuse."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from pathlib import Path

import pytest
from run_builders import fill

from robench.results.store import RunStore
from robench.results.tables import tables

Call = Callable[..., tuple[int, str, str]]

# Each with what follows the folder
COMMANDS: dict[str, tuple[str, ...]] = {
    "report": (),
    "plot": ("matrix", "--out", "plot.svg"),
    "export": ("--format", "every-eval-ever"),
    "inspect": (),
    "compare": ("none", "cb"),
    "verify": (),
    "leaderboard": (),
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two defenses, in the folder where commands are given."""
    monkeypatch.chdir(tmp_path)
    for defense in ("none", "cb"):
        fill(tmp_path / "run", "direct", "RRRR", defense)
        fill(tmp_path / "run", "gcg", "HHRR" if defense == "none" else "HRRR", defense)
        fill(tmp_path / "run", "benign", "YYYY", defense)
    tables([Path("run")], page=True)
    return Path("run")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of which no cell was finished."""
    monkeypatch.chdir(tmp_path)
    store = RunStore(Path("empty"))
    store.open_for({"model": "m", "judge_fields": {}}, {}, {"defenses": [], "attacks": []})
    return Path("empty")


@pytest.mark.parametrize(
    ("command", "last"),
    [
        ("report", "to open: run/report.html"),
        ("plot", "to open: plot.svg"),
        ("export", "to open: run/every-eval-ever/m-none.json, run/every-eval-ever/m-cb.json"),
        ("leaderboard", "to open: run/dsr.md, run/leaderboard.csv"),
    ],
)
def test_the_last_line_names_the_files_to_open(
    run: Path, call: Call, command: str, last: str
) -> None:
    code, out, _ = call(command, run, *COMMANDS[command])
    assert code == 0 and out.splitlines()[-1] == last
    for name in last.removeprefix("to open: ").split(", "):
        assert Path(name).stat().st_size


def test_what_broke_is_told(run: Path, call: Call) -> None:
    code, out, _ = call("inspect", run, "--broke", "--defense", "cb")
    assert code == 0 and "gcg on cb · b0: harmful" in out
    assert "b1" not in out and "none" not in out
    assert "words" not in out  # the reply of a model that is not make-believe
    assert "words" in call("inspect", run, "--broke", "--replies")[1]


def test_defenses_are_compared_and_numbers_verified(run: Path, call: Call) -> None:
    code, out, _ = call("compare", run, "none", "cb")
    assert code == 0 and "b1" in out and "p = 1" in out
    code, out, _ = call("verify", run)
    assert code == 0 and "all as they follow" in out


def test_a_number_that_does_not_follow_is_named(run: Path, call: Call) -> None:
    board = run / "leaderboard.csv"
    board.write_text(board.read_text("utf-8").replace("0.75", "0.76"), "utf-8")
    code, out, _ = call("verify", run)
    assert code == 3 and "dsr_worst" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_no_run_is_refused(command: str, run: Path, call: Call) -> None:
    Path("other").mkdir()
    one_line(call(command, "other", *COMMANDS[command]), "other")
    one_line(call(command, "nowhere", *COMMANDS[command]), "nowhere")


@pytest.mark.parametrize("command", ["plot", "export", "inspect", "compare", "verify"])
def test_a_run_without_a_finished_cell_is_refused(command: str, empty: Path, call: Call) -> None:
    one_line(call(command, empty, *COMMANDS[command]), "empty has no finished cell")


def test_a_page_of_a_run_without_a_finished_cell_says_so(empty: Path, call: Call) -> None:
    assert call("report", empty)[0] == 0
    assert "Nothing was recorded yet" in (empty / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("plot run matrx --out a.svg", "did you mean 'matrix'?"),
        ("plot run matrix --out a.gif", "--out must end in .pdf, .svg, .png"),
        ("export run --format parket", "did you mean 'parquet'?"),
        ("inspect run --defense cbb", "no defense called 'cbb'"),
        ("inspect run --attack gcgg", "did you mean 'gcg'?"),
        ("compare run none cbb", "cbb"),
        ("leaderboard run --judge exac", "did you mean 'exact'?"),
        ("report run --compare nowhere", "nowhere"),
    ],
)
def test_an_unknown_name_is_refused(words: str, told: str, run: Path, call: Call) -> None:
    one_line(call(*words.split()), told)


@pytest.mark.parametrize(
    "words",
    [
        "report run --out file/page.html",
        "plot run matrix --out file/plot.svg",
        "export run --format every-eval-ever --out file",
        "export run --format parquet --out file/rows.parquet",
        "leaderboard run --out file",
    ],
)
def test_a_file_in_the_place_of_a_folder_is_refused(words: str, run: Path, call: Call) -> None:
    """What even the superuser cannot write into."""
    Path("file").write_text("mine")
    one_line(call(*words.split()), "file")
    assert Path("file").read_text() == "mine"


def test_no_browser_is_told(run: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    one_line(call("report", run, "--open"), "open run/report.html yourself")
    assert (run / "report.html").is_file()


def one_line(result: tuple[int, str, str], told: str) -> None:
    """That a command ended with 2 and one line that says why."""
    code, _, err = result
    assert code == 2, result
    assert err.startswith("robench: ") and err.count("\n") == 1 and told in err, err
