"""ChatModel: a causal language model as attacks, defenses and the runner see it.

Verbs: generate, replies, nll, hidden, forward, slots, encode, decode. Weights are frozen; losses
are in fp32 whatever the weights are in; every verb batches by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robench.config import digest
from robench.errors import Failure, InputError
from robench.model.batching import Chunks, pad_left, pad_right
from robench.model.chat import Chat, common, fill
from robench.model.decoding import decode
from robench.model.folding import off
from robench.model.hooks import (
    Placed,
    at_depth,
    blocks,
    edited,
    kept,
    number,
    prompt_roles,
    replaced,
    selected,
    truncated,
)
from robench.model.prefix import Prefix
from robench.model.reader import Usage
from robench.model.scoring import target_loss
from robench.model.slots import Slots
from robench.types import Edit, Message, Prompt, user

_SOFT = -1  # among a prompt's ids: a vector stands here


class Reply(NamedTuple):
    """What the model said; `truncated` when it had not ended after max_new_tokens."""

    text: str
    truncated: bool
    tokens: int


def parameters(network: Any) -> int:
    """N of a causal language model, without the input embedding where the output has its own."""
    total = sum(p.numel() for p in network.parameters())
    embedding = network.get_input_embeddings().weight
    tied = network.get_output_embeddings().weight is embedding
    return total if tied else total - embedding.numel()


@dataclass
class ChatModel:
    """A loaded model. Views of it (`edited`, `undefended`) share weights and usage.

    network:        the transformers causal language model, in eval mode, frozen
    chat:           its tokenizer and template
    max_new_tokens: the length of replies
    adapter:        of a trained defense that is on: the peft model, or `folding.Folded`
    around:         entered around every forward pass (a view's own context)
    edits:          acting on every prompt, before the prompt's own
    identity:       a hash of weights, template, system prompt and precision; "" of a model in code
    bare:           the model before `with_system`; None where nothing was added
    """

    network: Any
    chat: Chat
    max_new_tokens: int
    usage: Usage
    chunks: Chunks
    adapter: Any = None
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    edits: tuple[Edit, ...] = ()
    identity: str = ""
    bare: ChatModel | None = None

    @classmethod
    def of(cls, network: Any, chat: Chat, max_new_tokens: int = 256) -> ChatModel:
        """Freeze a transformers causal language model and wrap it.

        Of its generation config only the end tokens stay: transformers would fill in the rest, and
        Qwen2.5's repetition penalty, for one, would bend greedy replies.

        Raises:
            InputError: some block has a recurrent state (Mamba, linear attention).
        """
        from transformers import GenerationConfig

        if network._is_stateful:  # what it has read cannot be kept as keys and values
            raise InputError(
                f"{type(network).__name__} has blocks with a recurrent state; only models with "
                "attention in every block are supported"
            )
        network.eval().requires_grad_(False)
        ends = network.generation_config.eos_token_id
        network.generation_config = GenerationConfig(eos_token_id=ends)
        embedding = network.get_input_embeddings().weight
        usage = Usage(parameters(network))
        return cls(
            network, chat, max_new_tokens, usage, Chunks(embedding.device, len(embedding[0]))
        )

    @property
    def device(self) -> torch.device:
        return self.network.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.get_input_embeddings().weight.dtype

    @property
    def workers(self) -> int:
        """Passes that may run at a time: one per thread of a CPU, where nobody puts in hooks.

        Hooks, such as a stranger's defense registers, may keep state from one to the next.
        """
        if self.device.type != "cpu" or self.edits or self.around is not nullcontext:
            return 1
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in self.network.modules())
        return 1 if hooked else torch.get_num_threads()

    @property
    def depth(self) -> int:
        """L, the number of decoder blocks."""
        return len(blocks(self.network))

    @property
    def width(self) -> int:
        """d, the size of a hidden state."""
        return int(self.network.get_input_embeddings().weight.shape[1])

    @cached_property
    def embedding(self) -> Tensor:
        """The effective input embedding (vocab, d): through the module, which may scale."""
        module = self.network.get_input_embeddings()
        return module(torch.arange(module.weight.shape[0], device=self.device)).detach()

    @cached_property
    def allowed(self) -> Tensor:
        """(vocab,) True at the tokens that a discrete attack may use.

        Not special or added tokens, rows beyond the tokenizer, tokens that decode to nothing or
        to anything but printable ASCII.
        """
        tokenizer = self.chat.tokenizer
        banned = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        texts = self.chat.decode([[i] for i in range(len(tokenizer))])
        allowed = torch.zeros(len(self.embedding), dtype=torch.bool)
        for i, text in enumerate(texts[: len(allowed)]):
            allowed[i] = i not in banned and text != "" and text.isascii() and text.isprintable()
        return allowed

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of text, nothing added."""
        return list(self.chat.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        return self.chat.decode([ids])[0]

    def embed(self, ids: Tensor) -> Tensor:
        """Ids (...) -> effective embeddings (..., d)."""
        return self.network.get_input_embeddings()(ids.to(self.device))

    def numbered(self, layers: Sequence[int] | tuple[float, float]) -> list[int]:
        """Layers 0..L, ascending, from numbers that may count from L or from a range of depths.

        Raises:
            InputError: this model has no such layer, or no such depth.
        """
        if all(isinstance(layer, int) for layer in layers):
            try:
                return sorted({number(int(layer), self.depth) for layer in layers})
            except ValueError as error:
                raise InputError(f"layers {list(layers)}: {error}") from None
        first, last = layers
        if not 0 <= first <= last <= 1:
            raise InputError(f"layers {list(layers)}: a range of depths lies in [0, 1]")
        return list(range(at_depth(first, self.depth), at_depth(last, self.depth) + 1))

    def edited(self, edits: Sequence[Edit]) -> ChatModel:
        """A view in which `edits` act on every prompt."""
        return replace(self, edits=(*self.edits, *edits))

    def undefended(self) -> ChatModel:
        """A view of the same weights without the defense's adapter, edits and system prompt."""
        bare = self.bare or self
        plain = replace(self, edits=(), chat=bare.chat, identity=bare.identity, bare=None)
        return plain if self.adapter is None else replace(plain, around=partial(off, self.adapter))

    def with_system(self, text: str) -> ChatModel:
        """A view whose conversations begin with `text` as the system prompt.

        The run's own system prompt (`--system`), where there is one, stays in front of it, with a
        blank line between them. A default that the template writes by itself is replaced, as the
        template has it.

        Raises:
            InputError: the chat template has no system role.
        """
        system = f"{self.chat.system}\n\n{text}" if self.chat.system else text
        chat = Chat(self.chat.tokenizer, system)
        if text.strip() not in chat.render(user("")):
            raise InputError("the chat template leaves the system prompt out: it has no such role")
        identity = digest([self.identity, system]) if self.identity else ""
        return replace(self, chat=chat, identity=identity, bare=self.bare or self)

    def slots(self, messages: Sequence[Sequence[Message]], targets: Sequence[str]) -> Slots:
        """The gaps of n conversations (one GAP mark each), to be scored against n targets."""
        return Slots.of(self, messages, targets)

    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """Greedy replies."""
        return [reply.text for reply in self.replies(prompts)]

    @torch.no_grad()
    def replies(
        self, prompts: Sequence[Prompt], noise: Tensor | None = None, temperature: float = 1.0
    ) -> list[Reply]:
        """Replies with their length, left-padded batches in order of length; greedy by default.

        Args:
            prompts: what is answered.
            noise: (n, max_new_tokens) uniform in [0, 1): each prompt's reply is drawn with its own
                numbers, so it does not depend on the prompts beside it (see `decoding.draw`).
            temperature: of the drawn replies.
        """
        inputs = [self._inputs(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda i: -len(inputs[i]))
        replies: dict[int, Reply] = {}
        longest = len(inputs[order[0]]) if order else 0
        # A decode step reads one token per row, so rows may be many; their K/V is the limit.
        per_row = max(1, (longest + self.max_new_tokens) // 8)

        def work(part: slice) -> list[Reply]:
            rows = order[part]
            return self._generate(
                [inputs[i] for i in rows],
                [prompts[i].edits for i in rows],
                None if noise is None else noise[rows],
                temperature,
            )

        for part, result in self.chunks.map(work, len(order), per_row):
            replies.update(zip(order[part], result, strict=True))
        return [replies[i] for i in range(len(prompts))]

    @torch.no_grad()
    def nll(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> Tensor:
        """Mean negative log-likelihood (n,) of each target's tokens after its prompt, fp32.

        What all prompts begin with is read once; the rest goes in order of length.

        Raises:
            Failure: a target has no tokens.
        """
        if not prompts:
            return torch.empty(0)
        continued = self.chat.continued([_spoken(prompt) for prompt in prompts], targets)
        labels = [target for _, target in continued]
        if not all(labels):
            raise Failure("a target without tokens cannot be scored")
        inputs = [
            ids if prompt.soft is None else self._ids(prompt)
            for prompt, (ids, _) in zip(prompts, continued, strict=True)
        ]
        head = [*takewhile(lambda token: token != _SOFT, common(inputs))]
        head = head[: min(map(len, inputs)) - 1]
        if any(prompt.edits for prompt in prompts):  # the beginning is each prompt's own, too
            head = []
        prefix = Prefix.of(self, [head])
        rows = [ids[len(head) :] + target[:-1] for ids, target in zip(inputs, labels, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        losses = torch.empty(len(rows))

        def work(part: slice) -> Tensor:
            some = order[part]
            ids, _ = pad_right([rows[i] for i in some])
            embeds = self._filled(ids, [prompts[i] for i in some])
            first = [len(inputs[i]) - len(head) - 1 for i in some]
            owner = [0] * len(some)
            targets, own = [labels[i] for i in some], [prompts[i].edits for i in some]
            return target_loss(self, embeds, first, targets, prefix, owner, own).cpu()

        for part, result in self.chunks.map(work, len(order), len(rows[order[0]])):
            losses[order[part]] = result
        return losses

    @torch.no_grad()
    def hidden(self, prompts: Sequence[Prompt]) -> Tensor:
        """States (n, L+1, d) at the last prompt token, fp32 on the CPU, layers 0..L."""
        inputs = [self._inputs(prompt) for prompt in prompts]
        layers = range(self.depth + 1)

        def work(part: slice) -> Tensor:
            embeds, mask = pad_left(inputs[part])
            own = [prompt.edits for prompt in prompts[part]]
            self.usage.read(mask.numel())
            with self._acting(own, prompt_roles(mask)), kept(self.network, layers) as h:
                self.network(
                    inputs_embeds=embeds.to(self.dtype),
                    attention_mask=mask,
                    position_ids=(mask.long().cumsum(1) - 1).clamp(min=0),
                    use_cache=False,
                    logits_to_keep=1,
                )
            return torch.stack([h[l][:, -1].float().cpu() for l in layers], dim=1)

        parts = self.chunks.map(work, len(inputs), max(map(len, inputs)))
        return torch.cat([result for _, result in parts])

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        layers: Sequence[int] = (),
        tokens: Tensor | None = None,
        logits: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """States (layers, tokens, d) and logits (tokens, vocab) of a batch, differentiable.

        Without logits the blocks above the highest layer do not run, nor the output head. Where the
        weights are in bf16, so are the products of an adapter's, which peft holds in fp32.

        All on the model's device, whichever devices its blocks are on.

        Args:
            ids: (batch, time), padded on either side.
            mask: (batch, time), True at real tokens.
            layers: 0..L, whose outputs are wanted.
            tokens: (batch, time), True where outputs are wanted; by default at all real tokens.
            logits: whether the output head runs. What is not asked for is empty.

        Raises:
            ValueError: the model wears edits, which ask for roles that a batch does not tell.
        """
        if self.edits:
            raise ValueError("forward is for training, on a model without edits")
        mask = mask.to(self.device)
        wanted = mask.bool() if tokens is None else tokens.to(self.device)
        self.usage.read(ids.numel())
        if torch.is_grad_enabled():
            self.usage.backward_tokens += ids.numel()
        short = not logits and max(layers) < self.depth
        with (
            self.around(),
            kept(self.network, layers, wanted) as held,
            truncated(self.network, max(1, *layers)) if short else nullcontext(),
            selected(self.network, wanted) if logits else nullcontext(),
            torch.autocast(self.device.type, torch.bfloat16, self.dtype == torch.bfloat16),
        ):
            body = self.network if logits else self.network.get_decoder()
            output = body(
                input_ids=ids.to(self.device),
                attention_mask=mask,
                position_ids=(mask.long().cumsum(1) - 1).clamp(min=0),
                use_cache=False,
            )
        states = [held[layer].to(self.device) for layer in layers]
        if torch.is_grad_enabled():
            states = [h[wanted] for h in states]
        nothing = torch.empty(0, device=self.device)
        scores = output.logits[0].to(self.device) if logits else nothing
        return torch.stack(states) if states else nothing, scores

    @torch.no_grad()
    def head(self, states: Tensor) -> Tensor:
        """Logits (tokens, vocab) of states (tokens, d) of layer L: final norm and output head.

        They are put in the place of the first block's output in a pass of one token through it,
        so that whatever a family does behind the last block is done.
        """
        with self.around(), replaced(self.network, 1, states[None]), truncated(self.network, 1):
            ids = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            output = self.network(input_ids=ids, use_cache=False)
        return output.logits.flatten(0, 1).to(self.device)  # GPT-2 takes the tokens for rows

    def run(
        self,
        embeds: Tensor,
        roles: Tensor,
        own: Sequence[tuple[Edit, ...]] = (),
        **options: Any,
    ) -> Any:
        """One forward pass on embeddings (batch, time, d), under all edits; counts its tokens.

        Args:
            roles: (batch, time) of the positions, as edits see them.
            own: each row's edits besides the model's; by default none.
        """
        self.usage.read(embeds.shape[0] * embeds.shape[1])
        with self._acting(own or [()] * len(embeds), roles):
            return self.network(inputs_embeds=embeds.to(self.dtype), **options)

    @contextmanager
    def _acting(self, own: Sequence[tuple[Edit, ...]], roles: Tensor) -> Iterator[None]:
        """The view's own context, with the model's edits on every row and each row's behind."""
        rows: dict[int, tuple[Edit, list[int]]] = {}
        for row, edits in enumerate(own):
            for edit in (*self.edits, *edits):
                rows.setdefault(id(edit), (edit, []))[1].append(row)
        placed: list[Placed] = [(edit, torch.tensor(seen)) for edit, seen in rows.values()]
        with self.around(), edited(self.network, placed, roles):
            yield

    def _ids(self, prompt: Prompt) -> list[int]:
        """The prompt's ids, with _SOFT in the places of its vectors."""
        if prompt.soft is None:
            (ids,) = self.chat.encode([self.chat.render(prompt.messages)])
            return ids
        seams = self.chat.seams(prompt.messages)
        return [*seams.before_ids, *[_SOFT] * len(prompt.soft), *seams.after_ids]

    def _filled(self, ids: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Ids (n, time) that `_ids` made -> embeddings (n, time, d), each prompt's vectors in."""
        embeds = self.embed(ids.clamp(min=0))
        for row, prompt in enumerate(prompts):
            if prompt.soft is not None:
                embeds[row, ids[row] == _SOFT] = prompt.soft.to(embeds)
        return embeds

    def _inputs(self, prompt: Prompt) -> Tensor:
        """The prompt as embeddings (time, d)."""
        return self._filled(torch.tensor([self._ids(prompt)]), [prompt])[0]

    def _generate(
        self,
        inputs: Sequence[Tensor],
        edits: Sequence[tuple[Edit, ...]],
        noise: Tensor | None,
        temperature: float,
    ) -> list[Reply]:
        embeds, mask = pad_left(inputs)

        def acting(rows: Sequence[int], roles: Tensor) -> AbstractContextManager[None]:
            return self._acting([edits[i] for i in rows], roles)

        said = decode(
            self.network, embeds, mask, self.max_new_tokens, self._ends, acting, noise, temperature
        )
        self.usage.read(int(mask.sum()) + sum(map(len, said)))
        replies = []
        for row in said:
            ended = row[-1] in self._ends
            spoken = row[:-1] if ended else row
            text = self.chat.tokenizer.decode(spoken, skip_special_tokens=True)
            replies.append(Reply(text, not ended, len(row)))
        return replies

    @cached_property
    def _ends(self) -> list[int]:
        """Every token that ends a reply."""
        named = self.network.generation_config.eos_token_id
        ends = named if isinstance(named, list) else [named]
        ends = [end for end in {*ends, self.chat.tokenizer.eos_token_id} if end is not None]
        if not ends:
            raise InputError("the model names no end-of-sequence token")
        return sorted(ends)


def _spoken(prompt: Prompt) -> tuple[Message, ...]:
    """The messages of a prompt as text, a gap of vectors closed: for the seam with the reply."""
    return prompt.messages if prompt.soft is None else fill(prompt.messages, "")
