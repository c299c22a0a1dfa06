"""What a click on a cell of the page's matrix opens: each behavior's outcomes and attempts.

A cell of the page is an attack on a defense, all seeds together. Kept are the final attempts and
the worst one (the first harmful one, where there is any); how many were left out is said. Prompts
and replies are kept only where they may be shown; else their length and hash.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from robench.results.schema import Row
from robench.results.store import read_rows
from robench.results.verdicts import OUTCOMES, Answer
from robench.results.visible import cut, one_line, visible
from robench.types import Message

LONGEST = 4000  # characters of a prompt or a reply that the page shows
LONGEST_NAME = 160
ORGANISM = "organism"  # its language is make-believe: its replies harm nobody

Text = str | dict[str, Any]


def may_show(model: str, replies: bool) -> bool:
    """Whether prompts and replies of a model are shown: of the organism always."""
    return replies or model == ORGANISM


def details(cells: Sequence[Answer], texts: Mapping[str, str], shown: bool) -> dict[str, Any]:
    """The detail of one attack on one defense, as the page's script reads it.

    Args:
        cells: seed by seed.
        texts: behavior -> what is requested.
        shown: whether prompts and replies are shown.
    """
    judges = list(dict.fromkeys(judge for cell in cells for judge in cell.header["judges"]))
    seeds = [_of_seed(cell, judges, shown) for cell in cells]
    verdicts = [cell.verdicts() for cell in cells]
    category = {row["behavior"]: row["category"] for cell in cells for row in cell.rows}
    planned = list(dict.fromkeys(b for cell in cells for b in cell.header["planned"]))
    return {
        "attack": _name(cells[0].header["attack"]),
        "defense": _name(cells[0].header["defense"]),
        "judges": [_name(judge) for judge in judges],
        "seeds": [cell.header["seed"] for cell in cells],
        "left_out": sum(left_out for _, left_out in seeds),
        "behaviors": [
            {
                "id": _name(behavior),
                "category": _name(category.get(behavior, "")),
                "text": cut(visible(texts.get(behavior, "")), LONGEST),
                "outcomes": [seed.get(behavior, "unscored") for seed in verdicts],
                "attempts": [a for by, _ in seeds for a in by.get(behavior, [])],
            }
            for behavior in planned
        ],
    }


def packed(value: Any) -> str:
    """A JSON value, compressed, in characters that no page can mistake for anything else."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _of_seed(
    cell: Answer, judges: Sequence[str], shown: bool
) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """The attempts to show of each behavior of one cell, and how many were left out."""
    by_behavior: dict[str, list[tuple[Row, str]]] = {}
    rows = read_rows(cell.folder) if cell.folder else cell.rows  # those at hand may be slim
    for row, outcome in zip(rows, cell.outcomes(), strict=True):
        by_behavior.setdefault(row["behavior"], []).append((row, outcome))
    kept, left_out = {}, 0
    for behavior, attempts in by_behavior.items():
        chosen = _chosen(attempts)
        left_out += len(attempts) - len(chosen)
        kept[behavior] = [
            _attempt(row, outcome, judges, cell.header["seed"], shown) for row, outcome in chosen
        ]
    return kept, left_out


def _chosen(attempts: Sequence[tuple[Row, str]]) -> list[tuple[Row, str]]:
    """The final attempts and the worst one, in the order of steps."""
    worst = min(
        range(len(attempts)),
        key=lambda i: (OUTCOMES.index(attempts[i][1]), attempts[i][0]["step"]),
    )
    chosen = [a for i, a in enumerate(attempts) if a[0]["final"] or i == worst]
    return sorted(chosen, key=lambda a: (a[0]["step"], a[0]["tag"]))


def _attempt(
    row: Row, outcome: str, judges: Sequence[str], seed: int, shown: bool
) -> dict[str, Any]:
    prompt, loss = spoken(row["artifact"]["messages"]), row["loss"]
    return {
        "seed": seed,
        "step": row["step"],
        "tag": _name(row["tag"]),
        "final": row["final"],
        "outcome": outcome,
        "loss": None if loss is None or not math.isfinite(loss) else float(f"{loss:.4g}"),
        "access": row["access"],
        "prompt": text_of(prompt, shown),
        "reply": None if row["reply"] is None else text_of(row["reply"], shown),
        "scores": [_score(row["scores"].get(judge)) for judge in judges],
    }


def spoken(messages: Sequence[Message]) -> str:
    """A conversation as text; of a single user turn its words alone."""
    if [message["role"] for message in messages] == ["user"]:
        return messages[0]["content"]
    return "\n".join(f"[{message['role']}] {message['content']}" for message in messages)


def text_of(text: str, shown: bool) -> Text:
    """A text to show, cut to LONGEST, or its length and hash."""
    if shown:
        cut = len(text) - LONGEST
        return visible(text[:LONGEST]) + (f" … and {cut} characters more" if cut > 0 else "")
    digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return {"length": len(text), "sha256": digest[:16]}


def _name(text: str) -> str:
    return one_line(text, LONGEST_NAME)


def _score(score: float | None) -> float | None:
    return None if score is None or math.isnan(score) else float(f"{score:.3g}")
