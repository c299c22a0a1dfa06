"""What a run prints where there is no terminal: a line per cell, and when the rest will be done."""

from types import SimpleNamespace

import pytest

from robench.runs import progress
from robench.runs.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def cell(name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, defense="none", attack=name, seed=0)


def test_a_line_per_cell_with_the_time_that_remains(clock, capsys):
    cells = [cell("direct"), cell("gcg"), cell("scav"), cell("mine")]
    group = SimpleNamespace(cells=[(c, None) for c in cells], defense=SimpleNamespace(name="none"))
    with Progress([group], {"direct": 1.0, "gcg": 60.0, "scav": 29.0}) as shown:
        shown.training(group)
        for c, seconds in zip(cells, (2, 120, 60, 30), strict=True):
            shown.begin(c)
            clock[0] += seconds
            if c.name == "scav":
                shown.hole(c, "the loss is nan")
            else:
                shown.end(c)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1/4 none x direct, seed 0: done in 2 s; 2 s elapsed"  # too early to tell
    # 61 of 120 forecast seconds took 122: `mine` has no forecast and counts the mean of the others
    assert lines[1] == (
        "2/4 none x gcg, seed 0: done in 2 min; 2 min elapsed, about 118 s remaining"
    )
    assert "hole: none x scav, seed 0: the loss is nan" in lines
    assert lines[-1] == "4/4 none x mine, seed 0: done in 30 s; 4 min elapsed"
