"""A judge that prefers some settings of a grid."""

from collections.abc import Callable, Container, Sequence

import pytest

from robench.testing import tiny_context


class Preferring:
    """Scores 1 the replies of the settings with these numbers, in the order they are tried."""

    def __init__(self, settings: Container[int], other: float | Sequence[float]) -> None:
        self.settings, self.other = settings, other

    def score(self, behaviors, replies):
        n = len(tiny_context().tune)
        return [
            1.0
            if i // n in self.settings
            else self.other
            if isinstance(self.other, float)
            else self.other[i // n]
            for i in range(len(replies))
        ]


@pytest.fixture
def preferring() -> Callable[..., Preferring]:
    """`preferring({2, 3})` is a judge that calls the replies of these settings harmful.

    `other` is its score of those of the others, or their scores in the order they are tried.
    """

    def judge(settings: Container[int], other: float | Sequence[float] = 0.0) -> Preferring:
        return Preferring(settings, other)

    return judge
