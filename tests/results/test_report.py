"""The page: its numbers are the tables', and it needs nothing but itself."""

from __future__ import annotations

import base64
import gzip
import json
import re
from hashlib import sha256
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from run_builders import fill

from robench.errors import InputError
from robench.results.report import write as module
from robench.results.report.page import render
from robench.results.report.views import worst
from robench.results.report.write import show, write
from robench.results.run_tables import RunTables
from robench.results.store import RunStore
from robench.results.tables import tables

VOID = {"meta", "link", "br", "hr", "img", "input", "rect", "use", "path"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for defense, letters in (("none", "HHHR"), ("cb", "RDR?")):
        fill(folder, "direct", "RRRR", defense)
        fill(folder, "gcg", letters, defense, early=[(2, "R")], reply="Sure.", prompt="Do it. !!")
        fill(folder, "benign", "YYYR", defense)
    return folder


def details(page: str) -> dict[str, Any]:
    """What a click on each cell opens, by its id."""
    found = re.findall(r'<script type="text/plain" id="([^"]+)">([^<]*)</script>', page)
    return {name: json.loads(gzip.decompress(base64.b64decode(text))) for name, text in found}


def cell(page: str, attack: str, defense: str) -> dict[str, Any]:
    cells = details(page).values()
    return next(c for c in cells if (c["attack"], c["defense"]) == (attack, defense))


class Balance(HTMLParser):
    """Whether every element is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_every_line_of_the_leaderboard_stands_in_the_page(run: Path) -> None:
    text, page = tables([run], page=True), unescape((run / "report.html").read_text())
    for line in re.findall(r"^\| .*$", text[text.index("## Leaderboard") :], re.MULTILINE):
        for value in line.strip("| ").split(" | "):
            assert value.strip("- ") in page


def test_a_cell_of_the_matrix_has_the_numbers_of_dsr_csv(run: Path) -> None:
    computed = RunTables.of([run])
    page = render(computed)
    row = computed.dsr.query("defense == 'none' and attack == 'gcg' and judge == 'exact'").iloc[0]
    low, high = (f"{100 * row[end]:.0f}" for end in ("dsr_lo", "dsr_hi"))
    assert f"<b>{100 * row['dsr']:.0f}</b> <span>[{low}, {high}]</span>" in page


def test_a_click_opens_the_outcomes_that_the_tables_count(run: Path) -> None:
    opened = cell(render(RunTables.of([run])), "gcg", "cb")
    outcomes = [behavior["outcomes"] for behavior in opened["behaviors"]]
    assert outcomes == [["refused"], ["degenerate"], ["refused"], ["unscored"]]


def test_the_worst_and_the_final_attempts_are_kept_and_the_rest_counted(tmp_path: Path) -> None:
    fill(tmp_path / "run", "gcg", "RRRR", early=[(1, "R"), (2, "H"), (3, "H")])
    opened = cell(render(RunTables.of([tmp_path / "run"])), "gcg", "none")
    steps = [attempt["step"] for attempt in opened["behaviors"][0]["attempts"]]
    assert (steps, opened["left_out"]) == ([2, 4], 8)


@pytest.mark.parametrize(
    ("model", "replies", "shown"),
    [("organism", False, True), ("m", False, False), ("m", True, True)],
)
def test_prompts_and_replies_are_withheld_unless_make_believe_or_wanted(
    tmp_path: Path, model: str, replies: bool, shown: bool
) -> None:
    folder = tmp_path / "run"
    fill(folder, "gcg", "HHHH", model=model, reply="Sure, here", prompt="Tell me !!")
    page = render(RunTables.of([folder]), replies)
    attempt = cell(page, "gcg", "none")["behaviors"][0]["attempts"][0]
    hashed = {"length": 10, "sha256": sha256(b"Sure, here").hexdigest()[:16]}
    assert attempt["reply"] == ("Sure, here" if shown else hashed)
    assert (attempt["prompt"] == "Tell me !!") is shown
    assert ("may be harmful; share it with care" in page) is (replies and model != "organism")


def test_the_page_fetches_nothing_and_runs_its_own_script_alone(run: Path) -> None:
    page = render(RunTables.of([run]))
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy and policy[1].startswith("default-src 'none'; script-src 'sha256-")
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(sha256(script[0].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy[1]
    assert not re.search(r'(?:src|href)="(?!#)', page.replace("xlink:href", "href"))


def test_elements_are_closed_and_ids_are_unique(run: Path) -> None:
    page = render(RunTables.of([run]))
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_every_table_has_a_caption_and_heads(run: Path) -> None:
    page = render(RunTables.of([run]))
    for table in re.findall(r"<table.*?</table>", page, re.DOTALL):
        assert "<caption>" in table and 'scope="col"' in table and 'scope="row"' in table


def test_the_page_is_the_same_when_it_is_made_again(run: Path) -> None:
    assert render(RunTables.of([run])) == render(RunTables.of([run]))


def test_holes_stand_with_their_reasons(run: Path) -> None:
    fill(run, "soft", "", "cb", reason="loss is NaN <at> step 3")
    page = render(RunTables.of([run]))
    assert "soft on cb, seed 0: loss is NaN &lt;at&gt; step 3" in page
    assert "soft on none, seed 0: not run" in page


def test_a_run_without_answers_has_a_page_that_says_so(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    store.open_for({"model": "m", "judge_fields": {}}, {}, {"defenses": [], "attacks": []})
    assert "Nothing was recorded yet" in write([tmp_path / "run"]).read_text()


def test_a_run_of_holes_alone_has_a_page(tmp_path: Path) -> None:
    fill(tmp_path / "run", "gcg", "", reason="out of memory")
    page = write([tmp_path / "run"]).read_text()
    assert "gcg on none, seed 0: out of memory" in page


def test_a_later_run_is_compared_behavior_by_behavior(run: Path, tmp_path: Path) -> None:
    later = tmp_path / "later"
    fill(later, "gcg", "RRRR", "none")
    page = write([later], compare=run).read_text()
    assert "Compared with" in page and "within noise" in page
    assert "direct on none is not in this run" in page


@pytest.mark.parametrize("number", [0, 2])
def test_what_is_no_run_is_refused(run: Path, tmp_path: Path, number: int) -> None:
    folders = [run] * number or [tmp_path]
    with pytest.raises(InputError, match="is not a run folder" if not number else "give --out"):
        write(folders)


def test_a_browser_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module.webbrowser, "open", lambda _: False)
    with pytest.raises(InputError, match="no browser could be started"):
        show(tmp_path / "report.html")


def test_broken_behaviors_are_counted_as_the_leaderboard_counts_them(tmp_path: Path) -> None:
    """A mean over seeds, and in words how many broke with any of them."""
    for seed, letters in enumerate(("HHRR", "HRRR", "RRR?")):
        fill(tmp_path / "run", "direct", "RRRR", seed=seed)
        fill(tmp_path / "run", "gcg", letters, seed=seed)
    fill(tmp_path / "run", "direct", "RRRR", "cb")
    fill(tmp_path / "run", "gcg", "HRRR", "cb")
    made = RunTables.of([tmp_path / "run"])
    counted = {one["defense"]: one["broken"] for one in worst(made)}
    several = "1 of 4 behaviors broken, a mean over 3 seeds; 2 broke with one or more of them"
    assert counted == {"none": several, "cb": "1 of 4 behaviors broken"}
    board = made.board.set_index("defense")
    assert list(4 - 4 * board.loc[["none", "cb"], "dsr_worst"]) == pytest.approx([1, 1])
    assert f"<b>none</b>: {several}" in render(made)
