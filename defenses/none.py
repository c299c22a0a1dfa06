"""No defense: the model as it is. The baseline row of every table."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from robench.model import ChatModel
from robench.types import Context


@dataclass(frozen=True)
class NoDefense:
    """The undefended model."""

    role: ClassVar[str] = "baseline"
    presets: ClassVar[dict[str, dict[str, object]]] = {"paper": {}, "demo": {}}

    @contextmanager
    def applied(self, model: ChatModel, ctx: Context, cache: Path) -> Iterator[ChatModel]:
        yield model
