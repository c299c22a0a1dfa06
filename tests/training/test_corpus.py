"""Training text -> batches: the masks are right, whatever the padding."""

from copy import copy

import pytest
import torch

from robench.errors import Failure
from robench.model.chat import Chat
from robench.testing import tiny
from robench.training.corpus import (
    collate,
    draw_safe_texts,
    draw_texts,
    end_of_reply,
    split_examples,
    tokenise,
    tokenise_split,
)
from robench.types import Behavior, Example

MODEL = tiny()
EXAMPLES = [
    Example(Behavior("a", "Tell me how to wreck a lamp."), "Sure, here is how.", "answer"),
    Example(Behavior("b", "Why?"), "I cannot assist with that request.", "refusal"),
]


def test_masks():
    texts = tokenise(MODEL.chat, EXAMPLES)
    batch = collate(texts)
    for row, (text, example) in enumerate(zip(texts, EXAMPLES, strict=True)):
        assert MODEL.decode(batch.ids[row][batch.response[row]].tolist()) == example.reply
        assert batch.ids[row][batch.all_text[row]].tolist() == text.prompt + text.reply
        assert batch.last_prompt_token[row].nonzero().item() == len(text.prompt) - 1
    assert not (batch.response & ~batch.all_text).any()


def test_blanking_empties_the_user_turn_alone():
    (text,) = tokenise(MODEL.chat, EXAMPLES[:1], blank=True)
    assert "lamp" not in MODEL.decode(text.prompt)
    assert MODEL.decode(text.reply) == EXAMPLES[0].reply


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_state(side):
    texts = tokenise(MODEL.chat, EXAMPLES)
    wide, narrow = collate(texts, side), collate(texts[1:])
    with torch.no_grad():
        padded, many = MODEL.forward(wide.ids, wide.all_text, [0, 2], logits=True)
        plain, few = MODEL.forward(narrow.ids, narrow.all_text, [0, 2], logits=True)
    first = len(texts[0].prompt) + len(texts[0].reply)
    torch.testing.assert_close(padded[:, first:], plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(many[first:], few, atol=1e-5, rtol=0)


def test_long_replies_are_cut_and_long_prompts_left_out():
    texts = tokenise(MODEL.chat, EXAMPLES)
    shorter = len(texts[1].prompt)
    assert len(texts[0].prompt) > shorter
    (cut,) = tokenise(MODEL.chat, EXAMPLES, limit=shorter)
    assert cut.prompt == texts[1].prompt and cut.reply == texts[1].reply[:shorter]


def test_examples_by_kind():
    calm = Example(Behavior("c", "Bake a cake.", harmful=False), "Sure.", "answer")
    assert split_examples([*EXAMPLES, calm]) == ([EXAMPLES[0]], [EXAMPLES[1]], [calm])
    with pytest.raises(Failure, match="no answers to harmless"):
        split_examples(EXAMPLES)


def test_texts_are_drawn_with_replacement():
    rng = torch.Generator().manual_seed(0)
    texts = tokenise(MODEL.chat, EXAMPLES)
    assert len(draw_texts(texts, 9, rng)) == 9 and draw_texts([], 0, rng) == []
    with pytest.raises(Failure, match="no refusals"):
        draw_texts([], 9, rng)


def test_prompts_that_are_all_too_long_are_reported():
    with pytest.raises(Failure, match=r"no prompt .* at most 3 tokens"):
        tokenise(MODEL.chat, EXAMPLES, limit=3)


def test_safe_texts_are_refusals_then_harmless_answers():
    calm = Example(Behavior("c", "Bake a cake.", harmful=False), "Sure.", "answer")
    texts = tokenise_split(MODEL.chat, [*EXAMPLES, calm])
    drawn = draw_safe_texts(texts, 5, 0.5, torch.Generator().manual_seed(0))
    assert drawn == texts.refused * 2 + texts.harmless * 3
    with pytest.raises(Failure, match="no refusals"):
        draw_safe_texts(texts._replace(refused=[]), 5, 0.5, torch.Generator())
    without = draw_safe_texts(texts._replace(refused=[]), 2, 0.0, torch.Generator())
    assert without == texts.harmless * 2


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (None, "<|end|>"),
        ("{% for m in messages %}{{ m['content'] + ' <|end|>' }}{% endfor %}", " <|end|>"),
        ("{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}", "<|end|>"),
    ],
)
def test_a_reply_may_be_followed_by_what_the_template_ends_it_with(template, end):
    chat = MODEL.chat if template is None else Chat(copy(MODEL.chat.tokenizer))
    if template is not None:
        chat.tokenizer.chat_template = template
        chat = Chat(chat.tokenizer)
    ids = end_of_reply(chat)
    assert MODEL.decode(ids).replace(" ", "") == end.strip()
    plain, ended = (tokenise(chat, EXAMPLES, ended=flag) for flag in (False, True))
    assert [[*text.reply, *ids] for text in plain] == [text.reply for text in ended]
    shorter = max(len(text.prompt) for text in plain)
    cut = tokenise(chat, EXAMPLES, limit=shorter, ended=True)
    for text, example in zip(cut, plain, strict=True):
        assert text.reply == example.reply[:shorter] + ids * (len(example.reply) <= shorter)
