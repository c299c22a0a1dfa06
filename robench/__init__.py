"""robench measures how well safety defenses of language models hold against published attacks.

    from robench import load_prompt, load_rows, run

All are imported when they are first asked for: importing robench alone loads no torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robench.results.answers import load_rows
    from robench.results.artifacts import load_prompt
    from robench.runs.runner import run

__all__ = ["__version__", "load_prompt", "load_rows", "run"]
__version__ = version("robench")

_HOMES = {
    "load_prompt": "robench.results.artifacts",
    "load_rows": "robench.results.answers",
    "run": "robench.runs.runner",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'robench' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
