"""The undefended model's states of training texts, computed once where texts are drawn again."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from robench.adapters import bare
from robench.corpus import Batch, Text, collate
from robench.model import ChatModel

BUDGET = 2**30  # bytes on the model's device that the states of one set of texts may take

_Key = tuple[int, ...]


def _all_text(batch: Batch) -> Tensor:
    return batch.all_text


class BaseStates:
    """What a training compares with: states with the adapter off, in eval mode, without gradients.

    Where more texts will be drawn than there are and the states of all fit BUDGET, they are
    computed once, before the training and in an order of their own: so they depend neither on the
    batch that a text is drawn into nor on where a killed training goes on. Elsewhere they are
    computed for each batch. The two agree but for rounding, as rows are padded differently.

    Args:
        model: with the adapter that is trained.
        texts: those that batches will be made of.
        draws: how many texts the training will draw.
        layers: 0..L, whose states are wanted.
        tokens: the mask (batch, time) of the wanted tokens of a batch; by default all real ones.
    """

    def __init__(
        self,
        model: ChatModel,
        texts: Sequence[Text],
        draws: int,
        layers: Sequence[int],
        tokens: Callable[[Batch], Tensor] = _all_text,
    ) -> None:
        self.model, self.layers, self.tokens = model, list(layers), tokens
        self._kept: dict[_Key, Tensor] = {}
        if draws > len(texts) and self._bytes(texts) <= BUDGET:
            self._keep(texts)

    def __call__(self, batch: Batch) -> Tensor:
        """States (layers, tokens, d) of a batch, as `ChatModel.forward` gives them."""
        if self._kept:
            return torch.cat([self._kept[_key(text)] for text in batch.texts], dim=1)
        with bare(self.model):
            return self._forward(batch)

    def logits(self, batch: Batch) -> Tensor:
        """Logits (tokens, vocab) of a batch, made of the last layer's states: they take less room.

        Raises:
            ValueError: the last layer is not among the wanted ones.
        """
        last = self(batch)[self.layers.index(self.model.depth)]
        with bare(self.model):
            return self.model.head(last)

    def tuned_and_base(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """States with the adapter on, and those with it off."""
        return self._forward(batch), self(batch)

    def _forward(self, batch: Batch) -> Tensor:
        states, _ = self.model.forward(batch.ids, batch.all_text, self.layers, self.tokens(batch))
        return states

    def _bytes(self, texts: Sequence[Text]) -> int:
        tokens = sum(int(self.tokens(collate([text])).sum()) for text in texts)
        return tokens * len(self.layers) * self.model.width * self.model.dtype.itemsize

    def _keep(self, texts: Sequence[Text]) -> None:
        longest_first = sorted(texts, key=lambda text: -len(_key(text)))

        def work(part: slice) -> tuple[Tensor, ...]:
            batch = collate(longest_first[part])
            with bare(self.model):
                states = self._forward(batch)
            return states.split(self.tokens(batch).sum(1).tolist(), dim=1)

        for part, states in self.model.chunks.map(
            work, len(longest_first), len(_key(longest_first[0]))
        ):
            self._kept.update(zip(map(_key, longest_first[part]), states, strict=True))


def _key(text: Text) -> _Key:
    """The text's ids, and where its reply begins."""
    return (len(text.prompt), *text.prompt, *text.reply)
