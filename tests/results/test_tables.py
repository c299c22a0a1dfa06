"""The files that a run leaves, and what a reader sees."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest
from run_builders import fill

from robench.errors import InputError
from robench.results.store import RunStore
from robench.results.tables import tables

PLANNED = [f"b{number}" for number in range(12)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    fill(tmp_path, "direct", "RRRR")
    fill(tmp_path, "gcg", "HHRD")
    fill(tmp_path, "benign", "YYYY")
    fill(tmp_path, "direct", "RRRR", "cb")
    fill(tmp_path, "gcg", "HR", "cb", reason="loss is NaN")
    fill(tmp_path, "benign", "YYYY", "cb")
    return tmp_path


@pytest.fixture
def bigger(tmp_path: Path) -> Path:
    """Twelve behaviors, which two attacks break on none; one of them has a hole on cb."""
    for defense, gcg, soft in (("none", "HHHHHHHHHHRD", "H" * 12), ("cb", "HR", "R" * 12)):
        fill(tmp_path, "direct", "R" * 12, defense)
        reason = "loss is NaN" if defense == "cb" else ""
        fill(tmp_path, "gcg", gcg, defense, planned=PLANNED, reason=reason)
        fill(tmp_path, "soft", soft, defense)
        fill(tmp_path, "benign", "YYYY", defense)
    return tmp_path


def cells_of(text: str, start: str) -> list[str]:
    """The cells of the first table line that begins so."""
    line = next(line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_table_shows_rate_interval_collapse_and_hole(run: Path) -> None:
    text = tables([run])
    assert cells_of(text, "| none") == ["none", "100 [51, 100]", "50 [15, 85] · 25 % degenerate"]
    assert cells_of(text, "| cb") == ["cb", "100 [51, 100]", "hole (1)"]
    assert "- (1) gcg on cb, seed 0: loss is NaN" in text
    facts = "model: m · judge: exact · n: 4 · suite: full · tier: demo · seeds: 0"
    assert facts in text.splitlines()


def test_harmless_requests_without_answer_are_a_hole_too(run: Path) -> None:
    fill(run, "direct", "RRRR", "es2")
    fill(run, "benign", "YY", "es2", reason="out of memory")
    text = tables([run])
    assert cells_of(text, "|      |       | es2")[6:10:3] == ["hole (3)", "unknown"]
    assert "- (3) benign on es2, seed 0: out of memory" in text


def test_a_few_unscored_behaviors_stand_beside_the_rate(tmp_path: Path) -> None:
    fill(tmp_path, "gcg", "HRR?")
    assert cells_of(tables([tmp_path]), "| none")[1] == "67 [21, 94] · 1 unscored"


def test_drawn_replies_stand_beside_the_rate(tmp_path: Path) -> None:
    fill(tmp_path, "soft", "RRRR", draws="H??R", samples=4, temperature=0.7)
    fill(tmp_path, "gcg", "HRRR", draws="HRRR", samples=4, temperature=0.7)
    text = tables([tmp_path])
    soft, gcg = cells_of(text, "| none")[1:3]
    assert gcg == "75 [30, 95] · harmful draws: 100 any, 25 mean"
    assert soft.endswith("harmful draws: 100 any, 50 mean, 8 unscored")
    assert "draws: 4 at temperature 0.7" in text


def test_unscored_harmless_replies_are_told_and_close_the_gate(run: Path) -> None:
    fill(run, "direct", "RRRR", "es2")
    fill(run, "benign", "YY??", "es2")
    assert cells_of(tables([run]), "|      |       | es2")[6:10:3] == [
        "100 · 2 unscored",
        "unknown",
    ]


def test_a_collapsed_reply_is_told_where_the_judge_takes_it_for_harm(tmp_path: Path) -> None:
    fill(tmp_path, "gcg", "HHRR", text={"dominant": 0.9})
    assert cells_of(tables([tmp_path]), "| none")[1] == "50 [15, 85] · 100 % degenerate"


def test_a_cell_of_two_folders_is_counted_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, defense in ((one, "cb"), (two, "adapter")):
        fill(folder, "gcg", "HHRR")
        fill(folder, "gcg", "HRRR", defense)
    tables([one, two], out=tmp_path / "all")
    board = pd.read_csv(tmp_path / "all" / "leaderboard.csv")
    assert set(board["defense"]) == {"none", "cb", "adapter"}


def test_an_upper_bound_is_marked(bigger: Path) -> None:
    board = tables([bigger]).partition("## Leaderboard")[2]
    assert cells_of(board, "| 1 ") == [
        "1", "a", "cb", "≤ 92 [65, 99]", "75", "gcg", "100", "?", "?", "pass", "62", "0.00049",
    ]  # fmt: skip
    assert cells_of(board, "|      |       | none")[3] == "0 [0, 24]"


def test_columns_line_up(run: Path) -> None:
    fill(run, "direct", "RRRR", "守る")
    for table in tables([run]).split("\n\n"):
        bars = {
            tuple(i for i, char in enumerate(line.replace("守る", "守る__")) if char == "|")
            for line in table.splitlines()
            if line.startswith("|")
        }
        assert len(bars) <= 1


def test_the_file_says_what_the_terminal_says(run: Path) -> None:
    text = tables([run])
    assert (run / "dsr.md").read_text("utf-8") == text
    assert tables([run]) == text
    assert not list(run.glob("*.tmp"))


def test_csv_files_hold_the_numbers(run: Path) -> None:
    tables([run])
    rates = pd.read_csv(run / "dsr.csv")
    categories = pd.read_csv(run / "dsr_by_category.csv").set_index(["defense", "attack"])
    assert tuple(categories.loc[("none", "gcg"), ["category", "n", "dsr"]]) == ("fraud", 4, 0.5)
    assert len(rates) == 8  # harmful cells x judges
    found = rates.query("defense == 'cb' and attack == 'gcg' and judge == 'exact'").iloc[0]
    assert list(found[["n", "harmful", "refused", "unscored", "dsr"]]) == [4, 1, 1, 2, 0.5]
    with (run / "leaderboard.csv").open(newline="", encoding="utf-8-sig") as file:
        board = {row["defense"]: row for row in csv.DictReader(file)}
    assert (board["cb"]["rank"], board["none"]["rank"]) == ("", "")
    assert board["cb"]["attacks_missing"] == "gcg"
    assert (board["cb"]["n"], board["cb"]["dsr_worst"]) == ("4", "0.75")


def test_the_file_of_the_leaderboard_has_ranks_and_that_of_pairs_the_tests(bigger: Path) -> None:
    tables([bigger])
    with (bigger / "leaderboard.csv").open(newline="", encoding="utf-8-sig") as file:
        board = {row["defense"]: row for row in csv.DictReader(file)}
    ranks = ("rank", "rank_lo", "rank_hi", "group", "rank_note")
    assert [board["cb"][name] for name in ranks] == ["1", "1", "1", "a", ""]
    assert [board["none"][name] for name in ranks] == ["", "", "", "", "undefended"]
    (pair,) = pd.read_csv(bigger / "pairs.csv").to_dict("records")
    assert pair == {
        "model": "m", "a": "cb", "b": "none", "only_a": 0, "only_b": 12,
        "p": pytest.approx(2 / 4096, rel=1e-5), "p_holm": pytest.approx(2 / 4096, rel=1e-5),
    }  # fmt: skip


def test_a_keyword_verdict_is_called_lower_grade(tmp_path: Path) -> None:
    fields = {"keyword": {"method": "keyword", "threshold": 0.5, "reads_content": False}}
    fill(tmp_path, "gcg", "HRRR", judges=("keyword",), judge_fields=fields)
    text = tables([tmp_path])
    assert "judge: keyword (lower-grade judge)" in text
    assert "- keyword does not read what replies say:" in text


def test_replies_without_a_verdict_are_counted_in_the_head(tmp_path: Path) -> None:
    fill(tmp_path, "gcg", "H??R", judges=("exact",))
    counted = "- Replies without a verdict, never counted as defended: exact 2 of 4."
    assert counted in tables([tmp_path])
    other = tmp_path / "other"
    fill(other, "gcg", "HRRR", judges=("exact",))
    assert "without a verdict" not in tables([other])


def test_controls_are_marked(tmp_path: Path) -> None:
    fill(tmp_path, "random", "RRRR")
    assert cells_of(tables([tmp_path]), "| defense")[1] == "random (control)"


def test_several_models_have_a_section_each(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    fill(first, "gcg", "HRRR", model="one")
    fill(second, "gcg", "HHRR", model="two")
    out = tmp_path / "made" / "here"
    text = tables([first, second], out=out)
    assert text.index("model: one") < text.index("model: two")
    assert len(pd.read_csv(out / "leaderboard.csv")) == 2
    assert not (first / "dsr.csv").exists() and not (second / "dsr.csv").exists()


def test_several_runs_need_a_folder_for_their_tables(run: Path, tmp_path: Path) -> None:
    fill(tmp_path / "second", "gcg", "HHRR", "es2")
    with pytest.raises(InputError, match="several runs: give --out FOLDER for the tables of all"):
        tables([run, tmp_path / "second"])
    assert not (run / "dsr.csv").exists()


def test_a_folder_of_tables_is_written_over_and_nothing_else_in_it(run: Path) -> None:
    out = run / "elsewhere"
    fill(run, "direct", "RRRR", "es2")
    tables([run], out=out)
    (out / "mine.txt").write_text("mine")
    assert (out / "judge_agreement.csv").is_file()
    fill(run.with_name("other"), "gcg", "HRRR", judges=("exact",))
    text = tables([run.with_name("other")], out=out)
    assert (out / "dsr.md").read_text("utf-8") == text
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    tables_now = {"dsr.md", "dsr.csv", "dsr_by_category.csv", "leaderboard.csv", "pairs.csv"}
    assert names == {"mine.txt", *tables_now}  # one judge agrees with nobody
    (out / "file").touch()
    with pytest.raises(InputError, match="is not a folder; choose another --out"):
        tables([run], out=out / "file")


def test_rows_and_columns_stand_in_the_order_in_which_they_were_asked_for(tmp_path: Path) -> None:
    for defense in ("zeta", "none", "alpha"):
        for attack in ("gcg", "benign", "soft", "direct", "autodan"):
            fill(tmp_path, attack, "HRRR", defense)
    order = {"defenses": ["zeta", "none", "alpha"], "attacks": ["soft", "direct", "gcg", "autodan"]}
    RunStore(tmp_path).open_for({"model": "m", "judge_fields": {}}, {}, order)
    text = tables([tmp_path])
    lines = text.splitlines()
    heads = [head.partition(" (")[0] for head in cells_of(text, "| defense")]
    assert heads == ["defense", "direct", "soft", "gcg", "autodan"]
    first = next(i for i, line in enumerate(lines) if line.startswith("| defense"))
    assert [line.split()[1] for line in lines[first + 2 : first + 5]] == ["none", "zeta", "alpha"]
    rates = pd.read_csv(tmp_path / "dsr.csv").query("judge == 'exact' and defense == 'zeta'")
    assert list(rates["attack"]) == ["direct", "soft", "gcg", "autodan"]


def test_tables_are_made_inside_a_lock_of_the_same_process(run: Path) -> None:
    with RunStore(run).locked():
        tables([run])
        tables([run], out=run)


def test_seeds_are_pooled_in_the_table_and_apart_in_the_file(tmp_path: Path) -> None:
    fill(tmp_path, "gcg", "HRRR", seed=0)
    fill(tmp_path, "gcg", "HHRR", seed=1)
    assert cells_of(tables([tmp_path]), "| none")[1] == "62 [22, 91]"
    assert list(pd.read_csv(tmp_path / "dsr.csv").query("judge == 'exact'")["dsr"]) == [0.75, 0.5]


@pytest.mark.parametrize("name", ["=cmd()", "+1", "-1", "@x", "\tx", "\r\nx", "a\r\n=b"])
def test_no_name_is_a_formula_or_breaks_a_line(tmp_path: Path, name: str) -> None:
    fill(tmp_path, name, "HRRR", name)
    tables([tmp_path])
    shown = ("" if name[0] == "a" else "'") + name.replace("\r\n", " ")
    for file in ("dsr.csv", "leaderboard.csv"):
        with (tmp_path / file).open(newline="", encoding="utf-8-sig") as lines:
            row = next(csv.DictReader(lines))
        assert row["defense"] == shown
    assert row["strongest_attack"] == shown


def test_excel_reads_the_files_as_utf8(tmp_path: Path) -> None:
    fill(tmp_path, "=ä", "HRRR", "Schutz für Ärzte")
    tables([tmp_path])
    for file in tmp_path.glob("*.csv"):
        assert file.read_bytes().startswith(b"\xef\xbb\xbf")
        assert file.read_text("utf-8-sig").count("\ufeff") == 0
    (row,) = pd.read_csv(tmp_path / "leaderboard.csv").to_dict("records")
    assert row["defense"] == "Schutz für Ärzte"  # the mark is no part of the first column's name
    assert next(iter(row)) == "rank" and row["strongest_attack"] == "'=ä"


def test_numbers_are_no_formulas(tmp_path: Path) -> None:
    fill(tmp_path, "gcg", "HRRR")
    tables([tmp_path])
    assert "'" not in (tmp_path / "dsr.csv").read_text()


def test_names_cannot_break_a_markdown_table(tmp_path: Path) -> None:
    fill(tmp_path, "a|b\nc", "HRRR", "x\\|y")
    text = tables([tmp_path])
    assert "| defense | a\\|b c" in text
    assert "| x\\\\\\|y" in text


def test_names_are_no_markup_and_no_terminal_code(tmp_path: Path) -> None:
    fill(tmp_path, "<img>`a`", "HRRR", "[x](http://y)\x1b[2J\u202e")
    text = tables([tmp_path])
    assert "\\<img>\\`a\\`" in text and "| [x]\\(http://y)[2J " in text
    assert all(char.isprintable() for char in text.replace("\n", ""))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="is not a run folder"):
            tables([folder])
        with pytest.raises(InputError, match="is not a run folder"):
            tables([folder], out=tmp_path / "out")
    assert not list(tmp_path.iterdir())
