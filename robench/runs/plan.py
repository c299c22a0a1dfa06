"""From a question to the cells that answer it: methods, model, texts and judges, all checked.

What needs transformers is imported where cells are left to do: a finished run answers at once.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from robench import judges
from robench.config import as_dict, assignments, suggestion
from robench.errors import InputError
from robench.methods.contract import refusal
from robench.methods.faults import blamed, of
from robench.methods.registry import Method, refuse_unused_settings, resolve_all
from robench.model import loading
from robench.model.thoughts import THINKING
from robench.results.schema import HARMLESS_ROLES, Info, Suite
from robench.results.store import Cell, RunStore
from robench.results.tables import tables
from robench.runs.cells import groups_of
from robench.runs.chunks import ChunkSize
from robench.runs.devices import choose_device, default_dtype, hardware
from robench.runs.journal import Journal
from robench.runs.known import replies_of
from robench.runs.matrices import Matrix
from robench.runs.outcome import Outcome
from robench.runs.progress import ManyProgress, Progress
from robench.runs.protocols import with_protocol
from robench.runs.question import ModelSpec, Question
from robench.runs.rates import expected, given
from robench.runs.run_texts import RunTexts, gather, lacking, with_companions
from robench.runs.tasks import Group
from robench.texts import geography
from robench.types import Judge, reads_content, user

if TYPE_CHECKING:
    import pandas as pd

    from robench.model.chat import Chat
    from robench.runs.pool import Pool
    from robench.runs.tasks import About
    from robench.runs.workers import Workers

PACKAGES = ("robench", "torch", "transformers", "peft", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Plan:
    """What a question comes to, before anything is loaded.

    question: with all defaults filled in
    suite:    the matrix's name and the attacks that it declares
    files:    of the model under test
    texts:    under test, read and trained on
    judges:   by name; the first decides
    shared:   what the headers of all cells have in common: the record in run.json
    groups:   the cells, by defense and seed
    """

    question: Question
    suite: Suite
    files: loading.ModelFiles
    texts: RunTexts
    judges: Mapping[str, Judge]
    shared: Mapping[str, Any]
    groups: tuple[Group, ...]

    @property
    def default_folder(self) -> Path:
        """Where the run goes unless it is told otherwise."""
        built_in = self.files.name == loading.BUILT_IN
        name = self.suite["name"] if built_in else f"{self.suite['name']}-{self.files.name}"
        return Path("results") / "runs" / Cell.slug(name)

    @cached_property
    def unloaded(self) -> tuple[Chat, Any]:
        """The chat and the network of the model under test, without its weights.

        Raises:
            InputError: its template or its architecture does not allow what is asked.
        """
        replies = self.question.replies
        return loading.load_without_weights(self.files, replies.system, replies.template_args)

    def check_lengths(self) -> None:
        """That every request under test and its reply fit into the model's context.

        Raises:
            InputError: one does not.
        """
        from robench.model.limits import context_of

        chat, network = self.unloaded
        context, shared = context_of(network.config), self.shared
        if context is None:
            return
        reply = shared["max_new_tokens"] + (shared["max_thinking_tokens"] if chat.may_think else 0)
        asked = (*self.texts.behaviors, *self.texts.benign)
        prompts = chat.encode([chat.render(user(behavior.request)) for behavior in asked])
        lengths = {b.id: len(ids) for b, ids in zip(asked, prompts, strict=True)}
        too_long = [name for name, length in lengths.items() if length + reply > context.tokens]
        if too_long:
            first = max(too_long, key=lambda name: lengths[name])
            why = f": {context.reason}" if context.reason else ""
            raise InputError(
                f"{self.files.name} reads {context.tokens} tokens{why}; with replies of up to "
                f"{reply}, thoughts included, {len(too_long)} of {len(asked)} requests are too "
                f"long, first {first!r} with {lengths[first]}: give a smaller --max-new-tokens "
                "(or --max-thinking-tokens), or leave them out"
            )

    def pending(self, store: RunStore) -> tuple[Group, ...]:
        """The groups with the cells that a folder does not hold yet."""
        return tuple(
            replace(group, cells=tuple(p for p in group.cells if not store.complete(p[0])))
            for group in self.groups
        )

    def check_texts(self) -> None:
        """That no method lacks the texts that it needs, or cannot work on those under test.

        Raises:
            InputError: one does.
        """
        methods = [group.defense for group in self.groups]
        methods += [attack for group in self.groups for _, attack in group.cells]
        for method in methods:
            if reason := lacking(method, self.texts):
                raise InputError(f"{method.name} {reason}, or leave it out")
            if reason := refusal(method, self.texts.behaviors):
                raise InputError(f"{reason}, or leave it out")

    def _check_model(self, pending: Sequence[Group], keep_going: bool = False) -> None:
        """That the model can be asked what is pending; too long a request may become a hole."""
        if any(group.cells for group in pending):
            _ = self.unloaded
            if not keep_going:
                self.check_lengths()

    def forecast(
        self, groups: Sequence[Group] | None = None, tflops: float | None = None
    ) -> pd.DataFrame:
        """What the cells are going to cost: a row per training and per cell, without running any.

        Columns: defense, attack, seed, cell, steps, tflop, replies_tflop, seconds, memory_gib,
        disk_gib. What a method does not forecast is missing. `attrs` holds the setup.

        Args:
            groups: some of the plan's, by default all.
            tflops: sustained TFLOP/s of the device; by default that of matrix products, measured in
                half a second, of a GPU times the share that the engine reached in a benchmark.
        """
        from robench.runs.forecast import Estimate, Setup, forecast, measured_rate

        spec = self.question.model
        assert spec.device and spec.dtype
        if tflops is None and spec.device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError("there is no GPU here whose rate could be measured: give --tflops")
        rate = (
            expected(measured_rate(spec.device, spec.dtype), spec.device, hardware(spec.device))
            if tflops is None
            else given(tflops, spec.device)
        )
        chat, _ = self.unloaded
        replies = self.question.replies
        length = self.shared["max_new_tokens"]
        length += self.shared["max_thinking_tokens"] if chat.may_think else 0
        setup = Setup(spec.device, spec.dtype, length, replies.samples, *rate)
        estimate = Estimate(self.files, replies.system, self.texts, setup, replies.template_args)
        return forecast(self.groups if groups is None else groups, estimate)

    def preview(self, out: str | Path | None = None, tflops: float | None = None) -> str:
        """What `robench run --dry-run` prints: what a folder holds, and what the rest will cost."""
        self.check_texts()
        store = RunStore(Path(out) if out else self.default_folder)
        store.check_cells([cell for group in self.groups for cell, _ in group.cells])
        pending = self.pending(store)
        self._check_model(pending)
        lines = [self._counts(store, pending), *(f"note: {note}" for note in self.texts.notes)]
        if any(group.cells for group in pending):
            from robench.runs.forecast import summary

            lines.append(summary(self.forecast(pending, tflops)))
        return "\n".join(lines)

    def run(
        self,
        out: str | Path | None = None,
        *,
        keep_going: bool = False,
        replace: bool = False,
        tflops: float | None = None,
        workers: Workers | None = None,
    ) -> Outcome:
        """Ask what the folder does not hold yet, and write its tables.

        Args:
            out: the run's folder, by default `default_folder`.
            keep_going: whether a cell that fails by an unexpected error becomes a hole.
            replace: whether cells of changed methods are run again in the place of the old ones.
            tflops: as for `forecast`.
            workers: many, by Ray; by default one in this process.

        Raises:
            InputError: the folder holds another question or is in use.
        """
        if not keep_going:
            self.check_texts()
        if workers:
            workers.check()
        store = RunStore(Path(out) if out else self.default_folder)
        cells = [cell for group in self.groups for cell, _ in group.cells]
        order = {
            "defenses": list(dict.fromkeys(cell.defense for cell in cells)),
            "attacks": list(
                dict.fromkeys(c.attack for c in cells if c.header["role"] not in HARMLESS_ROLES)
            ),
        }
        self._check_model(self.pending(store), keep_going)
        with store.locked(new=True):
            for warning in store.open_for(self.shared, _versions(), order):
                tqdm.write(f"warning: {warning}")
            store.save_behaviors([as_dict(b) for b in (*self.texts.behaviors, *self.texts.benign)])
            store.check_cells(cells, replace=replace)
            pending = self.pending(store)
            print(self._counts(store, pending), flush=True)
            notes = [*self.texts.notes, *self._advice(store)]
            for note in notes:
                print(f"note: {note}", flush=True)
            if any(group.cells for group in pending):
                self._execute(store, pending, keep_going, tflops, workers)
            tables([store.folder], page=True)
        return Outcome.of(store, cells, *(f"note: {advice}" for advice in self._advice(store)))

    def _advice(self, store: RunStore) -> list[str]:
        """Which judge to add where none reads what a real model's replies say."""
        if self.files.name == loading.BUILT_IN or any(map(reads_content, self.judges.values())):
            return []
        command = shlex.join(
            ["robench", "judge", str(store.folder), "--judges", f"rubric:{self.files.name}"]
        )
        return [
            f"{' and '.join(self.judges)} cannot tell whether a reply helps: add a judge that "
            f"reads replies (another model than the one under test is better): {command}"
        ]

    def _execute(
        self,
        store: RunStore,
        pending: Sequence[Group],
        keep_going: bool,
        tflops: float | None,
        workers: Workers | None,
    ) -> None:
        from robench.runs.execute import Execution, chunks_left
        from robench.runs.forecast import seconds_of, summary

        pending = [group for group in pending if group.cells]
        expected = self.forecast(pending, tflops)
        print(summary(expected), flush=True)
        times = seconds_of(expected)
        weights = added(*times)
        done = {cell.name: store.done(cell) for group in pending for cell, _ in group.cells}
        counts = {name: len(ids) for name, ids in done.items()}
        with ExitStack() as stack:
            pool = stack.enter_context(self._pool(store, pending, workers, stack))
            info = self._info(pool.about()[0])
            shown = Progress(pending, weights)
            if workers:
                cells = [cell for group in pending for cell, _ in group.cells]
                chunks = {cell.name: len(chunks_left(cell, done[cell.name])) for cell in cells}
                shown = ManyProgress(pending, weights, chunks)
            progress = stack.enter_context(shown)
            journal = Journal(store.folder, pending, weights, counts)
            run = Execution(store, pending, times, pool, progress, keep_going, info, journal)
            run.run()

    def _pool(
        self,
        store: RunStore,
        pending: Sequence[Group],
        workers: Workers | None,
        stack: ExitStack,
    ) -> Pool:
        """Whoever works: one worker here, or many behind Ray, which ends with `stack`."""
        from robench.runs.pool import InProcess
        from robench.runs.worker import Job, Worker

        spec = self.question.model
        job = Job(
            asked=self.shared,
            device=str(spec.device),
            device_map=spec.device_map,
            texts=self.texts,
            judges=self.judges,
            tune_judge=self.shared["tune_judge"],
            groups=pending,
        )
        if workers is None:
            return InProcess(Worker.load(job, self.files), store)
        from robench.runs.ray_pool import RayPool
        from robench.runs.worker_setup import environment, setup_of

        room = stack.enter_context(workers.connected(str(spec.device)))
        setup = setup_of(job, spec, self.files, _versions(), room.workers)
        logs = store.folder / "logs"
        return RayPool(room, setup, environment(self.judges.values()), logs, workers.timeout)

    def _info(self, worker: About) -> Info:
        """How the cells are answered, for their records."""
        spec = self.question.model
        return {
            "suite": self.suite,
            "harness_version": version("robench"),
            "versions": _versions(),
            "device": worker.device,
            "device_map": spec.device_map,
            "threads": worker.threads,
            "commit": self.files.commit,
            "attention": worker.attention,
            "judges": {name: judges.circumstances(judge) for name, judge in self.judges.items()},
        }

    def _counts(self, store: RunStore, pending: Sequence[Group]) -> str:
        total = sum(len(group.cells) for group in self.groups)
        waiting = sum(len(group.cells) for group in pending)
        return f"{store.folder}: {total} cells, {total - waiting} done, {waiting} to do"


def plan(question: Question, here: bool = True) -> Plan:
    """Resolve and check all that a question names; no weights are loaded, but for `known`.

    Args:
        question: what is asked.
        here: whether the model is to work on this machine; a head of a cluster may have no GPU.

    Raises:
        InputError: something asked for does not exist or does not fit.
    """
    if question.model.threads:
        torch.set_num_threads(question.model.threads)
    matrix, question = question.chosen_matrix(), with_defaults(question, here)
    settings = _merged(assignments(matrix.settings), question.settings)
    tier = question.tier or "demo"
    attacks = resolve_all("attack", matrix.attacks, tier, settings)
    defenses = resolve_all("defense", matrix.defenses, tier, settings)
    chosen = judges.resolved(question.judges or (), settings, judge_device(question))
    named = question.named_matrix().attacks if question.attacks else [a.name for a in attacks]
    refuse_unused_settings(question.settings, [*attacks, *defenses, *chosen])
    files = find_base(question.model)
    if files.name != loading.BUILT_IN and question.texts.behaviors is None:
        raise InputError(f"give the harmful requests for {files.name}: --behaviors FILE")
    ask = replies_of(question) if question.texts.known else None
    texts = gather(files.name, question.texts, matrix.n, matrix.benign, ask)
    for judge in chosen:
        if reason := refusal(judge, texts.behaviors):
            raise InputError(reason)
    chosen_judges = {method.name: method.instance for method in chosen}
    if matrix.skip_lacking:
        attacks = [method for method in attacks if not lacking(method, texts)]
        defenses = [method for method in defenses if not lacking(method, texts)]
    shared = _shared(question, matrix, files, texts, chosen)
    return Plan(
        question=question,
        suite={"name": matrix.name, "attacks": list(named)},
        files=files,
        texts=texts,
        judges=chosen_judges,
        shared=shared,
        groups=groups_of(shared, attacks, defenses, texts, _chunk_size(files, texts, shared)),
    )


def _chunk_size(files: loading.ModelFiles, texts: RunTexts, shared: Mapping[str, Any]) -> ChunkSize:
    weights = sum(file.stat().st_size for file in files.folder.glob("*.safetensors"))
    harmful = sum(b.harmful for b in texts.references)
    references = harmful, len(texts.references) - harmful, len(texts.tune)
    return ChunkSize(weights, texts.behaviors, shared["max_new_tokens"], references)


def find_base(spec: ModelSpec) -> loading.ModelFiles:
    """The files of the model under test."""
    return loading.find_model(
        spec.id,
        revision=spec.revision,
        chat_template=spec.chat_template,
        trust_remote_code=spec.trust_remote_code,
    )


def with_defaults(question: Question, here: bool = True) -> Question:
    """The question with what depends on the model and on this machine filled in.

    Args:
        here: whether the model is to work on this machine.
    """
    question = with_protocol(question)
    spec, replies = question.model, question.replies
    built_in = spec.id == loading.BUILT_IN
    device = choose_device(spec.device, spec.device_map, here)
    length = replies.max_new_tokens or (64 if built_in else 512)
    return replace(
        question,
        tier=question.tier or ("demo" if built_in else "paper"),
        judges=question.judges or _default_judges(question, built_in),
        texts=with_companions(question.texts),
        model=replace(spec, device=device, dtype=spec.dtype or default_dtype(device, built_in)),
        replies=replace(
            replies,
            max_new_tokens=length,
            max_thinking_tokens=replies.max_thinking_tokens or THINKING * length,
            temperature=(replies.temperature or 1.0) if replies.samples else None,
        ),
    )


def _default_judges(question: Question, built_in: bool) -> tuple[str, ...]:
    """An exact judge, where there is one for the requests, before that of keywords."""
    if built_in:
        return ("exact", "keyword")
    checkable = geography.split_of(str(question.texts.behaviors))
    return ("contains", "keyword") if checkable else ("keyword",)


def _shared(
    question: Question,
    matrix: Matrix,
    files: loading.ModelFiles,
    texts: RunTexts,
    chosen: Sequence[Method],
) -> dict[str, Any]:
    """What the headers of all cells have in common; a folder is of one such record."""
    records = {}
    for judge in chosen:
        with blamed(*of(judge)):
            records[judge.name] = judges.record(judge.instance)
    return {
        "model": files.name,
        "weights": files.weights,
        "template_args": {},  # in front of the hash that has them: a difference is told by name
        "template": files.template_with(question.replies.template_args),
        "n": len(texts.behaviors),
        "seeds": list(matrix.seeds),
        "judges": list(records),
        "tune_judge": _tune_judge(question.tune_judge, list(records)),
        "judge_fields": records,
        "dtype": question.model.dtype,
        **asdict(question.replies),
        **texts.checksums(),
        **({"known": texts.known} if texts.known else {}),
    }


def _tune_judge(asked: str | None, names: Sequence[str]) -> str:
    """The judge by which attacks choose settings, by default not the one that decides.

    Settings that suit the judge of the verdicts would make an attack look stronger than it is.

    Raises:
        InputError: it is none of the run's.
    """
    if asked is None:
        return names[min(1, len(names) - 1)]
    if asked not in names:
        raise InputError(
            f"--tune-judge {asked} is none of the run's judges, which are {', '.join(names)}"
            f"{suggestion(asked, names)}"
        )
    return asked


def _merged(
    some: Mapping[str, Mapping[str, Any]], others: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The settings of both; of a field that both set, those of `others`."""
    return {name: {**some.get(name, {}), **others.get(name, {})} for name in {**some, **others}}


def judge_device(question: Question) -> str:
    """Where judges with a model of their own work."""
    wanted, device = question.judge_device, question.model.device
    return choose_device(wanted) if wanted else str(device)


def added(some: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    """The sum of two kinds of numbers by name."""
    return {name: some.get(name, 0.0) + others.get(name, 0.0) for name in {**some, **others}}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}
