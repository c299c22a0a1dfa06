"""What a defense costs where nobody attacks: harmless tasks on each defended model of a run.

The tasks are those of `lm_eval` (Language Model Evaluation Harness), asked as it asks them by
default: without the chat template. On the organism two figures are built in, over harmless requests
that no training has seen: `organism_accuracy`, the share of requests that are answered rightly, and
`organism_perplexity`, that of the right answers, per token.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from robench.config import build
from robench.errors import Failure, InputError
from robench.identity import source_digest
from robench.methods.registry import load_class
from robench.model import loading
from robench.results.metrics import HARMFUL
from robench.results.store import RunStore, defended_model_id

if TYPE_CHECKING:
    from robench.model.chat_model import ChatModel

BUILT_IN = ("organism_accuracy", "organism_perplexity")

Header = Mapping[str, Any]
Found = dict[str, Any]  # `value` and how it came about
Meter = Callable[["ChatModel", str], Found]


def measure(
    folder: Path,
    tasks: Sequence[str] = (),
    include_path: Path | None = None,
    batch_size: int = 1,
    chat_template: Path | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
    device_map: str | None = None,
    threads: int | None = None,
) -> int:
    """Ask every defended model of a run; what is already in its folder is not asked again.

    Args:
        folder: of a run. The model, its precision and its system prompt are the run's.
        tasks: names of lm_eval's tasks or groups; none on the organism: its built-in figures.
        include_path: a folder with further tasks (YAML, as lm_eval reads it).
        batch_size: of lm_eval's forward passes.
        chat_template, trust_remote_code: as the run was told.
        device, device_map, threads: as for a run.

    Returns:
        How many defended models could not be measured: holes.

    Raises:
        InputError: no run, no such task, lm_eval is not installed, or the model is another by now.
    """
    import torch
    from tqdm.auto import tqdm

    from robench.runs.runner import place

    if threads:
        torch.set_num_threads(threads)
    store = RunStore(folder)
    question = store.question()
    built_in = not tasks and question["model"] == loading.BUILT_IN
    if not (tasks or built_in):
        raise InputError("name tasks of lm_eval: --tasks mmlu_pro gpqa_main_zeroshot")
    wanted = BUILT_IN if built_in else tuple(dict.fromkeys(tasks))
    defended = {defended_model_id(header): header for header, *_ in store.cells()}.values()
    waiting = [
        (header, [task for task in wanted if task not in store.utility(header)])
        for header in defended
    ]
    total, open_ = len(defended) * len(wanted), sum(len(todo) for _, todo in waiting)
    print(f"{store.folder}: {total} figures, {total - open_} done, {open_} to do", flush=True)
    if not open_:
        return 0
    meter: Meter = _of_organism if built_in else _harness(wanted, include_path, batch_size)
    device = place(device, device_map)
    found = _found(store, question, chat_template, trust_remote_code)
    loaded = partial(
        loading.load_model, device=device, dtype=question["dtype"], device_map=device_map
    )
    base = loaded(found, system=question["system"], max_new_tokens=question["max_new_tokens"])
    helper = lru_cache(1)(lambda name: loaded(loading.find_model(name)))  # base and one more
    holes = 0
    for header, todo in waiting:
        if not todo:
            continue
        try:
            with _wearing(store, header, base, helper) as target:
                for task in todo:
                    store.add_utility(header, task, meter(target, task))
        except (Failure, torch.OutOfMemoryError) as error:
            holes += 1
            short = isinstance(error, torch.OutOfMemoryError)
            reason = "out of memory: give a smaller --batch-size" if short else error
            tqdm.write(f"hole: {header['defense']}, seed {header['seed']}: {reason}")
    return holes


def _found(
    store: RunStore, question: Mapping[str, Any], template: Path | None, trusted: bool
) -> loading.ModelFiles:
    """The undefended model that the run measured."""
    found = loading.find_model(question["model"], chat_template=template, trust_remote_code=trusted)
    if (found.weights, found.template) != (question["weights"], question["template"]):
        raise InputError(
            f"{found.name} is not the model that {store.folder} measured: its weights or its chat "
            "template have changed, or --chat-template or --trust-remote-code were given there"
        )
    return found


@contextmanager
def _wearing(
    store: RunStore, header: Header, base: ChatModel, helper: Callable[[str], ChatModel]
) -> Iterator[ChatModel]:
    """The model with a defense on as the run wore it: nothing is trained here.

    Raises:
        Failure: the defense, its code or its files are others by now, or its adapter is gone.
    """
    from robench.types import Context

    try:
        found = load_class("defense", header["defense_base"])
        defense = build(found, header["defense_fields"]) if isinstance(found, type) else found
        source = source_digest(defense)
    except InputError as error:
        raise Failure(str(error)) from error
    if source != header["defense_source"]:
        raise Failure("its code or its files have changed since the run")
    adapter = store.adapter(header)
    if getattr(defense, "needs", ()) and not adapter.is_dir():
        raise Failure(f"{adapter} is not there, nor are the texts to make it from: run it again")
    with defense.applied(base, Context(seed=header["seed"], model=helper), adapter) as target:
        yield target


# The organism's own figures


def _of_organism(target: ChatModel, task: str) -> Found:
    import torch

    from robench import organism
    from robench.judges.exact import Exact
    from robench.organism import language
    from robench.types import Prompt, user

    asked = [b for b in organism.behaviors("dev") if not b.harmful]
    prompts = [Prompt(user(b.request)) for b in asked]
    if task == "organism_accuracy":
        scores = Exact().score(asked, target.generate(prompts))
        return {"value": fmean(score >= HARMFUL for score in scores), "n": len(asked)}
    answers = [r.answer for r in language.requests("dev") if not r.harmful]
    tokens = torch.tensor(
        [len(target.chat.target_ids(p.messages, a)) for p, a in zip(prompts, answers, strict=True)]
    )
    nll = (target.nll(prompts, answers) * tokens).sum() / tokens.sum()
    return _plain({"value": nll.exp().item(), "n": len(asked), "tokens": int(tokens.sum())})


# lm_eval


def _harness(names: Sequence[str], include_path: Path | None, batch_size: int) -> Meter:
    """What asks lm_eval, once every name is known and every task's data is at hand.

    Raises:
        InputError: lm_eval is not installed, a name is unknown, or a task cannot be loaded.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(
            f"--tasks needs lm_eval ({error}): pip install 'robench[utility]'"
        ) from error
    if include_path and not include_path.is_dir():
        raise InputError(f"--include-path: no folder {include_path}")
    manager = TaskManager(include_path=str(include_path) if include_path else None)
    for name in names:
        _check(manager, name)

    def meter(target: ChatModel, task: str) -> Found:
        if target.edits:
            raise Failure("it edits states by the roles of positions, which lm_eval does not tell")
        lm = HFLM(target.network, tokenizer=target.chat.tokenizer, batch_size=batch_size)
        with target.around():
            told = simple_evaluate(model=lm, tasks=[task], task_manager=manager, log_samples=False)
        return {**figure(told, task), "apply_chat_template": False, "batch_size": batch_size}

    return meter


def _check(manager: Any, name: str) -> None:
    """Refuse what is no task with a figure of its own, before a model is loaded."""
    known = [*manager.all_subtasks, *manager.all_groups]
    if name not in known:
        if name in manager.all_tags:
            raise InputError(f"{name} is a tag, not a task: name the tasks that carry it")
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; `lm-eval ls tasks` lists them"
        raise InputError(f"lm_eval has no task {name!r}{hint}")
    try:
        group = manager.load([name])["groups"].get(name)
    except Exception as error:  # a task is code and data of others, fetched in many ways
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        fix = "; check the network, HF_HOME, and HF_TOKEN for a gated set"
        raise InputError(
            f"the task {name} cannot be loaded: {reason}{fix if isinstance(error, OSError) else ''}"
        ) from error
    if group is not None and not group.aggregate_metric_list:
        parts = ", ".join(group.child_names)
        raise InputError(f"the group {name} has no mean of its own: name its tasks: {parts}")


def figure(told: Mapping[str, Any], task: str) -> Found:
    """The first metric of a task in lm_eval's order, with all else that it reports.

    Returns:
        value, metric (name and filter), stderr, and from lm_eval's report: results, n-shot,
        n-samples, versions, lm_eval_version.
    """
    results = told["results"]
    metric = next(key for key in results[task] if "," in key and "_stderr," not in key)
    kept = ("results", "n-shot", "n-samples", "versions", "lm_eval_version")
    return _plain(
        {
            "value": results[task][metric],
            "metric": metric,
            "stderr": results[task].get(metric.replace(",", "_stderr,", 1)),
            **{name: told[name] for name in kept},
        }
    )


def _plain(found: Found) -> Found:
    """As JSON can hold it: what is no number is null, never a figure."""
    return json.loads(json.dumps(found, default=float), parse_constant=lambda _: None)
