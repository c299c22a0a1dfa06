"""Matrices: those that ship, and what a file of one's own may get wrong."""

import dataclasses

import pytest

from robench.errors import InputError
from robench.methods.registry import resolve
from robench.runs import matrices


def test_the_matrices_that_ship():
    assert {"full", "extended", "smoke"} <= set(matrices.names())
    full = matrices.load_matrix("full")
    assert full.attacks == ("direct", "gcg", "autodan", "soft_prompt", "repe", "scav")
    controls = {"autodan_initial", "scav_random", "scav_prompt"}
    assert set(matrices.load_matrix("extended").attacks) == {*full.attacks, *controls}
    assert full.defenses == ("none", "circuit_breaker", "crl", "es2")
    more = {"crl_plain", "repbend", "noop", "benign_lora"}
    assert set(matrices.load_matrix("extended").defenses) == {*full.defenses, *more}
    assert full.n >= 40
    assert full.benign >= 100
    assert full.seeds == (0,)


@pytest.mark.parametrize("name", matrices.names())
def test_their_methods_and_settings_exist(name):
    matrix = matrices.load_matrix(name)
    settings = matrices.assignments(matrix.settings)
    methods = [resolve("attack", a, settings=settings.get(a)) for a in matrix.attacks]
    methods += [resolve("defense", d, settings=settings.get(d)) for d in matrix.defenses]
    assert set(settings) <= {method.base for method in methods}


def test_a_file_is_named_after_itself(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("attacks: [direct]\ndefenses: [none]\nn: 3\nsettings: [gcg.steps=1]\n")
    matrix = matrices.load_matrix(str(file))
    assert matrix == matrices.Matrix("mine", ("direct",), ("none",), 3, settings=("gcg.steps=1",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("attack: [direct]", "has no field 'attack'; did you mean 'attacks'?"),
        ("attacks: direct\ndefenses: [none]", "attacks must be tuple[str, ...], got 'direct'"),
        ("attacks: [1]\ndefenses: [none]", "attacks must be"),
        ("attacks: [direct]\ndefenses: [none]\nn: many", "n must be int, got 'many'"),
        ("attacks: [direct]\ndefenses: [none]\nn: 0", "n must be at least 1, got 0"),
        ("attacks: [direct]\ndefenses: [none]\nseeds: [-1]", "seeds must be at least 0"),
        ("attacks: [direct]\ndefenses: [none]\nseeds: []", "no seeds given"),
        ("attacks: [direct, direct]\ndefenses: [none]", "attacks are given twice"),
        ("attacks: [direct]\ndefenses: [none]\nsettings: [steps=1]", "METHOD.FIELD=VALUE"),
        ("defenses: [none]", "no attacks given"),
        ("[direct]", "it needs `attacks:` and `defenses:`"),
        ("", "it needs `attacks:` and `defenses:`"),
        ("attacks: [direct", "is not YAML"),
        ("attacks: \x00", "is not YAML"),
    ],
)
def test_a_wrong_file_is_refused_in_its_own_words(tmp_path, text, words):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        matrices.load_matrix(str(file))
    assert words in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("smok", "no matrix called 'smok'; did you mean 'smoke'?"),
        ("./nowhere.yaml", "cannot read the matrix nowhere.yaml: No such file or directory"),
    ],
)
def test_a_missing_matrix_is_refused(reference, words):
    with pytest.raises(InputError) as error:
        matrices.load_matrix(reference)
    assert words in str(error.value)


def test_a_folder_is_no_matrix(tmp_path):
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        matrices.load_matrix(str(folder))


def test_changes_are_checked_like_files():
    with pytest.raises(InputError, match="seeds are given twice: 0, 0"):
        dataclasses.replace(matrices.load_matrix("full"), seeds=(0, 0))
