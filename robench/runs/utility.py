"""What a defense costs where nobody attacks: harmless tasks on each defended model of a run.

The tasks are those of `lm_eval` (Language Model Evaluation Harness), asked as it asks them by
default: without the chat template. On the organism two figures are built in, over harmless requests
that no training has seen: `organism_accuracy`, the share of requests that are answered rightly, and
`organism_perplexity`, that of the right answers, per token.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from robench.errors import Failure, InputError
from robench.model import loading
from robench.results.store import RunStore, defended_model_id
from robench.runs.finished import FinishedRun
from robench.runs.question import ModelSpec

if TYPE_CHECKING:
    from robench.model.chat_model import ChatModel

BUILT_IN = ("organism_accuracy", "organism_perplexity")

Header = Mapping[str, Any]
Found = dict[str, Any]  # `value` and how it came about
Meter = Callable[["ChatModel", str], Found]


def measure(
    folder: str | Path,
    tasks: Sequence[str] = (),
    include_path: Path | None = None,
    batch_size: int = 1,
    spec: ModelSpec | None = None,
) -> int:
    """Ask every defended model of a run; what is already in its folder is not asked again.

    Args:
        folder: of a run. The model, its precision and its system prompt are the run's.
        tasks: names of lm_eval's tasks or groups; none on the organism: its built-in figures.
        include_path: a folder with further tasks (YAML, as lm_eval reads it).
        batch_size: of lm_eval's forward passes.
        spec: where the model works, and its template and trust as the run had them.

    Returns:
        How many defended models could not be measured: holes.

    Raises:
        InputError: no run, no such task, lm_eval is not installed, or the model has changed.
    """
    store = RunStore(Path(folder))
    with store.locked():
        wanted, built_in = _wanted(store, tasks)
        cells = {defended_model_id(header): (header, info) for header, info, *_ in store.cells()}
        waiting = [
            (header, info, [task for task in wanted if task not in store.utility(header)])
            for header, info in cells.values()
        ]
        total, missing = len(cells) * len(wanted), sum(len(todo) for *_, todo in waiting)
        done = total - missing
        print(f"{store.folder}: {total} figures, {done} done, {missing} to do", flush=True)
        if not missing:
            return 0
        meter: Meter = _of_organism if built_in else _harness(wanted, include_path, batch_size)
        run = FinishedRun.load(store, spec or ModelSpec())
        return sum(not _measured(run, meter, *entry) for entry in waiting if entry[2])


def _wanted(store: RunStore, tasks: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """The tasks to ask, and whether they are the organism's built-in figures."""
    if tasks:
        return tuple(dict.fromkeys(tasks)), False
    if store.question()["model"] != loading.BUILT_IN:
        raise InputError("name tasks of lm_eval: --tasks mmlu_pro gpqa_main_zeroshot")
    return BUILT_IN, True


def _measured(
    run: FinishedRun, meter: Meter, header: Header, info: Mapping[str, Any], tasks: Sequence[str]
) -> bool:
    """Ask one defended model; False, with a line that says why, where that fails."""
    import torch
    from tqdm.auto import tqdm

    try:
        with run.defended(header, info) as target:
            for task in tasks:
                run.store.add_utility(header, task, meter(target, task))
    except (Failure, torch.OutOfMemoryError) as error:
        short = isinstance(error, torch.OutOfMemoryError)
        reason = "out of memory: give a smaller --batch-size" if short else error
        tqdm.write(f"hole: {header['defense']}, seed {header['seed']}: {reason}")
        return False
    return True


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
        return {"value": fmean(score >= Exact.threshold for score in scores), "n": len(asked)}
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
        if target.bare:
            raise Failure("it adds a system prompt, which lm_eval's tasks do not have")
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
