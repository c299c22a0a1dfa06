"""The model under test in memory, and whatever other model a method asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

from robench.model import loading
from robench.model.chat_model import ChatModel

HOW_IT_REPLIES = ("system", "template_args", "max_new_tokens", "max_thinking_tokens")


def load_base(
    files: loading.ModelFiles,
    asked: Mapping[str, Any],
    device: str,
    device_map: str | None,
) -> tuple[ChatModel, Callable[[str], ChatModel]]:
    """The model under test, and what loads helper models, of which one at a time is in memory.

    Args:
        files: of the model under test.
        asked: `dtype` and how the model replies, as a run's record has them.
        device: where both work.
        device_map: see `loading.load_model`.

    Raises:
        InputError: it cannot be loaded.
    """
    load = partial(loading.load_model, device=device, dtype=asked["dtype"], device_map=device_map)
    base = load(files, **{name: asked[name] for name in HOW_IT_REPLIES})
    return base, lru_cache(1)(lambda name: load(loading.find_model(name)))
