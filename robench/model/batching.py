"""Batches: chunks that are halved when memory runs out, and padding."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Chunks:
    """How many tokens fit into one pass, learnt from running out of memory.

    tokens: of a pass, at most; it starts with a rule of thumb: on a CPU a chunk should fit into the
            cache, on a GPU it should fill the device
    enough: tokens that keep the device busy; a smaller pass takes as long
    """

    def __init__(self, device: torch.device, width: int) -> None:
        on_cpu = device.type == "cpu"
        self.tokens = max(64, 2**18 // width) if on_cpu else 2**27 // width
        self.enough = min(1024, self.tokens) if on_cpu else 2**24 // width

    def map(
        self, work: Callable[[slice], Result], rows: int, tokens_per_row: int
    ) -> Iterator[tuple[slice, Result]]:
        """Call `work` on slices of `rows`, each small enough; yield (slice, result) in order.

        A slice that runs out of memory is halved and tried again; later ones stay that small.
        """
        start = 0
        while start < rows:
            size = max(1, self.tokens // max(1, tokens_per_row))
            passes = math.ceil((rows - start) / size)  # of equal size
            part = slice(start, start + math.ceil((rows - start) / passes))
            try:
                result = work(part)
            except torch.OutOfMemoryError:
                if part.stop - part.start == 1:
                    raise
                torch.cuda.empty_cache()
                self.tokens = (part.stop - part.start) * tokens_per_row // 2
                continue
            yield part, result
            start = part.stop


def last_positions(count: int) -> list[int]:
    """The last positions of a batch, as `logits_to_keep`.

    A number means the same, but cuts a view out of the states, for which PyTorch copies the output
    matrix once per row: in bf16 that took most of a step of GCG with a vocabulary of 49,000.
    """
    return list(range(-count, 0))


def pad_right(rows: Sequence[Sequence[int]], value: int = 0) -> tuple[Tensor, Tensor]:
    """Ids (n, longest) and mask (n, longest), padding on the right."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    return ids.view(len(rows), width), torch.arange(width) < lengths[:, None]


def pad_left(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings (time_i, d) each -> (n, longest, d) and mask (n, longest), padding on the left."""
    width = max(len(row) for row in rows)
    padded = torch.stack([torch.cat([row.new_zeros(width - len(row), row.shape[1]), row])
                          for row in rows])  # fmt: skip
    lengths = torch.tensor([len(row) for row in rows], device=padded.device)
    return padded, torch.arange(width, device=padded.device) >= width - lengths[:, None]
