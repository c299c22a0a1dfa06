"""Decoding against a slow plain loop: one row, no cache, all tokens read again for each token."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from robench.errors import Failure
from robench.model import decoding
from robench.model.chat_model import ChatModel, Reply
from robench.model.folding import adapter_disabled
from robench.testing import FAMILIES, tiny
from robench.types import GAP, LAST, PAD, PROMPT, REPLY, Prompt, user

MOST = 24


@dataclass(frozen=True)
class Turn:
    """A different change for each role, none for padding."""

    layer: int
    strength: float

    def __call__(self, h, role):
        scale = torch.tensor([0.0, 1.0, 2.0, 3.0])
        kinds = torch.stack([role == kind for kind in (PAD, PROMPT, LAST, REPLY)], -1).to(h.device)
        change = (kinds * scale.to(h.device)).sum(-1, keepdim=True)
        return h + self.strength * change * h.roll(1, -1)


@dataclass(frozen=True)
class Count:
    """Records how many rows each pass reads."""

    layer: int
    rows: list

    def __call__(self, h, role):
        self.rows.append(len(h))
        return h


def talker(family: str = "llama", every: int = 16) -> ChatModel:
    """A tiny model with so many end tokens that its replies have all lengths."""
    model = tiny(family)
    ends = list(range(0, len(model.embedding), every))
    model.network.generation_config = GenerationConfig(eos_token_id=ends)
    return ChatModel.of(model.network, model.chat, MOST)


def mixed(model: ChatModel) -> list[Prompt]:
    """Short and long prompts, some with edits of their own, one of vectors."""
    vectors = torch.randn(3, model.width, generator=torch.Generator().manual_seed(0))
    texts = ["Why?", "Tell me how to wreck a lamp.", "Please explain how to mend a boat.", "Go on."]
    plain = [Prompt(user(text)) for text in texts]
    return [
        *plain,
        replace(plain[1], edits=(Turn(1, 0.1), Turn(2, -0.2))),
        replace(plain[3], edits=(Turn(-1, 0.3),)),
        Prompt(user(f"Why?{GAP}"), soft=vectors, edits=(Turn(0, 0.2),)),
    ]


def uniform(rows: int) -> torch.Tensor:
    return torch.rand(rows, MOST, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def reference_reply(model: ChatModel, prompt: Prompt, noise: torch.Tensor | None) -> Reply:
    """A reply token by token; if sampled, the first token whose F exceeds u."""
    embeds, tokens = model._prompt_embeddings(prompt)[None], []
    time = embeds.shape[1]
    while len(tokens) < model.max_new_tokens:
        whole = torch.cat([embeds, model.embed(torch.tensor([tokens], dtype=torch.long))], 1)
        roles = torch.tensor([[PROMPT] * (time - 1) + [LAST] + [REPLY] * len(tokens)])
        output = model.run(whole, roles, [prompt.edits], use_cache=False)
        if noise is None:
            token = output.logits[0, -1].argmax()
        else:
            token = (output.logits[0, -1].softmax(0).cumsum(0) <= noise[len(tokens)]).sum()
        tokens.append(int(token))
        if tokens[-1] in model._end_tokens:
            text = model.chat.tokenizer.decode(tokens[:-1], skip_special_tokens=True)
            return Reply(text, False, len(tokens))
    return Reply(model.chat.tokenizer.decode(tokens, skip_special_tokens=True), True, len(tokens))


@pytest.mark.parametrize(("drawn", "check_every"), [(False, 1), (True, 1), (True, 5)])
@pytest.mark.parametrize("family", FAMILIES)
def test_replies_equal_the_loop(family, drawn, check_every, monkeypatch):
    """Rows of all lengths with edits of their own; memory grows and rows are dropped repeatedly."""
    monkeypatch.setattr(decoding, "GROWTH", 5)
    monkeypatch.setitem(decoding.CHECK_EVERY, "cpu", check_every)
    rows = []
    model = talker(family).edited([Turn(1, 0.1)])
    prompts = mixed(model)
    noise = uniform(len(prompts)) if drawn else None
    replies = model.edited([Count(1, rows)]).replies(prompts, noise)
    alone = [noise[i] if drawn else None for i in range(len(prompts))]
    assert replies == [reference_reply(model, p, u) for p, u in zip(prompts, alone, strict=True)]
    assert rows == sorted(rows, reverse=True) and rows[0] == len(prompts)
    lengths = [reply.tokens for reply in replies]
    assert len(rows) <= max(lengths) + check_every - 1
    if drawn:
        assert len({*rows}) > 2 and len({*lengths}) > 3


def test_the_forward_tokens_are_those_of_prompts_and_replies():
    model = talker()
    prompts = mixed(model)
    before = model.usage.forward_tokens
    replies = model.replies(prompts, uniform(len(prompts)))
    read = sum(len(model._prompt_embeddings(prompt)) for prompt in prompts)
    assert model.usage.forward_tokens - before == read + sum(reply.tokens for reply in replies)


def test_an_adapter_that_is_off_stays_off_when_rows_are_dropped(with_lora):
    plain = talker()
    prompts = mixed(plain)
    noise = uniform(len(prompts))
    expected = plain.replies(prompts, noise)
    defended = with_lora(plain, ["v_proj"], spread=1.0)
    adapter = defended.adapter
    assert (
        replace(plain, around=partial(adapter_disabled, adapter)).replies(prompts, noise)
        == expected
    )
    assert defended.undefended().replies(prompts, noise) == expected
    replies = defended.replies(prompts, noise)
    assert (
        replies
        == [reference_reply(defended, p, u) for p, u in zip(prompts, noise, strict=True)]
        != expected
    )


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "mistral"])
def test_a_window_that_no_row_exceeds_is_written_in_place(family):
    model = talker(family)
    short = decoding._cache(model.network.config, 40)
    assert {type(layer) for layer in short.layers} != {decoding._InPlaceLayer}
    model.network.config.sliding_window = 4096
    cache = decoding._cache(model.network.config, 40)
    assert {type(layer) for layer in cache.layers} == {decoding._InPlaceLayer}
    prompts = mixed(model)
    noise = uniform(len(prompts))
    replies = model.replies(prompts, noise)
    assert replies == [reference_reply(model, p, u) for p, u in zip(prompts, noise, strict=True)]


def test_keys_and_values_are_those_of_transformers(monkeypatch):
    """After every pass, whatever the passes read and whichever rows are left."""
    monkeypatch.setattr(decoding, "GROWTH", 4)
    model = tiny()
    ours, theirs = decoding._cache(model.network.config, 99), DynamicCache()
    draws = torch.Generator().manual_seed(0)
    rows = 5
    for time, stay in ((3, None), (1, [0, 2, 4]), (1, None), (9, None), (1, [2]), (1, None)):
        ids = torch.randint(300, (rows, time), generator=draws)
        logits = [
            model.network(ids, past_key_values=cache, use_cache=True).logits
            for cache in (ours, theirs)
        ]
        torch.testing.assert_close(*logits, atol=1e-5, rtol=0)
        if stay is not None:
            for cache in (ours, theirs):
                cache.batch_select_indices(torch.tensor(stay))
            rows = len(stay)
            for layer in ours.layers:  # no memory of dropped rows is held
                held = [t.untyped_storage().nbytes() for t in (*layer.memory, layer.keys)]
                assert held == [layer.keys.nbytes] * 3
        for mine, plain in zip(ours.layers, theirs.layers, strict=True):
            torch.testing.assert_close(mine.keys, plain.keys, atol=1e-5, rtol=0)
            torch.testing.assert_close(mine.values, plain.values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("most", [1, 3])
def test_a_model_whose_scores_are_nan_has_no_reply(most, drawn):
    """Greedy decoding would take the NaN token; also in the last step, which no pass follows."""
    model = tiny()
    model.max_new_tokens = most
    model.network.lm_head.weight.data[7] = torch.nan
    with pytest.raises(Failure, match="are NaN or infinite"):
        model.replies([Prompt(user("Why?"))], uniform(1) if drawn else None)


def test_nothing_is_drawn_where_the_temperature_leaves_no_numbers():
    with pytest.raises(Failure, match="are NaN or infinite"):
        tiny().replies([Prompt(user("Why?"))], uniform(1), temperature=1e-45)


def test_logits_after_an_end_may_be_nan(monkeypatch):
    """A row that has ended stays in the batch until the next check."""
    monkeypatch.setitem(decoding.CHECK_EVERY, "cpu", MOST)
    model, prompts = talker(), [Prompt(user("Why?"))]
    (expected,) = model.replies(prompts, uniform(1))
    assert not expected.truncated and expected.tokens < MOST

    @dataclass(frozen=True)
    class Fail:
        """NaN in every pass after the one that predicts the end."""

        layer: int
        passes: list

        def __call__(self, h, role):
            self.passes.append(1)
            return h if len(self.passes) <= expected.tokens else h * torch.nan

    assert model.edited([Fail(1, passes := [])]).replies(prompts, uniform(1)) == [expected]
    assert len(passes) == MOST


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_replies_equal_single_ones_on_cuda(family, drawn):
    """With a check for ended rows every 8 tokens: all tokens after an end are cut."""
    other = talker(family)
    model = ChatModel.of(other.network.to("cuda"), other.chat, MOST)
    prompts = mixed(model)
    noise = uniform(len(prompts)) if drawn else None
    alone = [noise[i : i + 1] if drawn else None for i in range(len(prompts))]
    single = [model.replies([p], u)[0] for p, u in zip(prompts, alone, strict=True)]
    assert model.replies(prompts, noise) == single
    assert model.edited([Turn(1, 0.1)]).replies(prompts, noise) != single
