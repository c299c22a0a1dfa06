"""Who may import whom, read from the syntax trees: the drawing that cannot go stale."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The floors of the house: what stands on one may import what stands on it or on a floor above in
# this list. ARCHITECTURE.md shows the same lines.
FLOORS = (
    "types errors config identity files locks console",
    "organism",
    "texts",
    "model",
    "training",
    "methods",
    "judges",
    "results",
    "runs",
    "cli testing",
    "__main__",
)
FLOOR_OF = {f"robench.{name}": i for i, names in enumerate(FLOORS) for name in names.split()}
# `types` names what methods receive, and that is a chat model: for typing alone.
EXCEPTION = ("robench.types", "robench.model")

LIBRARIES = {"torch", "numpy"} | sys.stdlib_module_names
PROVIDED = {  # what a plug-in may import of robench: these, and no file behind a package
    "attacks": {"robench.types", "robench.errors", "robench.config", "robench.model"},
    "defenses": {
        "robench.types",
        "robench.errors",
        "robench.config",
        "robench.model",
        "robench.training",
    },
}
SHARED = ("genetic", "steering", "wordnet", "mining")  # files of one folder that its methods share
FORBIDDEN = {"attacks", "defenses", "robench_attacks", "robench_defenses"}


def modules(folder: str) -> dict[str, Path]:
    """Module name to file."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: str, package: str) -> Iterator[str]:
    """Every module that a source imports, in functions and for typing too, by its full name.

    Args:
        package: the package that relative imports start from.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, node.module or ""] if node.level else [node.module or ""])
            base = base.strip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)


HARNESS = {name: path for name, path in modules("robench").items() if name != "robench"}


def floor(name: str) -> str:
    """What of a floor a name belongs to: `robench.model` of `robench.model.chat`."""
    return ".".join(name.split(".")[:2])


def imported_files(name: str, path: Path) -> set[str]:
    """The files of robench that one of them imports, for typing too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for imported in imports(path.read_text("utf-8"), package):
        parts = imported.split(".")
        names = (".".join(parts[:k]) for k in range(len(parts), 1, -1))
        found.add(next((n for n in names if n in HARNESS), ""))
    return found - {"", name}


@pytest.mark.parametrize("name", HARNESS)
def test_a_floor_imports_itself_or_floors_above(name):
    assert floor(name) in FLOOR_OF, f"{name} has no place in FLOORS"
    for imported in imported_files(name, HARNESS[name]):
        pair = floor(name), floor(imported)
        above = FLOOR_OF[pair[1]] <= FLOOR_OF[pair[0]]
        assert above or pair == EXCEPTION, f"{name} imports {imported}"


def test_no_files_import_each_other_in_a_circle():
    """Typing counts. A package's `__init__` re-exports its files, and none of them imports it."""
    graph = {}
    for name, path in HARNESS.items():
        found = imported_files(name, path)
        graph[name] = {i for i in found if (floor(name), floor(i)) != EXCEPTION}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("folder", ["robench", "attacks", "defenses", "tests"])
def test_nobody_imports_plugins_by_name(folder):
    for name, path in modules(folder).items():
        tops = {i.split(".")[0] for i in imports(path.read_text("utf-8"), package="")}
        assert not tops & FORBIDDEN, name


@pytest.mark.parametrize("folder", PROVIDED)
def test_a_plugin_imports_what_it_is_provided_with(folder):
    own = tuple(f"{folder}.{shared}" for shared in SHARED)
    for name, path in modules(folder).items():
        package = name if path.name == "__init__.py" else folder
        for imported in imports(path.read_text("utf-8"), package):
            base = imported.rpartition(".")[0]
            known = imported.split(".")[0] in LIBRARIES or {imported, base} & PROVIDED[folder]
            assert known or imported.startswith(own), f"{name} imports {imported}"


@pytest.mark.parametrize("package", ["robench", "robench.model", "robench.training"])
def test_what_a_package_offers_is_there(package):
    offered = import_module(package)
    assert all(hasattr(offered, name) for name in offered.__all__)


def test_the_drawing_in_the_page_is_this_one():
    page = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    for floor in FLOORS:
        assert f"\n{floor}\n" in page


# The reader itself


@pytest.mark.parametrize(
    ("source", "package", "found"),
    [
        ("import robench.runs.plan", "robench", {"robench.runs.plan"}),
        ("from robench import runs as r", "attacks", {"robench.runs"}),
        ("from robench.runs.plan import plan", "attacks", {"robench.runs.plan.plan"}),
        ("def f():\n    from robench import cli", "attacks", {"robench.cli"}),
        ("from .genetic import cross", "attacks", {"attacks.genetic.cross"}),
        ("from . import gcg", "attacks", {"attacks.gcg"}),
        ("from ..model import x", "robench.judges", {"robench.model.x"}),
        ("if TYPE_CHECKING:\n    import torch", "", {"torch"}),
    ],
)
def test_imports_are_found_wherever_they_hide(source, package, found):
    assert set(imports(source, package)) == found
