"""Tables on a terminal and in a pipe."""

import sys

import pytest

from robench.runs import terminal

TABLE = """## DSR in percent

| defense | gcg          | a\\|b |
| ------- | ------------ | ---- |
| none    | 17 [9, 28]   | fail |
| cb      | 98 [91, 100] | pass |

- A sentence with [brackets].
"""


def test_a_pipe_gets_markdown(capsys):
    terminal.show(TABLE)
    assert capsys.readouterr().out == TABLE + "\n"


def test_a_terminal_gets_every_word_and_no_rules(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    terminal.show(TABLE)
    shown = capsys.readouterr().out
    for word in ("DSR in percent", "17 [9, 28]", "98 [91, 100]", "a|b", "[brackets]"):
        assert word in shown
    assert "| --" not in shown and "##" not in shown


@pytest.mark.parametrize(
    ("cell", "style"),
    [("17 [9, 28]", "red"), ("≤ 98 [91, 100]", "green"), ("fail", "bold red"), ("gcg", "")],
)
def test_rates_are_colored(cell, style):
    assert terminal._style(cell) == style
