"""Refusal tuning: it learns to refuse and to stop, from refusals and harmless answers alone."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from robench.errors import Failure
from robench.methods.registry import load_class, resolve
from robench.testing import quick, tiny, tiny_context
from robench.training import FineTuning, split_examples, tokenise
from robench.types import Prompt, user

RefusalTuning = load_class("defense", "refusal_tuning")
QUICK = quick(RefusalTuning(rate=1e-2, dropout=0.0, refusals=0.5))


def test_the_base_is_left_alone(assert_base_is_unchanged):
    assert_base_is_unchanged(QUICK)


def test_it_learns_refusals_and_harmless_answers(tmp_path):
    model, ctx = tiny(), tiny_context()
    split = split_examples(ctx.examples)

    def losses(target):
        return [
            target.nll([Prompt(user(e.behavior.request)) for e in part], [e.reply for e in part])
            for part in (split.refused[:6], split.harmless[:6])
        ]

    before = losses(model)
    with replace(QUICK, steps=40, batch=8).applied(model, ctx, tmp_path / "cache") as target:
        after = losses(target)
    assert all(late.mean() < 0.7 * early.mean() for late, early in zip(after, before, strict=True))


def test_it_learns_where_a_refusal_ends(tmp_path):
    model, ctx = tiny(), tiny_context()
    refusals = {e.reply for e in split_examples(ctx.examples).refused}
    asked = [Prompt(user(e.behavior.request)) for e in ctx.examples[:4]]
    only = replace(QUICK, refusals=1.0, steps=60, batch=8, rate=2e-2)
    with only.applied(model, ctx, tmp_path / "cache") as target:
        replies = replace(target, max_new_tokens=30).replies(asked)
    assert all(not reply.truncated for reply in replies)
    assert {reply.text for reply in replies} <= refusals


def test_the_share_of_refusals_is_that_of_every_batch():
    model, ctx = tiny(), tiny_context()
    split = split_examples(ctx.examples)
    answers, refusals = (tokenise(model.chat, part) for part in (split.harmless, split.refused))
    drawn = []

    def count(objective):
        batches = patch("robench.training.fine_tuning.collate", side_effect=ValueError)
        with batches as collate, pytest.raises(ValueError):
            objective.backward(1)
        drawn.append([text in refusals for text in collate.call_args.args[0]])

    for share in (0.0, 0.25, 1.0):
        count(FineTuning(model, answers, 8, 1, ctx.rng("any"), refusals, share))
    assert [sum(kinds) for kinds in drawn] == [0, 2, 8]


def test_harmful_answers_are_not_read(tmp_path):
    model, ctx = tiny(), tiny_context()
    other = replace(
        ctx,
        examples=[
            replace(e, reply="Nothing.") if e.behavior.harmful and e.kind == "answer" else e
            for e in ctx.examples
        ],
    )
    states = []
    for number, context in enumerate((ctx, other)):
        with QUICK.applied(model, context, tmp_path / str(number)) as target:
            states.append(target.hidden([Prompt(user("Why?"))]))
    assert torch.equal(*states)


def test_without_refusals_it_says_what_to_do(tmp_path):
    ctx = tiny_context()
    none = replace(ctx, examples=[e for e in ctx.examples if e.kind == "answer"])
    applied = QUICK.applied(tiny(), none, tmp_path / "cache")
    with pytest.raises(Failure, match="no refusals of harmful requests"), applied:
        pass


def test_the_paper_s_share_is_a_few_hundred_refusals():
    paper = resolve("defense", "refusal_tuning:paper").instance
    assert paper.steps == 433 and round(paper.refusals * paper.batch) == 3
    assert 200 < paper.refusals * 20_500 < 1_000


@pytest.mark.parametrize("wrong", [{"refusals": 1.5}, {"steps": 0}, {"rate": 0.0}, {"limit": 0}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError):
        RefusalTuning(**wrong)
