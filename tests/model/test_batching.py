"""Chunks: of equal size, small enough, smaller after running out of memory."""

import pytest
import torch

from robench.model.batching import Chunks


def sizes(chunks: Chunks, rows: int, tokens: int) -> list[int]:
    parts = [part for part, _ in chunks.map(lambda part: None, rows, tokens)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(rows))
    return [part.stop - part.start for part in parts]


@pytest.mark.parametrize(
    ("rows", "tokens", "expected"),
    [(10, 10, [10]), (11, 10, [6, 5]), (25, 10, [9, 8, 8]), (3, 1000, [1, 1, 1]), (0, 10, [])],
)
def test_passes_are_equal_and_small_enough(rows, tokens, expected):
    chunks = Chunks(torch.device("cpu"), 128)
    chunks.tokens = 100
    assert sizes(chunks, rows, tokens) == expected


def test_what_ran_out_of_memory_stays_small():
    chunks = Chunks(torch.device("cpu"), 128)

    def work(part: slice) -> int:
        if part.stop - part.start > 4:
            raise torch.OutOfMemoryError("too large")
        return part.stop - part.start

    assert sum(result for _, result in chunks.map(work, 30, 10)) == 30
    assert chunks.tokens <= 40
    with pytest.raises(torch.OutOfMemoryError):
        list(chunks.map(lambda part: work(slice(0, 9)), 1, 10))
