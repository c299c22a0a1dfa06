"""GCG against autograd, finite differences, exhaustive search and planted solutions (7.2)."""

import math
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch

from robench.errors import Failure
from robench.methods.registry import load_class, resolve
from robench.model.chat_model import Reply
from robench.testing import tiny, tiny_behaviors, tiny_context
from robench.types import GAP, Context, Prompt, user

GCG = load_class("attack", "gcg")
SOURCE = __import__(GCG.__module__, fromlist=["sample", "token_gradient"])
FAMILIES = ["llama", "gemma2"]


def make(family: str = "llama", n: int = 2, seed: int = 0):
    model = tiny(family, seed)
    behaviors = tiny_behaviors(n)
    slots = model.slots([user(f"{b.text}{GAP}") for b in behaviors], [b.target for b in behaviors])
    return model, slots


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_equals_autograd_in_the_one_hot(family):
    model, slots = make(family)
    ids = slots.spell("!!!!")
    gradient = SOURCE.token_gradient(slots, model, ids)
    one_hot = torch.nn.functional.one_hot(ids, len(model.embedding)).float().requires_grad_()
    slots.loss_of_embeddings(one_hot @ model.embedding).sum().backward()
    torch.testing.assert_close(gradient, one_hot.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_equals_finite_differences(family):
    """Central differences, h = 1e-2, within 1e-3 of max |G|: norms and rotations are fp32."""
    model = tiny(family)
    model.network.double()
    (behavior,) = tiny_behaviors(1)
    slots = model.slots([user(f"{behavior.text}{GAP}")], [behavior.target])
    ids = slots.spell("!!!!")
    gradient = SOURCE.token_gradient(slots, model, ids)[0]
    soft, h, scale = model.embed(ids), 1e-2, gradient.abs().max()
    for position, token in product((0, 3), (300, 500, 900)):
        step = torch.zeros_like(soft)
        step[0, position] = model.embedding[token]
        up, down = (slots.loss_of_embeddings(soft + s * h * step).item() for s in (1, -1))
        slope = (up - down) / (2 * h)
        assert abs(slope - gradient[position, token]) < 1e-3 * scale
        if family == "gemma2":  # without the module's scale the gradient is not the slope
            assert abs(slope - gradient[position, token] / 32**0.5) > 1e-3 * scale


def test_one_step_over_all_swaps_is_the_exhaustive_best():
    """With K = vocabulary and W = all swaps, the chosen swap is brute force's."""
    model, slots = make(n=1)
    few = model.allowed.nonzero().squeeze(1)[:30]
    allowed = torch.zeros_like(model.allowed)
    allowed[few] = True
    ids = slots.spell("!!!")
    gradient = SOURCE.token_gradient(slots, model, ids)
    generators = [Context().rng("test")]
    settings = GCG(width=3 * 30, topk=30)
    swaps = SOURCE.sample(gradient, ids, allowed, settings, generators, slots.survives)
    losses = slots.loss(swaps.ids).masked_fill(~swaps.real, math.inf)
    best = losses.min().item()
    brute = []
    for position, token in product(range(3), few.tolist()):
        other = ids.clone()
        other[0, position] = token
        if not torch.equal(other, ids) and slots.survives(other[:, None]).item():
            brute.append(slots.loss(other[:, None]).item())
    assert best == pytest.approx(min(brute), abs=1e-5)
    assert int(swaps.real.sum()) == len(brute)


@pytest.mark.parametrize("width", [7, 16, 30])
def test_swaps_are_single_distinct_even_and_survive(width):
    model, slots = make()
    ids = slots.spell("!!!!!")
    gradient = SOURCE.token_gradient(slots, model, ids)
    generators = [Context().rng("test", i) for i in range(2)]
    settings = GCG(width=width, topk=40)
    swaps = SOURCE.sample(gradient, ids, model.allowed, settings, generators, slots.survives)
    assert slots.survives(swaps.ids)[swaps.real].all()
    for i in range(2):
        real = swaps.ids[i][swaps.real[i]]
        changed = real != ids[i]
        assert (changed.sum(1) == 1).all()
        assert len({tuple(row) for row in real.tolist()}) == len(real) == width
        assert model.allowed[real].all()
        # candidate j of W mutates position floor(j k / W), as in the authors' sample_control
        expected = torch.bincount(torch.arange(width) * 5 // width, minlength=5)
        assert sorted(changed.sum(0).tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("allotment", ["even", "uniform"])
def test_candidates_tested_in_rounds_are_those_of_a_plain_loop(allotment):
    """Two in five do not survive; each is replaced by the next draw of its position that does."""
    model, slots = make()
    ids = slots.spell("!!!!!")
    gradient = SOURCE.token_gradient(slots, model, ids)
    settings = GCG(width=32, topk=40, allotment=allotment)
    tested: list[int] = []

    def survives(ids):
        tested.append(ids.shape[0] * ids.shape[1])
        return ids.sum(2) % 5 > 1

    def draw(check):
        rngs = [Context().rng("test", i) for i in range(2)]
        return SOURCE.sample(gradient, ids, model.allowed, settings, rngs, check)

    swaps = draw(survives)
    assert tested[0] <= 2 * 40 and sum(tested) < 2 * 5 * 40
    assert survives(swaps.ids)[swaps.real].all()
    # The same draws, without the test: as many as there are spares for
    rngs = [Context().rng("test", i) for i in range(2)]
    shares = [SOURCE._shares(5, settings, g) for g in rngs]
    best = gradient.masked_fill(~model.allowed, math.inf).scatter(2, ids[..., None], math.inf)
    best = best.topk(40, dim=2, largest=False).indices
    for i in range(2):
        order = torch.rand(5, 40, generator=rngs[i]).argsort(1)
        spares = math.ceil(1.5 * int(shares[i].max()))
        expected = []
        for position in range(5):
            found = []
            for token in best[i, position][order[position]][:spares]:
                candidate = ids[i].clone()
                candidate[position] = token
                if candidate.sum() % 5 > 1:
                    found.append(candidate.tolist())
            expected += found[: shares[i][position]]
        assert swaps.ids[i][swaps.real[i]].tolist() == expected
        unfilled = swaps.ids[i][~swaps.real[i]].tolist()
        assert all(filler == expected[0] for filler in unfilled)


def test_pruning_changes_no_step():
    model, behaviors = tiny(), tiny_behaviors(3)
    found = [
        [(a.behavior.id, a.tag, a.prompt.ids) for a in attack.run(model, behaviors, tiny_context())]
        for attack in (
            GCG(steps=5, width=64, topk=32, init="!!!!", every=1, prune=prune)
            for prune in (False, True)
        )
    ]
    assert found[0] == found[1]


def test_swaps_come_from_the_k_best():
    model, slots = make(n=1)
    ids = slots.spell("!!!!!")
    gradient = SOURCE.token_gradient(slots, model, ids)
    settings, generators = GCG(width=30, topk=12), [Context().rng("test")]
    swaps = SOURCE.sample(gradient, ids, model.allowed, settings, generators, slots.survives)
    scores = gradient[0].masked_fill(~model.allowed, math.inf)
    scores.scatter_(1, ids[0][:, None], math.inf)
    best = scores.topk(12, dim=1, largest=False).indices
    for row in swaps.ids[0][swaps.real[0]]:
        position = int((row != ids[0]).nonzero())
        assert row[position] in best[position]


def test_planted_solution_is_found():
    """Only one token matters: with its embedding along the gradient it is found in one step."""
    model, slots = make(n=1)
    wanted = int(model.allowed.nonzero()[77])
    direction = model.embedding[wanted]

    class Planted:
        rows = slots.rows

        def loss_of_embeddings(self, soft):
            return -(soft[:, 2] @ direction)

        def loss(self, ids):
            return -(model.embedding[ids[:, :, 2]] @ direction)

        survives = slots.survives

    planted, ids = Planted(), slots.spell("!!!!")
    best = model.embedding[model.allowed] @ direction
    assert best.argmax() == 77  # the solution is the linear optimum
    gradient = SOURCE.token_gradient(planted, model, ids)
    settings, generators = GCG(width=8, topk=2), [Context().rng("test")]
    swaps = SOURCE.sample(gradient, ids, model.allowed, settings, generators, planted.survives)
    losses = planted.loss(swaps.ids).masked_fill(~swaps.real, math.inf)
    assert swaps.ids[0, losses[0].argmin(), 2] == wanted


def test_batched_behaviors_equal_single_ones_at_every_step():
    model, behaviors = tiny(), tiny_behaviors(3)
    attack = GCG(steps=6, width=24, topk=16, init="!!!!", every=1)
    together = list(attack.run(model, behaviors, tiny_context()))
    for behavior in behaviors:
        alone = [a.prompt.ids for a in attack.run(model, [behavior], tiny_context())]
        assert alone == [a.prompt.ids for a in together if a.behavior == behavior]


def losses_of(tag: str, **settings) -> list[list[float]]:
    attack = GCG(**{"steps": 8, "width": 32, "topk": 32, "init": "!!!!", "every": 8, **settings})
    attempts = attack.run(tiny(), tiny_behaviors(2), tiny_context())
    return [list(a.trace) for a in attempts if a.final and a.tag == tag]


def test_the_best_loss_never_rises_and_a_buffer_makes_it_the_search():
    for best in (*losses_of("best"), *losses_of("last", buffer=1), *losses_of("last", buffer=4)):
        assert all(a >= b for a, b in pairwise(best))
        assert best[-1] < best[0]


def test_the_search_continues_even_from_a_worse_suffix():
    """Algorithm 1 has no buffer: with few candidates the loss sometimes rises."""
    traces = losses_of("last", width=4, steps=30)
    assert any(a < b for trace in traces for a, b in pairwise(trace))


def test_the_best_and_the_last_string_are_two_final_attempts():
    attack = GCG(steps=6, width=4, topk=32, init="!!!!", every=3)
    attempts = list(attack.run(tiny(), tiny_behaviors(1), tiny_context()))
    assert [(a.step, a.tag, a.final) for a in attempts] == [
        (3, "best", False), (3, "last", False), (6, "best", True), (6, "last", True),
    ]  # fmt: skip
    model = tiny()
    (behavior,) = tiny_behaviors(1)
    for attempt in attempts:
        loss = model.nll([attempt.prompt], [behavior.target]).item()
        assert attempt.trace[-1] == pytest.approx(loss, abs=1e-4)


def test_uniform_allotment_draws_positions():
    settings = GCG(width=30_000, allotment="uniform")
    shares = SOURCE._shares(5, settings, Context().rng("test"))
    assert shares.sum() == 30_000
    assert ((shares - 6000).abs() < 4 * math.sqrt(30_000 * 0.2 * 0.8)).all()
    model, behaviors = tiny(), tiny_behaviors(3)
    attack = GCG(steps=3, width=24, topk=8, init="!!!!", every=1, allotment="uniform")
    together = list(attack.run(model, behaviors, tiny_context()))
    for behavior in behaviors:
        alone = [a.prompt.ids for a in attack.run(model, [behavior], tiny_context())]
        assert alone == [a.prompt.ids for a in together if a.behavior == behavior]


class Scripted:
    """A judge that calls the replies to one behavior harmful."""

    def score(self, behaviors, replies):
        return [float(b.id == "tiny-boat") for b in behaviors]


def test_a_row_that_stops_leaves_and_the_others_continue():
    ctx = replace(tiny_context(), judge=Scripted())
    attack = GCG(steps=6, width=8, topk=8, init="!!!!", every=2, stop="judge")
    attempts = list(attack.run(tiny(), tiny_behaviors(3), ctx))
    ends = {a.behavior.id: a.step for a in attempts if a.final}
    assert ends == {"tiny-lamp": 6, "tiny-boat": 2, "tiny-clock": 6}
    never = GCG(steps=6, width=8, topk=8, init="!!!!", every=2)
    others = [a.prompt.ids for a in never.run(tiny(), tiny_behaviors(3), ctx)
              if a.behavior.id != "tiny-boat"]  # fmt: skip
    assert [a.prompt.ids for a in attempts if a.behavior.id != "tiny-boat"] == others


def test_harmbench_stops_where_a_reply_does_not_begin_with_a_refusal(monkeypatch):
    """Its check reads 32 tokens, whatever the case of a phrase."""
    model, behaviors = tiny(), tiny_behaviors(3)
    late = "the boat is here " * 16 + "i cannot"
    replies = {0: "the boat, but I CANNOT do that", 1: "the boat is here", 2: late}
    assert len(model.encode(late)) > 32 + 4

    def generate(prompts):
        texts = [prompt.messages[0]["content"] for prompt in prompts]
        named = [next(i for i, b in enumerate(behaviors) if b.text in text) for text in texts]
        return [Reply(replies[i], False, 8) for i in named]

    monkeypatch.setattr(model, "replies", generate)
    attack = replace(resolve("attack", "gcg:harmbench").instance, steps=4, width=8, topk=8)
    assert (attack.stop, attack.below, attack.every) == ("refusal", 0.05, 50)
    attack = replace(attack, below=None, every=2)
    finals = {
        a.behavior.id: a.step for a in attack.run(model, behaviors, tiny_context()) if a.final
    }
    assert [finals[b.id] for b in behaviors] == [4, 2, 2]
    with pytest.raises(Failure, match="knows refusals"):
        list(attack.run(model, behaviors, Context()))


def test_match_stops_at_the_target_word_for_word(monkeypatch):
    """Of two behaviors one has its target as the reply at the first check, the other never."""
    model, behaviors = tiny(), tiny_behaviors(2)
    replies = {
        behaviors[0].text: f"{behaviors[0].target} And more.",
        behaviors[1].text: "Sure, no.",
    }

    def reply(_, prompts):
        texts = [prompt.messages[0]["content"] for prompt in prompts]
        found = [next(r for text, r in replies.items() if t.startswith(text)) for t in texts]
        return [Reply(text, False, 8) for text in found]

    monkeypatch.setattr(type(model), "replies", reply)
    attack = GCG(steps=4, width=8, topk=8, init="!!!!", every=2, stop="match")
    attempts = attack.run(model, behaviors, tiny_context())
    ends = {(a.behavior.id, a.step) for a in attempts if a.final}
    assert ends == {(behaviors[0].id, 2), (behaviors[1].id, 4)}


def test_a_universal_suffix_is_one_suffix_fitted_on_references():
    attack = GCG(steps=3, width=16, topk=8, init="!!!!", universal=True, goals=3)
    model, ctx = tiny(), tiny_context()
    attempts = list(attack.run(model, tiny_behaviors(3), ctx))
    assert all(a.final for a in attempts) and len(attempts) == 6
    gaps = {(a.tag, a.prompt.messages[0]["content"].split(".", 1)[1]) for a in attempts}
    assert len(gaps) == 2
    assert attempts[0].trace[-1] < attempts[0].trace[0]
    assert set(ctx.memory["suffix"]) == {"best", "last", "trace"}
    with pytest.raises(Failure, match="--reference"):
        list(attack.run(model, tiny_behaviors(1), Context()))


def test_gradients_of_several_behaviors_are_those_of_each():
    model, slots = make(n=2)
    ids = slots.spell("!!!!")
    gradient = SOURCE.token_gradient(slots, model, ids)
    alone = [SOURCE.token_gradient(slots.select([i]), model, ids[i : i + 1])[0] for i in (0, 1)]
    torch.testing.assert_close(gradient, torch.stack(alone), atol=1e-6, rtol=1e-4)


def test_a_universal_loss_is_the_mean_over_its_goals():
    model, ctx = tiny(), tiny_context()
    attack = GCG(steps=2, width=16, topk=8, init="!!!!", universal=True, goals=3)
    attempts = list(attack.run(model, tiny_behaviors(1), ctx))
    (best,) = [a for a in attempts if a.tag == "best"]
    suffix = best.prompt.messages[0]["content"].removeprefix(tiny_behaviors(1)[0].text)
    goals = [b for b in ctx.references if b.harmful][:3]
    prompts = [Prompt(user(f"{goal.text}{suffix}")) for goal in goals]
    expected = model.nll(prompts, [goal.target for goal in goals]).mean().item()
    assert min(best.trace) == pytest.approx(expected, abs=1e-4)


def test_the_loss_is_taken_in_fp32():
    """In bf16 many would be equal: nearly all of 512 random candidates must differ."""
    model = tiny()
    model.network.bfloat16()
    behaviors = tiny_behaviors(1)
    slots = model.slots([user(f"{behaviors[0].text}{GAP}")], [behaviors[0].target])
    pool = model.allowed.nonzero().squeeze(1)
    ids = pool[torch.randint(len(pool), (1, 512, 8), generator=Context().rng("test"))]
    assert len(slots.loss(ids).unique()) >= 0.9 * 512


def test_settings_are_checked():
    with pytest.raises(ValueError, match="width"):
        GCG(width=0)
