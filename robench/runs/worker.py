"""A worker: the base model in memory, with the defense that it put on last.

One works in the process of a run, or many in processes of their own, see `actors`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from robench import judges
from robench.errors import Failure, InputError
from robench.methods.contract import refusal
from robench.methods.registry import Method
from robench.model import loading
from robench.model.chat_model import ChatModel
from robench.results import artifacts
from robench.results.schema import HARMLESS_ROLES
from robench.results.store import Cell
from robench.runs.answering import Answerer, BrokenContract, attempts_of
from robench.runs.base import load_base
from robench.runs.devices import hardware
from robench.runs.failures import failed, one_line
from robench.runs.run_texts import RunTexts, lacking
from robench.runs.tasks import (
    About,
    Answered,
    Chunk,
    Failed,
    Group,
    Training,
    Unfitted,
    tensors_name,
)
from robench.texts.refusals import refused
from robench.types import Behavior, Context, Judge


@dataclass(frozen=True)
class Job:
    """What all workers of a run are told once.

    asked:      how the model replies and its dtype, as the run's record has them
    tune_judge: which of the judges attacks choose their settings by
    groups:     the cells that are left to do
    """

    asked: Mapping[str, Any]
    device: str
    device_map: str | None
    texts: RunTexts
    judges: Mapping[str, Judge]
    tune_judge: str
    groups: Sequence[Group]

    @cached_property
    def cells(self) -> dict[str, tuple[Cell, Method]]:
        """The cells and their attacks by the cell's name."""
        return {cell.name: (cell, attack) for g in self.groups for cell, attack in g.cells}

    def behaviors(self, cell: Cell) -> list[Behavior]:
        """Those that a cell is asked, in the order in which chunks are cut from them."""
        harmless = cell.header["role"] in HARMLESS_ROLES
        return self.texts.benign if harmless else self.texts.behaviors


@dataclass
class Worker:
    """A model that does what a run is made of, one thing at a time.

    helper: loads a helper model by its name
    """

    job: Job
    base: ChatModel
    helper: Callable[[str], ChatModel]
    _worn: ExitStack = field(default_factory=ExitStack)
    _target: ChatModel | None = None
    _group: int | None = None

    @classmethod
    def load(cls, job: Job, files: loading.ModelFiles) -> Worker:
        """Load the model, and let each judge score once.

        Raises:
            InputError: the model or a judge cannot be loaded.
        """
        base, helper = load_base(files, job.asked, job.device, job.device_map)
        _preflight(job.judges, job.texts.behaviors[0])
        return cls(job, base, helper)

    def about(self) -> About:
        """How this worker answers, for the records of its cells."""
        attention = self.base.network.config._attn_implementation
        return About(hardware(self.job.device), torch.get_num_threads(), attention)

    def train(self, task: Training, cache: Path) -> Failed | None:
        """Put a defense on, which is trained if it has to be; what it keeps is in `cache`."""
        self.take_off()
        defense = self.job.groups[task.group].defense
        try:
            self._check_texts(defense)
            self._put_on(task.group, cache)
        except (Exception, SystemExit) as error:
            return failed(defense, error)
        return None

    def answer(
        self, task: Chunk, cache: Path, memory: bytes | None
    ) -> Answered | Unfitted | Failed:
        """The rows of a chunk.

        Args:
            cache: of the defense, which was trained before.
            memory: what the cell has fitted so far.
        """
        cell, attack = self.job.cells[task.cell]
        if self._group != task.group:
            again = self.train(Training(task.group), cache)
            if again:
                return again
        try:
            self._check_texts(attack)
            return self._answer(task, cell, attack, memory)
        except _NotFitted:
            return Unfitted()
        except (Exception, SystemExit) as error:
            return failed(attack, error)

    def take_off(self) -> None:
        """Take the defense off: the base model is as it was."""
        self._group = self._target = None
        self._worn.close()

    def _put_on(self, group: int, cache: Path) -> None:
        defense, seed = self.job.groups[group].defense, self.job.groups[group].seed
        with ExitStack() as stack:
            applied = _applied(defense, self.base, self._context(seed), cache)
            target = stack.enter_context(applied)
            _check_target(defense, target)
            self._worn, self._target, self._group = stack.pop_all(), target, group

    def _answer(self, task: Chunk, cell: Cell, attack: Method, memory: bytes | None) -> Answered:
        target = self._target
        assert target is not None
        ctx = self._context(cell.seed, Context if task.fits else _Fitted)
        if memory is not None:
            artifacts.recall(ctx, memory)
        known = _names(ctx)
        chunk = self.job.behaviors(cell)[task.start : task.start + cell.header["chunk"]]
        costed = attempts_of(attack, target, chunk, ctx)
        answerer = Answerer(self.base, self.job.judges)
        rows, tensors = answerer.rows(costed, target, tensors_name(task.start), cell, ctx)
        is_new = _names(ctx) != known
        return Answered(rows, tensors, artifacts.packed_memory(ctx) if is_new else None)

    def _context(self, seed: int, kind: type[Context] = Context) -> Context:
        texts = self.job.texts
        return kind(
            references=texts.references,
            tune=texts.tune,
            examples=texts.examples,
            judge=self.job.judges[self.job.tune_judge],
            refused=partial(refused, phrases="harmbench"),
            seed=seed,
            model=self.helper,
        )

    def _check_texts(self, method: Method) -> None:
        texts = self.job.texts
        reason = lacking(method, texts) or refusal(method, texts.behaviors)
        if reason:
            raise Failure(reason)


class _NotFitted(BaseException):
    """What a chunk that is not to fit anything stops by; no attack catches it by mistake."""


class _Fitted(Context):
    """A context that gives what was fitted elsewhere, and stops whoever asks for more."""

    def memo(
        self, key: str, make: Callable[[], Mapping[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        if key not in self.memory:
            raise _NotFitted
        return self.memory[key]


def _names(ctx: Context) -> set[tuple[str, str]]:
    return {(key, name) for key, made in ctx.memory.items() for name in made}


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


def _preflight(chosen_judges: Mapping[str, Judge], behavior: Behavior) -> None:
    """Let every judge score a reply, so that one that cannot be loaded costs no attack its work.

    Raises:
        InputError: its model does not fit into the memory or cannot be read.
    """
    for name, judge in chosen_judges.items():
        try:
            judges.scores(name, judge, [behavior], ["No."])
        except (torch.OutOfMemoryError, OSError) as error:
            raise InputError(
                f"judge {name} cannot be loaded besides the model: {one_line(error)}; put it on "
                "another device with --judge-device, or run with --judges keyword and let it judge "
                f"afterwards: robench judge DIR --judges {name}"
            ) from error
