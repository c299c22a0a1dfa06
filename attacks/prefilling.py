"""Prefilling: the reply is begun with the target, and the model goes on from there.

A column of the circuit breakers' table (Zou, Phan, Wang, et al., 2406.04313); described by Vega
et al. (2312.12321) and Andriushchenko et al. (2404.02151). Whoever can put words
into the assistant's mouth, as with most interfaces to open models, needs nothing else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from robench.config import at_least
from robench.model import ChatModel
from robench.types import Attempt, Behavior, Context, Forecast, Lengths, Prompt, user


@dataclass(frozen=True)
class Prefilling:
    """Begin the reply with the target, or with its first words."""

    words: int = 0  # of the target; 0: all

    presets: ClassVar[dict[str, dict[str, object]]] = {"paper": {}, "demo": {}}

    def __post_init__(self) -> None:
        at_least(self, 0, "words")

    def run(
        self, model: ChatModel, behaviors: Sequence[Behavior], ctx: Context
    ) -> Iterator[Attempt]:
        for behavior in behaviors:
            words = behavior.target.split()
            beginning = " ".join(words[: self.words]) if self.words else behavior.target
            messages = (*user(behavior.request), {"role": "assistant", "content": beginning})
            yield Attempt(behavior, Prompt(messages), final=True)

    def forecast(self, lengths: Lengths) -> Forecast:
        return Forecast(0, 0)
