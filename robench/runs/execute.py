"""The straight line: apply each defense, run each attack, reply, judge, store.

Cells are grouped by defense and seed, so each defense is put on once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from robench.errors import Failure, InputError
from robench.methods.contract import refusal
from robench.methods.faults import blame, class_of, is_ours, line_of, of
from robench.methods.registry import EXTERNAL, Method
from robench.model.chat_model import ChatModel
from robench.results import artifacts
from robench.results.schema import HARMLESS_ROLES
from robench.results.store import Cell, RunStore
from robench.runs.answering import Answerer, BrokenContract, attempts_of
from robench.runs.cells import Group
from robench.runs.progress import Progress
from robench.runs.run_texts import RunTexts, lacking
from robench.texts.refusals import refused
from robench.training.adapters import RECORD
from robench.types import Context, Judge


@dataclass(frozen=True)
class Execution:
    """What all cells of a run share while they are worked on.

    tune_judge: which of the judges attacks choose their settings by
    helper:     loads a helper model by its name
    keep_going: whether a cell that fails by an unexpected error becomes a hole
    info:       how cells are answered, for their records
    """

    store: RunStore
    texts: RunTexts
    base: ChatModel
    judges: Mapping[str, Judge]
    tune_judge: str
    helper: Callable[[str], ChatModel]
    keep_going: bool
    info: Mapping[str, Any]

    def run(self, groups: Sequence[Group], progress: Progress) -> None:
        """Work on all cells of some groups; what is already stored is not done again."""
        for group in groups:
            if group.cells:
                self._group(group, progress)

    def _group(self, group: Group, progress: Progress) -> None:
        """All cells of one defense; a defense that fails is a hole in each of them."""
        with ExitStack() as stack:
            try:
                self._check_texts(group.defense)
                ctx = self._context(group.seed)
                cache = self.store.adapter(group.cells[0][0].header)
                progress.training(group)
                target = stack.enter_context(_applied(group.defense, self.base, ctx, cache))
                _check_target(group.defense, target)
            except (Exception, SystemExit) as error:
                for cell, _ in group.cells:
                    self.store.open(cell, self.info)
                    self._hole(cell, f"defense {group.defense.name}: {one_line(error)}", progress)
                self._raise_unless_expected(group.defense, error)
                return
            info = {
                **self.info,
                "defense_reference": group.defense.base,
                **_training(cache, group.defense.tier == EXTERNAL),
            }
            for cell, attack in group.cells:
                self._cell(cell, attack, target, info, progress)

    def _cell(
        self,
        cell: Cell,
        attack: Method,
        target: ChatModel,
        info: Mapping[str, Any],
        progress: Progress,
    ) -> None:
        """One cell; if it fails it is a hole."""
        progress.begin(cell)
        self.store.open(cell, {**info, "attack_reference": attack.base})
        self.store.clear_failure(cell)
        try:
            self._check_texts(attack)
            self._chunks(cell, attack, target)
        except (Exception, SystemExit) as error:
            self._hole(cell, one_line(error), progress)
            self._raise_unless_expected(attack, error)
        else:
            progress.end(cell)

    def _chunks(self, cell: Cell, attack: Method, target: ChatModel) -> None:
        """Redo each unfinished chunk of behaviors whole; add the rows of those not yet written."""
        harmless = cell.header["role"] in HARMLESS_ROLES
        behaviors = self.texts.benign if harmless else self.texts.behaviors
        done = self.store.done(cell)
        ctx = self._context(cell.seed)
        memo = self.store.path(cell) / "memo.safetensors"
        artifacts.recall(ctx, memo)
        answerer = Answerer(self.base, self.judges)
        size = cell.header["chunk"]
        for start in range(0, len(behaviors), size):
            chunk = behaviors[start : start + size]
            waiting = {behavior.id for behavior in chunk} - done
            if not waiting:
                continue
            costed = attempts_of(attack, target, chunk, ctx)
            tensors = self.store.path(cell) / "tensors" / f"{start:05d}.safetensors"
            rows = answerer.rows(costed, target, tensors, cell, ctx)
            artifacts.remember(ctx, memo)
            self.store.append(cell, [row for row in rows if row["behavior"] in waiting])

    def _context(self, seed: int) -> Context:
        texts = self.texts
        return Context(
            references=texts.references,
            tune=texts.tune,
            examples=texts.examples,
            judge=self.judges[self.tune_judge],
            refused=partial(refused, phrases="harmbench"),
            seed=seed,
            model=self.helper,
        )

    def _check_texts(self, method: Method) -> None:
        reason = lacking(method, self.texts) or refusal(method, self.texts.behaviors)
        if reason:
            raise Failure(reason)

    def _hole(self, cell: Cell, reason: str, progress: Progress) -> None:
        self.store.fail(cell, reason)
        progress.hole(cell, reason)

    def _raise_unless_expected(self, method: Method, error: BaseException) -> None:
        """End the run by an error of the disk, of the user or of a program, unless it is to go on.

        An error inside a method that does not come with robench is its author's: one line.
        """
        if isinstance(error, (OSError, InputError)):
            raise error
        if self.keep_going or isinstance(error, (Failure, torch.OutOfMemoryError)):
            return
        if not is_ours(method.instance):
            if isinstance(error, BrokenContract):
                raise InputError(f"{error} ({class_of(method.instance)})") from error
            if line_of(method.instance, error):
                raise InputError(blame(*of(method), error)) from error
        raise error


def _applied(
    defense: Method, base: ChatModel, ctx: Context, cache: Path
) -> AbstractContextManager[Any]:
    """What a defense's `applied` gives, held to its contract."""
    manager = defense.instance.applied(base, ctx, cache)
    if not isinstance(manager, AbstractContextManager):
        raise BrokenContract(
            f"defense {defense.name} breaks its contract: applied gives {type(manager).__name__}, "
            "no context manager: put @contextmanager above it"
        )
    return manager


def _check_target(defense: Method, target: Any) -> None:
    if not isinstance(target, ChatModel):
        raise BrokenContract(
            f"defense {defense.name} breaks its contract: it yields an object of type "
            f"{type(target).__name__}, no ChatModel"
        )


def _training(cache: Path, external: bool) -> dict[str, float | None]:
    """What a trained defense cost and reached, as its record says; None if others trained it."""
    record = cache / RECORD
    if not record.is_file():
        cost = None if external else 0.0
        return {"train_seconds": cost, "train_tflop": cost}
    stored = yaml.safe_load(record.read_text("utf-8"))
    of_training = {key: stored[key] for key in ("train_seconds", "train_tflop")}
    return {**of_training, "linear_share": stored["linear_weights"]["share_reached"]}


def one_line(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, Failure):
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}"
