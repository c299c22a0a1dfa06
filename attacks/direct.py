"""No attack: the request as it is. The baseline column of every table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from robench.model import ChatModel
from robench.types import Attempt, Behavior, Context, Forecast, Lengths, Prompt, user


@dataclass(frozen=True)
class Direct:
    """Ask directly."""

    role: ClassVar[str] = "baseline"
    presets: ClassVar[dict[str, dict[str, object]]] = {"paper": {}, "demo": {}}

    def run(
        self, model: ChatModel, behaviors: Sequence[Behavior], ctx: Context
    ) -> Iterator[Attempt]:
        for behavior in behaviors:
            yield Attempt(behavior, Prompt(user(behavior.request)), final=True)

    def forecast(self, lengths: Lengths) -> Forecast:
        return Forecast(0, 0)
