"""The undefended model's states of training texts, computed once if texts are drawn repeatedly."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robench.model.chat_model import ChatModel
from robench.training.corpus import Batch, Text, collate
from robench.training.modes import without_adapter

BUDGET = 2**30  # bytes on the model's device that the states of one set of texts may take

_Key = tuple[int, ...]


class BaseStates:
    """The reference of a training: states with the adapter off, in eval mode, without gradients.

    If more texts will be drawn than there are and the states of all fit BUDGET, they are computed
    once, before the training and in a fixed order: so they depend neither on the batch that a text
    is drawn into nor on where an interrupted training resumes. Otherwise they are computed for each
    batch. The two agree up to rounding, as rows are padded differently.

    Not for |h' - h| if LoRA's B starts at zero: in one batch h' = h exactly, and the gradient is
    zero; with states from another batch it is the direction of the rounding error, of length one
    (use `tuned_and_base` for that).

    Args:
        model: with the adapter that is trained.
        texts: from which batches will be drawn.
        draws: how many texts the training will draw.
        layers: 0..L, those whose states are needed.
    """

    def __init__(
        self, model: ChatModel, texts: Sequence[Text], draws: int, layers: Sequence[int]
    ) -> None:
        self.model, self.layers = model, list(layers)
        self._states: dict[_Key, Tensor] = {}
        tokens = sum(len(text.prompt) + len(text.reply) for text in texts)
        size = tokens * len(self.layers) * model.width * model.dtype.itemsize
        if draws > len(texts) and size <= BUDGET:
            self._read_all(sorted(texts, key=lambda text: -len(_key(text))))

    def __call__(self, batch: Batch) -> Tensor:
        """States (layers, tokens, d) of a batch, as `ChatModel.forward` returns them."""
        if self._states:
            return torch.cat([self._states[_key(text)] for text in batch.texts], dim=1)
        return self._read(batch)

    def logits(self, batch: Batch) -> Tensor:
        """Logits (tokens, vocab) of a batch, from the last layer's states, which take less memory.

        Raises:
            ValueError: the last layer is not among `layers`.
        """
        last = self(batch)[self.layers.index(self.model.depth)]
        with without_adapter(self.model):
            return self.model.head(last)

    def _read(self, batch: Batch) -> Tensor:
        with without_adapter(self.model):
            states, _ = self.model.forward(batch.ids, batch.all_text, self.layers)
        return states

    def _read_all(self, texts: Sequence[Text]) -> None:
        """Read all texts, which are sorted by length, longest first."""

        def work(part: slice) -> tuple[Tensor, ...]:
            batch = collate(texts[part])
            return self._read(batch).split(batch.all_text.sum(1).tolist(), dim=1)

        for part, states in self.model.chunks.map(work, len(texts), len(_key(texts[0]))):
            self._states.update(zip(map(_key, texts[part]), states, strict=True))


def _key(text: Text) -> _Key:
    return (*text.prompt, *text.reply)
