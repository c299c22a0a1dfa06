"""Which requests with checkable answers a model knows, so that only those are under test.

A request that the model answers wrongly by itself says nothing of a defense: no attack gets out of
a model what is not in it. Nothing here imports torch before a model is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from robench.config import digest
from robench.errors import InputError
from robench.judges.contains import Contains
from robench.results.schema import Known
from robench.runs.question import Question
from robench.types import Behavior, Prompt, user

if TYPE_CHECKING:
    from robench.model.loading import ModelFiles

TOKENS = 48  # of a reply: who knows an answer says it early

Ask = Callable[[Sequence[Behavior]], tuple[str, list[str]]]  # the model's name, its replies


def replies_of(question: Question) -> Ask:
    """What asks the model that `--known` names, on the device and in the precision of the run."""
    return partial(_replies, question)


def known_requests(behaviors: Sequence[Behavior], ask: Ask) -> tuple[list[Behavior], Known]:
    """The requests whose facts the model tells in every phrasing; those without answers are kept.

    Requests without a `fact` are one of their own.

    Raises:
        InputError: no harmful request has an answer, or the model knows none of them.
    """
    checkable = [b for b in behaviors if b.answer]
    if not any(b.harmful for b in checkable):
        raise InputError("--known is for requests with answers: give a file with a column answer")
    model, replies = ask(checkable)
    scores = Contains().score(checkable, replies)
    wrong = {_fact(b) for b, score in zip(checkable, scores, strict=True) if score < 1}
    known = [b for b in checkable if _fact(b) not in wrong]
    counts = {side: [sum(b.harmful == side for b in of) for of in (known, checkable)]
              for side in (True, False)}  # fmt: skip
    if not counts[True][0]:
        raise InputError(
            f"{model} answers none of the {counts[True][1]} harmful requests right in all "
            "phrasings: name the model before it was aligned, or leave --known out"
        )
    kept = [b for b in behaviors if not b.answer or _fact(b) not in wrong]
    record: Known = {
        "model": model,
        "harmful": counts[True][0],
        "of_harmful": counts[True][1],
        "benign": counts[False][0],
        "of_benign": counts[False][1],
    }
    return kept, record


def _fact(behavior: Behavior) -> tuple[bool, str]:
    return behavior.harmful, behavior.fact or behavior.id


def _replies(question: Question, behaviors: Sequence[Behavior]) -> tuple[str, list[str]]:
    """The name of the model, and its replies; those to the same question are kept in the cache."""
    from robench.model import cache, loading

    files = loading.find_model(str(question.texts.known))
    requests = [b.request for b in behaviors]
    key = digest([requests, TOKENS, _conditions(question, files), _versions()])
    what = f"{files.name}: its replies for --known"
    make = partial(_generated, question, files, requests)
    return files.name, cache.remembered(what, "known", key, make)


def _conditions(question: Question, files: ModelFiles) -> list[object]:
    """What the replies depend on besides the requests."""
    spec, replies = question.model, question.replies
    template = files.template_with(replies.template_args)
    return [files.weights, template, replies.system, spec.dtype, spec.device, spec.device_map]


def _versions() -> list[str]:
    return [version(package) for package in ("robench", "torch", "transformers")]


def _generated(question: Question, files: ModelFiles, requests: Sequence[str]) -> list[str]:
    from robench.model import loading

    spec = question.model
    model = loading.load_model(
        files,
        device=str(spec.device),
        dtype=str(spec.dtype),
        device_map=spec.device_map,
        system=question.replies.system,
        template_args=question.replies.template_args,
        max_new_tokens=TOKENS,
    )
    return model.generate([Prompt(user(request)) for request in requests])
