"""Rows on their way to the disk, beside the driver's other work."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from robench import files
from robench.results.store import RunStore
from robench.runs.tasks import Chunk
from robench.runs.writer import Rows, Writer


class Slow(RunStore):
    """Its first write waits to be let go, and it notes what is written together."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.begun, self.go, self.together = threading.Event(), threading.Event(), []

    def record(self, cell, rows, tensors, memory=None):
        self.begun.set()
        self.go.wait(10)
        self.together.append((cell.attack, [row["behavior"] for row in rows], [*tensors], memory))
        super().record(cell, rows, tensors, memory)


@pytest.fixture
def cells(synthetic):
    (group,) = synthetic(1, 2)
    return [cell for cell, _ in group.cells]


def chunk(cell, start, memory=None, tensors=None) -> Rows:
    rows = [{"behavior": f"b{start + k:05d}"} for k in range(2)]
    return Rows(Chunk(0, cell.name, start), cell, rows, tensors, memory)


def test_what_waits_for_one_cell_is_written_together_in_order(cells, tmp_path):
    one, other = cells
    store = Slow(tmp_path)
    for cell in cells:
        files.make_folder(store.path(cell) / "tensors")
    with Writer(store, in_thread=True) as writer:
        writer.put(chunk(one, 0, b"first"))
        assert store.begun.wait(10) and writer.written() == []
        for more in (chunk(one, 2), chunk(other, 0, tensors=("t", b"x")), chunk(one, 4, b"later")):
            writer.put(more)
        store.go.set()
    written = [(task.cell, task.start) for task in writer.written()]
    assert sorted(written) == sorted([(one.name, s) for s in (0, 2, 4)] + [(other.name, 0)])
    assert store.done(one) == {f"b{k:05d}" for k in range(6)} and len(store.done(other)) == 2
    assert store.memory(one) == b"later" and store.memory(other) is None
    assert (store.path(other) / "tensors" / "t").read_bytes() == b"x"
    assert ["b00002", "b00003", "b00004", "b00005"] in [names for _, names, _, _ in store.together]


@pytest.mark.parametrize("in_thread", [True, False])
def test_a_disk_that_is_full_ends_the_run(in_thread, cells, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "append_lines", full)
    with pytest.raises(OSError, match="No space"), Writer(RunStore(tmp_path), in_thread) as writer:
        writer.put(chunk(cells[0], 0))
        writer.__exit__()
        writer.written()
