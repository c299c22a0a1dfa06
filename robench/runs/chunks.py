"""How many behaviors an attack receives at once: as many as are done in minutes, at most 32.

The size is part of a cell's header. It follows from the question alone, not from who works on it or
how fast, so that the rows are the same with any number of workers. It is made without the tokenizer
and the model's shape, which a finished run does not load: estimates within a factor of two do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robench.methods.faults import blamed, of
from robench.methods.registry import Method
from robench.types import Behavior, Forecast, Lengths

CHUNK = 32  # behaviors, at most
FLOP = 2e17  # of a chunk, unless it is one behavior: about twenty minutes of an H100
NUMBER = 2  # bytes of a weight
LETTERS = 4  # of a token
DEPTH = 32  # blocks of a model whose shape is not read


@dataclass(frozen=True)
class ChunkSize:
    """The sizes of chunks for one model and its texts.

    weights:    bytes of the model's files of weights
    behaviors:  under test
    reply:      tokens of a reply, at most
    references: how many harmful ones, harmless ones and tuning requests there are
    """

    weights: int
    behaviors: Sequence[Behavior]
    reply: int
    references: tuple[int, int, int]

    def of(self, attack: Method) -> int:
        """Of an attack's chunks; CHUNK where it does not forecast its cost, or fits once."""
        if not hasattr(attack.instance, "forecast"):
            return CHUNK
        prompt, target = self._tokens("request"), self._tokens("target")
        lengths = Lengths(prompt, target, _tokens, self.reply, *self.references, DEPTH)
        with blamed(*of(attack)):
            cost = attack.instance.forecast(lengths)
        if not isinstance(cost, Forecast) or cost.once:
            return CHUNK
        tokens = cost.forward_tokens + cost.backward_tokens
        tokens += cost.attempts * 2 * (prompt + self.reply)
        flop = 2 * self.weights / NUMBER * tokens
        return min(CHUNK, max(1, int(FLOP / flop)))

    def _tokens(self, field: str) -> int:
        """Mean tokens of the behaviors' requests or targets."""
        counts = [_tokens(getattr(behavior, field)) for behavior in self.behaviors]
        return round(sum(counts) / max(1, len(counts)))


def _tokens(text: str) -> int:
    return len(text) // LETTERS + 1
