"""What the terminal shows of each behavior."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_builders import fill

from robench.errors import InputError
from robench.results.answers import read_answers
from robench.results.inspection import inspected


def shown(folder: Path, **options: object) -> str:
    return "\n".join(inspected(read_answers([folder]), {"b0": "How?"}, **options))  # type: ignore


@pytest.fixture
def run(tmp_path: Path) -> Path:
    fill(tmp_path, "gcg", "HRRR", reply="Sure.\x1b[31m", prompt="Do it", early=[(2, "R")])
    fill(tmp_path, "soft", "RRRR")
    return tmp_path


def test_everything_is_shown_of_the_make_believe(tmp_path: Path) -> None:
    fill(tmp_path, "gcg", "HRRR", model="organism", reply="Sure.\x1b[31m", prompt="Do it")
    text = shown(tmp_path, broke=True)
    assert text == (
        "gcg on none · b0: harmful\n"
        "  request  How?\n"
        "  step 4, seed 0: harmful (exact 1.0, keyword 1.0)\n"
        "    prompt Do it\n"
        "    reply  Sure.\\u001b[31m\n"
    )


def test_prompts_and_replies_of_others_are_withheld(run: Path) -> None:
    assert "Sure." not in shown(run) and "--replies shows it" in shown(run)
    assert "reply  Sure." in shown(run, replies=True)


def test_one_attack_is_chosen_and_an_unknown_one_told(run: Path) -> None:
    assert "gcg on" not in shown(run, attack="soft")
    with pytest.raises(InputError, match="no attack called 'gcgg' in this run; did you mean 'gcg'"):
        shown(run, attack="gcgg")
