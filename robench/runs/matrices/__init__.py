"""Matrices: which attacks meet which defenses, as YAML.

    attacks: [direct, gcg]        references, as after --attacks
    defenses: [none]              references, as after --defenses
    n: 40                         behaviors, drawn per category
    benign: 100                   harmless requests that every defended model is asked
    seeds: [0]
    settings: [gcg.steps=100]     as after --set; they make the tier "custom"
    skip_lacking: false           whether methods whose texts are missing are left out
    about: ...                    a line on what it is for

A name stands for a file of this package, anything that ends in .yaml or .yml for a file of yours.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

from robench.config import assignments, build, suggestion
from robench.errors import InputError

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Matrix:
    """One question: every attack against every defense, with every seed."""

    name: str
    attacks: tuple[str, ...] = ()  # a question may put configured methods in their place
    defenses: tuple[str, ...] = ()
    n: int = 40
    benign: int = 100
    seeds: tuple[int, ...] = (0,)
    settings: tuple[str, ...] = ()
    skip_lacking: bool = False
    about: str = ""

    def __post_init__(self) -> None:
        for field in ("attacks", "defenses", "seeds"):
            values = getattr(self, field)
            if not values:
                raise InputError(f"no {field} given")
            named = [value for value in values if isinstance(value, (str, int))]
            if len(set(named)) < len(named):
                raise InputError(f"{field} are given twice: {', '.join(map(str, named))}")
        for field in ("n", "benign"):
            if getattr(self, field) < 1:
                raise InputError(f"{field} must be at least 1, got {getattr(self, field)}")
        if min(self.seeds) < 0:
            raise InputError(f"seeds must be at least 0, got {min(self.seeds)}")
        assignments(self.settings)


def names() -> list[str]:
    """The matrices that ship."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def describe(name: str) -> str:
    """What a shipped matrix asks, for `robench show`."""
    matrix = load_matrix(name)
    lines = [f"{name} (matrix)", "", matrix.about, ""]
    lines += [
        f"    attacks   {' '.join(matrix.attacks)}",
        f"    defenses  {' '.join(matrix.defenses)}",
    ]
    lines += [f"    n         {matrix.n} harmful requests, {matrix.benign} harmless ones"]
    lines += [f"    seeds     {' '.join(map(str, matrix.seeds))}"]
    lines += [f"    settings  {' '.join(matrix.settings)}"] if matrix.settings else []
    return "\n".join(lines)


def load_matrix(reference: str) -> Matrix:
    """The matrix behind a shipped name or a YAML file.

    Raises:
        InputError: an unknown name, a file that is missing or is no YAML mapping, an unknown
            field, a value that does not fit.
    """
    path = Path(reference)
    if path.suffix.lower() not in (".yaml", ".yml"):
        if reference not in names():
            raise InputError(f"no matrix called {reference!r}{suggestion(reference, names())}")
        path = _FOLDER / f"{reference}.yaml"
    try:
        fields = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the matrix {path}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not YAML: {error}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path} is no matrix: it needs `attacks:` and `defenses:`")
    return build(Matrix, {"name": path.stem, **fields}, where=str(path))
