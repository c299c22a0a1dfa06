"""Who may import whom, read from the syntax trees: the drawing that cannot go stale."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A room imports rooms of its own row or of rows above. ARCHITECTURE.md shows the same rows.
ROWS = (
    "types errors config registry describe matrices folding hooks batching chat losses comparison "
    "degeneration organism.language records",
    "decoding prefix shared_prefix candidates pruning slots model probes corpus leakage",
    "training training_data adapters base_states behaviors judges loading organism",
    "metrics agreement store artifacts data elsewhere forecast",
    "runner rejudge",
    "utility",
    "report",
    "testing cli",
    "__main__",
)
ROW_OF = {f"robench.{room}": row for row, rooms in enumerate(ROWS) for room in rooms.split()}

LIBRARIES = {"torch", "numpy"} | sys.stdlib_module_names
PLUGINS = {
    "attacks": {"errors", "types", "batching", "model", "slots", "chat", "probes"},
    "defenses": {"errors", "types", "model", "hooks", "corpus", "losses", "probes", "adapters"}
    | {"base_states"},
}
SHARED = ("genetic", "steering", "mining")  # files of one folder that its methods share
FORBIDDEN = {"attacks", "defenses", "robench_attacks", "robench_defenses"}


def modules(folder: str) -> dict[str, Path]:
    """Module name to file."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: str, package: str, typing_too: bool = True) -> Iterator[str]:
    """Every module that a source imports, also inside functions, by its full name.

    Args:
        package: the package that relative imports start from.
        typing_too: whether imports under `if TYPE_CHECKING:` count.
    """
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse if not typing_too else ast.iter_child_nodes(node)
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, node.module or ""] if node.level else [node.module or ""])
            base = base.strip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room(name: str) -> str:
    """The room that an imported name belongs to, "" for robench itself."""
    parts = name.split(".")
    rooms = (".".join(parts[:k]) for k in range(len(parts), 1, -1))
    return next((r for r in rooms if r in ROW_OF), "")


def imported_rooms(name: str, path: Path) -> set[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = imports(path.read_text("utf-8"), package, typing_too=False)
    return {room(i) for i in found if i.split(".")[0] == "robench"} - {"", room(name)}


HARNESS = {name: path for name, path in modules("robench").items() if name != "robench"}


@pytest.mark.parametrize("name", HARNESS)
def test_a_room_imports_its_own_row_or_rows_above(name):
    assert room(name), f"{name} has no place in ROWS"
    for imported in imported_rooms(name, HARNESS[name]):
        assert ROW_OF[imported] <= ROW_OF[room(name)], f"{name} imports {imported}"


def test_no_rooms_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for name, path in HARNESS.items():
        graph.setdefault(room(name), set()).update(imported_rooms(name, path))
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("folder", ["robench", "attacks", "defenses", "tests"])
def test_nobody_imports_plugins_by_name(folder):
    for name, path in modules(folder).items():
        tops = {i.split(".")[0] for i in imports(path.read_text("utf-8"), package="")}
        assert not tops & FORBIDDEN, name


@pytest.mark.parametrize("folder", PLUGINS)
def test_a_plugin_imports_what_it_is_lent(folder):
    allowed = {f"robench.{room}" for room in PLUGINS[folder]}
    own = tuple(f"{folder}.{shared}" for shared in SHARED)
    for name, path in modules(folder).items():
        package = name if path.name == "__init__.py" else folder
        for imported in imports(path.read_text("utf-8"), package):
            known = imported.split(".")[0] in LIBRARIES or room(imported) in allowed
            assert known or imported.startswith(own), f"{name} imports {imported}"


def test_the_drawing_in_the_page_is_this_one():
    page = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    for row in ROWS:
        assert f"\n{row}\n" in page


# The reader itself


@pytest.mark.parametrize(
    ("source", "package", "found"),
    [
        ("import robench.runner", "robench", {"robench.runner"}),
        ("from robench import runner as r", "attacks", {"robench.runner"}),
        ("from robench.runner import run", "attacks", {"robench.runner.run"}),
        ("def f():\n    from robench import cli", "attacks", {"robench.cli"}),
        ("from .genetic import cross", "attacks", {"attacks.genetic.cross"}),
        ("from . import gcg", "attacks", {"attacks.gcg"}),
        ("from ..model import x", "robench.judges", {"robench.model.x"}),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy", "", {"numpy"}),
    ],
)
def test_imports_are_found_wherever_they_hide(source, package, found):
    assert set(imports(source, package, typing_too=False)) == found


def test_a_name_belongs_to_the_innermost_room():
    assert room("robench.organism.language.parse") == "robench.organism.language"
    assert room("robench.organism.trainer") == "robench.organism"
    assert room("robench.judges.exact") == "robench.judges"
    assert room("robench.__version__") == ""
    assert room("robench.modelling") == ""
