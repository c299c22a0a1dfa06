"""Slots: the gaps of n prompts, scored together by the loss of their targets.

Each row is `[before][gap][after][target]`. Keys and values of `before` are computed once and kept
here, those of the tokens that candidates have in common with the current gap once per step. A pass
reads the rest of the gap, `after` and the target without its last token; logits are computed only
at the positions that predict the target, and the loss is in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robench.errors import Failure
from robench.model.candidates import Candidates
from robench.model.chat import Seams, fill_gap
from robench.model.prefix import Prefix
from robench.model.pruning import best
from robench.model.reader import Reader
from robench.model.scoring import Slot, gap_losses, longest
from robench.types import Message, Prompt


class Slots:
    """n gaps of one model; invalid once the model's weights or adapters change."""

    def __init__(self, model: Reader, rows: Sequence[Slot], prefix: Prefix) -> None:
        self.model = model
        self.rows = list(rows)
        self._prefix = prefix

    @classmethod
    def of(
        cls, model: Reader, messages: Sequence[Sequence[Message]], targets: Sequence[str]
    ) -> Slots:
        """Cut n conversations, each with a GAP mark, at their gaps.

        Raises:
            InputError: a conversation has no gap, or the template drops or repeats it.
            Failure: a target has no tokens.
        """
        rows = []
        for conversation, target in zip(messages, targets, strict=True):
            seams = model.chat.seams(conversation)
            ids = model.chat.target_ids(fill_gap(conversation, " x"), target)
            if not ids:
                raise Failure("a target without tokens cannot be optimised for")
            rows.append(Slot(tuple(conversation), seams, ids))
        return cls(model, rows, Prefix.of(model, [row.seams.before_ids for row in rows]))

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, indices: Sequence[int]) -> Slots:
        """Some of the gaps."""
        rows = [self.rows[i] for i in indices]
        return Slots(self.model, rows, self._prefix.select(indices))

    @torch.no_grad()
    def loss(self, ids: Tensor, parent: Tensor | None = None, prune: bool = False) -> Tensor:
        """Mean cross-entropy (n, w) of each row's target, for candidates ids (n, w, k); on the CPU.

        Args:
            ids: the candidates.
            parent: ids (n, k) that a row's candidates are modifications of. The tokens before a
                candidate's first change are read once for all; candidates are batched by it.
            prune: whether candidates that are provably not their row's best may get the loss inf.
                A target's loss is a mean of token losses, none of which is negative, so the first
                of them gives a lower bound.
        """
        n, w, k = ids.shape
        self._check_length(k)
        ids = ids.cpu()
        if parent is None:
            start, prefix, gap_tokens = torch.zeros(n, w, dtype=torch.long), self._prefix, 0
        else:
            parent = parent.cpu()
            unchanged = (ids == parent[:, None]).long().cumprod(2).sum(2)
            start, gap_tokens = unchanged.clamp(max=k - 1), k - 1
            prefix = self._prefix.extended(self.model, parent[:, :-1])
        candidates = Candidates(self.model, self.rows, ids, start, prefix, gap_tokens)
        if prune:
            return best(candidates)
        return candidates.losses(torch.ones(n, w, dtype=torch.bool))

    def loss_of_embeddings(self, soft: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Mean cross-entropy (n,) of each row's target, differentiable in soft (n, k, d).

        Rows are independent, so their gradients are computed chunk by chunk in the forward pass:
        memory is bounded whatever n is. The first `lengths` (n,) of the k vectors of each row are
        its gap; the others are ignored and get gradient zero.
        """
        self._check_length(soft.shape[1])
        return _RowLoss.apply(soft, self, lengths)  # type: ignore[no-untyped-call]

    def _check_length(self, k: int) -> None:
        self.model.check_length(max(self._prefix.lengths) + longest(self.rows, k) + 1)

    def survives(self, ids: Tensor) -> Tensor:
        """Whether candidates ids (n, w, k) survive tokenisation (n, w).

        All their tokens are allowed, and the whole rendered prompt with the candidate's text,
        tokenised again, has the same ids.
        """
        n, w, k = ids.shape
        chat, candidates = self.model.chat, ids.reshape(n * w, k).tolist()
        texts = [f"{chat.joiner}{text}" for text in chat.decode(candidates)]
        seams = [self.rows[j // w].seams for j in range(n * w)]
        prompts = [f"{s.before}{text}{s.after}" for s, text in zip(seams, texts, strict=True)]
        same = [
            not _is_stripped(s, text) and prompt_ids == [*s.before_ids, *candidate, *s.after_ids]
            for s, text, candidate, prompt_ids in zip(
                seams, texts, candidates, chat.encode(prompts), strict=True
            )
        ]
        return torch.tensor(same, dtype=torch.bool).view(n, w) & self.model.allowed[ids.cpu()].all(
            -1
        )

    def spell(self, text: str) -> Tensor:
        """The ids (n, k) of a start text, with a leading space if it needs one to survive.

        Raises:
            Failure: in some row the text does not survive tokenisation either way, or the rows
                have different numbers of tokens.
        """
        rows = []
        for i in range(len(self)):
            slot = self.select([i])
            for spelling in (text, f" {text}"):
                ids = torch.tensor(self.model.encode(spelling)).view(1, 1, -1)
                if ids.numel() and slot.survives(ids).item():
                    rows.append(ids[0, 0])
                    break
            else:
                raise Failure(f"{text!r} does not survive this tokenizer in the gap")
        if len({len(ids) for ids in rows}) > 1:
            raise Failure(f"{text!r} does not have the same number of tokens in every prompt")
        return torch.stack(rows)

    def prompt(self, i: int, gap: Tensor) -> Prompt:
        """The final prompt of row i: a text from ids (k,), a soft prompt from vectors (k, d)."""
        if gap.is_floating_point():
            return Prompt(self.rows[i].messages, soft=gap.detach().float().cpu().clone())
        row, ids = self.rows[i], gap.tolist()
        text = f"{self.model.chat.joiner}{self.model.decode(ids)}"
        prompt_ids = (*row.seams.before_ids, *ids, *row.seams.after_ids)
        return Prompt(fill_gap(row.messages, text), ids=prompt_ids)


def _is_stripped(seams: Seams, text: str) -> bool:
    """Whether the template removes spaces of the gap's text."""
    left, right = text != text.lstrip(), text != text.rstrip()
    return (seams.strips_left and left) or (seams.strips_right and right)


class _RowLoss(torch.autograd.Function):
    """Losses of independent rows and their gradients, computed a chunk at a time."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, slots: Slots, lengths: Sequence[int] | None) -> Tensor:
        losses = torch.empty(len(soft), device=soft.device)
        gradient = torch.zeros_like(soft, dtype=torch.float32)
        needs_gradient = ctx.needs_input_grad[0]

        def work(part: slice) -> tuple[Tensor, Tensor | None]:
            owner = range(part.start, part.stop)
            gap_lengths = lengths[part] if lengths is not None else None
            with torch.set_grad_enabled(needs_gradient):
                vectors = soft[part].detach().requires_grad_(needs_gradient)
                loss = gap_losses(
                    slots.model, slots.rows, slots._prefix, owner, vectors, gap_lengths
                )
                if not needs_gradient:
                    return loss, None
                slots.model.usage.backward_tokens += len(owner) * longest(slots.rows, soft.shape[1])
                return loss.detach(), torch.autograd.grad(loss.sum(), vectors)[0]

        per_row = longest(slots.rows, soft.shape[1])
        for part, (loss, grad) in slots.model.chunks.map(work, len(soft), per_row):
            losses[part] = loss
            if grad is not None:
                gradient[part] = grad.float()
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad_outputs[0][:, None, None] * gradient, None, None
