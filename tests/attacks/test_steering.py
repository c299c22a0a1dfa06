"""Shared by RepE and SCAV: positions, padding, the cache, references, tuning (7.5, 7.6)."""

import sys
from dataclasses import replace

import pytest
import torch

from robench.errors import Failure, InputError
from robench.methods.registry import load_class
from robench.model.hooks import blocks
from robench.testing import tiny, tiny_context
from robench.types import LAST, PAD, PROMPT, REPLY, Prompt, user

RepE, SCAV = load_class("attack", "repe"), load_class("attack", "scav")
REPE, SCAVS = (sys.modules[cls.__module__] for cls in (RepE, SCAV))
STEERING = sys.modules[REPE.__name__.rpartition(".")[0] + ".steering"]

FAMILIES = ["llama", "gemma2"]
POSITIONS = ["prompt", "last", "each", "all"]
TEXTS = ["Why?", "Tell me how to wreck a lamp.", "Please explain, at length, how to wreck a boat."]


def unit(d: int, seed: int = 0) -> torch.Tensor:
    vector = torch.randn(d, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


def edits(kind: str, positions: str):
    """Edits on both layers of a tiny model, strong enough to change replies."""
    roles = STEERING.ROLES[positions]
    if kind == "add":
        return tuple(REPE.AddVector(l, 3 * unit(32, l), roles) for l in (1, 2))
    if kind == "shift":
        return tuple(SCAVS.Shift(l, unit(32, l), 1.0, 1e-2, roles) for l in (1, 2))
    return tuple(SCAVS.RandomShift(l, unit(32, l), 1.0, 1e-2, roles, unit(32, 9)) for l in (1, 2))


def steered(positions: str, kind: str = "add"):
    return [Prompt(user(text), edits=edits(kind, positions)) for text in TEXTS]


def test_roles_of_positions():
    role = torch.tensor([[PAD, PROMPT, LAST], [REPLY, REPLY, REPLY]])
    expected = {
        "prompt": [[0, 1, 1], [0, 0, 0]],
        "last": [[0, 0, 1], [0, 0, 0]],
        "each": [[0, 0, 1], [1, 1, 1]],
        "all": [[0, 1, 1], [1, 1, 1]],
    }
    for positions, acts in expected.items():
        selected = STEERING.has_role(role, STEERING.ROLES[positions])
        assert selected.int().squeeze(-1).tolist() == acts


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kind", ["add", "shift", "random"])
def test_padded_rows_equal_single_ones(kind, positions, family):
    model, prompts = tiny(family), steered(positions, kind)
    together = model.hidden(prompts)
    alone = torch.cat([model.hidden([prompt]) for prompt in prompts])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    assert model.generate(prompts) == [model.generate([p])[0] for p in prompts]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kind", ["add", "shift", "random"])
def test_cached_replies_equal_a_full_recompute(kind, positions):
    """At every step the whole conversation is read again, with the roles that each token had."""
    model, prompts = tiny(), steered(positions, kind)
    tokenizer = model.chat.tokenizer
    changed = 0
    for prompt, reply in zip(prompts, model.generate(prompts), strict=True):
        (ids,) = model.chat.encode([model.chat.render(prompt.messages)])
        tokens: list[int] = []
        while len(tokens) < model.max_new_tokens:
            roles = torch.tensor([[PROMPT] * (len(ids) - 1) + [LAST] + [REPLY] * len(tokens)])
            tokens.append(int(full(model, ids + tokens, roles, prompt.edits)[0, -1].argmax()))
            if tokens[-1] == tokenizer.eos_token_id:
                break
        assert tokenizer.decode(tokens, skip_special_tokens=True) == reply
        changed += reply != model.generate([Prompt(prompt.messages)])[0]
    assert changed


def full(model, ids, roles, edits):
    """Logits (1, time, vocab) with the edits applied by hooks of this test."""
    handles = [
        blocks(model.network)[edit.layer - 1].register_forward_hook(
            lambda module, args, output, edit=edit: edit(output, roles)
        )
        for edit in edits
    ]
    with torch.no_grad():
        logits = model.network(torch.tensor([ids])).logits
    for handle in handles:
        handle.remove()
    return logits


def test_as_many_references_of_either_kind_drawn_by_the_seed():
    model, ctx = tiny(), tiny_context()
    harmful, harmless = STEERING.read_references(model, ctx, 5, transfer=False)
    assert harmful.shape == harmless.shape == (5, 3, 32)
    again = STEERING.read_references(model, ctx, 5, transfer=False)
    assert torch.equal(harmful, again[0]) and torch.equal(harmless, again[1])
    assert not torch.equal(STEERING.read_references(model, tiny_context(1), 5, False)[0], harmful)


@pytest.mark.parametrize("name", ["repe", "scav", "scav_random"])
@pytest.mark.parametrize("few", [True, False])
def test_too_few_references_are_a_failure(name, few):
    """So the cell is a hole with that reason, and does not count as defended."""
    ctx = tiny_context()
    ctx.references = [b for b in ctx.references if b.harmful is few] + [
        b for b in ctx.references if b.harmful is not few
    ][:3]
    with pytest.raises(Failure, match="at least 4 harmful and 4 harmless references"):
        list(load_class("attack", name)().run(tiny(), [], ctx))
    assert load_class("attack", name).needs == ("references", "tune")


def test_transfer_reads_the_undefended_model(tmp_path):
    model, ctx = tiny(), tiny_context()
    plain = STEERING.read_references(model, ctx, 4, transfer=True)[0]
    defense = replace(load_class("defense", "circuit_breaker")(), steps=3, batch=2, rate=0.1)
    with defense.applied(model, ctx, tmp_path / "cache") as target:
        assert torch.equal(STEERING.read_references(target, ctx, 4, transfer=True)[0], plain)
        assert not torch.equal(STEERING.read_references(target, ctx, 4, transfer=False)[0], plain)


@pytest.mark.parametrize(
    ("preferred", "other", "chosen"),
    [
        ((2,), 0.0, 2),
        ((0, 3), 0.0, 0),  # the stronger of equals
        ((1, 2), 0.0, 1),  # the first of equally strong ones
        ((), float("nan"), 0),  # what cannot be judged is not broken, so all are equal
        ((), (0.1, 0.1, 0.4, 0.2), 2),  # of equals the one with the highest mean score
        ((), (0.1, 0.4, 0.1, 0.4), 1),
        ((3,), (0.4, 0.4, 0.4, 0.4), 3),
    ],
)
def test_the_best_setting(preferred, other, chosen, preferring):
    ctx = tiny_context()
    ctx.judge = preferring(preferred, other=other)
    settings = [edits("add", "last"), (), edits("add", "all"), edits("add", "each")]
    assert STEERING.best(tiny(), settings, [3.0, 2.0, 2.0, 1.0], ctx).number == chosen


@pytest.mark.parametrize(
    ("preferred", "choice"),
    [
        ((0,), (0, True)),
        ((1,), (1, False)),
        ((3,), (3, True)),
        ((0, 3), (0, True)),  # both ends, and nothing between them
        ((0, 2), (0, False)),  # as good inside: flat towards the edge
    ],
)
def test_the_edge_of_a_grid(preferred, choice, preferring):
    ctx = tiny_context()
    ctx.judge = preferring(preferred)
    settings = [edits("add", "last"), (), edits("add", "all"), edits("add", "each")]
    assert STEERING.best(tiny(), settings, [3.0, 2.0, 2.0, 1.0], ctx) == choice
    assert not STEERING.at_edge([(1, 1.0), (0, 0.0)], [2.0, 2.0], 0)  # one strength has no edge


def test_a_single_setting_is_not_tried():
    ctx = tiny_context()
    ctx.judge = None
    assert STEERING.best(tiny(), [()], [1.0], ctx) == (0, False)
    with pytest.raises(Failure, match="needs a judge"):
        STEERING.best(tiny(), [(), ()], [1.0, 2.0], ctx)


def test_layers_by_number_and_by_depth():
    model = tiny()
    assert model.layer_numbers((2, -1, 1)) == [1, 2]
    assert model.layer_numbers((0.0, 1.0)) == [1, 2]
    assert model.layer_numbers((0.5, 0.5)) == [1]
    with pytest.raises(InputError, match="no layer 7 in a model with 2 decoder blocks"):
        model.layer_numbers((1, 7))
    for wrong in ((0.7, 0.3), (0.5, 1.5)):
        with pytest.raises(InputError, match="range of depths"):
            model.layer_numbers(wrong)
