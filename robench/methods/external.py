"""Defenses that were made outside robench: a row of the table by a path or a hub id.

`adapter:PATH_OR_ID` is a peft adapter for the base model, `model:PATH_OR_ID` a whole defended
model that takes the base model's place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from robench.errors import Failure, InputError
from robench.model.chat import Chat
from robench.model.chat_model import ChatModel
from robench.model.loading import find_model, folder_of, full_name
from robench.training.applying import CONFIG, WEIGHTS, adapter_applied, adapter_config
from robench.types import Context

_PARTS = (CONFIG, WEIGHTS)
_OF_THE_BASE = ("--chat-template", "--trust-remote-code")


@dataclass(frozen=True)
class Adapter:
    """A peft adapter that was trained for this base model, by folder or hub id."""

    path: str

    argument: ClassVar[str] = "path"

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", full_name(self.path))  # one folder, one defense

    @cached_property
    def folder(self) -> Path:
        """Where its files are, fetched from the hub if need be.

        Raises:
            InputError: there is no such folder, it holds no adapter in safetensors, or one of an
                unknown kind.
        """
        folder = folder_of(self.path, what="adapter")
        for part in _PARTS:
            if not (folder / part).is_file():
                raise InputError(
                    f"adapter {self.path}: no {part} in {folder} (only safetensors are read)"
                )
        adapter_config(folder)
        return folder

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.folder / part for part in _PARTS)

    @contextmanager
    def applied(self, model: ChatModel, ctx: Context, cache: Path) -> Iterator[ChatModel]:
        with adapter_applied(model, self.folder) as target:
            yield target


@dataclass(frozen=True)
class Model:
    """A whole defended model in the base model's place, by folder or hub id.

    The base model and this one are in memory together. This one has the template of its own folder:
    `--chat-template` and `--trust-remote-code` are for the base model.
    """

    path: str

    argument: ClassVar[str] = "path"

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", full_name(self.path))  # one folder, one defense

    @cached_property
    def identity(self) -> str:
        """The hash of its weights.

        Raises:
            InputError: there is no such model.
        """
        with self._as_a_defense():
            return find_model(self.path).weights

    @contextmanager
    def _as_a_defense(self) -> Iterator[None]:
        """Say that an option of the base model does not reach this one, where an error names it."""
        try:
            yield
        except InputError as error:
            if not any(option in str(error) for option in _OF_THE_BASE):
                raise
            raise InputError(
                f"model:{error}; {' and '.join(_OF_THE_BASE)} are for the base model alone, so "
                "give a folder that needs neither"
            ) from error

    @contextmanager
    def applied(self, model: ChatModel, ctx: Context, cache: Path) -> Iterator[ChatModel]:
        if ctx.model is None:
            raise Failure("an external model needs a harness that loads models")
        with self._as_a_defense():
            other = ctx.model(self.path)
        try:
            chat = Chat(other.chat.tokenizer, model.chat.system, model.chat.template_args)
        except InputError as error:  # its template is another one than the base model's
            raise Failure(f"model:{self.path}: {error}") from error
        yield replace(
            other,
            chat=chat,
            max_new_tokens=model.max_new_tokens,
            max_thinking_tokens=model.max_thinking_tokens,
        )
