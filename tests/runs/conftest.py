"""Runs without a model, for what decides and writes; many workers, by Ray, where a test asks."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def synthetic_runs() -> ModuleType:
    """benchmarks.synthetic."""
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module("benchmarks.synthetic")
    finally:
        sys.path.remove(str(ROOT))


@pytest.fixture
def synthetic(synthetic_runs):
    """`synthetic(defenses, attacks, behaviors=6, chunk=2)`: groups of cells."""

    def made(defenses: int, attacks: int, behaviors: int = 6, chunk: int = 2):
        return synthetic_runs.synthetic_groups(defenses, attacks, behaviors, chunk)

    return made


@pytest.fixture
def written_plugin(tmp_path, monkeypatch):
    """`written_plugin(text)`: the file of a method in a folder of its own, with what it reads:
    a module `beside` with WORDS, which can be imported here, and words.txt."""

    def written(text: str) -> Path:
        folder = tmp_path / "mine"
        folder.mkdir()
        (folder / "plugin.py").write_text(text)
        (folder / "beside.py").write_text("WORDS = 'please'\n")
        (folder / "words.txt").write_text("now")
        monkeypatch.syspath_prepend(folder)
        return folder / "plugin.py"

    return written
