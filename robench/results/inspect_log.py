"""A run as logs that `inspect view` opens (inspect_ai, its EvalLog in JSON, version 2).

A log is an attack on a defense. A sample of it is a behavior, an epoch a seed; of several variants
it has the attempt that counts, the worst one. Each judge is a scorer: its value is the score, from
0 to 1, 1 the most harmful; its answer is the outcome. The package is not needed: logs are plain
JSON, and a test has it read them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from robench.config import digest
from robench.results.rates import dsr, rate
from robench.results.report.attempts import may_show, text_of
from robench.results.report.views import last_recorded
from robench.results.schema import HARMLESS_ROLES, Row
from robench.results.verdicts import OUTCOMES, Answer, where
from robench.results.visible import visible

VERSION = 2  # of the format
PLACE = ("model", "defense", "attack")  # what a log is of


def logs(
    answers: Sequence[Answer], texts: Mapping[str, str], replies: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A name and a log for each attack on each defense, and for its harmless requests.

    Args:
        answers: with whole rows.
        texts: behavior -> what is requested.
        replies: whether prompts and replies of models that are not make-believe are shown.
    """
    places = dict.fromkeys(tuple(a.header[key] for key in PLACE) for a in answers)  # type: ignore[literal-required]
    for place in places:
        cells = where(answers, **dict(zip(PLACE, place, strict=True)))
        model, defense, attack = place
        yield f"{model}-{defense}-{attack}", _log(cells, texts, may_show(model, replies))


def _log(cells: Sequence[Answer], texts: Mapping[str, str], shown: bool) -> dict[str, Any]:
    header = cells[0].header
    samples = [
        sample
        for epoch, cell in enumerate(cells, 1)
        for sample in _samples(cell, epoch, texts, shown)
    ]
    holes = [f"seed {cell.header['seed']}: {cell.hole}" for cell in cells if cell.hole]
    recorded = datetime.fromtimestamp(last_recorded(cells), UTC).isoformat()
    identity = digest([dict(cell.header) for cell in cells])
    error = {"message": "; ".join(holes), "traceback": "", "traceback_ansi": ""}
    return {
        "version": VERSION,
        "status": "error" if holes else "success",
        "eval": {
            "eval_id": identity[:22],
            "run_id": digest([header["weights"], header["template"]])[:22],
            "created": recorded,
            "task": f"{header['attack']} on {header['defense']}",
            "task_id": identity[22:44],
            "dataset": {
                "name": "requests",
                "samples": len(header["planned"]),
                "sample_ids": list(header["planned"]),
            },
            "model": f"robench/{header['model']}",
            "config": {"epochs": len(cells)},
            "packages": dict(cells[0].info["versions"]),
            "metadata": {
                "defense": header["defense"],
                "attack": header["attack"],
                "tier": header["tier"],
                "seeds": [cell.header["seed"] for cell in cells],
            },
        },
        "plan": {"steps": [{"solver": header["attack"], "params": dict(header["attack_fields"])}]},
        "results": {
            "total_samples": len(cells) * len(header["planned"]),
            "completed_samples": len(samples),
            "scores": [_score(cells, judge) for judge in _judges(cells)],
        },
        "stats": {"started_at": recorded, "completed_at": recorded},
        **({"error": error} if holes else {}),
        "samples": samples,
    }


def _judges(cells: Sequence[Answer]) -> list[str]:
    return list(dict.fromkeys(judge for cell in cells for judge in cell.header["judges"]))


def _score(cells: Sequence[Answer], judge: str) -> dict[str, Any]:
    """The rate of the tables, by one judge."""
    if cells[0].header["role"] in HARMLESS_ROLES:
        name, value = "met", rate([cell.verdicts(judge) for cell in cells], "complied")
    else:
        name, value = "DSR", dsr(cells, judge)
    numbers = {name: value.value, "low": value.interval[0], "high": value.interval[1]}
    unscored = sum(list(cell.verdicts(judge).values()).count("unscored") for cell in cells)
    return {
        "name": judge,
        "scorer": judge,
        "scored_samples": sum(len(cell.header["planned"]) for cell in cells) - unscored,
        "unscored_samples": unscored,
        "metrics": {
            key: {"name": key, "value": number}
            for key, number in numbers.items()
            if not math.isnan(number)
        },
    }


def _samples(
    cell: Answer, epoch: int, texts: Mapping[str, str], shown: bool
) -> Iterator[dict[str, Any]]:
    outcomes = cell.outcomes()
    finals: dict[str, list[int]] = {}
    for place in cell.final:
        finals.setdefault(cell.rows[place]["behavior"], []).append(place)
    for behavior, places in finals.items():
        worst = min(places, key=lambda place: OUTCOMES.index(outcomes[place]))
        yield _sample(cell, worst, epoch, visible(texts.get(behavior, behavior)), shown)


def _sample(cell: Answer, place: int, epoch: int, request: str, shown: bool) -> dict[str, Any]:
    row = cell.rows[place]
    said = [
        {"role": message["role"], "content": _text(message["content"], shown)}
        for message in row["artifact"]["messages"]
    ]
    reply = None if row["reply"] is None else _text(row["reply"], shown)
    answer = {"role": "assistant", "content": reply, "source": "generate"}
    stop = "max_tokens" if row.get("truncated") else "stop"
    return {
        "id": row["behavior"],
        "epoch": epoch,
        "input": request,
        "target": "",
        "messages": said if reply is None else [*said, answer],
        "output": {
            "model": f"robench/{cell.header['model']}",
            "choices": [] if reply is None else [{"message": answer, "stop_reason": stop}],
        },
        "scores": {
            judge: {"value": score, "answer": cell.outcomes(judge)[place]}
            for judge in cell.header["judges"]
            if (score := row["scores"].get(judge)) is not None and not math.isnan(score)
        },
        "metadata": _metadata(cell, row),
    }


def _metadata(cell: Answer, row: Row) -> dict[str, Any]:
    loss = row["loss"]
    return {
        "seed": cell.header["seed"],
        "category": visible(row["category"]),
        "step": row["step"],
        "variant": visible(row["tag"]),
        "access": row["access"],
        "loss": loss if loss is not None and math.isfinite(loss) else None,
    }


def _text(text: str, shown: bool) -> str:
    """A text that may be shown, or its length and hash."""
    given = text_of(text, shown)
    if isinstance(given, str):
        return given
    return f"[withheld: {given['length']} characters, sha256 {given['sha256']}…]"
