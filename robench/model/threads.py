"""Several small passes at a time, each in a thread."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> list[Result]:
    """The results of `work` on each item, in `workers` threads that share torch's own threads.

    On a CPU several small passes at a time, one thread each, are faster than one after the other on
    all threads.
    """
    workers = min(workers, len(items))
    if workers < 2:
        return [work(item) for item in items]
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    inference, cast = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu")

    def in_callers_modes(item: Item) -> Result:
        with (  # modes are per thread; inference mode sets that of gradients, too
            torch.inference_mode(inference),
            torch.set_grad_enabled(grad),
            torch.autocast("cpu", dtype, cast),
        ):
            return work(item)

    try:
        with ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(max(1, threads // workers),)
        ) as pool:
            return list(pool.map(in_callers_modes, items))
    finally:
        torch.set_num_threads(threads)  # the workers changed it for the whole process, in part
