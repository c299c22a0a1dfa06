"""Prefilling: the target stands in the model's mouth, and the reply goes on from there."""

import pytest

from robench.methods.registry import load_class
from robench.testing import tiny, tiny_behaviors, tiny_context

Prefilling = load_class("attack", "prefilling")


def attempts(**fields):
    return list(Prefilling(**fields).run(tiny(), tiny_behaviors(2), tiny_context()))


def test_the_reply_begins_with_the_target_and_is_not_closed():
    model = tiny()
    for behavior, attempt in zip(tiny_behaviors(2), attempts(), strict=True):
        assert attempt.behavior == behavior and attempt.final
        assert attempt.prompt.access == "text"
        rendered = model.chat.render(attempt.prompt.messages)
        assert behavior.request in rendered and rendered.endswith(behavior.target)


def test_some_words_of_the_target_may_be_enough():
    spoken = [attempt.prompt.messages[-1] for attempt in attempts(words=3)]
    assert spoken == [{"role": "assistant", "content": "Sure, here is"}] * 2
    assert attempts(words=99)[0].prompt == attempts()[0].prompt


def test_settings_are_checked():
    with pytest.raises(ValueError, match="words must be at least 0"):
        Prefilling(words=-1)
