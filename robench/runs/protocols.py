"""Published evaluation protocols as presets of a run: `--protocol harmbench`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robench.errors import InputError
from robench.model.loading import BUILT_IN
from robench.runs.question import Question


@dataclass(frozen=True)
class Protocol:
    """What a protocol fixes.

    max_new_tokens: of a reply
    judge:          the one that decides
    fields:         of the judge
    behaviors:      under test, unless others are given
    """

    max_new_tokens: int
    judge: str
    fields: Mapping[str, Any]
    behaviors: str


# Mazeika et al., arXiv 2402.04249: greedy replies of 512 tokens, so that results do not depend on
# their number, and the classifier of its main results. Answers that are neither yes nor no, which
# the authors' script counts as no, stay unscored and are counted apart.
PROTOCOLS = {
    "harmbench": Protocol(
        max_new_tokens=512,
        judge="harmbench",
        fields={
            "model": "cais/HarmBench-Llama-2-13b-cls",
            # The commit of the hub's main branch that public evaluations name.
            "revision": "bda705349d1144fa618770bea64d99ce54e3835b",
            "tokens": 512,
        },
        behaviors="harmbench",
    )
}


def with_protocol(question: Question) -> Question:
    """The question with what its protocol fixes filled in.

    Raises:
        InputError: it asks for something else at the same time.
    """
    name = question.protocol
    if name is None:
        return question
    protocol, replies = PROTOCOLS[name], question.replies
    _refuse(name, "--max-new-tokens", replies.max_new_tokens, protocol.max_new_tokens)
    _refuse(name, "--samples", replies.samples or None, 0)
    judges = question.judges or (protocol.judge,)
    _refuse(name, "the first of --judges", judges[0], protocol.judge)
    fields = _judge_fields(name, protocol, question.settings.get(protocol.judge, {}))
    behaviors = question.texts.behaviors
    if behaviors is None and question.model.id != BUILT_IN:
        behaviors = protocol.behaviors
    return replace(
        question,
        judges=judges,
        settings={**question.settings, protocol.judge: fields},
        replies=replace(replies, max_new_tokens=protocol.max_new_tokens),
        texts=replace(question.texts, behaviors=behaviors),
    )


def _judge_fields(name: str, protocol: Protocol, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the protocol's judge, with what was set by hand besides them.

    A folder may stand in the place of the hub's model; it has no revisions, but its record has the
    hash of its weights.
    """
    fixed = dict(protocol.fields)
    if Path(str(chosen.get("model", ""))).expanduser().is_dir() and "model" in chosen:
        fixed.update(model=chosen["model"], revision="")
    for field, value in fixed.items():
        _refuse(name, f"{protocol.judge}.{field}", chosen.get(field), value)
    return {**chosen, **fixed}


def _refuse(protocol: str, what: str, given: Any, fixed: Any) -> None:
    if given is not None and str(given) != str(fixed):
        raise InputError(
            f"--protocol {protocol} has {what} {fixed}, not {given}: leave one of the two out"
        )
