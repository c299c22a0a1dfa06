"""Cells of known verdicts, for the tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from robench.results.leaderboard import leaderboard_rows
from robench.results.verdicts import Answer, disambiguate

BEHAVIORS = ("a", "b", "c", "d")
SUITE = {"name": "full", "attacks": ["direct", "gcg", "soft"]}
# A reply in one letter: Harmful, Refused, Degenerate, off-topic, - no reply, ? no score; for
# harmless requests Yes or No.
SCORE = {"H": 1.0, "R": 0.0, "D": 0.0, "o": 0.2, "-": 1.0, "?": None, "Y": 1.0, "N": 0.1}


def behaviors(n: int) -> tuple[str, ...]:
    """The ids of n behaviors; of the first four they are single letters."""
    return (*BEHAVIORS, *(f"b{number:03}" for number in range(len(BEHAVIORS), n)))[:n]


def row(behavior: str, letter: str, **fields: Any) -> dict[str, Any]:
    return {
        "behavior": behavior,
        "category": "",
        "step": 0,
        "tag": "",
        "final": True,
        "edge_of_grid": False,
        "access": "text",
        "reply": None if letter == "-" else "words",
        "scores": {"exact": SCORE[letter], "keyword": float(letter not in "R-")},
        "samples": [],
        "refused": letter == "R",
        "text": {"dominant": 0.9 if letter == "D" else 0.1},
        "tries": 0,
        "seconds": 1.0,
        "tflop": 0.5,
        **fields,
    }


def answer(
    attack: str = "gcg",
    letters: str | Sequence[dict[str, Any]] = "RRRR",
    defense: str = "none",
    *,
    info: Mapping[str, Any] | None = None,
    reason: str = "",
    access: str = "text",
    **header: Any,
) -> Answer:
    """A cell; a string of letters gives each behavior one final attempt, " " none.

    A string of more than four letters is of more behaviors than BEHAVIORS.
    """
    given = [] if isinstance(letters, str) else letters
    planned = (
        behaviors(max(len(letters), len(BEHAVIORS))) if isinstance(letters, str) else BEHAVIORS
    )
    if isinstance(letters, str):
        pairs = zip(planned, letters, strict=False)
        given = [
            row(behavior, letter, access=access) for behavior, letter in pairs if letter != " "
        ]
    roles = {"direct": "baseline", "benign": "benign", "random": "control"}
    return Answer(
        {
            "model": "m",
            "defense": defense,
            "defense_role": {"none": "baseline", "noop": "control"}.get(defense, "defense"),
            "defense_tier": "demo",
            "defense_note": "",
            "attack": attack,
            "role": roles.get(attack, "attack"),
            "tier": "demo",
            "seed": 0,
            "planned": list(planned),
            "judges": ["exact", "keyword"],
            "judge_fields": {},
            "tune_judge": "keyword",
            "attack_fields": {},
            "attack_source": "a" * 64,
            **header,
        },
        {"suite": SUITE, "train_seconds": 0.0, "harness_version": "0.1.0", **(info or {})},
        given,
        reason,
    )


def defended(
    defense: str, direct: str, gcg: str, soft: str, benign: str = "YYYY", **fields: Any
) -> list[Answer]:
    """A defense with all cells of the suite."""
    return [
        answer("direct", direct, defense, **fields),
        answer("gcg", gcg, defense, **fields),
        answer("soft", soft, defense, access="embedding", **fields),
        answer("benign", benign, defense, **fields),
    ]


def board(*answers: Answer) -> pd.DataFrame:
    """The leaderboard of cells, by defense."""
    return leaderboard_rows(disambiguate(answers)).set_index("defense")


def drawn(behavior: str, letters: str, **fields: Any) -> dict[str, Any]:
    """A row whose greedy reply is a refusal, and whose drawn ones are `letters`."""
    samples = [{"scores": {"exact": SCORE[letter], "keyword": 0.0}} for letter in letters]
    return row(behavior, "R", samples=samples, **fields)


def by_category(letters: str, categories: str, **fields: Any) -> Answer:
    """A cell whose behaviors are of the categories named by letters."""
    pairs = zip(BEHAVIORS, letters, categories, strict=True)
    rows = [row(b, letter, category=kind) for b, letter, kind in pairs if letter != " "]
    return answer("gcg", rows, **fields)
