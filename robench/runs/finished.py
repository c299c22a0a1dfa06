"""The models of a finished run, as they were when it ran: for further questions about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from robench.config import build
from robench.errors import Failure, InputError
from robench.identity import source_digest
from robench.methods.registry import load_class
from robench.model import loading
from robench.model.chat_model import ChatModel
from robench.results.store import RunStore
from robench.runs.base import load_base
from robench.runs.devices import choose_device
from robench.runs.question import ModelSpec
from robench.types import Context, Defense


@dataclass(frozen=True)
class FinishedRun:
    """A run's folder with its undefended model in memory.

    helper: loads a model that a defense names
    """

    store: RunStore
    base: ChatModel
    helper: Callable[[str], ChatModel]

    @classmethod
    def load(cls, store: RunStore, spec: ModelSpec) -> FinishedRun:
        """Load the model of a run; its id, precision and system prompt are the run's.

        Args:
            spec: where it works, and its template and trust as the run had them.

        Raises:
            InputError: the folder is not a run's, or the model has changed since.
        """
        question = store.question()
        if spec.threads:
            torch.set_num_threads(spec.threads)
        files = loading.find_model(
            question["model"],
            chat_template=spec.chat_template,
            trust_remote_code=spec.trust_remote_code,
        )
        template = files.template_with(question["template_args"])
        if (files.weights, template) != (question["weights"], question["template"]):
            raise InputError(
                f"{files.name} is not the model of {store.folder}: its weights or its chat "
                "template have changed, or --chat-template or --trust-remote-code differ"
            )
        device = choose_device(spec.device, spec.device_map)
        return cls(store, *load_base(files, question, device, spec.device_map))

    @contextmanager
    def defended(self, header: Mapping[str, Any], info: Mapping[str, Any]) -> Iterator[ChatModel]:
        """The model with the defense of a cell applied; nothing is trained here.

        Args:
            header, info: of the cell.

        Raises:
            Failure: the defense, its code or its files have changed, or its adapter is gone.
        """
        defense = _defense(header, info)
        adapter = self.store.adapter(header)
        if getattr(defense, "needs", ()) and not adapter.is_dir():
            raise Failure(f"{adapter} is missing, and so are the texts to train it: run it again")
        ctx = Context(seed=header["seed"], model=self.helper)
        with defense.applied(self.base, ctx, adapter) as target:
            yield target


def _defense(header: Mapping[str, Any], info: Mapping[str, Any]) -> Defense:
    """The defense of a cell, as it is recorded."""
    try:
        found = load_class("defense", info["defense_reference"])
        is_class = isinstance(found, type)
        defense: Defense = build(found, header["defense_fields"]) if is_class else found
        source = source_digest(defense)
    except InputError as error:
        raise Failure(str(error)) from error
    if source != header["defense_source"]:
        raise Failure("its code or its files have changed since the run")
    return defense
