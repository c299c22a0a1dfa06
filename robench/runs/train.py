"""Training one defense without a run: for `adapter:FOLDER`, or for the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from robench import locks
from robench.errors import InputError
from robench.methods.registry import Method, refuse_unused_settings, resolve_all
from robench.model import loading
from robench.runs.plan import find_base, with_defaults
from robench.runs.question import Question
from robench.runs.run_texts import RunTexts, gather, lacking
from robench.training.adapters import RECORD
from robench.types import Context


def train(defense: Any, out: str | Path, question: Question, seed: int = 0) -> None:
    """Train a defense as a run would, into a peft folder; a killed training resumes.

    Args:
        defense: a reference or a configured instance.
        out: the folder, which must not exist yet.
        question: what it says of the model, the training text, requests that must not occur in it
            (`behaviors`), the system prompt, settings and tier.

    Raises:
        InputError: something asked for does not exist or does not fit.
        Failure: the training failed.
    """
    folder = Path(out)
    if question.model.threads:
        torch.set_num_threads(question.model.threads)
    if folder.exists():
        raise InputError(f"{folder} already exists; choose another --out")
    question = with_defaults(question)
    spec = question.model
    (method,) = resolve_all("defense", [defense], question.tier or "demo", question.settings)
    refuse_unused_settings(question.settings, [method])
    everything = sys.maxsize  # whatever may be under test one day
    texts = gather(spec.id, question.texts, everything, everything)
    if reason := lacking(method, texts):
        raise InputError(f"{method.name} {reason}")
    for note in texts.notes:
        print(f"note: {note}", flush=True)
    with locks.reserved(folder):
        _train(method, folder, question, texts, seed)


def _train(method: Method, folder: Path, question: Question, texts: RunTexts, seed: int) -> None:
    """Train into a folder that this process holds."""
    if folder.exists():  # another process has finished meanwhile
        raise InputError(f"{folder} already exists; choose another --out")
    spec = question.model
    base = loading.load_model(
        find_base(spec),
        system=question.replies.system,
        template_args=question.replies.template_args,
        device=str(spec.device),
        dtype=str(spec.dtype),
        device_map=spec.device_map,
    )
    ctx = Context(texts.references, texts.tune, texts.examples, seed=seed)
    with method.instance.applied(base, ctx, folder):
        if not (folder / RECORD).is_file():
            raise InputError(f"{method.name} is a defense that trains nothing")
