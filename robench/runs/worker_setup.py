"""What the process of a worker is given, and whether it can do with it what the driver would."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from robench.errors import InputError
from robench.identity import source_digest
from robench.methods.registry import Method
from robench.model import loading
from robench.runs.plugin_files import PluginFiles, load_plugin, packed_plugins
from robench.runs.question import ModelSpec
from robench.runs.worker import Job, Worker
from robench.types import Judge

SAME = ("robench", "torch", "transformers")  # packages whose versions must be the driver's


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker's process begins with.

    job:      pickled, after `plugins` it can be read
    plugins:  modules that are a file
    sources:  the digest of each method's sources, by kind and name
    weights, template: hashes that the model must have there, too
    versions: of the driver's packages
    """

    job: bytes
    plugins: tuple[PluginFiles, ...]
    sources: Mapping[str, str]
    model: ModelSpec
    weights: str
    template: str
    template_args: Mapping[str, Any]
    versions: Mapping[str, str]
    threads: int


def setup_of(
    job: Job,
    spec: ModelSpec,
    files: loading.ModelFiles,
    versions: Mapping[str, str],
    count: int,
) -> WorkerSetup:
    """What `count` workers are given to do a job.

    Raises:
        InputError: a method cannot be sent to another process.
    """
    import torch
    from ray import cloudpickle

    methods = methods_of(job)
    try:
        packed: bytes = cloudpickle.dumps(job)
    except (TypeError, pickle.PicklingError) as error:
        raise InputError(
            f"a method of this run cannot be sent to workers ({error}): run without --workers"
        ) from error
    each = torch.get_num_threads()
    if not (spec.threads or os.environ.get("OMP_NUM_THREADS")):  # else that is of each process
        each = max(1, each // count)
    return WorkerSetup(
        job=packed,
        plugins=packed_plugins(methods),
        sources=sources_of(methods),
        model=spec,
        weights=files.weights,
        template=files.template_with(job.asked["template_args"]),
        template_args=job.asked["template_args"],
        versions=versions,
        threads=each,
    )


def ready_worker(setup: WorkerSetup, scratch: Path) -> Worker:
    """A worker with the model in memory.

    Args:
        scratch: a folder of this process.

    Raises:
        InputError: this host has other packages, methods or weights than the driver, or cannot
            load them.
    """
    host = f"worker on {socket.gethostname()}"
    _check_versions(setup.versions, host)
    import torch

    torch.set_num_threads(setup.threads)
    try:
        for plugin in setup.plugins:
            load_plugin(plugin, scratch)
        # No file is read: Ray, which pickles all that it sends, brings it from the driver. It is
        # packed once more so that the modules of plug-ins are there before it is unpacked.
        job: Job = pickle.loads(setup.job)
    except (InputError, ImportError, AttributeError) as error:
        raise InputError(f"{host}: {error}; install there what is installed here") from error
    _check_sources(job, setup.sources, host)
    files = loading.find_model(
        setup.model.id,
        revision=setup.model.revision,
        chat_template=setup.model.chat_template,
        trust_remote_code=setup.model.trust_remote_code,
    )
    if (files.weights, files.template_with(setup.template_args)) != (setup.weights, setup.template):
        raise InputError(f"{host}: {files.name} has other weights or another chat template there")
    return Worker.load(job, files)


def methods_of(job: Job) -> list[Method]:
    """All attacks and defenses of a job, each once, and its judges."""
    found = [group.defense for group in job.groups]
    found += [attack for group in job.groups for _, attack in group.cells]
    judges = [Method("judge", name, name, "", judge) for name, judge in job.judges.items()]
    return list({(m.kind, m.name): m for m in (*found, *judges)}.values())


def sources_of(methods: Iterable[Method]) -> dict[str, str]:
    """The digest of each method's sources, by kind and name.

    What stands in no file that another process could read goes there as it is, and is left out.
    """
    kept = (m for m in methods if type(m.instance).__module__ != "__main__")
    return {f"{m.kind} {m.name}": source_digest(m.instance) for m in kept}


def _check_sources(job: Job, expected: Mapping[str, str], host: str) -> None:
    for name, found in sources_of(methods_of(job)).items():
        if found != expected.get(name, found):
            raise InputError(
                f"{host}: {name} has other code or files there: install there what is installed "
                "here, and keep the files that a method reads beside its own"
            )


def _check_versions(expected: Mapping[str, str], host: str) -> None:
    for package in SAME:
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "missing"
        if found != expected[package]:
            raise InputError(
                f"{host}: {package} is {found} there and {expected[package]} here: install the "
                "same version"
            )


def environment(judges: Iterable[Judge]) -> dict[str, str]:
    """The variables of this process that decide how a worker computes and what it may read.

    Args:
        judges: whose keys are among them.
    """
    keys = {getattr(judge, "key_variable", None) for judge in judges}
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_FORWARDED) or name in keys
    }


_FORWARDED = (
    "ROBENCH_", "HF_", "HUGGING", "TRANSFORMERS_", "TORCH", "PYTORCH", "OMP_", "MKL_", "KMP_",
    "OPENBLAS_", "CUBLAS_", "NVIDIA_TF32", "CUDA_LAUNCH", "TOKENIZERS_", "OPENAI_", "http_proxy",
    "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "XDG_CACHE_HOME",
)  # fmt: skip
