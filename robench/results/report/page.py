"""The page of some runs, as one string of HTML that needs nothing but itself."""

from __future__ import annotations

import base64
from hashlib import sha256
from importlib.resources import files as resources
from typing import Any

from robench import __version__
from robench.results import conclusions, trainings, words
from robench.results.answers import requests
from robench.results.plots import draw
from robench.results.plots.budget import searching
from robench.results.plots.pareto import usefulness
from robench.results.plots.style import inline_svg
from robench.results.report import attempts, views
from robench.results.run_tables import RunTables
from robench.results.section import (
    agreement_lines,
    threshold_lines,
    threshold_sentence,
)
from robench.results.verdicts import Answer
from robench.results.visible import cut, visible

PAGE = "report.html"
LONGEST = 1000  # characters of one value in a table or a sentence


def render(tables: RunTables, replies: bool = False, before: RunTables | None = None) -> str:
    """The page.

    Args:
        tables: of some runs.
        replies: whether prompts and replies of models that are not make-believe are shown.
        before: another run that these are compared with.
    """
    environment = _environment()
    script = _asset("page.js")
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    models = [
        _of_model(tables.of_model(model), f"m{number}", replies)
        for number, model in enumerate(tables.models)
    ]
    return environment.get_template("page.html.jinja").render(
        models=models,
        script=script,
        style=_asset("page.css"),
        script_hash=f"sha256-{digest}",
        version=__version__,
        warning=replies and any(m != attempts.ORGANISM for m in tables.models),
        compared=views.compared(before, tables) if before else None,
        folders=[str(store.folder) for store in tables.stores],
    )


def _environment() -> Any:
    """Jinja with escaping on; every text passes `visible` on its way into the page."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        if isinstance(value, Markup) or not isinstance(value, str):
            return value
        return cut(visible(value), LONGEST)

    return Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _asset(name: str) -> str:
    return (resources("robench.results.report") / "assets" / name).read_text("utf-8")


def _of_model(tables: RunTables, prefix: str, replies: bool) -> dict[str, Any]:
    """What the template shows of one model.

    Args:
        prefix: of the ids of its parts in the page.
    """
    answers = list(tables.answers)
    opened: dict[str, list[Answer]] = {}
    matrix = views.matrix(tables, opened)
    shown = attempts.may_show(tables.models[0], replies)
    texts = requests(store.folder for store in tables.stores)
    return {
        "prefix": prefix,
        "name": tables.models[0],
        "shown": shown,
        "head": views.head(tables),
        "board": views.board(tables),
        "about_ranks": conclusions.about_ranks(answers, tables.board, tables.pairs),
        "matrix": matrix,
        "about_attempts": conclusions.about_attempts(answers),
        "flags": views.flags(tables),
        "limits": words.degeneration(answers[0].limits),
        "terms": words.TERMS,
        "outcomes": words.OUTCOMES,
        "gate": words.GATE,
        "data": {
            name: attempts.packed(attempts.details(cells, texts, shown))
            for name, cells in opened.items()
        },
        "worst": views.worst(tables),
        "budgets": views.budgets(tables),
        "usefulness": views.usefulness_lines(tables),
        "judges": views.judges(tables),
        "agreement": agreement_lines(tables.judges) if len(tables.judges) else [],
        "thresholds": threshold_lines(tables.board),
        "threshold": threshold_sentence(answers),
        "trainings": trainings.trainings(tables.stores, answers),
        "plots": _plots(tables, prefix),
    }


def _plots(tables: RunTables, prefix: str) -> dict[str, str]:
    """The plots of one model as SVG, by name."""
    from markupsafe import Markup

    wanted: dict[str, tuple[str, dict[str, Any]]] = {
        "pareto": ("pareto", {"columns": 1 if len(usefulness(tables)) == 1 else 2}),
        "categories": ("categories", {}),
    }
    if searching(tables):
        wanted |= {f"budget-{by}": ("budget", {"by": by}) for by in ("step", "tflop", "seconds")}
    if trainings.trainings(tables.stores, tables.answers):
        wanted["training"] = ("training", {})
    return {
        name: Markup(inline_svg(draw(kind, tables, **options), f"{prefix}-{name}"))
        for name, (kind, options) in wanted.items()
    }
