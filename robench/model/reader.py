"""The part of a chat model that scoring needs: counted forward passes on embeddings, with edits.

`ChatModel` implements it. Prefix, scoring, candidates, pruning and slots use nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor

from robench.model.batching import Chunks
from robench.model.chat import Chat
from robench.types import Edit


@dataclass
class Usage:
    """Tokens that the model has read since it was loaded, and their cost by formula.

    parameters: N, see `count_parameters`
    """

    parameters: int
    forward_tokens: int = 0
    backward_tokens: int = 0
    _lock: Lock = field(default_factory=Lock)

    def count_forward(self, tokens: int) -> None:
        """Count the tokens of a forward pass; thread-safe."""
        with self._lock:
            self.forward_tokens += tokens

    @property
    def tflop(self) -> float:
        """2 N per token forward, and 2 N backward, as only activations need gradients."""
        return 2e-12 * self.parameters * (self.forward_tokens + self.backward_tokens)


class Reader(Protocol):
    """The members of `ChatModel` that read and count; they are documented there."""

    network: Any
    chat: Chat
    usage: Usage
    chunks: Chunks

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def workers(self) -> int: ...
    @property
    def allowed(self) -> Tensor: ...
    def check_length(self, tokens: int) -> None: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def embed(self, ids: Tensor) -> Tensor: ...
    def run(
        self,
        embeds: Tensor,
        roles: Tensor,
        row_edits: Sequence[tuple[Edit, ...]] = (),
        **options: Any,
    ) -> Any: ...
