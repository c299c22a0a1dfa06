"""The controls: an untrained adapter changes no reply, harmless fine-tuning learns its answers."""

from dataclasses import replace

import pytest
import torch

from robench.methods.registry import load_class
from robench.testing import quick, tiny, tiny_behaviors, tiny_context
from robench.training.corpus import split_examples
from robench.types import Prompt, user

NoOp, BenignLoRA = load_class("defense", "noop"), load_class("defense", "benign_lora")


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_noop_replies_as_the_base_does(family, tmp_path):
    model, prompts = tiny(family), [Prompt(user(b.text)) for b in tiny_behaviors()]
    plain, states = model.generate(prompts), model.hidden(prompts)
    with NoOp().applied(model, tiny_context(), tmp_path / "cache") as target:
        assert target.adapter is not None
        assert target.generate(prompts) == plain
        assert torch.equal(target.hidden(prompts), states)


def test_benign_lora_learns_harmless_answers_alone(tmp_path):
    model, ctx = tiny(), tiny_context()
    harmful, _, harmless = split_examples(ctx.examples)
    defense = replace(quick(BenignLoRA(rate=1e-2, dropout=0.0)), steps=60, batch=8)

    def loss(target, examples):
        return target.nll([Prompt(user(e.behavior.text)) for e in examples],
                          [e.reply for e in examples]).mean().item()  # fmt: skip

    before = loss(model, harmless[:8])
    with defense.applied(model, ctx, tmp_path / "cache") as target:
        assert loss(target, harmless[:8]) < 0.7 * before
    only = replace(ctx, examples=[*harmless, *(replace(e, reply="Nothing.") for e in harmful)])
    states = []
    for context, name in ((ctx, "one"), (only, "two")):
        with replace(defense, steps=3).applied(model, context, tmp_path / name) as target:
            states.append(target.hidden([Prompt(user("Why?"))]))
    assert torch.equal(*states)  # replies to harmful requests are not used


def test_settings_are_checked():
    for wrong in ({"steps": 0}, {"dropout": 2.0}):
        with pytest.raises(ValueError):
            BenignLoRA(**wrong)
    with pytest.raises(ValueError):
        NoOp(rank=0)
