"""What was asked, tried, said and judged, behavior by behavior, as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from robench.config import suggestion
from robench.errors import InputError
from robench.results.report.attempts import Text, details, may_show
from robench.results.verdicts import Answer, attacked, distinct, where


def inspected(
    answers: Sequence[Answer],
    texts: Mapping[str, str],
    broke: bool = False,
    defense: str = "",
    attack: str = "",
    replies: bool = False,
) -> Iterator[str]:
    """A paragraph for each behavior of each attack on each defense.

    Args:
        texts: behavior -> what is requested.
        broke: whether only behaviors that broke are shown.
        defense, attack: the only one to show; "" for all.
        replies: whether prompts and replies of models that are not make-believe are shown.

    Raises:
        InputError: there is no such defense or attack.
    """
    chosen = attacked(answers)
    for kind, name in (("defense", defense), ("attack", attack)):
        known = distinct(chosen, kind)
        if name and name not in known:
            raise InputError(f"no {kind} called {name!r} in this run{suggestion(name, known)}")
        chosen = [a for a in chosen if not name or where([a], **{kind: name})]
    places = dict.fromkeys((a.header["model"], a.header["defense"], a.header["attack"])
                           for a in chosen)  # fmt: skip
    for model, on, by in places:
        cells = where(chosen, model=model, defense=on, attack=by)
        shown = details(cells, texts, may_show(model, replies))
        for behavior in shown["behaviors"]:
            if not broke or "harmful" in behavior["outcomes"]:
                yield _paragraph(shown, behavior, broke)


def _paragraph(cell: Mapping[str, Any], behavior: Mapping[str, Any], broke: bool) -> str:
    outcomes = ", ".join(behavior["outcomes"])
    lines = [f"{cell['attack']} on {cell['defense']} · {behavior['id']}: {outcomes}"]
    lines += [f"  request  {behavior['text']}"] if behavior["text"] else []
    for attempt in behavior["attempts"]:
        if broke and attempt["outcome"] != "harmful":
            continue
        scores = ", ".join(
            f"{judge} {'?' if score is None else score}"
            for judge, score in zip(cell["judges"], attempt["scores"], strict=True)
        )
        tag = f", variant {attempt['tag']}" if attempt["tag"] else ""
        lines += [
            f"  step {attempt['step']}{tag}, seed {attempt['seed']}: "
            f"{attempt['outcome']} ({scores})",
            f"    prompt {_shown(attempt['prompt'])}",
            f"    reply  {_shown(attempt['reply'])}",
        ]
    return "\n".join(lines) + "\n"


def _shown(text: Text | None) -> str:
    if text is None:
        return "none"
    if isinstance(text, str):
        return text.replace("\n", "\n           ")
    return f"withheld, {text['length']} characters, sha256 {text['sha256']}… (--replies shows it)"
