"""`robench.run`: the Python call that asks a question."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from robench import console
from robench.runs.outcome import Outcome
from robench.runs.plan import plan
from robench.runs.question import OPTIONS, Question
from robench.runs.workers import Workers


def run(
    *,
    out: str | Path | None = None,
    keep_going: bool = False,
    replace: bool = False,
    tflops: float | None = None,
    workers: int | str | None = None,
    gpus_per_worker: float | None = None,
    chunk_timeout: float | None = None,
    **options: Any,
) -> Outcome:
    """Cross every attack with every defense; what is already in the folder is not done again.

        robench.run(attacks=["direct", GCG(steps=100)], defenses=["none", "crl"], n=10, out="mine")

    Attacks, defenses and judges are names, `file.py:Class` references or configured instances;
    `settings` are those of --set, as `{"gcg": {"steps": 100}}`.

    Args:
        out: the run's folder, by default results/runs/MATRIX.
        keep_going: whether a cell that fails by an unexpected error becomes a hole.
        replace: whether cells of changed methods are run again in the place of the old ones.
        tflops: sustained TFLOP/s of the device, for the forecast.
        workers: how many, each in a process of its own; "auto", one per GPU; or the address of a
            Ray cluster. By default one in this process.
        gpus_per_worker: by default 1; less than that to share GPUs.
        chunk_timeout: seconds after which a worker that hangs is replaced.
        options: the fields of `Question`, as `robench run --help` lists them.

    Raises:
        InputError: something asked for does not exist or does not fit.
    """
    console.forgive()
    many = Workers.of(workers, gpus_per_worker, chunk_timeout)
    planned = plan(Question.of(**options), here=not (many and many.address))
    return planned.run(out, keep_going=keep_going, replace=replace, tflops=tflops, workers=many)


def _signature() -> inspect.Signature:
    """The call's signature with every option by name, for `help` and for completion."""
    own = list(inspect.signature(run).parameters.values())[:-1]
    asked = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=option.type,
        )
        for option in OPTIONS.values()
    ]
    return inspect.Signature([*asked, *own], return_annotation=Outcome)


run.__signature__ = _signature()  # type: ignore[attr-defined]
