"""The names of the methods of a run: labels, classes in files, objects; what --set calls them."""

import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from robench.errors import InputError
from robench.methods import classes, registry
from robench.methods.registry import load_class, refuse_unused_settings, resolve, resolve_all

SUFFIX = '''
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Suffix:
    """Add a suffix."""

    length: int = 20
    presets: ClassVar[dict[str, dict[str, object]]] = {"short": {"length": 3}}

    def run(self, model, behaviors, ctx):
        yield
'''
GCG = load_class("attack", "gcg")


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text(SUFFIX)


def names_of(references, **options):
    return [method.name for method in resolve_all("attack", references, **options)]


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("gcg", ("", "gcg", "")),
        ("gcg:paper", ("", "gcg", "paper")),
        ("long=gcg:paper", ("long", "gcg", "paper")),
        ("my-1.x_=./a/mine.py:Suffix:short", ("my-1.x_", "./a/mine.py:Suffix", "short")),
        ("./a=b/mine.py:Suffix", ("", "./a=b/mine.py:Suffix", "")),
        ("adapter:/data/a=b", ("", "adapter", "/data/a=b")),
        ("=gcg", ("", "=gcg", "")),
    ],
)
def test_a_reference_has_a_label_a_base_and_a_preset(reference, parts):
    assert registry.parse(reference) == parts
    assert registry.split(reference) == parts[1:]


@pytest.mark.parametrize(
    ("references", "named"),
    [
        (["gcg", "gcg:paper", "direct"], ["gcg", "gcg:paper", "direct"]),
        (["long=gcg:paper", "gcg"], ["long", "gcg"]),
        (["./a.py:Suffix"], ["Suffix"]),
        (["./a.py:Suffix:short", "./a.py:Suffix"], ["Suffix:short", "Suffix"]),
        (["./a.py:Suffix", "./b.py:Suffix"], ["./a.py:Suffix", "./b.py:Suffix"]),
        (["mine=./a.py:Suffix", "./b.py:Suffix"], ["mine", "Suffix"]),
        (["Suffix=gcg", "./b.py:Suffix"], ["Suffix", "./b.py:Suffix"]),
        (["./a.py:Suffix:short", "./b.py:Suffix:short"],
         ["./a.py:Suffix:short", "./b.py:Suffix:short"]),
    ],
)  # fmt: skip
def test_every_method_has_a_name_of_its_own(files, references, named):
    assert names_of(references) == named


def test_objects_are_named_by_their_class_and_where_they_differ(files):
    first, other = GCG(steps=100), GCG(steps=200)
    assert names_of([first]) == ["gcg"]
    assert names_of([first, other]) == ["gcg(steps=100)", "gcg(steps=200)"]
    assert names_of([first, replace(other, width=9)]) == [
        "gcg(steps=100, width=512)",
        "gcg(steps=200, width=9)",
    ]
    assert names_of(["gcg", first], tier="paper") == ["gcg", "gcg(steps=100)"]
    a, b = (load_class("attack", f"./{file}.py:Suffix") for file in "ab")
    assert names_of([a(), "direct"]) == ["Suffix", "direct"]
    assert names_of([a(), b()]) == ["./a.py:Suffix", "./b.py:Suffix"]
    assert names_of([a(), b(), b(length=1)]) == [
        "./a.py:Suffix",
        "./b.py:Suffix(length=20)",
        "./b.py:Suffix(length=1)",
    ]


def test_an_object_is_found_again_by_its_base(files):
    made = load_class("attack", "./a.py:Suffix")(length=5)
    assert resolve("attack", GCG()).base == "gcg"
    base = resolve("attack", made).base
    assert base == "./a.py:Suffix"
    assert load_class("attack", base) is type(made)


@pytest.mark.parametrize(
    ("given", "tier", "found"),
    [
        ({}, "demo", "paper"),
        ({}, "paper", "paper"),
        ({"steps": 123}, "paper", "custom"),
        ("demo", "paper", "demo"),
        ("harmbench", "harmbench", "harmbench"),
    ],
)
def test_the_tier_of_an_object_is_the_preset_that_it_is(given, tier, found):
    made = resolve("attack", f"gcg:{given}").instance if isinstance(given, str) else GCG(**given)
    assert resolve("attack", made, tier).tier == found


def test_an_object_without_presets_has_the_given_tier(files):
    made = load_class("attack", "./a.py:Suffix")
    assert resolve("attack", made(), "paper").tier == "paper"
    assert resolve("attack", made(3), "paper").tier == "short"
    assert resolve("attack", made(4), "paper").tier == "custom"


def test_an_external_defense_may_be_an_object(tmp_path):
    adapter = load_class("defense", "adapter")(str(tmp_path))
    method = resolve("defense", adapter)
    assert (method.name, method.base, method.tier) == (f"adapter:{tmp_path}", "adapter", "external")


@pytest.mark.parametrize(
    ("references", "words"),
    [
        (["gcg", "gcg"], "attack gcg is given twice"),
        (["./a.py:Suffix", "./a.py:Suffix"], "attack ./a.py:Suffix is given twice"),
        ([GCG(steps=3), GCG(steps=3)], "attack gcg is given twice"),
        (["a=gcg", "a=direct"], "two attacks are called 'a': give one of them a label"),
        ("gcg", "attacks must be a list: attacks=['gcg']"),
        (GCG(), "attacks must be a list: attacks=[...]"),
        ([GCG], "GCG is a class: give an object, GCG(), or the name of a method"),
        ([3], "class int in builtins has no method run(model, behaviors, ctx)"),
        (["direct=gcg"], "direct=gcg: 'direct' is the name of another attack"),
        (["benign=gcg"], "attack 'benign' has the name of the harmless requests"),
        (["no label=gcg"], "no attack called 'no label=gcg'"),
    ],
)
def test_what_has_no_name_of_its_own_is_refused(files, references, words):
    with pytest.raises(InputError) as error:
        names_of(references)
    assert words in str(error.value)


def test_a_class_of_a_registered_methods_name_does_not_take_its_name(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(SUFFIX.replace("class Suffix", "class direct"))
    reference = f"{file}:direct"
    assert names_of([reference]) == [reference]
    assert names_of([load_class("attack", reference)()])[0].endswith("mine.py:direct")


def test_fields_are_set_by_label_base_or_class_the_nearest_last(files):
    settings = {
        "GCG": {"steps": "1", "width": "1", "topk": "1"},
        "gcg": {"steps": "2", "width": "2"},
        "long": {"steps": "3"},
        "Suffix": {"length": "4"},
        "./b.py:Suffix": {"length": "5"},
    }
    references = ["long=gcg", "gcg", "./a.py:Suffix", "./b.py:Suffix"]
    long, short, a, b = resolve_all("attack", references, settings=settings)
    assert (long.instance.steps, long.instance.width, long.instance.topk) == (3, 2, 1)
    assert (short.instance.steps, short.tier) == (2, "custom")
    assert (a.instance.length, b.instance.length) == (4, 5)


def test_fields_are_set_on_objects(files):
    settings = {"gcg": {"width": "64"}}
    (method,) = resolve_all("attack", [GCG(steps=7)], settings=settings)
    assert (method.instance.steps, method.instance.width, method.tier) == (7, 64, "custom")
    with pytest.raises(InputError, match="gcg has no field 'stepz'; did you mean 'steps'"):
        resolve_all("attack", [GCG()], settings={"gcg": {"stepz": 1}})
    with pytest.raises(InputError, match="steps must be at least 1"):
        resolve_all("attack", [GCG()], settings={"gcg": {"steps": 0}})


def test_settings_of_no_method_are_refused_with_the_nearest():
    attacks = resolve_all("attack", ["long=gcg"])
    judges = resolve_all("judge", ["keyword"])
    refuse_unused_settings(["gcg", "long", "GCG", "keyword", "Keyword"], [*attacks, *judges])
    with pytest.raises(InputError) as error:
        refuse_unused_settings(["gcgg"], [*attacks, *judges])
    assert str(error.value) == "--set: this run has no method 'gcgg'; did you mean 'gcg'?"


def test_two_packages_with_one_name_are_refused_and_named(monkeypatch):
    entries = tuple(
        _entry(package, f"{package}.mine:Mine") for package in ("first_package", "other_package")
    )
    monkeypatch.setattr(classes, "_entries", lambda kind: {"mine": entries})
    with pytest.raises(InputError) as error:
        resolve("attack", "mine")
    assert str(error.value) == (
        "attack 'mine' is offered by two packages, first_package and other_package: "
        "uninstall one of them"
    )


def _entry(package: str, value: str) -> EntryPoint:
    entry = EntryPoint("mine", value, "robench.attacks")
    vars(entry).update(dist=SimpleNamespace(name=package))
    return entry


def test_an_entry_point_may_be_a_ready_object(monkeypatch, files):
    made = load_class("attack", "./a.py:Suffix")(length=9)
    monkeypatch.setitem(sys.modules, "ready_package", SimpleNamespace(mine=made))
    entry = EntryPoint("mine", "ready_package:mine", "robench.attacks")
    monkeypatch.setattr(classes, "_entries", lambda kind: {"mine": (entry,)})
    method = resolve("attack", "mine")
    assert (method.name, method.base, method.tier) == ("mine", "mine", "custom")
    assert method.instance is made
    assert resolve("attack", "mine", settings={"length": "4"}).instance.length == 4
    with pytest.raises(InputError, match="'mine' is a ready object: it has no presets"):
        resolve("attack", "mine:short")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a_package_that_is_gone.part:Mine", "install the package 'a_package_that_is_gone'"),
        ("json.decoder:Mine", "attack 'mine': json.decoder has no class 'Mine'"),
    ],
)
def test_an_entry_point_that_leads_nowhere_says_so(monkeypatch, value, words):
    entry = EntryPoint("mine", value, "robench.attacks")
    monkeypatch.setattr(classes, "_entries", lambda kind: {"mine": (entry,)})
    with pytest.raises(InputError) as error:
        resolve("attack", "mine")
    assert words in str(error.value)
