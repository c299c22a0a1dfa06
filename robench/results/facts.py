"""What was measured of one model, and how: the line above its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from robench.methods.registry import split
from robench.results import leaderboard
from robench.results.verdicts import Answer, attacked, distinct

LOWER_GRADE = ("keyword",)  # judges whose verdicts are known to err often


def facts(answers: Sequence[Answer]) -> dict[str, str]:
    """Name -> fact, of the cells of one model."""
    harmful = attacked(answers)
    judges = sorted({_graded(answer) for answer in harmful})
    return {
        "model": ", ".join(distinct(answers, "model")),
        "judge": ", ".join(judges),
        "n": ", ".join(str(n) for n in sorted({len(a.header["planned"]) for a in harmful})),
        "suite": leaderboard.suite(answers),
        "tier": leaderboard.tier(answers),
        "seeds": ", ".join(str(seed) for seed in sorted(distinct(harmful, "seed"))),
        **_draws(harmful),
        **_known(harmful),
    }


def _graded(answer: Answer) -> str:
    """The deciding judge, marked if its verdicts are known to err often, whatever its label."""
    judge = answer.judge
    record = answer.header["judge_fields"].get(judge, {})  # later judges are not in the header
    lower = record.get("method", split(judge)[0]) in LOWER_GRADE
    return f"{judge} (lower-grade judge)" if lower else judge


def _draws(answers: Iterable[Answer]) -> dict[str, str]:
    """How many replies were drawn beside the greedy one, where any were."""
    drawn = {(a.header["samples"], a.header["temperature"]) for a in answers if a.header["samples"]}
    shown = [f"{count} at temperature {temperature:g}" for count, temperature in sorted(drawn)]
    return {"draws": ", ".join(shown)} if shown else {}


def _known(answers: Sequence[Answer]) -> dict[str, str]:
    """How many requests a model knows the answers of, where only those are under test."""
    records = [a.header["known"] for a in answers if "known" in a.header]
    shown = [
        f"{k['harmful']} of {k['of_harmful']} harmful and {k['benign']} of {k['of_benign']} "
        f"harmless requests, answered right by {k['model']} in all phrasings"
        for k in records
    ]
    return {"known": ", ".join(dict.fromkeys(shown))} if shown else {}
