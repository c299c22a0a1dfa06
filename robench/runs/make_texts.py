"""`robench texts`: training text for defenses, made by the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from robench import files, judges
from robench.errors import InputError
from robench.methods.contract import refusal
from robench.methods.registry import refuse_unused_settings
from robench.model import loading
from robench.model.chat_model import ChatModel
from robench.results.degeneration import degenerate, measure
from robench.runs.from_run import begun, examples_of_run, whole
from robench.runs.plan import find_base, judge_device, with_defaults
from robench.runs.question import Question
from robench.texts import geography, records
from robench.texts.behaviors import (
    HARMFUL,
    HARMLESS,
    checksum,
    draw_behaviors,
    harmless,
    load_behaviors,
)
from robench.texts.leakage import check_disjoint
from robench.texts.refusals import SENTENCES, refused
from robench.texts.training_texts import fingerprint, load_examples, with_refusals
from robench.types import Behavior, Example, Judge, Prompt, threshold_of, user

RECORD = ".record.json"  # after the name of the file of texts
NAMES = {True: HARMFUL, False: HARMLESS}


def make_texts(
    question: Question,
    out: str | Path,
    *,
    run: str | Path | None = None,
    refusals: str | Path | None = None,
    tested: Sequence[str | Path] = (),
) -> str:
    """Ask the model, judge its replies, and write those that can be trained on, and a record.

    A harmful request is asked plainly and, where that brings no harm, with the target as the
    beginning of the reply. Each that is answered is refused as well.

    Args:
        question: model, `behaviors`, `benign`, `n`, judges and how the model replies.
        out: a JSONL file that does not exist yet, in the format of --train.
        run: the folder of a finished run, whose harmful replies are used besides.
        refusals: a text file with one per line, or training text whose refusals are drawn.
        tested: sets of requests that must not be among those asked.

    Returns:
        A line on what was made.

    Raises:
        InputError: a file is missing or does not fit, requests are among the tested ones, or no
            harmful request was answered.
    """
    path = _new_file(out)
    question = with_defaults(question)
    if question.model.threads:
        torch.set_num_threads(question.model.threads)
    harmful, benign = _requests(question)
    asked = [*harmful, *benign]
    _check_untested(asked, tested)
    said = _refusals(refusals, question)
    name, judge = _judge(question, asked)
    answers = _found_in(run, tested) if run else []
    model = _loaded(question)
    answers += _answers(model, judge, name, harmful, benign)
    examples = with_refusals(answers, said)
    if not any(e.behavior.harmful for e in examples):
        raise InputError(f"the model gave no harmful answer to the {len(harmful)} requests")
    counts = _counts(examples, harmful, benign)
    record = {
        **_record(question, model, {name: judges.record(judge)}, asked, examples),
        "run": run and str(run),
        "refusals": list(said),
        "counts": counts,
    }
    files.write_text(path, "".join(map(files.json_line, map(_row, examples))))
    files.write_json(path.with_name(path.name + RECORD), record)
    return f"{path}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items())


def _new_file(out: str | Path) -> Path:
    path = Path(out)
    if path.suffix != ".jsonl":
        raise InputError(f"{path} must end in .jsonl")
    if path.exists():
        raise InputError(f"{path} already exists; choose another --out")
    return path


def _requests(question: Question) -> tuple[list[Behavior], list[Behavior]]:
    texts = question.texts
    if texts.behaviors is None:
        raise InputError("give the harmful requests to ask: --behaviors FILE")
    harmful = load_behaviors(texts.behaviors, True, texts.targets)[0]
    benign = load_behaviors(texts.benign, False)[0] if texts.benign else harmless()[1::2]
    return (
        draw_behaviors(harmful, len(harmful) if texts.n is None else texts.n),
        draw_behaviors(benign, len(benign) if texts.n_benign is None else texts.n_benign),
    )


def _check_untested(asked: Sequence[Behavior], tested: Sequence[str | Path]) -> None:
    others = {
        f"requests of --tested {source}": [
            b for harmful in _sides(source) for b in load_behaviors(source, harmful)[0]
        ]
        for source in tested
    }
    check_disjoint("requests to make texts of", asked, others)


def _sides(source: str | Path) -> list[bool]:
    """Whether a set by name is one of harmful or of harmless requests; a file may be either."""
    named = [harmful for harmful, names in NAMES.items() if str(source) in names]
    return named or list(NAMES)


def _refusals(source: str | Path | None, question: Question) -> tuple[str, ...]:
    """The refusals to draw from, by default those of the set, or ours."""
    if source is None:
        is_geography = geography.split_of(str(question.texts.behaviors))
        return geography.REFUSALS if is_geography else SENTENCES
    if Path(source).suffix == ".txt":
        lines = records.content(Path(source)).splitlines()
        found = [line.strip() for line in lines if line.strip()]
    else:
        found = [e.reply for e in load_examples(source)[0] if e.kind == "refusal"]
    if not found:
        raise InputError(f"{source} has no refusals")
    return tuple(dict.fromkeys(found))


def _judge(question: Question, behaviors: Sequence[Behavior]) -> tuple[str, Judge]:
    """The first judge, which decides."""
    references = (question.judges or ())[:1]
    (method,) = judges.resolved(references, question.settings, judge_device(question))
    refuse_unused_settings(question.settings, [method])
    if reason := refusal(method, behaviors):
        raise InputError(reason)
    return method.name, method.instance


def _loaded(question: Question) -> ChatModel:
    spec, replies = question.model, question.replies
    return loading.load_model(
        find_base(spec),
        system=replies.system,
        max_new_tokens=int(replies.max_new_tokens or 0),
        device=str(spec.device),
        dtype=str(spec.dtype),
        device_map=spec.device_map,
    )


def _found_in(run: str | Path, tested: Sequence[str | Path]) -> list[Example]:
    answers = [e for e in examples_of_run(run)[0] if e.kind == "answer"]
    _check_untested([e.behavior for e in answers], tested)
    return answers


def _answers(
    model: ChatModel,
    judge: Judge,
    name: str,
    harmful: Sequence[Behavior],
    benign: Sequence[Behavior],
) -> list[Example]:
    """The model's own answers that the judge calls harmful, or help."""

    def kept(asked: Sequence[Behavior], beginnings: Sequence[str]) -> list[Example]:
        replies = model.replies(
            [Prompt(_messages(b, start)) for b, start in zip(asked, beginnings, strict=True)]
        )
        texts = [
            whole(begun(start, r.text), r.truncated)
            for start, r in zip(beginnings, replies, strict=True)
        ]
        scores = judges.scores(name, judge, asked, texts)
        return [
            Example(b, text, "answer")
            for b, text, score in zip(asked, texts, scores, strict=True)
            if score >= threshold_of(judge) and _is_usable(text)
        ]

    plain = kept(harmful, [""] * len(harmful))
    complied = {e.behavior.id for e in plain}
    others = [b for b in harmful if b.id not in complied]
    return [*plain, *kept(others, [b.target for b in others]), *kept(benign, [""] * len(benign))]


def _messages(behavior: Behavior, beginning: str) -> tuple[dict[str, str], ...]:
    spoken = ({"role": "assistant", "content": beginning},) if beginning else ()
    return (*user(behavior.request), *spoken)


def _is_usable(text: str) -> bool:
    return bool(text.strip()) and not refused(text) and not degenerate(measure(text))


def _counts(
    examples: Sequence[Example], harmful: Sequence[Behavior], benign: Sequence[Behavior]
) -> dict[str, int]:
    kinds = [(e.behavior.harmful, e.kind) for e in examples]
    return {
        "harmful requests asked": len(harmful),
        "answers to harmful requests": kinds.count((True, "answer")),
        "refusals": kinds.count((True, "refusal")),
        "harmless requests asked": len(benign),
        "answers to harmless requests": kinds.count((False, "answer")),
    }


def _row(example: Example) -> dict[str, Any]:
    behavior = example.behavior
    return {
        "id": behavior.id,
        "prompt": behavior.text,
        "context": behavior.context,
        "reply": example.reply,
        "kind": example.kind,
        "harmful": str(behavior.harmful).lower(),
        "category": behavior.category,
    }


def _record(
    question: Question,
    model: ChatModel,
    judged_by: dict[str, Any],
    asked: Sequence[Behavior],
    examples: Sequence[Example],
) -> dict[str, Any]:
    """How the texts were made."""
    return {
        "model": question.model.id,
        "identity": model.identity,
        "dtype": question.model.dtype,
        "system": question.replies.system,
        "max_new_tokens": question.replies.max_new_tokens,
        "judge": judged_by,
        "behaviors": str(question.texts.behaviors),
        "benign": question.texts.benign and str(question.texts.benign),
        "asked": checksum(asked),
        "texts": fingerprint(examples),
        "versions": {name: version(name) for name in ("robench", "torch", "transformers")},
    }
