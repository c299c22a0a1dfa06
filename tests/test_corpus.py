"""Training text -> batches: masks point at what they name, whatever the padding."""

import torch

from robench.corpus import collate, tokenise
from robench.testing import tiny
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


def test_padding_changes_no_state():
    texts = tokenise(MODEL.chat, EXAMPLES)
    wide, narrow = collate(texts), collate(texts[1:])
    with torch.no_grad():
        padded, _ = MODEL.forward(wide.ids, wide.all_text, [2])
        plain, _ = MODEL.forward(narrow.ids, narrow.all_text, [2])
    real = padded[2][1][wide.all_text[1]]
    torch.testing.assert_close(real, plain[2][0], atol=1e-5, rtol=0)
