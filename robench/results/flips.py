"""Which behaviors flip between two defenses of a run, and whether that is more than noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from robench.config import suggestion
from robench.errors import InputError
from robench.results.comparison import LEVEL, Difference, compare
from robench.results.flags import missing_attacks
from robench.results.markdown import escape
from robench.results.verdicts import IN_WORST_CASE, Answer, Verdicts, distinct, where
from robench.results.worst_cases import worst_verdicts

MOST = 20  # behaviors of a side that are named


@dataclass(frozen=True)
class Flips:
    """Two defenses on the same behaviors, over the attacks that both met in full.

    broke_a:    behaviors that broke on `a` and held on `b`; with several seeds, broke with more
    broke_b:    likewise, on `b`
    difference: their counts, the exact p and the paired interval
    """

    a: str
    b: str
    attacks: tuple[str, ...]
    broke_a: tuple[str, ...]
    broke_b: tuple[str, ...]
    difference: Difference

    def __str__(self) -> str:
        said = self.difference
        gain = (said.only_a - said.only_b) / said.n if said.n else math.nan
        low, high = (f"{100 * end:+.0f}" for end in said.interval)
        verdict = "can" if said.p < LEVEL else "cannot"
        lines = [
            f"{self.b} against {self.a}, worst case over {', '.join(self.attacks) or 'nothing'}",
            f"{100 * gain:+.0f} points of DSR [{low}, {high}] on {said.n} behaviors, "
            f"p = {said.p:.2g} (exact McNemar): they {verdict} be told apart",
        ]
        for name, behaviors in ((self.a, self.broke_a), (self.b, self.broke_b)):
            more = len(behaviors) - MOST
            named = ", ".join(behaviors[:MOST]) + (f" and {more} more" if more > 0 else "")
            lines.append(f"broke on {name} alone ({len(behaviors)}): {named or 'none'}")
        return "\n".join(map(escape, lines))


def flips(answers: Sequence[Answer], a: str, b: str) -> Flips:
    """Compare two defenses of one model.

    Raises:
        InputError: one of them is not among the cells.
    """
    sides = [_of_defense(answers, name) for name in (a, b)]
    gaps = missing_attacks(answers)
    left_out = gaps.get(a, set()) | gaps.get(b, set())
    attacks = [
        attack
        for attack in distinct(sides[0], "attack")
        if attack in distinct(sides[1], "attack") and attack not in left_out
    ]
    some, others = ([c for c in side if c.header["attack"] in attacks] for side in sides)
    seeds = [seed for seed in distinct(some, "seed") if where(others, seed=seed)]
    pairs = [(worst_verdicts(some, s), worst_verdicts(others, s)) for s in seeds]
    behaviors = sorted({behavior for pair in pairs for behavior in pair[0]})
    more = {behavior: _balance(behavior, pairs) for behavior in behaviors}
    return Flips(
        a,
        b,
        tuple(attacks),
        tuple(behavior for behavior in behaviors if more[behavior] > 0),
        tuple(behavior for behavior in behaviors if more[behavior] < 0),
        compare(pairs),
    )


def _of_defense(answers: Sequence[Answer], name: str) -> list[Answer]:
    mine = [a for a in where(answers, defense=name) if a.header["role"] in IN_WORST_CASE]
    if not mine:
        known = distinct(answers, "defense")
        raise InputError(f"no defense called {name!r} in this run{suggestion(name, known)}")
    return mine


def _balance(behavior: str, pairs: Sequence[tuple[Verdicts, Verdicts]]) -> int:
    """With how many more seeds a behavior broke on the first side than on the second."""
    one = compare([
        ({behavior: some[behavior]}, {behavior: others[behavior]})
        for some, others in pairs
        if behavior in some and behavior in others
    ])  # fmt: skip
    return one.only_a - one.only_b
