"""What workers bring, on its way to the disk: beside the driver's other work where there are many.

Flushing a file takes as long as many a short chunk. What has waited meanwhile for the same cell is
then written and flushed together.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from robench.results.schema import Row
from robench.results.store import Cell, RunStore
from robench.runs.tasks import Chunk


class Rows(NamedTuple):
    """The rows of a chunk, with the files that must be on the disk before them.

    tensors: name and content of what the rows cite, if they cite anything
    memory:  what was fitted, if it is new
    """

    task: Chunk
    cell: Cell
    rows: Sequence[Row]
    tensors: tuple[str, bytes] | None
    memory: bytes | None


@dataclass
class Writer:
    """Writes rows in the order in which they are put.

    in_thread: whether it does so in a thread of its own, or at once
    """

    store: RunStore
    in_thread: bool
    _waiting: queue.SimpleQueue[Rows | None] = field(default_factory=queue.SimpleQueue)
    _written: queue.SimpleQueue[Chunk] = field(default_factory=queue.SimpleQueue)
    _error: BaseException | None = None
    _thread: threading.Thread | None = None

    def __enter__(self) -> Writer:
        if self.in_thread:
            self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Write what is waiting."""
        if self._thread:
            self._waiting.put(None)
            self._thread.join()

    def put(self, rows: Rows) -> None:
        if self._thread:
            self._waiting.put(rows)
        else:
            self._write([rows])

    def written(self) -> list[Chunk]:
        """The chunks whose rows have reached the disk since the last call.

        Raises:
            OSError: the disk is full or refuses.
        """
        if self._error:
            raise self._error
        found = []
        while not self._written.empty():
            found.append(self._written.get())
        return found

    def _work(self) -> None:
        try:
            while (rows := self._waiting.get()) is not None:
                together, more = [rows], True
                while more and not self._waiting.empty():
                    following = self._waiting.get()
                    more = following is not None
                    together += [following] if following is not None else []
                for cell in {rows.cell.name: None for rows in together}:
                    self._write([rows for rows in together if rows.cell.name == cell])
                if not more:
                    return
        except BaseException as error:  # is raised by the driver, which asks for it
            self._error = error

    def _write(self, together: Sequence[Rows]) -> None:
        """Write chunks of one cell."""
        memory = [rows.memory for rows in together if rows.memory is not None]
        self.store.record(
            together[0].cell,
            [row for rows in together for row in rows.rows],
            dict(rows.tensors for rows in together if rows.tensors),
            memory[-1] if memory else None,
        )
        for rows in together:
            self._written.put(rows.task)
