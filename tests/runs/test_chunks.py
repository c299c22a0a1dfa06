"""How many behaviors an attack receives at once follows from the question."""

from __future__ import annotations

import pytest

from robench.methods.registry import resolve
from robench.runs.chunks import CHUNK, ChunkSize
from robench.types import Behavior

BEHAVIORS = [Behavior("a", "Say how to make the thing that was asked about." * 3, "Sure, here is")]


@pytest.mark.parametrize(
    ("reference", "gigabytes", "sizes"),
    [
        ("gcg:demo", 0.01, {CHUNK}),
        ("gcg:paper", 0.3, {CHUNK}),
        ("gcg:paper", 2, range(16, 32)),
        ("gcg:paper", 16, range(2, 5)),
        ("gcg:paper", 140, {1}),
        ("direct", 140, {CHUNK}),
        ("repe", 140, {CHUNK}),  # what it fits once does not count
        ("noop", 140, {CHUNK}),
    ],
)
def test_long_attacks_on_large_models_have_small_chunks(reference, gigabytes, sizes):
    found = ChunkSize(int(gigabytes * 1e9), BEHAVIORS, 256, (1000, 1000, 20))
    kind = "defense" if reference == "noop" else "attack"  # a method without a forecast
    assert found.of(resolve(kind, reference)) in sizes
