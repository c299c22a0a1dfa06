"""robench measures how well safety defenses of language models hold against published attacks.

    import robench

    outcome = robench.run(attacks=["direct", "gcg"], defenses=["none", "crl"], n=10)
    outcome.leaderboard

Names load when they are first asked for: importing robench alone loads no torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robench.results.answers import load_rows as load_rows
    from robench.results.artifacts import load_prompt as load_prompt
    from robench.runs.plan import plan as plan
    from robench.runs.question import Question as Question
    from robench.runs.run import run as run

_HOMES = {
    "Question": "robench.runs.question",
    "load_prompt": "robench.results.artifacts",
    "load_rows": "robench.results.answers",
    "plan": "robench.runs.plan",
    "run": "robench.runs.run",
}
__all__ = ["__version__", *_HOMES]
__version__ = version("robench")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'robench' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
