"""Success against budget: a panel for each attack that searches, a line for each defense."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robench.results.plots import style
from robench.results.run_tables import RunTables
from robench.results.survival import Budget, curve, has_steps
from robench.results.verdicts import attacked, distinct, where

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CROWDED = 20  # points of a line, above which it has no markers

LABELS: dict[Budget, str] = {
    "step": "steps",
    "tflop": "TFLOP per behavior",
    "seconds": "seconds per behavior",
}


def searching(tables: RunTables) -> list[str]:
    """The attacks of one model that search step by step."""
    harmful = attacked(tables.answers)
    attacks = distinct(harmful, "attack")
    return [attack for attack in attacks if has_steps(where(harmful, attack=attack))]


def budget(tables: RunTables, width: float, by: Budget = "step") -> Figure:
    """The share of behaviors broken by each budget (Kaplan-Meier).

    Attacks without steps are points in a panel of their own, where the budget is a cost.
    """
    harmful = attacked(tables.answers)
    attacks = searching(tables)
    points = [a for a in distinct(harmful, "attack") if a not in attacks] if by != "step" else []
    figure, axes = style.panels(len(attacks) + bool(points) or 1, width, 1.2)
    for axis, attack in zip(axes, attacks, strict=False):
        for number, defense in enumerate(distinct(harmful, "defense")):
            cells = where(harmful, attack=attack, defense=defense)
            if cells:
                found = curve(cells, by)
                look = style.series(number)
                if len(found.budgets) > CROWDED:
                    look["marker"] = ""
                axis.step(
                    found.budgets, found.shares, where="post", label=style.name(defense), **look
                )
        axis.set_title(style.name(attack))
    if points:
        _points(axes[-1], tables, points, by)
    for axis in axes:
        style.percent_axis(axis)
        axis.locator_params("x", nbins=5)
        axis.set_xlabel(LABELS[by])
    axes[0].set_ylabel("broken, %")
    style.legend(figure, axes)
    return figure


def _points(axis: object, tables: RunTables, attacks: list[str], by: Budget) -> None:
    """Attacks without steps: what each had broken in all, at what it cost."""
    from matplotlib.axes import Axes

    assert isinstance(axis, Axes)
    harmful = attacked(tables.answers)
    for number, defense in enumerate(distinct(harmful, "defense")):
        look = {**style.series(number), "linestyle": "none"}
        for attack in attacks:
            cells = where(harmful, attack=attack, defense=defense)
            if cells:
                found = curve(cells, by)
                axis.plot(found.budgets[-1], found.shares[-1], **look)
                axis.annotate(
                    style.name(attack), (found.budgets[-1], found.shares[-1]), (3, 2),
                    textcoords="offset points", fontsize=5,
                )  # fmt: skip
    axis.set_title("without steps")
