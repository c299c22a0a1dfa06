"""What goes to a worker and what comes back. Nothing here needs torch, nor does unpacking it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from robench import files
from robench.errors import InputError
from robench.methods.method import Method
from robench.results.schema import Row
from robench.results.store import Cell

Adapter = Mapping[str, bytes]  # the files of a trained defense, by their place in its folder


@dataclass(frozen=True)
class Group:
    """The cells of one defense with one seed, each with its attack."""

    defense: Method
    seed: int
    cells: tuple[tuple[Cell, Method], ...]


@dataclass(frozen=True)
class Training:
    """A defense is put on for the first time with a seed, which trains it if it can be trained.

    group: the number of the defense and seed among the run's groups
    """

    group: int


@dataclass(frozen=True)
class Chunk:
    """Some behaviors of a cell, all of which an attack receives together.

    group: as in Training
    cell:  its name
    start: the number of the first behavior
    fits:  whether the attack may fit here what a cell fits once
    """

    group: int
    cell: str
    start: int
    fits: bool = True


Task = Training | Chunk


@dataclass(frozen=True)
class About:
    """A worker that is ready.

    device:    the GPU's name, or "cpu"
    threads:   of torch
    attention: the implementation
    """

    device: str
    threads: int
    attention: str


@dataclass(frozen=True)
class Trained:
    """A defense is on; `adapter` has what it keeps, nothing where the driver's folder has it."""

    adapter: Adapter


@dataclass(frozen=True)
class Answered:
    """The rows of a chunk, ordered by behavior.

    tensors: the safetensors file that the rows cite; None: they cite none
    memory:  that of what was fitted; None: nothing new was
    """

    rows: list[Row]
    tensors: bytes | None
    memory: bytes | None


@dataclass(frozen=True)
class Unfitted:
    """The chunk needs what its cell fits once, and was not to fit it."""


@dataclass(frozen=True)
class Failed:
    """A method or the disk failed.

    reason: in one line
    error:  what ends the run by
    always: whether it does so under --keep-going, too
    hole:   whether it is an expected failure, which never ends a run
    """

    reason: str
    error: BaseException
    always: bool = False
    hole: bool = False


@dataclass(frozen=True)
class Lost:
    """The worker died, or was ended, before it answered."""

    reason: str


Result = Trained | Answered | Unfitted | Failed | Lost


def tensors_name(start: int) -> str:
    """The file of the soft prompts and edits of the chunk that begins with behavior `start`."""
    return f"{start:05d}.safetensors"


def read_adapter(folder: Path) -> dict[str, bytes]:
    """The files of a trained defense; none where there is no folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write_adapter(adapter: Adapter, folder: Path) -> None:
    """Make the folder of a trained defense, unless it has no files or the folder is there.

    Raises:
        InputError: a file's place is outside.
    """
    if not adapter or folder.exists():
        return
    draft = folder.with_name(f"{folder.name}.received")
    if draft.exists():
        files.remove_folder(draft)
    for name, content in adapter.items():
        path = draft / name
        if not path.resolve().is_relative_to(draft.resolve()):
            raise InputError(f"{folder.name} came with a file outside its folder: {name!r}")
        files.write_bytes(path, content)
    files.replace_folder(draft, folder)
