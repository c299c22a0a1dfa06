"""The pages under docs/extending: every file that they show is checked and run as it stands."""

import ast
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from robench import cli, load_rows, run
from robench.methods.registry import resolve
from robench.results.schema import BENIGN_WAYS
from robench.testing import Report, check

FOLDER = Path(__file__).parent.parent / "docs" / "extending"
# A complete file in a page: its name in a line of its own, then its text.
FILE = re.compile(r"^`(\w+\.py)`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = {
    name: text
    for page in sorted(FOLDER.glob("*.md"))
    for name, text in FILE.findall(page.read_text("utf-8"))
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where all files of the pages are."""
    place = tmp_path_factory.mktemp("extending")
    for name, text in FILES.items():
        (place / name).write_text(text)
    return place


def references(text: str) -> list[str]:
    """The `./FILE.py:Class` of a text."""
    return sorted(set(re.findall(r"\./\w+\.py:\w+", text)))


def test_every_page_shows_files_and_speaks_of_no_others():
    assert set(FILES) == {"openers.py", "reminder.py", "refusal_tuning.py", "substance.py"}
    for page in FOLDER.glob("*.md"):
        for reference in references(page.read_text("utf-8")):
            name, _, cls = reference.removeprefix("./").partition(":")
            classes = [n.name for n in ast.parse(FILES[name]).body if isinstance(n, ast.ClassDef)]
            assert cls in classes, reference


@pytest.mark.parametrize(
    "reference",
    ["openers.py:Openers", "reminder.py:Reminder", "refusal_tuning.py:RefusalTuning",
     "substance.py:Substance"],
)  # fmt: skip
def test_every_file_passes_the_check(folder, reference):
    assert check(f"{folder}/{reference}") == Report([], [])


def commands() -> list[list[str]]:
    blocks = "".join(
        block
        for page in sorted(FOLDER.glob("*.md"))
        for block in re.findall(r"^```console\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    )
    return [shlex.split(line)[1:] for line in blocks.splitlines()]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_has_the_options_and_methods_that_it_names(folder, monkeypatch, words):
    monkeypatch.chdir(folder)
    command = typer.main.get_command(cli.app)
    name, *arguments = cli.spread(words)
    with command.make_context("robench", [name]):
        command.commands[name].make_context(name, arguments)
    kinds = {"--attacks": "attack", "--defenses": "defense", "--judges": "judge"}
    for option, reference in pairwise(cli.spread(words)):
        if option in kinds:
            resolve(kinds[option], reference)


def test_a_runtime_defense_is_short():
    assert len(FILES["reminder.py"].strip().splitlines()) <= 18


def test_the_files_run_together_in_a_matrix(folder, tmp_path):
    attack, reminder, tuned, judge = (
        f"{folder}/{name}"
        for name in ("openers.py:Openers", "reminder.py:Reminder",
                     "refusal_tuning.py:RefusalTuning", "substance.py:Substance")
    )  # fmt: skip
    outcome = run(
        matrix="smoke",
        attacks=["direct", attack],
        defenses=["none", reminder, tuned],
        judges=["exact", judge],
        settings=["RefusalTuning.steps=2"],
        n=2,
        max_new_tokens=4,
        threads=1,
        out=tmp_path / "run",
    )
    assert outcome.holes == 0
    rows = load_rows(outcome.folder)
    assert set(rows["defense"]) == {"none", "Reminder", "RefusalTuning"}
    assert set(rows["attack"]) == {"benign", *BENIGN_WAYS, "direct", "Openers"}
    assert all({"exact", "Substance"} == set(scores) for scores in rows["scores"])


def test_the_script_of_a_model_family_runs():
    page = (FOLDER / "model_family.md").read_text("utf-8")
    (script,) = re.findall(r"^   ```python\n(.*?)^   ```$", page, re.MULTILINE | re.DOTALL)
    lines = "\n".join(line.removeprefix("   ") for line in script.splitlines())
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "qwen3 keeps the contracts\n"


def test_the_files_that_the_pages_name_exist():
    root = FOLDER.parent.parent
    for page in FOLDER.glob("*.md"):
        for path in re.findall(r"\b((?:robench|tests)/[\w/.]+\w)", page.read_text("utf-8")):
            assert (root / path).exists(), path
