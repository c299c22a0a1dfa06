"""Slots: the scored gap of n prompts at once.

Each row is `[before][gap][after][target]`. K/V of `before` are computed once and owned here, those
of what candidates have in common with the gap's present tokens once per step; a pass reads the rest
of the gap, `after` and all of the target but its last token; only the rows of logits that predict
the target are made, and the loss is taken in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robench.errors import Failure
from robench.model.candidates import Candidates
from robench.model.chat import fill
from robench.model.prefix import Prefix
from robench.model.pruning import best
from robench.model.reader import Reader
from robench.model.scoring import Slot, gap_losses, longest
from robench.types import Message, Prompt


class Slots:
    """n gaps of one model. Not safe to keep after the model's weights or adapters change."""

    def __init__(self, model: Reader, rows: Sequence[Slot], prefix: Prefix) -> None:
        self.model = model
        self.rows = list(rows)
        self._prefix = prefix

    @classmethod
    def of(
        cls, model: Reader, messages: Sequence[Sequence[Message]], targets: Sequence[str]
    ) -> Slots:
        """Cut n conversations (a GAP mark each) at their gaps.

        Raises:
            Failure: a target has no tokens.
        """
        rows = []
        for conversation, target in zip(messages, targets, strict=True):
            seams = model.chat.seams(conversation)
            ids = model.chat.target_ids(fill(conversation, " x"), target)
            if not ids:
                raise Failure("a target without tokens cannot be optimised for")
            rows.append(Slot(tuple(conversation), seams, ids))
        return cls(model, rows, Prefix.of(model, [row.seams.before_ids for row in rows]))

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, indices: Sequence[int]) -> Slots:
        """The same gaps, some of them."""
        rows = [self.rows[i] for i in indices]
        return Slots(self.model, rows, self._prefix.select(indices))

    @torch.no_grad()
    def loss(self, ids: Tensor, parent: Tensor | None = None, prune: bool = False) -> Tensor:
        """Mean cross-entropy (n, w) of each row's target, for candidates ids (n, w, k); on the CPU.

        Args:
            ids: the candidates.
            parent: ids (n, k) that a row's candidates are changes of. What stands in front of a
                change is read once; candidates are taken together by where theirs is.
            prune: whether candidates that are provably not a row's best may get the loss inf. A
                target's loss is a sum of terms that are not negative: none is below its first.
        """
        n, w, k = ids.shape
        ids = ids.cpu()
        if parent is None:
            start, prefix, read = torch.zeros(n, w, dtype=torch.long), self._prefix, 0
        else:
            parent = parent.cpu()
            same = (ids == parent[:, None]).long().cumprod(2).sum(2)
            start, read = same.clamp(max=k - 1), k - 1
            prefix = self._prefix.extended(self.model, parent[:, :-1])
        candidates = Candidates(self.model, self.rows, ids, start, prefix, read)
        if prune:
            return best(candidates)
        return candidates.losses(torch.ones(n, w, dtype=torch.bool))

    def loss_of_embeddings(self, soft: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Mean cross-entropy (n,) of each row's target, differentiable in soft (n, k, d).

        Rows are independent, so the gradient of each is taken chunk by chunk in the forward pass:
        memory stays bounded whatever n is. `lengths` (n,) says how many of the k vectors of each
        row are its gap; the rest is ignored and gets gradient zero.
        """
        return _RowLoss.apply(soft, self, lengths)  # type: ignore[no-untyped-call]

    def survives(self, ids: Tensor) -> Tensor:
        """(n, w) True where every token is allowed and the whole rendered prompt, tokenised anew
        with the candidate's text (n, w, k) in it, gives the same ids."""
        n, w, k = ids.shape
        chat = self.model.chat
        texts = chat.decode(ids.reshape(n * w, k).tolist())
        whole = [
            f"{self.rows[i].seams.before}{chat.joiner}{text}{self.rows[i].seams.after}"
            for i, text in zip((i for i in range(n) for _ in range(w)), texts, strict=True)
        ]
        again = chat.encode(whole)
        same = torch.empty(n * w, dtype=torch.bool)
        for j, candidate in enumerate(ids.reshape(n * w, k).tolist()):
            seams = self.rows[j // w].seams
            text = f"{chat.joiner}{texts[j]}"
            stripped = (seams.strips_left and text != text.lstrip()) or (
                seams.strips_right and text != text.rstrip()
            )
            expected = [*seams.before_ids, *candidate, *seams.after_ids]
            same[j] = not stripped and again[j] == expected
        return same.view(n, w) & self.model.allowed[ids.cpu()].all(-1)

    def spell(self, text: str) -> Tensor:
        """The ids (n, k) of a start text, with a leading blank where it needs one to survive.

        Raises:
            Failure: in some row the text does not survive tokenisation either way.
        """
        chosen = []
        for i in range(len(self)):
            row = self.select([i])
            for spelling in (text, f" {text}"):
                ids = torch.tensor(self.model.encode(spelling)).view(1, 1, -1)
                if ids.numel() and row.survives(ids).item():
                    chosen.append(ids[0, 0])
                    break
            else:
                raise Failure(f"{text!r} does not survive this tokenizer in the gap")
        if len({len(ids) for ids in chosen}) > 1:
            raise Failure(f"{text!r} has not the same number of tokens in every prompt")
        return torch.stack(chosen)

    def prompt(self, i: int, gap: Tensor) -> Prompt:
        """The final prompt of row i: from ids (k,) as text, from vectors (k, d) as soft prompt."""
        if gap.is_floating_point():
            return Prompt(self.rows[i].messages, soft=gap.detach().float().cpu().clone())
        row, ids = self.rows[i], gap.tolist()
        text = f"{self.model.chat.joiner}{self.model.decode(ids)}"
        whole = (*row.seams.before_ids, *ids, *row.seams.after_ids)
        return Prompt(fill(row.messages, text), ids=whole)


class _RowLoss(torch.autograd.Function):
    """Losses of independent rows with their gradients, a chunk at a time."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, slots: Slots, lengths: Sequence[int] | None) -> Tensor:
        losses = torch.empty(len(soft), device=soft.device)
        gradient = torch.zeros_like(soft, dtype=torch.float32)
        wanted = ctx.needs_input_grad[0]

        def work(part: slice) -> tuple[Tensor, Tensor | None]:
            owner = range(part.start, part.stop)
            some = lengths[part] if lengths is not None else None
            with torch.set_grad_enabled(wanted):
                vectors = soft[part].detach().requires_grad_(wanted)
                loss = gap_losses(slots.model, slots.rows, slots._prefix, owner, vectors, some)
                if not wanted:
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
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return outer[0][:, None, None] * gradient, None, None
