"""The modes of a model inside a training step: evaluation, and without its adapter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from robench.model.chat_model import ChatModel
from robench.model.folding import adapter_disabled
from robench.training.corpus import Batch


@contextmanager
def evaluating(model: ChatModel, gradients: bool = False) -> Iterator[None]:
    """The model in eval mode, as it will be deployed; afterwards in the mode that it was in.

    Args:
        model: whose adapter is being trained.
        gradients: whether gradients may be taken, of anything but the adapter, which is frozen;
            by default none are.
    """
    training = model.network.training
    frozen = [p for p in model.network.parameters() if p.requires_grad] if gradients else []
    model.network.eval()
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        model.network.train(training)


@contextmanager
def without_adapter(model: ChatModel) -> Iterator[None]:
    """The undefended model inside a training step: adapter off, eval mode, no gradients."""
    with evaluating(model), adapter_disabled(model.adapter):
        yield


def tuned_and_base(
    model: ChatModel, batch: Batch, layers: Sequence[int], tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """States (layers, tokens, d) with the adapter and, without gradients, without it."""
    tuned, _ = model.forward(batch.ids, batch.all_text, layers, tokens)
    with without_adapter(model):
        base, _ = model.forward(batch.ids, batch.all_text, layers, tokens)
    return tuned, base
