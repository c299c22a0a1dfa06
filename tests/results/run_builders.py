"""Runs of known replies on disk, for the tests of what is read from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robench import files
from robench.results.store import Cell, RunStore

LAST = 4  # the step of final attempts
IDS = [f"b{number}" for number in range(4)]


def fill(
    folder: Path,
    attack: str,
    replies: str,
    defense: str = "none",
    *,
    model: str = "m",
    seed: int = 0,
    reason: str = "",
    judges: tuple[str, ...] = ("exact", "keyword"),
    draws: str = "",
    text: dict[str, float] | None = None,
    early: Sequence[tuple[int, str]] = (),
    reply: str = "words",
    prompt: str = "a prompt",
    category: str = "fraud",
    ids: Sequence[str] = (),
    edge_of_grid: bool = False,
    **header: Any,
) -> None:
    """Store a cell; replies in one letter: Harmful, Refused, Degenerate, ? unscored, Yes.

    More than four are of more behaviors than IDS; `ids` names them otherwise. Final attempts are
    at step 4; each behavior has the attempts `early` before it, each a step and a letter.
    """
    planned = list(ids) or [f"b{number}" for number in range(max(len(replies), len(IDS)))]
    asked = {
        "model": model,
        "defense": defense,
        "defense_role": "baseline" if defense == "none" else "defense",
        "defense_tier": "demo",
        "attack": attack,
        "role": {"direct": "baseline", "benign": "benign", "random": "control"}.get(
            attack, "attack"
        ),
        "tier": "demo",
        "seed": seed,
        "planned": planned,
        "defense_note": "",
        "judges": list(judges),
        "judge_fields": {},
        "tune_judge": "keyword",
        "attack_fields": {},
        "attack_source": "a" * 64,
        "samples": 0,
        "temperature": None,
        "weights": "w" * 64,
        "template": "t" * 64,
        "train": "d" * 64,
        "system": None,
        "dtype": "float32",
        "defense_fields": {},
        "defense_source": "s" * 64,
        **header,
    }
    cell = Cell(model, defense, attack, seed, asked)
    store = RunStore(folder)
    store.open_for(
        {"model": model, "judge_fields": asked["judge_fields"]},
        {},
        asked_for(folder, defense, attack),
    )
    suite = {"name": "full", "attacks": ["direct", "gcg"]}
    info = {
        "suite": suite,
        "train_seconds": 61.7,
        "harness_version": "0.1.0",
        "versions": {"robench": "0.1.0"},
        "device": "cpu",
        "threads": 2,
        "commit": None,
    }
    store.open(cell, info)
    rows = [
        {
            "behavior": behavior,
            "category": category,
            "harmful": attack != "benign",
            "step": step,
            "tag": "",
            "final": step == LAST,
            "edge_of_grid": edge_of_grid,
            "access": "text",
            "reply": reply,
            "artifact": {"messages": [{"role": "user", "content": prompt}], "tensors": None},
            "loss": None,
            "trace": [],
            "scores": dict.fromkeys(judges, {"?": None}.get(letter, float(letter in "HY"))),
            "samples": [
                {"scores": dict.fromkeys(judges, None if d == "?" else float(d == "H"))}
                for d in draws
            ],
            "refused": letter == "R",
            "text": text or {"dominant": 0.9 if letter == "D" else 0.1},
            "tries": 0,
            "seconds": 0.25,
            "tflop": 0.1,
        }
        for behavior, final in zip(planned, replies, strict=False)
        for step, letter in (*early, (LAST, final))
    ]
    if rows:
        store.append(cell, rows)
    if reason:
        store.fail(cell, reason)


def asked_for(folder: Path, defense: str, attack: str) -> dict[str, list[str]]:
    """The order of a command that names what is in the folder, then these."""
    record = folder / "run.json"
    before = files.read_json(record)["order"] if record.is_file() else {}
    return {
        "defenses": [*before.get("defenses", ()), defense],
        "attacks": [*before.get("attacks", ()), *([attack] if attack != "benign" else [])],
    }
