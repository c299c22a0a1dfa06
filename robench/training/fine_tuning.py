"""Supervised fine-tuning as a ready Objective: the cross-entropy of the replies' tokens."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from robench.model.chat_model import ChatModel
from robench.training.corpus import Text, collate, draw_texts


class FineTuning:
    """One batch of texts per step, drawn with replacement; the loss is that of the reply's tokens.

    Args:
        model: with the adapter on that is trained.
        texts: tokenised examples, of which the replies are learned.
        batch: texts per step.
        steps: after which training ends.
        rng: draws the batches; its state is part of a checkpoint.
    """

    def __init__(
        self,
        model: ChatModel,
        texts: Sequence[Text],
        batch: int,
        steps: int,
        rng: torch.Generator,
    ) -> None:
        self.model, self.texts, self.batch, self.steps = model, texts, batch, steps
        self.rng = rng

    def backward(self, step: int) -> dict[str, float]:
        batch = collate(draw_texts(self.texts, self.batch, self.rng))
        before = batch.response.roll(-1, dims=1)  # the token in front of each reply token
        before[:, -1] = False
        _, logits = self.model.forward(batch.ids, batch.all_text, tokens=before, logits=True)
        answer = batch.ids[batch.response].to(logits.device)
        loss = cross_entropy(logits.float(), answer)
        loss.backward()
        return {"answer": loss.item()}

    def done(self, step: int) -> bool:
        return step >= self.steps

    def state(self) -> dict[str, Tensor]:
        return {"rng": self.rng.get_state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.rng.set_state(state["rng"])

    def notes(self) -> dict[str, object]:
        return {}
