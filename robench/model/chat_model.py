"""ChatModel: a causal language model as attacks, defenses and the harness use it.

Methods: generate, replies, nll, hidden, forward, slots, encode, decode. Weights are frozen; losses
are in fp32 whatever the precision of the weights; every method batches by itself.

What imports transformers is imported where it is first needed, as that takes seconds: methods name
`ChatModel`, and a finished run needs no more of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from robench.config import digest
from robench.errors import Failure, InputError
from robench.model.batching import Chunks, last_positions, pad_left, pad_right
from robench.model.chat import Chat, common_prefix, fill_gap
from robench.model.folding import adapter_disabled, changes_weights_in_passes
from robench.model.hooks import (
    EditRows,
    at_depth,
    blocks,
    captured_states,
    edited,
    first_blocks_only,
    head_limited_to,
    layer_number,
    prompt_roles,
    replaced_output,
)
from robench.model.limits import context_of, refuse_unsupported
from robench.model.reader import Usage
from robench.model.thoughts import THINKING, Marks
from robench.types import Edit, Message, Prompt

if TYPE_CHECKING:
    from robench.model.slots import Slots

_SOFT = -1  # among a prompt's ids: the place of a vector


class Reply(NamedTuple):
    """The model's reply.

    text:      what follows its thought, if it has one; "" of a thought that never closed
    truncated: whether it had not ended at its limit of tokens
    tokens:    how many were generated, thought and end token included
    thought:   None where the reply has none
    finished:  whether the thought was closed; without an answer there is nothing to judge
    ids:       of a reply with a thought the tokens, without the end token
    begin:     the one of them from which on the answer stands
    """

    text: str
    truncated: bool
    tokens: int
    thought: str | None = None
    finished: bool = True
    ids: tuple[int, ...] = ()
    begin: int = 0

    @property
    def answer(self) -> str | None:
        """The text to judge, None where there is none."""
        return self.text if self.finished else None


def count_parameters(network: Any) -> int:
    """N of a causal language model: the parameters that a token meets.

    Those are not the input embedding, if the output has its own, and of the experts of a mixture
    those that a token is sent to.
    """
    total = sum(p.numel() for p in network.parameters())
    of_experts = sum(p.numel() for p in blocks(network).parameters() if p.ndim == 3)
    config = network.config.get_text_config(decoder=True)
    experts = next((p.shape[0] for p in blocks(network).parameters() if p.ndim == 3), 1)
    asked = getattr(config, "num_experts_per_tok", None) or experts
    total -= round(of_experts * (1 - min(1, asked / experts)))
    embedding = network.get_input_embeddings().weight
    tied = network.get_output_embeddings().weight is embedding
    return total if tied else total - embedding.numel()


@dataclass
class ChatModel:
    """A loaded model. Views of it (`edited`, `undefended`) share weights and usage.

    network:        the transformers causal language model, in eval mode, frozen
    chat:           its tokenizer and template
    max_new_tokens: of a reply; of a model that thinks, of what follows its thought
    usage:          counts the tokens that it reads
    chunks:         the sizes of its batches
    adapter:        that of a defense which is applied: a peft model or a `FoldedAdapter`
    around:         a context for every forward pass
    edits:          act on every prompt, before the prompt's own
    identity:       a hash of weights, template, system prompt and precision; "" of a model that was
                    made in code
    bare:           the model before `with_system`; None if nothing was added
    max_thinking_tokens: of the thought of a model that thinks; None: THINKING * max_new_tokens
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
    max_thinking_tokens: int | None = None

    @classmethod
    def of(
        cls,
        network: Any,
        chat: Chat,
        max_new_tokens: int = 256,
        max_thinking_tokens: int | None = None,
    ) -> ChatModel:
        """Freeze a transformers causal language model and wrap it.

        Of its generation config only the end tokens are kept: transformers would apply the rest,
        and Qwen2.5's repetition penalty, for one, would change greedy replies.

        Raises:
            InputError: the engine cannot read it as it should be read (see `limits.unsupported`).
        """
        from transformers import GenerationConfig

        refuse_unsupported(network)
        network.eval().requires_grad_(False)
        ends = network.generation_config.eos_token_id
        network.generation_config = GenerationConfig(eos_token_id=ends)
        embedding = network.get_input_embeddings().weight
        usage = Usage(count_parameters(network))
        return cls(
            network,
            chat,
            max_new_tokens,
            usage,
            Chunks(embedding.device, len(embedding[0])),
            max_thinking_tokens=max_thinking_tokens,
        )

    @property
    def device(self) -> torch.device:
        return self.network.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.get_input_embeddings().weight.dtype

    @property
    def thinking_tokens(self) -> int:
        """Tokens that a reply may have besides its answer; 0 of a model that does not think."""
        if not self.chat.may_think:
            return 0
        given = self.max_thinking_tokens
        return THINKING * self.max_new_tokens if given is None else given

    @property
    def reply_tokens(self) -> int:
        """Tokens of a reply, at most, its thought included."""
        return self.max_new_tokens + self.thinking_tokens

    def check_length(self, tokens: int) -> None:
        """That a row of so many tokens, its reply included, is not too long for the model.

        Raises:
            Failure: it is.
        """
        context = context_of(self.network.config)
        if context is not None and tokens > context.tokens:
            why = f": {context.reason}" if context.reason else ""
            raise Failure(
                f"{tokens} tokens of a prompt and its reply are more than the {context.tokens} "
                f"that the model reads{why}; give a smaller --max-new-tokens, or shorter requests"
            )

    @property
    def workers(self) -> int:
        """Passes that may run at a time: one per thread of a CPU, or one if there are hooks.

        Hooks, which edits and third-party defenses register, may keep state between passes.
        """
        if self.device.type != "cpu" or self.edits or self.around is not nullcontext:
            return 1
        if self.adapter is not None and changes_weights_in_passes(self.adapter):
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
        return self.embed(torch.arange(module.weight.shape[0], device=self.device)).detach()

    @cached_property
    def allowed(self) -> Tensor:
        """(vocab,) True at the tokens that a discrete attack may use.

        Excluded are special and added tokens, rows beyond the tokenizer, and tokens that decode to
        an empty text or to anything but printable ASCII.
        """
        tokenizer = self.chat.tokenizer
        banned = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        texts = self.chat.decode([[i] for i in range(len(tokenizer))])
        allowed = torch.zeros(len(self.embedding), dtype=torch.bool)
        for i, text in enumerate(texts[: len(allowed)]):
            allowed[i] = i not in banned and text != "" and text.isascii() and text.isprintable()
        return allowed

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of text, without special tokens."""
        return list(self.chat.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        return self.chat.decode([ids])[0]

    def embed(self, ids: Tensor) -> Tensor:
        """Ids (...) -> effective embeddings (..., d)."""
        with self.around():  # an adapter may be on the embedding, too
            return self.network.get_input_embeddings()(ids.to(self.device))

    def layer_numbers(self, layers: Sequence[int] | tuple[float, float]) -> list[int]:
        """Layers 0..L, ascending.

        Args:
            layers: numbers, of which negative ones count from L, or a range of depth fractions.

        Raises:
            InputError: this model has no such layer, or a fraction is not in [0, 1].
        """
        if all(isinstance(layer, int) for layer in layers):
            try:
                return sorted({layer_number(int(layer), self.depth) for layer in layers})
            except ValueError as error:
                raise InputError(f"layers {list(layers)}: {error}") from None
        first, last = layers
        if not 0 <= first <= last <= 1:
            raise InputError(f"layers {list(layers)}: a range of depths must be in [0, 1]")
        return list(range(at_depth(first, self.depth), at_depth(last, self.depth) + 1))

    def edited(self, edits: Sequence[Edit]) -> ChatModel:
        """A view of the model in which `edits` act on every prompt."""
        return replace(self, edits=(*self.edits, *edits))

    def undefended(self) -> ChatModel:
        """A view of the same weights without the defense's adapter, edits and system prompt."""
        bare = self.bare or self
        plain = replace(self, edits=(), chat=bare.chat, identity=bare.identity, bare=None)
        if self.adapter is None:
            return plain
        return replace(plain, around=partial(adapter_disabled, self.adapter))

    def with_system(self, text: str) -> ChatModel:
        """A view whose conversations begin with `text` as the system prompt.

        The run's own system prompt (`--system`), if there is one, stays before it, with a blank
        line between them. A default that the template writes by itself is replaced, as the
        template has it.

        Raises:
            InputError: the chat template has no system role.
        """
        system = f"{self.chat.system}\n\n{text}" if self.chat.system else text
        chat = Chat(self.chat.tokenizer, system, self.chat.template_args)
        identity = digest([self.identity, system]) if self.identity else ""
        return replace(self, chat=chat, identity=identity, bare=self.bare or self)

    def slots(self, messages: Sequence[Sequence[Message]], targets: Sequence[str]) -> Slots:
        """The gaps of n conversations (a GAP mark each), scored by the losses of n targets."""
        from robench.model.slots import Slots

        return Slots.of(self, messages, targets)

    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """Greedy replies: what follows the thought, of a model that thinks."""
        return [reply.text for reply in self.replies(prompts)]

    @torch.no_grad()
    def replies(
        self, prompts: Sequence[Prompt], noise: Tensor | None = None, temperature: float = 1.0
    ) -> list[Reply]:
        """Replies with their numbers of tokens; greedy by default.

        Args:
            prompts: are answered in left-padded batches, in order of length.
            noise: (n, reply_tokens) uniform in [0, 1): each prompt's reply is sampled with its
                own numbers, so it does not depend on the rest of the batch (`sample_tokens`).
            temperature: of sampled replies.
        """
        inputs = [self._prompt_embeddings(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda i: -len(inputs[i]))
        replies: dict[int, Reply] = {}
        longest = len(inputs[order[0]]) if order else 0
        self.check_length(longest + self.reply_tokens)
        # A decoding step reads one token per row, so there may be many rows: their keys and values
        # are the limit.
        per_row = max(1, (longest + self.reply_tokens) // 8)

        def work(part: slice) -> list[Reply]:
            rows = order[part]
            return self._generate(
                [inputs[i] for i in rows],
                [prompts[i] for i in rows],
                None if noise is None else noise[rows],
                temperature,
            )

        for part, result in self.chunks.map(work, len(order), per_row):
            replies.update(zip(order[part], result, strict=True))
        return [replies[i] for i in range(len(prompts))]

    @torch.no_grad()
    def nll(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> Tensor:
        """Mean negative log-likelihood (n,) of each target's tokens after its prompt, fp32.

        The common beginning of all prompts is read once, the rest in order of length.

        Raises:
            Failure: a target has no tokens.
        """
        return self._nll(prompts, *self._scoring_ids(prompts, targets))

    @torch.no_grad()
    def nll_of_answers(self, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> Tensor:
        """Likewise, of the answer in each reply with a thought, after prompt and thought.

        The reply's own tokens are read, as a template may drop a thought from a conversation.

        Args:
            prompts: of text.
            replies: with a thought, and an answer after it.
        """
        before = [
            [*self._prompt_ids(prompt), *reply.ids[: reply.begin]]
            for prompt, reply in zip(prompts, replies, strict=True)
        ]
        return self._nll(prompts, before, [[*reply.ids[reply.begin :]] for reply in replies])

    def _nll(
        self,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[list[int]],
        labels: Sequence[list[int]],
    ) -> Tensor:
        """Losses (n,) of the labels of each prompt after its ids, with the prompts' edits."""
        from robench.model.prefix import Prefix
        from robench.model.scoring import target_loss

        if not prompts:
            return torch.empty(0)
        head = [*takewhile(lambda token: token != _SOFT, common_prefix(prompt_ids))]
        head = head[: min(map(len, prompt_ids)) - 1]
        if any(prompt.edits for prompt in prompts):  # they act on the beginning, too
            head = []
        prefix = Prefix.of(self, [head])
        rows = [
            ids[len(head) :] + target[:-1] for ids, target in zip(prompt_ids, labels, strict=True)
        ]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        self.check_length(len(head) + len(rows[order[0]]) + 1)
        losses = torch.empty(len(rows))

        def work(part: slice) -> Tensor:
            indices = order[part]
            ids, _ = pad_right([rows[i] for i in indices])
            embeds = self._embedded(ids, [prompts[i] for i in indices])
            first = [len(prompt_ids[i]) - len(head) - 1 for i in indices]
            part_labels = [labels[i] for i in indices]
            row_edits = [prompts[i].edits for i in indices]
            owner = [0] * len(indices)
            return target_loss(self, embeds, first, part_labels, prefix, owner, row_edits).cpu()

        for part, result in self.chunks.map(work, len(order), len(rows[order[0]])):
            losses[order[part]] = result
        return losses

    @torch.no_grad()
    def hidden(self, prompts: Sequence[Prompt]) -> Tensor:
        """States (n, L+1, d) at the last prompt token, fp32 on the CPU, layers 0..L."""
        inputs = [self._prompt_embeddings(prompt) for prompt in prompts]
        self.check_length(max(map(len, inputs)))
        layers = range(self.depth + 1)

        def work(part: slice) -> Tensor:
            embeds, mask = pad_left(inputs[part])
            row_edits = [prompt.edits for prompt in prompts[part]]
            self.usage.count_forward(mask.numel())
            with (
                self._edits_applied(row_edits, prompt_roles(mask)),
                captured_states(self.network, layers) as h,
            ):
                self.network(
                    inputs_embeds=embeds.to(self.dtype),
                    attention_mask=mask,
                    position_ids=(mask.long().cumsum(1) - 1).clamp(min=0),
                    use_cache=False,
                    logits_to_keep=last_positions(1),
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

        Without logits the blocks above the highest layer and the output head do not run. If the
        weights are in bf16, an adapter, which peft holds in fp32, is multiplied in bf16, too. The
        results are on the model's device, whichever devices its blocks are on.

        Args:
            ids: (batch, time), padded on either side.
            mask: (batch, time), True at real tokens.
            layers: 0..L, those whose outputs are returned; if none, the states are empty.
            tokens: (batch, time), True at the positions to return; by default all real tokens.
            logits: whether to compute logits; if not, they are empty.

        Raises:
            ValueError: the model has edits, which need roles that a batch does not have.
        """
        if self.edits:
            raise ValueError("forward is for training, on a model without edits")
        self.check_length(ids.shape[1])
        mask = mask.to(self.device)
        positions = mask.bool() if tokens is None else tokens.to(self.device)
        self.usage.count_forward(ids.numel())
        if torch.is_grad_enabled():
            self.usage.backward_tokens += ids.numel()
        partial_depth = not logits and max(layers) < self.depth
        with (
            self.around(),
            captured_states(self.network, layers, positions) as captured,
            first_blocks_only(self.network, max(1, *layers)) if partial_depth else nullcontext(),
            head_limited_to(self.network, positions) if logits else nullcontext(),
            torch.autocast(self.device.type, torch.bfloat16, self.dtype == torch.bfloat16),
        ):
            body = self.network if logits else self.network.get_decoder()
            output = body(
                input_ids=ids.to(self.device),
                attention_mask=mask,
                position_ids=(mask.long().cumsum(1) - 1).clamp(min=0),
                use_cache=False,
            )
        states = [captured[layer].to(self.device) for layer in layers]
        if torch.is_grad_enabled():
            states = [h[positions] for h in states]
        empty = torch.empty(0, device=self.device)
        returned_logits = output.logits[0].to(self.device) if logits else empty
        return torch.stack(states) if states else empty, returned_logits

    @torch.no_grad()
    def head(self, states: Tensor) -> Tensor:
        """Logits (tokens, vocab) of states (tokens, d) of layer L: final norm and output head.

        The states replace the output of the first block in a pass of one token through that block
        alone, so whatever a family computes after its last block is applied to them.
        """
        with (
            self.around(),
            replaced_output(self.network, 1, states[None]),
            first_blocks_only(self.network, 1),
        ):
            ids = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            output = self.network(input_ids=ids, use_cache=False)
        return output.logits.flatten(0, 1).to(self.device)  # GPT-2 returns the tokens as rows

    def run(
        self,
        embeds: Tensor,
        roles: Tensor,
        row_edits: Sequence[tuple[Edit, ...]] = (),
        **options: Any,
    ) -> Any:
        """One forward pass on embeddings (batch, time, d), with all edits; counts its tokens.

        Args:
            embeds: the input embeddings.
            roles: (batch, time) of the positions, as edits see them.
            row_edits: each row's edits besides the model's; by default none.
            options: of the network's forward method.
        """
        self.usage.count_forward(embeds.shape[0] * embeds.shape[1])
        with self._edits_applied(row_edits or [()] * len(embeds), roles):
            return self.network(inputs_embeds=embeds.to(self.dtype), **options)

    @contextmanager
    def _edits_applied(
        self, row_edits: Sequence[tuple[Edit, ...]], roles: Tensor
    ) -> Iterator[None]:
        """The model's context, with the model's edits on every row and then each row's own."""
        rows_of: dict[int, tuple[Edit, list[int]]] = {}
        for row, edits in enumerate(row_edits):
            for edit in (*self.edits, *edits):
                rows_of.setdefault(id(edit), (edit, []))[1].append(row)
        all_edits: list[EditRows] = [(edit, torch.tensor(rows)) for edit, rows in rows_of.values()]
        with self.around(), edited(self.network, all_edits, roles):
            yield

    def _scoring_ids(
        self, prompts: Sequence[Prompt], targets: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """The ids of prompts, with _SOFT in place of vectors, and of their targets."""
        conversations = [_text_messages(prompt) for prompt in prompts]
        pairs = self.chat.prompt_and_target_ids(conversations, targets)
        labels = [target for _, target in pairs]
        if not all(labels):
            raise Failure("a target without tokens cannot be scored")
        prompt_ids = [
            ids if prompt.soft is None else self._prompt_ids(prompt)
            for prompt, (ids, _) in zip(prompts, pairs, strict=True)
        ]
        return prompt_ids, labels

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        """The prompt's ids, with _SOFT in place of its vectors."""
        if prompt.soft is None:
            (ids,) = self.chat.encode([self.chat.render(prompt.messages)])
            return ids
        seams = self.chat.seams(prompt.messages)
        return [*seams.before_ids, *[_SOFT] * len(prompt.soft), *seams.after_ids]

    def _embedded(self, ids: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Ids (n, time) of `_prompt_ids` -> embeddings (n, time, d) with the prompts' vectors."""
        embeds = self.embed(ids.clamp(min=0))
        for row, prompt in enumerate(prompts):
            if prompt.soft is not None:
                embeds[row, ids[row] == _SOFT] = prompt.soft.to(embeds)
        return embeds

    def _prompt_embeddings(self, prompt: Prompt) -> Tensor:
        """The prompt as embeddings (time, d)."""
        return self._embedded(torch.tensor([self._prompt_ids(prompt)]), [prompt])[0]

    def _generate(
        self,
        inputs: Sequence[Tensor],
        prompts: Sequence[Prompt],
        noise: Tensor | None,
        temperature: float,
    ) -> list[Reply]:
        from robench.model.decoding import decode

        embeds, mask = pad_left(inputs)

        def context(rows: Sequence[int], roles: Tensor) -> AbstractContextManager[None]:
            return self._edits_applied([prompts[i].edits for i in rows], roles)

        opened = [self.chat.opened_in(prompt.messages) for prompt in prompts]

        def limit(row: int, tokens: Sequence[int]) -> int:
            return self._limit(tokens, opened[row])

        ends_early = self.thinking_tokens or self.chat.turn_end_text
        rows = decode(
            self.network, embeds, mask, self.reply_tokens, self._end_tokens, context,
            noise, temperature, limit if ends_early else None,
        )  # fmt: skip
        self.usage.count_forward(int(mask.sum()) + sum(map(len, rows)))
        return [self._reply(tokens, marks) for tokens, marks in zip(rows, opened, strict=True)]

    def _limit(self, tokens: Sequence[int], opened: Marks | None) -> int:
        """The most tokens of a reply that begins with these: its thought's and its answer's."""
        closed = self.chat.closed_at(tokens)
        if not self.thinking_tokens:
            return self.max_new_tokens if closed is None else closed
        said = self.chat.answered(tokens, opened)
        thinks = said.answer is None or said.begin > self.thinking_tokens
        longest = self.thinking_tokens if thinks else said.begin + self.max_new_tokens
        return longest if closed is None else min(closed, longest)

    def _reply(self, tokens: Sequence[int], opened: Marks | None) -> Reply:
        token = bool(tokens) and tokens[-1] in self._end_tokens
        ids = tuple(tokens[:-1] if token else tokens)
        ended = token or self.chat.closed_at(tokens) is not None
        said = self.chat.answered(ids, opened)
        if said.thought is None:
            return Reply(said.answer or "", not ended, len(tokens))
        finished = said.answer is not None
        return Reply(
            said.answer or "", not ended, len(tokens), said.thought, finished, ids, said.begin
        )

    @cached_property
    def _end_tokens(self) -> list[int]:
        """Every token that ends a reply: the configured ones, and the template's end of a turn."""
        configured = self.network.generation_config.eos_token_id
        tokens = configured if isinstance(configured, list) else [configured]
        ours = (self.chat.tokenizer.eos_token_id, self.chat.turn_end)
        tokens = [token for token in {*tokens, *ours} if token is not None]
        if not tokens:
            raise InputError("the model has no end-of-sequence token")
        return sorted(tokens)


def _text_messages(prompt: Prompt) -> tuple[Message, ...]:
    """The messages of a prompt, a gap of vectors left empty: how the reply is joined to them."""
    return prompt.messages if prompt.soft is None else fill_gap(prompt.messages, "")
