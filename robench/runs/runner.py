"""The straight line: plan the cells, wear each defense, attack, generate, judge, store.

The attack's claims are never believed: every reply is generated here, outside the attack, and
judged the same way. Cells are grouped by defense and seed, so each defense is put on once.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from tqdm.auto import tqdm

from robench.config import as_dict, assignments
from robench.errors import Failure, InputError
from robench.identity import source_digest
from robench.judges import record, resolved
from robench.judges import scores as judged
from robench.methods.contract import attempt_problems, refusal
from robench.methods.registry import (
    EXTERNAL,
    Method,
    refuse_unused_settings,
    resolve,
    resolve_all,
)
from robench.model import loading
from robench.results import artifacts
from robench.results.degeneration import measure
from robench.results.metrics import Answer
from robench.results.store import Cell, Row, RunStore
from robench.runs import matrices
from robench.runs.cells import Group
from robench.runs.forecast import Setup, measured_rate, outlook
from robench.runs.matrices import Matrix
from robench.runs.run_texts import Data, gather
from robench.texts.refusals import refused
from robench.training.adapters import RECORD
from robench.types import Attempt, Behavior, Context, Lengths, Prompt, user

if TYPE_CHECKING:
    from robench.model.chat_model import ChatModel

BENIGN = "benign"  # the column of harmless requests
CHUNK = 32  # behaviors that an attack receives at once
PACKAGES = ("robench", "torch", "transformers", "peft", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Outcome:
    """Where a run's cells and tables are, and how many cells have holes: failed, unfinished, or
    nothing in them could be scored."""

    folder: Path
    holes: int


def run(
    *,
    matrix: str = "full",
    model: str = loading.BUILT_IN,
    revision: str | None = None,
    trust_remote_code: bool = False,
    attacks: Sequence[str] | None = None,
    defenses: Sequence[str] | None = None,
    settings: Sequence[str] = (),
    behaviors: str | Path | None = None,
    targets: str | Path | None = None,
    benign: str | Path | None = None,
    reference: str | Path | None = None,
    reference_harmless: str | Path | None = None,
    train: Sequence[str | Path] = (),
    n: int | None = None,
    seeds: Sequence[int] | None = None,
    tier: str | None = None,
    judges: Sequence[str] | None = None,
    judge_device: str | None = None,
    system: str | None = None,
    chat_template: str | Path | None = None,
    max_new_tokens: int | None = None,
    samples: int = 0,
    temperature: float | None = None,
    device: str | None = None,
    device_map: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    keep_going: bool = False,
    dry_run: bool = False,
    tflops: float | None = None,
    out: str | Path | None = None,
) -> Outcome:
    """Cross every attack with every defense; what is already in the folder is not done again.

    The arguments are the options of `robench run`.

    Raises:
        InputError: something asked for does not exist or does not fit.
    """
    if threads:
        torch.set_num_threads(threads)
    asked = matrices.load_matrix(matrix)
    chosen = replace(
        asked,
        attacks=asked.attacks if attacks is None else tuple(attacks),
        defenses=asked.defenses if defenses is None else tuple(defenses),
        seeds=asked.seeds if seeds is None else tuple(seeds),
    )
    built_in = model == loading.BUILT_IN
    tier = tier or ("demo" if built_in else "paper")
    words = assignments([*asked.settings, *settings])
    chosen_attacks = resolve_all("attack", chosen.attacks, tier, words)
    chosen_defenses = resolve_all("defense", chosen.defenses, tier, words)
    if temperature is not None and not (samples and temperature > 0):
        raise InputError("--temperature is that of drawn replies: give --samples, and more than 0")
    device = place(device, device_map)
    judge_methods = resolved(
        judges or (["exact", "keyword"] if built_in else ["keyword"]),
        words,
        place(judge_device) if judge_device else device,
    )
    judge_names = [method.name for method in judge_methods]
    chosen_judges = {method.name: method.instance for method in judge_methods}
    methods = [*chosen_attacks, *chosen_defenses, *judge_methods]
    refuse_unused_settings(assignments(settings), methods)
    dtype = dtype or _precision(device, built_in)
    found = loading.find_model(
        model,
        revision=revision,
        chat_template=chat_template,
        trust_remote_code=trust_remote_code,
    )
    model = found.name
    if not built_in and behaviors is None:
        raise InputError(f"give the harmful requests for {model}: --behaviors FILE")
    data = gather(
        model,
        n=n,
        default_n=asked.n,
        n_benign=asked.benign,
        behaviors=behaviors,
        targets=targets,
        benign=benign,
        reference=reference,
        reference_harmless=reference_harmless,
        train=train,
    )
    for method in methods:
        if reason := refusal(method, data.behaviors):
            raise InputError(reason)
    length = max_new_tokens or (64 if built_in else 256)
    common = {
        "model": model,
        "weights": found.weights,
        "template": found.template,
        "system": system,
        "n": len(data.behaviors),
        "seeds": list(chosen.seeds),
        "judges": judge_names,
        "judge_fields": {name: record(judge) for name, judge in chosen_judges.items()},
        "max_new_tokens": length,
        "samples": samples,
        "temperature": (temperature or 1.0) if samples else None,
        "dtype": dtype,
        **data.checksums(),
    }
    store = RunStore(Path(out) if out else _default_folder(asked, model))
    if asked.name == "smoke":
        chosen_attacks = [m for m in chosen_attacks if not _lacking(m, data)]
        chosen_defenses = [m for m in chosen_defenses if not _lacking(m, data)]
    elif not keep_going:
        for method in (*chosen_attacks, *chosen_defenses):
            if lacking := _lacking(method, data):
                raise InputError(f"{method.name} {lacking}, or leave it out")
    groups = _plan(common, chosen_attacks, chosen_defenses, data)
    if not dry_run:
        for warning in store.open_for(common, {name: version(name) for name in PACKAGES}):
            tqdm.write(f"warning: {warning}")
        store.remember([as_dict(behavior) for behavior in (*data.behaviors, *data.benign)])
    store.compatible([cell for group in groups for cell, _ in group.cells])
    pending = [
        Group(group.defense, group.seed, tuple(p for p in group.cells if not store.complete(p[0])))
        for group in groups
    ]
    total = sum(len(group.cells) for group in groups)
    waiting = sum(len(group.cells) for group in pending)
    print(f"{store.folder}: {total} cells, {total - waiting} done, {waiting} to do", flush=True)
    for note in data.notes:
        print(f"note: {note}", flush=True)
    if waiting:
        measured = dry_run and tflops is None
        rate = measured_rate(device, dtype) if measured else tflops
        setup = Setup(device, dtype, length, samples, CHUNK, rate, measured)
        print(outlook(pending, data, found, system, setup), flush=True)
    if dry_run:
        return Outcome(store.folder, 0)
    if not waiting:
        return Outcome(store.folder, _holes(store, groups))
    loaded = partial(loading.load_model, device=device, dtype=dtype, device_map=device_map)
    base = loaded(found, system=system, max_new_tokens=length)
    work = _Work(
        store=store,
        data=data,
        base=base,
        judges=chosen_judges,
        helper=lru_cache(1)(lambda name: loaded(loading.find_model(name))),  # base and one more
        keep_going=keep_going,
        info={
            "suite": {"name": asked.name, "attacks": list(asked.attacks)},
            "harness_version": version("robench"),
            "versions": {name: version(name) for name in PACKAGES},
            "device": _hardware(device),
            "device_map": device_map,
            "threads": torch.get_num_threads(),
            "commit": found.commit,
            "attention": base.network.config._attn_implementation,
        },
    )
    _try_out(chosen_judges, data.behaviors[0])
    with tqdm(total=waiting, desc="cells", disable=None) as bar:
        for group in pending:
            if group.cells:
                work.do(group, bar)
    return Outcome(store.folder, _holes(store, groups))


def train(
    reference: str,
    *,
    out: Path,
    model: str = loading.BUILT_IN,
    revision: str | None = None,
    trust_remote_code: bool = False,
    train: Sequence[str | Path] = (),
    behaviors: str | Path | None = None,
    settings: Sequence[str] = (),
    seed: int = 0,
    tier: str | None = None,
    system: str | None = None,
    chat_template: str | Path | None = None,
    device: str | None = None,
    device_map: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
) -> None:
    """Train one defense as a run would, into a peft folder; a killed training goes on.

    Args:
        reference: the defense.
        out: the folder, not yet made.
        behaviors: requests that must not occur in the training text.

    Raises:
        InputError: something asked for does not exist or does not fit.
        Failure: the training failed.
    """
    if threads:
        torch.set_num_threads(threads)
    if out.exists():
        raise InputError(f"{out} is there already; choose another --out")
    built_in = model == loading.BUILT_IN
    words = assignments(settings)
    methods = resolve_all("defense", [reference], tier or ("demo" if built_in else "paper"), words)
    refuse_unused_settings(words, methods)
    everything = sys.maxsize  # whatever may be under test one day
    data = gather(
        model, default_n=everything, n_benign=everything, behaviors=behaviors, train=train, n=None
    )
    lacking = _lacking(methods[0], data)
    if lacking:
        raise InputError(f"{reference} {lacking}")
    device = place(device, device_map)
    dtype = dtype or _precision(device, built_in)
    for note in data.notes:
        print(f"note: {note}", flush=True)
    found = loading.find_model(
        model,
        revision=revision,
        chat_template=chat_template,
        trust_remote_code=trust_remote_code,
    )
    base = loading.load_model(
        found, system=system, device=device, dtype=dtype, device_map=device_map
    )
    ctx = Context(data.references, data.tune, data.examples, seed=seed)
    with methods[0].instance.applied(base, ctx, out):
        if not (out / RECORD).is_file():
            raise InputError(f"{reference} is a defense that trains nothing")


@dataclass
class _Work:
    """What all cells of a run share while they are worked on."""

    store: RunStore
    data: Data
    base: ChatModel
    judges: Mapping[str, Any]
    helper: Callable[[str], ChatModel]
    keep_going: bool
    info: Mapping[str, Any]

    def do(self, group: Group, bar: tqdm[Any]) -> None:
        """All cells of one defense; a defense that fails is a hole in each of them."""
        with ExitStack() as stack:
            try:
                self._provided(group.defense)
                ctx = self._context(group.seed)
                cache = self.store.adapter(group.cells[0][0].header)
                target = stack.enter_context(group.defense.instance.applied(self.base, ctx, cache))
            except Exception as error:
                for cell, _ in group.cells:
                    self.store.open(cell, self.info)
                    self._hole(cell, f"defense {group.defense.name}: {_told(error)}")
                    bar.update()
                self._raise_bug(error)
                return
            info = {**self.info, **_training(cache, group.defense.tier == EXTERNAL)}
            for cell, attack in group.cells:
                bar.set_postfix_str(f"{cell.defense} x {cell.attack}")
                self.store.open(cell, info)
                self.store.clear_failure(cell)
                try:
                    self._provided(attack)
                    self._cell(cell, attack, target)
                except Exception as error:
                    self._hole(cell, _told(error))
                    self._raise_bug(error)
                bar.update()

    def _cell(self, cell: Cell, attack: Method, target: ChatModel) -> None:
        """Redo each unfinished chunk of behaviors whole; add the rows of those not yet written."""
        asked = self.data.benign if cell.attack == BENIGN else self.data.behaviors
        done = self.store.done(cell)
        ctx = self._context(cell.seed)
        memo = self.store.path(cell) / "memo.safetensors"
        artifacts.recall(ctx, memo)
        size = cell.header["chunk"]
        for start in range(0, len(asked), size):
            chunk = asked[start : start + size]
            waiting = {behavior.id for behavior in chunk} - done
            if not waiting:
                continue
            stamped = self._attack(attack, target, chunk, ctx)
            tensors = self.store.path(cell) / "tensors" / f"{start:05d}.safetensors"
            rows = self._answer(stamped, target, tensors, cell)
            artifacts.remember(ctx, memo)
            self.store.append(cell, [row for row in rows if row["behavior"] in waiting])

    def _attack(
        self, attack: Method, target: ChatModel, chunk: Sequence[Behavior], ctx: Context
    ) -> list[tuple[Attempt, float, float]]:
        """The attempts on a chunk with the seconds and TFLOP per behavior up to each.

        Raises:
            Failure: a loss is NaN or infinite.
            TypeError: the attack breaks its contract.
        """
        started, spent = time.perf_counter(), target.usage.tflop
        stamped = []
        steps = _steps(attack)
        with tqdm(total=steps, desc=attack.name, leave=False, disable=None) as bar:
            for attempt in attack.instance.run(target, chunk, ctx):
                for loss in attempt.trace:
                    if not math.isfinite(loss):
                        of = f"the loss of {attempt.behavior.id}"
                        raise Failure(f"{of} is {loss} by step {attempt.step}")
                seconds = (time.perf_counter() - started) / len(chunk)
                tflop = (target.usage.tflop - spent) / len(chunk)
                stamped.append((attempt, seconds, tflop))
                bar.update(attempt.step - bar.n)
        for problem in attempt_problems(chunk, [attempt for attempt, _, _ in stamped]):
            raise TypeError(f"attack {attack.name} breaks its contract: {problem}")
        return stamped

    def _answer(
        self,
        stamped: Sequence[tuple[Attempt, float, float]],
        target: ChatModel,
        tensors: Path,
        cell: Cell,
    ) -> list[Row]:
        """A row per attempt, behavior by behavior."""
        attempts = [attempt for attempt, _, _ in stamped]
        behaviors = [attempt.behavior for attempt in attempts]
        replies = target.replies([attempt.prompt for attempt in attempts])
        texts = [reply.text for reply in replies]
        scores = {n: judged(n, judge, behaviors, texts) for n, judge in self.judges.items()}
        drawn = self._samples(attempts, target, cell)
        surprise = self._surprise(behaviors, texts, target)
        keys = artifacts.save_prompts([attempt.prompt for attempt in attempts], tensors)
        rows = []
        for i, (attempt, seconds, tflop) in enumerate(stamped):
            prompt, reply = attempt.prompt, replies[i]
            rendered = target.chat.render(prompt.messages)
            rows.append(
                {
                    "behavior": attempt.behavior.id,
                    "category": attempt.behavior.category,
                    "harmful": attempt.behavior.harmful,
                    "step": attempt.step,
                    "tag": attempt.tag,
                    "final": attempt.final,
                    "access": prompt.access,
                    "artifact": {"messages": list(prompt.messages), "tensors": keys[i]},
                    "prompt_sha256": sha256(rendered.encode("utf-8", "surrogatepass")).hexdigest(),
                    "roundtrip_ok": _round_trip(prompt, rendered, target),
                    "reply": reply.text,
                    "truncated": reply.truncated,
                    "scores": {name: _number(values[i]) for name, values in scores.items()},
                    "samples": drawn[i],
                    "refused": refused(reply.text),
                    "text": measure(reply.text, surprise[i]),
                    "loss": attempt.trace[-1] if attempt.trace else None,
                    "trace": [round(loss, 6) for loss in attempt.trace] if attempt.final else [],
                    "seconds": round(seconds, 4),
                    "tflop": round(tflop, 9),
                    "tries": attempt.tries,
                }
            )
        return sorted(rows, key=lambda row: row["behavior"])

    def _surprise(
        self, behaviors: Sequence[Behavior], texts: Sequence[str], target: ChatModel
    ) -> list[float | None]:
        """Nats per token of each reply behind the plain request, on the undefended model."""
        own = target.network is self.base.network
        undefended = target.undefended() if own else self.base
        said = [i for i, text in enumerate(texts) if text.strip()]
        prompts = [Prompt(user(behaviors[i].request)) for i in said]
        found: list[float | None] = [None] * len(texts)
        for i, nll in zip(said, undefended.nll(prompts, [texts[i] for i in said]), strict=True):
            found[i] = float(nll)
        return found

    def _samples(
        self, attempts: Sequence[Attempt], target: ChatModel, cell: Cell
    ) -> list[list[dict[str, Any]]]:
        """Drawn replies to each final attempt on a harmful request, with their scores.

        The noise is the behavior's and the sample's own: neither the batch nor the defense changes
        it, so cells of one seed are compared on the same numbers.
        """
        found: list[list[dict[str, Any]]] = [[] for _ in attempts]
        count = 0 if cell.attack == BENIGN else cell.header["samples"]
        asked = [(i, j) for i, a in enumerate(attempts) if a.final for j in range(count)]
        if not asked:
            return found
        ctx, length = self._context(cell.seed), target.max_new_tokens
        behaviors = [attempts[i].behavior for i, _ in asked]
        generators = [ctx.rng("sample", attempts[i].behavior.id, j) for i, j in asked]
        noise = torch.stack([torch.rand(length, generator=rng) for rng in generators])
        prompts = [attempts[i].prompt for i, _ in asked]
        replies = target.replies(prompts, noise, cell.header["temperature"])
        texts = [reply.text for reply in replies]
        scores = {n: judged(n, judge, behaviors, texts) for n, judge in self.judges.items()}
        for k, (i, _) in enumerate(asked):
            own = {name: _number(values[k]) for name, values in scores.items()}
            sample = {"reply": texts[k], "truncated": replies[k].truncated, "scores": own}
            found[i].append(sample)
        return found

    def _context(self, seed: int) -> Context:
        data = self.data
        judge = next(iter(self.judges.values()))
        return Context(data.references, data.tune, data.examples, judge, seed, self.helper)

    def _provided(self, method: Method) -> None:
        lacking = _lacking(method, self.data)
        if lacking:
            raise Failure(lacking)

    def _hole(self, cell: Cell, reason: str) -> None:
        self.store.fail(cell, reason)
        tqdm.write(f"hole: {cell.defense} x {cell.attack}, seed {cell.seed}: {reason}")

    def _raise_bug(self, error: Exception) -> None:
        """Let an error of the program or of the disk end the run, unless it is to keep going."""
        hopeless = isinstance(error, (OSError, InputError))
        expected = isinstance(error, (Failure, torch.OutOfMemoryError))
        if hopeless or not (expected or self.keep_going):
            raise error


def place(wanted: str | None, spread: str | None = None) -> str:
    """The device that is asked for, by default a GPU where there is one.

    Args:
        spread: the device map, which cannot be asked for beside a device.

    Raises:
        InputError: there is no such device here, or both are asked for.
    """
    if wanted and spread:
        raise InputError("give --device or --device-map, not both")
    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {wanted!r}: no CUDA device is available here")
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {wanted!r}: {str(error).splitlines()[0]}") from None
    return wanted


def _precision(device: str, built_in: bool) -> str:
    """The dtype of a model that none was asked for."""
    return "bfloat16" if device.startswith("cuda") and not built_in else "float32"


def _try_out(judges: Mapping[str, Any], behavior: Behavior) -> None:
    """Let every judge score a reply, so that one that cannot be loaded costs no attack its work.

    Raises:
        InputError: its model does not fit into the memory or cannot be read.
    """
    for name, judge in judges.items():
        try:
            judged(name, judge, [behavior], ["No."])
        except (torch.OutOfMemoryError, OSError) as error:
            raise InputError(
                f"judge {name} cannot be loaded beside the model: {_told(error)}; put it elsewhere "
                "with --judge-device, or run with --judges keyword and let it judge afterwards: "
                f"robench judge DIR --judges {name}"
            ) from error


def _hardware(device: str) -> str:
    """What a device is called by its maker, where it is a GPU."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _default_folder(matrix: Matrix, model: str) -> Path:
    name = matrix.name if model == loading.BUILT_IN else f"{matrix.name}-{model}"
    return Path("results") / "runs" / Cell.slug(name)


def _lacking(method: Method, data: Data) -> str:
    """Why a method cannot run on these texts, "" where it can."""
    options = {"examples": "--train", "references": "--reference", "tune": "--reference"}
    for need in getattr(method.instance, "needs", ()):
        if not getattr(data, need):
            return f"needs {need}, and there are none: give {options[need]} FILE"
    return ""


def _plan(
    common: Mapping[str, Any], attacks: Sequence[Method], defenses: Sequence[Method], data: Data
) -> list[Group]:
    """Every defense and seed with its cells: the harmless requests first, then the attacks."""
    direct = resolve("attack", "direct")._replace(name=BENIGN)
    groups = []
    for defense, seed in product(defenses, common["seeds"]):
        cells = []
        for attack in (direct, *attacks):
            benign = attack is direct
            asked = data.benign if benign else data.behaviors
            header = {
                **common,
                "defense": defense.name,
                "defense_base": defense.base,
                "defense_fields": as_dict(defense.instance),
                "defense_tier": defense.tier,
                "defense_role": getattr(defense.instance, "role", "defense"),
                "defense_source": source_digest(defense.instance),
                "attack": attack.name,
                "attack_fields": as_dict(attack.instance),
                "attack_source": source_digest(attack.instance),
                "tier": attack.tier,
                "role": BENIGN if benign else getattr(attack.instance, "role", "attack"),
                "seed": seed,
                "planned": [behavior.id for behavior in asked],
                "chunk": CHUNK,
            }
            cells.append((Cell(common["model"], defense.name, attack.name, seed, header), attack))
        groups.append(Group(defense, seed, tuple(cells)))
    return groups


def _holes(store: RunStore, groups: Sequence[Group]) -> int:
    """Cells that failed or are unfinished, and those that the deciding judge has no score for."""
    rows = {path.name: rows for path, rows in store.replies()}
    cells = [cell for group in groups for cell, _ in group.cells]
    return sum(
        bool(not store.complete(cell) or Answer(cell.header, {}, rows[cell.name], "").hole)
        for cell in cells
    )


def _steps(attack: Method) -> int | None:
    if not hasattr(attack.instance, "forecast"):
        return None
    return attack.instance.forecast(Lengths(1, 1, len)).steps or None


def _training(cache: Path, external: bool) -> dict[str, float | None]:
    """What a trained defense cost, as its adapter's record says; None where it was made elsewhere.

    Who made it knows what that cost.
    """
    record = cache / RECORD
    if not record.is_file():
        cost = None if external else 0.0
        return {"train_seconds": cost, "train_tflop": cost}
    known = yaml.safe_load(record.read_text("utf-8"))
    return {key: known[key] for key in ("train_seconds", "train_tflop")}


def _round_trip(prompt: Prompt, rendered: str, target: ChatModel) -> bool | None:
    if prompt.ids is None:
        return None
    (ids,) = target.chat.encode([rendered])
    return ids == list(prompt.ids)


def _number(score: float) -> float | None:
    return None if math.isnan(score) else float(score)


def _told(error: Exception) -> str:
    """An error in one line."""
    words = str(error).strip().splitlines() or [""]
    if isinstance(error, Failure):
        return words[0]
    return f"{type(error).__name__}: {words[0]}"
