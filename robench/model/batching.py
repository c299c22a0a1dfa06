"""Chunks that halve on out-of-memory and remember; passes side by side; padding."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


class Chunks:
    """How many tokens one pass takes, learnt by running out of memory.

    `tokens` begins at a device's rule of thumb: on a CPU a chunk should fit the cache, on a GPU it
    should fill the device. `enough` tokens keep the device busy: smaller passes cost as much.
    """

    def __init__(self, device: torch.device, width: int) -> None:
        on_cpu = device.type == "cpu"
        self.tokens = max(64, 2**18 // width) if on_cpu else 2**27 // width
        self.enough = min(1024, self.tokens) if on_cpu else 2**24 // width

    def map(
        self, work: Callable[[slice], Result], rows: int, tokens_per_row: int
    ) -> Iterator[tuple[slice, Result]]:
        """Call `work` on slices of `rows`, each small enough; yield (slice, result) in order.

        A slice that runs out of memory is halved and tried again, and later ones stay as small.
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


def side_by_side(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> list[Result]:
    """The results of `work` on each item, `workers` at a time, which share torch's threads.

    Several small passes at a time, a thread each, cost a CPU less than one after the other, each
    over all threads.
    """
    workers = min(workers, len(items))
    if workers < 2:
        return [work(item) for item in items]
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    inference, cast = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu")

    def alone(item: Item) -> Result:
        with (  # each thread has its own switches; inference mode sets that of gradients, too
            torch.inference_mode(inference),
            torch.set_grad_enabled(grad),
            torch.autocast("cpu", dtype, cast),
        ):
            return work(item)

    try:
        with ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(max(1, threads // workers),)
        ) as pool:
            return list(pool.map(alone, items))
    finally:
        torch.set_num_threads(threads)  # part of the setting is the process's


def pad_right(rows: Sequence[Sequence[int]], value: int = 0) -> tuple[Tensor, Tensor]:
    """Ids (n, longest) and mask (n, longest), real tokens first."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    return ids.view(len(rows), width), torch.arange(width) < lengths[:, None]


def pad_left(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings of (time_i, d) each -> (n, longest, d) and mask (n, longest), real tokens last."""
    width = max(len(row) for row in rows)
    padded = torch.stack([torch.cat([row.new_zeros(width - len(row), row.shape[1]), row])
                          for row in rows])  # fmt: skip
    lengths = torch.tensor([len(row) for row in rows], device=padded.device)
    return padded, torch.arange(width, device=padded.device) >= width - lengths[:, None]
