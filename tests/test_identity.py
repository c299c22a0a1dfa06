"""What a method is known by: its source, whatever it imports of its own package, its files."""

import importlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from robench.errors import InputError
from robench.identity import files_of, module_file, source_digest, sources
from robench.methods.registry import load_class, resolve

METHOD = """from dataclasses import dataclass

{imports}

@dataclass(frozen=True)
class Mine:
    def run(self, model, behaviors, ctx):
        {inside}
        yield
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`package(imports, inside)`: a package `stranger` with the method; its class."""
    folder = tmp_path / "stranger"
    monkeypatch.syspath_prepend(tmp_path)

    def make(imports: str, inside: str = "pass") -> type:
        (folder / "parts").mkdir(parents=True)
        for name in ("__init__", "helper", "deeper", "other", "parts/__init__", "parts/part"):
            (folder / f"{name}.py").write_text(f"NAME = {name!r}\n")
        (folder / "helper.py").write_text("from stranger.deeper import NAME\n")
        (folder / "attack.py").write_text(METHOD.format(imports=imports, inside=inside))
        importlib.invalidate_caches()
        return importlib.import_module("stranger.attack").Mine

    yield make
    for name in [name for name in sys.modules if name.partition(".")[0] == "stranger"]:
        del sys.modules[name]


def names_of(cls: type, folder: Path) -> list[str]:
    first, *others = sources(cls.__module__)
    return [str(file.relative_to(folder)) for file in (first, *others)]


@pytest.mark.parametrize(
    ("imports", "inside", "found"),
    [
        ("", "pass", []),
        ("from .helper import NAME", "pass", ["deeper.py", "helper.py"]),
        ("from . import helper", "pass", ["deeper.py", "helper.py"]),
        ("import stranger.helper", "pass", ["deeper.py", "helper.py"]),
        ("import stranger.helper as h", "pass", ["deeper.py", "helper.py"]),
        ("from stranger import helper", "pass", ["deeper.py", "helper.py"]),
        ("from stranger.helper import NAME", "pass", ["deeper.py", "helper.py"]),
        ("", "from .deeper import NAME", ["deeper.py"]),
        ("", "import stranger.deeper", ["deeper.py"]),
        ("from .parts import part", "pass", ["parts/__init__.py", "parts/part.py"]),
        ("from .parts.part import NAME", "pass", ["parts/__init__.py", "parts/part.py"]),
        ("import json, torch", "pass", []),
    ],
)
def test_what_is_imported_of_the_own_package_is_a_source(package, tmp_path, imports, inside, found):
    cls = package(imports, inside)
    files = names_of(cls, tmp_path / "stranger")
    assert files == ["attack.py", *sorted(["__init__.py", *found])]


def test_an_edit_of_any_source_is_another_method_and_of_other_files_is_not(package, tmp_path):
    cls = package("from . import helper", "from .parts.part import NAME")
    folder, before = tmp_path / "stranger", source_digest(cls())
    for name in ("attack", "helper", "deeper", "__init__", "parts/__init__", "parts/part"):
        file = folder / f"{name}.py"
        text = file.read_text()
        file.write_text(f"{text}# edited\n")
        assert source_digest(cls()) != before, name
        file.write_text(text)
    (folder / "other.py").write_text("edited = True\n")
    assert source_digest(cls()) == before


def test_a_helper_that_cannot_be_parsed_is_a_source_all_the_same(package, tmp_path):
    cls = package("", "from . import helper")
    (tmp_path / "stranger" / "helper.py").write_text("def f(:\n")
    assert tmp_path / "stranger" / "helper.py" in sources(cls.__module__)


def test_an_edit_of_what_attacks_share_changes_those_that_share_it(tmp_path):
    """On a copy of the attacks that ship, each in a process that has not read it before."""
    copy = tmp_path / "robench_attacks"
    shutil.copytree(sources(load_class("attack", "gcg").__module__)[0].parent, copy)
    program = (
        "import sys; from robench.identity import source_digest; "
        "from robench.methods.registry import resolve; "
        f"sys.path.insert(0, {str(tmp_path)!r}); "
        "print(*(source_digest(resolve('attack', name).instance) "
        "for name in ('gcg', 'scav', 'repe', 'scav_prompt', 'autodan')))"
    )

    def digests() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    before = digests()
    with (copy / "steering.py").open("a") as file:
        file.write("# edited\n")
    changed = [one != other for one, other in zip(before, digests(), strict=True)]
    assert changed == [False, True, True, True, False]


def test_a_judge_that_ships_is_known_by_the_files_of_judges_alone():
    names = [file.name for file in sources(load_class("judge", "harmbench").__module__)]
    assert names == ["harmbench.py", "answers.py", "classifier.py", "harm_only.py"]


# A class in a file


def test_what_stands_beside_a_file_is_its_own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "besidehelper.py").write_text("NAME = 1\n")
    (tmp_path / "mine.py").write_text(
        METHOD.format(imports="import besidehelper, robench.types", inside="pass")
    )
    cls = load_class("attack", f"{tmp_path / 'mine.py'}:Mine")
    assert [file.name for file in sources(cls.__module__)] == ["mine.py", "besidehelper.py"]
    before = source_digest(cls())
    (tmp_path / "besidehelper.py").write_text("NAME = 2\n")
    assert source_digest(cls()) != before


def test_a_file_of_a_package_imports_its_package(package, tmp_path):
    package("from stranger.helper import NAME")
    cls = load_class("attack", f"{tmp_path / 'stranger' / 'attack.py'}:Mine")
    files = [file.name for file in sources(cls.__module__)]
    assert files == ["attack.py", "__init__.py", "deeper.py", "helper.py"]


def test_two_copies_of_a_file_are_one_method(tmp_path):
    digests = []
    for name in "ab":
        file = tmp_path / f"{name}.py"
        file.write_text(METHOD.format(imports="", inside="pass"))
        digests.append(source_digest(resolve("attack", f"{file}:Mine").instance))
    assert digests[0] == digests[1]


# A class in no file: a notebook's


def notebook(text: str) -> type:
    scope = {"__name__": "no_file"}
    module = type(sys)("no_file")
    sys.modules["no_file"] = module
    exec(compile(text, "<cell>", "exec"), scope)
    return scope["Mine"]


def test_a_class_of_a_notebook_is_known_by_its_code():
    text = METHOD.format(imports="", inside="x = {'a', 'b', 'c'}")
    one, moved = notebook(text), notebook(f"\n\n{text}")
    other = notebook(text.replace("'c'", "'d'"))
    assert source_digest(one()) == source_digest(moved()) != source_digest(other())
    assert sources("no_file") == ()


# Files and what else a method declares


@dataclass(frozen=True)
class Reader:
    files: tuple[object, ...] = ()
    identity: object = ""


def test_the_content_of_files_counts(tmp_path):
    file = tmp_path / "pool.json"
    file.write_text("1")
    before = source_digest(Reader((file,)))
    file.write_text("2")
    assert source_digest(Reader((str(file),))) != before
    assert source_digest(Reader()) != before
    assert source_digest(Reader(identity="x")) != source_digest(Reader(identity="y"))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ("pool.json", "files must be a tuple of paths, got 'pool.json'"),
        ((3,), "files must be a tuple of paths, and has 3"),
        (("nowhere.json",), "class Reader reads a file that does not exist: nowhere.json"),
    ],
)
def test_files_that_are_none_are_refused(files, words):
    with pytest.raises(InputError) as error:
        files_of(Reader(files))
    assert words in str(error.value)


def test_a_module_is_found_without_being_imported(package, tmp_path):
    package("")
    assert module_file("stranger.parts") == tmp_path / "stranger" / "parts" / "__init__.py"
    assert module_file("stranger.parts.part") == tmp_path / "stranger" / "parts" / "part.py"
    assert "stranger.parts" not in sys.modules
    assert module_file("stranger.gone") is None
    assert module_file("no_such_package.part") is None
    assert module_file("math") is None
