"""Consoles that cannot write a character: an escape stands in its place, and nothing fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NAME = "r\u2264"  # less or equal: the tables' own sign, in no code page
NARROW = {
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "ascii": {"PYTHONIOENCODING": "ascii:strict"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
SMALL = {"matrix": "smoke", "attacks": ["direct"], "defenses": ["none"], "n": 2, "n_benign": 2,
         "threads": 1}  # fmt: skip


def words(**options: object) -> list[str]:
    """The options as the command line takes them."""
    listed: list[str] = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        listed += [f"--{name.replace('_', '-')}", *map(str, values)]
    return listed


@pytest.mark.parametrize("narrow", NARROW)
@pytest.mark.parametrize("how", ["command", "call"])
def test_a_run_and_its_tables_are_printed_anywhere(tmp_path: Path, narrow: str, how: str) -> None:
    program = (
        ["-m", "robench", "run", *words(**SMALL), "--out", NAME]
        if how == "command"
        else ["-c", f"import robench; print(robench.run(out={NAME!r}, **{SMALL!r}))"]
    )
    if narrow == "C":  # where file names have no such characters either
        program = [word.replace(NAME, "run") for word in program]
    done = subprocess.run(
        [sys.executable, *program],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, **NARROW[narrow]},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr and b"| none " in done.stdout
    if narrow != "C":
        assert b"r\\u2264: 4 cells" in done.stdout


@pytest.mark.parametrize("narrow", NARROW)
def test_a_mistake_with_any_character_is_one_line(tmp_path: Path, narrow: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "robench", "show", "\u043c\u2264\U0001f600"],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, **NARROW[narrow]},
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"robench: nothing is called") and done.stderr.count(b"\n") == 1
