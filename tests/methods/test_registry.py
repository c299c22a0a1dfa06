"""References to methods: names, presets, and classes in files."""

import pytest

from robench.errors import InputError
from robench.identity import source_digest
from robench.methods import registry

MINE = '''
"""A method of a stranger."""

from dataclasses import dataclass
from typing import ClassVar

import math


@dataclass(frozen=True)
class Suffix:
    """Add a suffix."""

    length: int = 20
    word: str = "!"

    presets: ClassVar[dict[str, dict[str, object]]] = {"short": {"length": 3}}

    def run(self, model, behaviors, ctx):
        yield
'''


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    return f"{file}:Suffix"


def test_the_methods_that_ship_are_registered():
    assert {"direct", "gcg", "soft_prompt"} <= set(registry.names("attack"))
    assert {"circuit_breaker", "none"} <= set(registry.names("defense"))
    assert {"exact", "keyword"} <= set(registry.names("judge"))


@pytest.mark.parametrize("kind", ["attack", "defense"])
def test_every_method_that_ships_has_both_tiers(kind):
    for name in registry.names(kind):
        if hasattr(registry.load_class(kind, name), "argument"):
            continue  # made elsewhere: there is nothing to set
        assert {"demo", "paper"} <= set(registry.presets_of(registry.load_class(kind, name))), name


def test_every_preset_fits_its_class():
    for kind in ("attack", "defense", "judge"):
        for name in registry.names(kind):
            for preset in registry.presets_of(registry.load_class(kind, name)):
                assert registry.resolve(kind, f"{name}:{preset}").tier == preset


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("gcg", ("gcg", "")),
        ("gcg:paper", ("gcg", "paper")),
        ("./a/mine.py:Suffix", ("./a/mine.py:Suffix", "")),
        ("./a/mine.py:Suffix:short", ("./a/mine.py:Suffix", "short")),
    ],
)
def test_a_reference_splits_into_method_and_preset(reference, parts):
    assert registry.split(reference) == parts


def test_a_bare_name_takes_the_preset_of_the_tier():
    demo, paper = (registry.resolve("attack", "gcg", tier) for tier in ("demo", "paper"))
    assert (demo.tier, paper.tier) == ("demo", "paper")
    assert demo.instance != paper.instance
    assert registry.resolve("attack", "gcg:paper", "demo").instance == paper.instance


def test_a_field_set_by_hand_makes_the_tier_custom():
    method = registry.resolve("attack", "gcg", settings={"steps": "7"})
    assert (method.name, method.base, method.tier) == ("gcg", "gcg", "custom")
    assert method.instance.steps == 7


def test_a_class_in_a_file_is_a_method(mine):
    method = registry.resolve("attack", mine)
    assert (method.name, method.base, method.tier) == ("Suffix", mine, "demo")
    assert method.instance.length == 20
    assert registry.resolve("attack", f"{mine}:short").instance.length == 3
    assert registry.resolve("attack", mine, settings={"length": "5"}).instance.length == 5


def test_the_source_of_a_method_can_be_hashed(mine):
    assert source_digest(registry.resolve("attack", mine).instance)


@pytest.mark.parametrize(
    ("kind", "reference", "words"),
    [
        ("attack", "gcgg", "no attack called 'gcgg'; did you mean 'gcg'?"),
        ("defense", "circuit_braker", "did you mean 'circuit_breaker'?"),
        ("judge", "keywords", "did you mean 'keyword'?"),
        ("attack", "gcg:papr", "attack 'gcg' has no preset 'papr'; did you mean 'paper'?"),
        ("attack", "./nowhere.py:Suffix", "no file './nowhere.py'"),
    ],
)
def test_an_unknown_reference_suggests_the_nearest(kind, reference, words):
    with pytest.raises(InputError) as error:
        registry.resolve(kind, reference)
    assert words in str(error.value)


def test_a_file_without_the_class_suggests_the_nearest(mine):
    with pytest.raises(InputError, match="has no class 'Sufix'; did you mean 'Suffix'"):
        registry.resolve("attack", mine.replace("Suffix", "Sufix"))


def test_a_file_that_fails_to_import_says_why(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("import a_module_that_is_not_there\n")
    with pytest.raises(InputError, match="ModuleNotFoundError"):
        registry.resolve("attack", f"{file}:Suffix")
