"""Supervised fine-tuning as a ready Objective: the cross-entropy of the replies' tokens."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from robench.model.chat_model import ChatModel
from robench.training.corpus import Batch, Text, collate, draw_texts


def reply_logits(model: ChatModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (tokens, vocab) in fp32 of all reply tokens of a batch, and their ids (tokens,)."""
    before = batch.response.roll(-1, dims=1)  # the token in front of each reply token
    before[:, -1] = False
    _, logits = model.forward(batch.ids, batch.all_text, tokens=before, logits=True)
    return logits.float(), batch.ids[batch.response].to(logits.device)


class FineTuning:
    """One batch of texts per step, drawn with replacement; the loss is that of the reply's tokens.

    Args:
        model: with the adapter on that is trained.
        texts: tokenised examples, of which the replies are learned.
        batch: texts per step.
        steps: after which training ends.
        rng: draws the batches; its state is part of a checkpoint.
        mixed: tokenised examples of another kind.
        share: of each batch that is drawn from `mixed`, the rest from `texts`.
    """

    def __init__(
        self,
        model: ChatModel,
        texts: Sequence[Text],
        batch: int,
        steps: int,
        rng: torch.Generator,
        mixed: Sequence[Text] = (),
        share: float = 0.0,
    ) -> None:
        self.model, self.texts, self.batch, self.steps = model, texts, batch, steps
        self.mixed, self.share = mixed, share
        self.rng = rng

    def backward(self, step: int) -> dict[str, float]:
        mixed = draw_texts(self.mixed, round(self.share * self.batch), self.rng)
        texts = draw_texts(self.texts, self.batch - len(mixed), self.rng)
        loss = cross_entropy(*reply_logits(self.model, collate([*mixed, *texts])))
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
