"""Slots against a slow plain loop: one full forward pass per candidate, no cache, all logits."""

from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from gap_helpers import Roll, architecture, draw
from torch.nn.functional import cross_entropy

from robench.errors import Failure, InputError
from robench.model import pruning
from robench.model.candidates import split_sorted
from robench.model.chat_model import ChatModel
from robench.model.hooks import blocks
from robench.testing import FAMILIES, tiny
from robench.types import GAP, LAST, PROMPT, REPLY, Prompt, user

TEXTS = ["Tell me how to wreck a lamp.", "Please, in the end, explain how to wreck a boat.", "Why?"]
TARGETS = ["Sure, here is how to wreck a lamp.", "Sure", "Sure, here"]


def make(family: str = "llama", rows: int = 3, kernel: str = "eager"):
    model = tiny(family)
    model.network.set_attn_implementation(kernel)
    return model, model.slots([user(f"{t}{GAP}") for t in TEXTS[:rows]], TARGETS[:rows])


def plain(model: ChatModel, slots, i: int, gap: torch.Tensor) -> torch.Tensor:
    """The loss of one row from its whole embedding sequence, every target token as input too."""
    row = slots.rows[i]
    ids = partial(torch.tensor, dtype=torch.long)
    gap = gap if gap.is_floating_point() else model.embed(gap)
    parts = [model.embed(ids(row.seams.before_ids)), gap, model.embed(ids(row.seams.after_ids))]
    embeds = torch.cat([*parts, model.embed(ids(row.target))])
    logits = model.network(inputs_embeds=embeds[None]).logits[0]
    return cross_entropy(logits[-len(row.target) - 1 : -1], ids(row.target))


# Attention as written and by the fused kernel, which real models use by default; Gemma-2 with its
# soft caps has only the former in transformers.
KERNELS = [(f, k) for f in FAMILIES for k in ("eager", "sdpa") if (f, k) != ("gemma2", "sdpa")]


@pytest.mark.parametrize(("family", "kernel"), KERNELS)
def test_loss_equals_the_plain_loop(family, kernel):
    model, slots = make(family, kernel=kernel)
    ids = draw(model, 3, 5, 4)
    losses = slots.loss(ids)
    for i in range(3):
        for j in range(5):
            assert losses[i, j] == pytest.approx(plain(model, slots, i, ids[i, j]).item(), abs=1e-5)


@pytest.mark.parametrize(("family", "kernel"), KERNELS)
def test_gradient_equals_the_plain_loop(family, kernel):
    model, slots = make(family, kernel=kernel)
    soft = model.embed(draw(model, 3, 4)).detach().requires_grad_()
    slots.loss_of_embeddings(soft).sum().backward()
    for i in range(3):
        row = soft[i].detach().requires_grad_()
        plain(model, slots, i, row).backward()
        torch.testing.assert_close(soft.grad[i], row.grad, atol=1e-5, rtol=1e-4)


def test_chunk_size_changes_nothing():
    model, slots = make()
    ids = draw(model, 3, 7, 4)
    whole = slots.loss(ids)
    model.chunks.tokens = 1  # one candidate at a time
    torch.testing.assert_close(slots.loss(ids), whole, atol=0, rtol=1e-6)


def swapped(model: ChatModel, parent: torch.Tensor, w: int, seed: int = 2) -> torch.Tensor:
    """Candidates (n, w, k) with a swap each, at every position in turn; the last is the parent."""
    n, k = parent.shape
    ids = parent[:, None].repeat(1, w, 1)
    pool = model.allowed.nonzero().squeeze(1)
    drawn = torch.randint(len(pool), (n, w - 1), generator=torch.Generator().manual_seed(seed))
    at = torch.arange(w - 1)
    ids[:, at, at % k] = pool[drawn]
    return ids


@pytest.mark.parametrize("enough", [1, 60, 10_000])
@pytest.mark.parametrize(("family", "kernel"), KERNELS)
def test_sharing_up_to_the_change_changes_nothing(family, kernel, enough):
    """Candidates in buckets by position, of one, some or all of them, equal unbucketed ones."""
    model, slots = make(family, kernel=kernel)
    parent = draw(model, 3, 6)
    ids = swapped(model, parent, 14)
    whole = slots.loss(ids)
    model.chunks.enough = enough
    before = model.usage.forward_tokens
    torch.testing.assert_close(slots.loss(ids, parent), whole, atol=1e-5, rtol=0)
    tokens = model.usage.forward_tokens - before
    after_gap = [len(row.seams.after_ids) + len(row.target) - 1 for row in slots.rows]
    if enough == 1:  # each reads from its change on; parents are read once but for the last token
        changes = [*(j % 6 for j in range(13)), 5]
        assert tokens == 3 * 5 + sum(6 - at + after for at in changes for after in after_gap)


@pytest.fixture
def eager(monkeypatch) -> None:
    """Pruning continues however little it saves, a few candidates at a time."""
    monkeypatch.setattr(pruning, "MIN_PRUNED", 0)
    monkeypatch.setattr(pruning, "GROUP", 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_under_the_edits_of_a_defense(family, eager):
    model = tiny(family)
    model.chunks.enough = 1
    for roles in ((PROMPT,), (LAST,), (REPLY,), (PROMPT, LAST, REPLY)):
        defended = model.edited([Roll(1, roles)])
        slots = defended.slots([user(f"{t}{GAP}") for t in TEXTS], TARGETS)
        parent = draw(model, 3, 4)
        ids = swapped(model, parent, 9)
        whole, pruned = slots.loss(ids), slots.loss(ids, parent, prune=True)
        torch.testing.assert_close(slots.loss(ids, parent), whole, atol=1e-5, rtol=0)
        kept = pruned.isfinite()
        torch.testing.assert_close(pruned[kept], whole[kept], atol=1e-5, rtol=0)
        assert (pruned.amin(1) - whole.amin(1)).abs().max() < 1e-5


@pytest.mark.parametrize("prune", [False, True])
def test_rows_in_parallel_equal_rows_in_sequence(prune, eager):
    model, slots = make()
    parent = draw(model, 3, 6)
    ids = swapped(model, parent, 60)
    losses, tokens = [], []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            before = model.usage.forward_tokens
            losses.append(slots.loss(ids, parent, prune))
            tokens.append(model.usage.forward_tokens - before)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=0)
    assert tokens[0] == tokens[1]


def test_only_passes_without_hooks_run_in_parallel():
    model = tiny()
    torch.set_num_threads(2)
    try:
        assert model.workers == 2
        assert model.edited([Roll(1, (PROMPT,))]).workers == 1
        block = blocks(model.network)[0]
        for register in (block.mlp.register_forward_hook, block.register_forward_pre_hook):
            handle = register(lambda *args: None)  # as a third-party defense may
            assert model.workers == 1
            handle.remove()
        assert model.workers == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("prune", [False, True])
def test_rows_in_parallel_in_inference_mode(prune, eager):
    model, slots = make()
    parent = draw(model, 3, 6)
    ids = swapped(model, parent, 60)
    expected = slots.loss(ids, parent, prune)
    torch.set_num_threads(3)
    try:
        with torch.inference_mode():
            torch.testing.assert_close(slots.loss(ids, parent, prune), expected)
    finally:
        torch.set_num_threads(1)


@cache
def searches(family: str):
    """Of 5 models the slots, and for 4 steps the candidates, their parents and their losses."""
    instances = []
    for seed in range(5):
        model = tiny(family, seed)
        slots = model.slots([user(f"{t}{GAP}") for t in TEXTS], ["Sure", "Sure,", TARGETS[0]])
        parent = draw(model, 3, 4)
        for again in range(4):
            ids = swapped(model, parent, 48, seed=again)
            losses = slots.loss(ids, parent)
            instances.append((slots, ids, parent, losses))
            parent = ids[torch.arange(3), losses.argmin(1)]
    return instances


@pytest.mark.parametrize("min_pruned", [0, pruning.MIN_PRUNED])
@pytest.mark.parametrize("enough", [1, 60, 10_000])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_pruning_keeps_the_best(family, enough, min_pruned, eager, monkeypatch):
    """Of 60 random instances; a short target's first token says much, a long one's little."""
    monkeypatch.setattr(pruning, "MIN_PRUNED", min_pruned)
    n_pruned, n = 0, 0
    for slots, ids, parent, losses in searches(family):
        monkeypatch.setattr(slots.model.chunks, "enough", enough)
        pruned = slots.loss(ids, parent, prune=True)
        best = ids[torch.arange(3), losses.argmin(1)]  # some are drawn twice
        assert torch.equal(best, ids[torch.arange(3), pruned.argmin(1)])
        scored = pruned.isfinite()
        torch.testing.assert_close(pruned[scored], losses[scored], atol=1e-5, rtol=0)
        n_pruned, n = n_pruned + int((~scored).sum()), n + scored.numel()
    assert n_pruned > n / 10


def test_the_output_head_gets_no_view_of_the_states(eager):
    """PyTorch multiplies a view of three dimensions by a copy of the head's matrix per row."""
    model = tiny()
    seen = []
    head = model.network.get_output_embeddings()
    head.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
    slots = model.slots([user(f"{t}{GAP}") for t in TEXTS], TARGETS)
    parent = draw(model, 3, 4)
    for prune in (False, True):
        slots.loss(swapped(model, parent, 9), parent, prune)
    model.generate([Prompt(user(text)) for text in TEXTS])
    model.hidden([Prompt(user(text)) for text in TEXTS])
    assert len(seen) > 10 and all(seen)


def test_a_nan_is_never_pruned(eager, monkeypatch):
    model, slots = make()
    parent = draw(model, 3, 4)
    ids = swapped(model, parent, 48)
    poison = ids[:, 40, 0]  # a swap at the first position
    real = model.network.get_input_embeddings().forward
    bad = lambda ids: real(ids).masked_fill(torch.isin(ids, poison)[..., None], torch.nan)  # noqa: E731
    monkeypatch.setattr(model.network.get_input_embeddings(), "forward", bad)
    whole = slots.loss(ids, parent)
    assert whole.isnan().any() and not whole.isnan().all()
    assert slots.loss(ids, parent, prune=True)[whole.isnan()].isnan().all()


def test_sorted_keys_are_split_where_they_change():
    assert split_sorted([0, 0, 0, 1, 1, 2], 1) == [slice(0, 3), slice(3, 5), slice(5, 6)]
    assert split_sorted([0, 0, 0, 1, 1, 2], 2) == [
        slice(0, 3),
        slice(3, 6),
    ]  # the rest is joined to the last
    assert split_sorted([0, 1, 2, 3], 2) == [slice(0, 2), slice(2, 4)]
    assert split_sorted([7, 7], 5) == [slice(0, 2)]
    assert split_sorted([], 1) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_independent(family):
    model, slots = make(family)
    soft = model.embed(draw(model, 3, 4)).detach()
    together = slots.loss_of_embeddings(soft)
    for i in range(3):
        alone = slots.select([i]).loss_of_embeddings(soft[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], atol=0, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_gaps_of_different_length(family):
    model, slots = make(family)
    soft = model.embed(draw(model, 3, 6)).detach().requires_grad_()
    losses = slots.loss_of_embeddings(soft, [6, 2, 4])
    losses.sum().backward()
    for i, length in enumerate([6, 2, 4]):
        expected = plain(model, slots, i, soft[i, :length].detach())
        assert losses[i].item() == pytest.approx(expected.item(), abs=1e-5)
        assert not soft.grad[i, length:].any()


def test_the_prefix_is_never_touched():
    model, slots = make()
    before = [tensor.clone() for pair in slots._prefix.keys_values for tensor in pair]
    for _ in range(20):
        slots.loss(draw(model, 3, 2, 4))
    after = [tensor for pair in slots._prefix.keys_values for tensor in pair]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_out_of_memory_halves_and_changes_nothing(monkeypatch):
    model, slots = make()
    ids = draw(model, 3, 8, 4)
    whole = slots.loss(ids)
    real = model.network.forward

    def small(*args, inputs_embeds, **options):
        if len(inputs_embeds) > 3:
            raise torch.OutOfMemoryError("too large")
        return real(*args, inputs_embeds=inputs_embeds, **options)

    monkeypatch.setattr(model.network, "forward", small)
    torch.testing.assert_close(slots.loss(ids), whole, atol=0, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_final_prompt_is_the_optimised_one(family):
    """Optimised ids, the text's ids, and vectors in the gap all give the same states."""
    model, slots = make(family)
    ids = draw(model, 3, 200, 4)
    survivors = slots.survives(ids)
    for i in range(3):
        gap = ids[i, survivors[i].nonzero()[0, 0]]
        text, soft = slots.prompt(i, gap), slots.prompt(i, model.embed(gap))
        assert tuple(model.chat.encode([model.chat.render(text.messages)])[0]) == text.ids
        states = model.hidden([text, soft])
        torch.testing.assert_close(states[0], states[1], atol=1e-5, rtol=0)
        assert model.nll([text], [TARGETS[i]]).item() == pytest.approx(
            slots.loss(gap[None, None].expand(3, 1, 4))[i, 0].item(), abs=1e-5
        )


def test_a_scaled_embedding_goes_through_the_module():
    model, _ = make("gemma2")
    raw = model.network.get_input_embeddings().weight
    torch.testing.assert_close(model.embedding, raw * 32**0.5)


def test_spelling_the_start():
    _model, slots = make()
    ids = slots.spell("!!!!")
    assert ids.shape == (3, 4)
    assert slots.survives(ids[:, None]).all()
    with pytest.raises(Failure, match="does not survive"):
        slots.spell("<|end|>")


def plain_edited(model, slots, i: int, gap: torch.Tensor, edit: Roll) -> torch.Tensor:
    """The loss of one row, with the edit applied to the states of the whole row."""
    row = slots.rows[i]
    last = len(row.seams.before_ids) + len(gap) + len(row.seams.after_ids) - 1
    role = torch.full((1, last + 1 + len(row.target)), REPLY)
    role[:, :last], role[:, last] = PROMPT, LAST
    block = blocks(model.network)[edit.layer - 1]
    handle = block.register_forward_hook(lambda module, args, h: edit(h, role))
    try:
        return plain(model, slots, i, gap)
    finally:
        handle.remove()


OTHERS = {
    "BloomConfig": {},  # distances by ALiBi
    "FalconConfig": {"multi_query": True, "new_decoder_architecture": False},
    "GPT2Config": {},  # learned positions
    "GPTNeoXConfig": {"intermediate_size": 64},
    "GptOssConfig": {  # attention sinks, experts, sliding windows
        "intermediate_size": 64,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
    },
    "MixtralConfig": {"intermediate_size": 64, "num_local_experts": 4, "num_key_value_heads": 2},
    "Olmo2Config": {"intermediate_size": 64},
    "Qwen3Config": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
}


@pytest.mark.parametrize("config", OTHERS)
def test_other_architectures_are_exact_too(config):
    model = architecture(config, **OTHERS[config])
    slots = model.slots([user(f"{t}{GAP}") for t in TEXTS], TARGETS)
    ids = draw(model, 3, 2, 4)
    losses = slots.loss(ids)
    for i in range(3):
        for j in range(2):
            assert losses[i, j] == pytest.approx(plain(model, slots, i, ids[i, j]).item(), abs=1e-5)
    prompts = [slots.prompt(i, model.embed(ids[i, 0])) for i in range(3)]
    torch.testing.assert_close(model.nll(prompts, TARGETS), losses[:, 0], atol=1e-5, rtol=0)
    assert model.generate(prompts) == [model.generate([prompt])[0] for prompt in prompts]


@pytest.mark.parametrize("config", OTHERS)
def test_sharing_is_exact_on_other_architectures(config):
    model = architecture(config, **OTHERS[config])
    slots = model.slots([user(f"{t}{GAP}") for t in TEXTS], TARGETS)
    parent = draw(model, 3, 4)
    ids = swapped(model, parent, 9)
    model.chunks.enough = 1
    torch.testing.assert_close(slots.loss(ids, parent), slots.loss(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", OTHERS)
def test_the_head_is_exact_on_other_architectures(config):
    model = architecture(config, **OTHERS[config])
    ids = draw(model, 2, 7)
    with torch.no_grad():
        states, logits = model.forward(ids, torch.ones_like(ids), [model.depth], logits=True)
    torch.testing.assert_close(model.head(states[0]), logits, atol=1e-5, rtol=0)


def test_a_model_without_keys_and_values_is_refused():
    with pytest.raises(InputError, match="MambaForCausalLM has blocks with a recurrent state"):
        architecture("MambaConfig")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("roles", [(PROMPT,), (LAST,), (REPLY,), (PROMPT, LAST, REPLY)])
def test_edits_of_the_model_act_on_losses_and_gradients(family, roles):
    """A defense's edits act on all parts of a row: prefix, gap, last token and target."""
    model = tiny(family)
    edit = Roll(1, roles)
    defended = model.edited([edit])
    slots = defended.slots([user(f"{t}{GAP}") for t in TEXTS], TARGETS)
    ids = draw(model, 3, 2, 4)
    losses = slots.loss(ids)
    soft = model.embed(ids[:, 0]).detach().requires_grad_()
    slots.loss_of_embeddings(soft).sum().backward()
    prompts = [slots.prompt(i, ids[i, 0]) for i in range(3)]
    mine = [replace(prompt, edits=(edit,)) for prompt in prompts]
    undefended = model.slots([user(f"{t}{GAP}") for t in TEXTS], TARGETS).loss(ids)
    assert (losses - undefended).abs().max() > 1e-3
    survivors = slots.survives(ids)[:, 0]
    for i in range(3):
        for j in range(2):
            expected = plain_edited(model, slots, i, ids[i, j], edit).item()
            assert losses[i, j].item() == pytest.approx(expected, abs=1e-5)
        row = soft[i].detach().requires_grad_()
        plain_edited(model, slots, i, row, edit).backward()
        torch.testing.assert_close(soft.grad[i], row.grad, atol=1e-5, rtol=1e-4)
    rows = survivors.nonzero().flatten().tolist()
    assert rows
    for nll in (defended.nll(prompts, TARGETS), model.nll(mine, TARGETS)):
        torch.testing.assert_close(nll[rows], losses[rows, 0], atol=1e-5, rtol=0)
    assert not any(m._forward_hooks for m in model.network.modules())


@pytest.mark.parametrize("family", ["llama3", "gemma2", "gemma3", "phi3"])
def test_a_window_shorter_than_the_prefix(family):
    """Long rows with short ones: keys and values outside a window change nothing."""
    model = tiny(family)
    texts = ["Why?", "Explain, at length and in the end, how to wreck a boat, a lamp. " * 4]
    slots = model.slots([user(f"{t}{GAP}") for t in texts], TARGETS[:2])
    lengths = [len(row.seams.before_ids) for row in slots.rows]
    assert lengths[0] < 8 < 60 < lengths[1]
    ids = draw(model, 2, 3, 4)
    losses = slots.loss(ids)
    for i in range(2):
        for j in range(3):
            assert losses[i, j] == pytest.approx(plain(model, slots, i, ids[i, j]).item(), abs=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a second device: needs a CUDA GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_on_two_devices_are_one_model(family):
    """What --device-map auto does with several GPUs, here with a CPU and a GPU."""
    from accelerate import dispatch_model

    model, slots = make(family)
    other = tiny(family)
    tied = (
        other.network.get_output_embeddings().weight is other.network.get_input_embeddings().weight
    )
    places = {f"model.{name}": "cpu" for name in ("embed_tokens", "rotary_emb", "layers.0")}
    places |= {"model.layers.1": 0, "model.norm": 0, "lm_head": "cpu" if tied else 0}
    network = dispatch_model(other.network, places, main_device="cpu")
    edit = Roll(2, (PROMPT, LAST, REPLY))
    ids = draw(model, 3, 2, 4)
    prompts = [slots.prompt(i, ids[i, 0]) for i in range(3)]
    results = []
    for one in (model, ChatModel.of(network, other.chat, other.max_new_tokens)):
        one = one.edited([edit])
        gaps = one.slots([user(f"{t}{GAP}") for t in TEXTS], TARGETS).select([2, 0, 1])
        soft = one.embed(ids[[2, 0, 1], 0]).detach().requires_grad_()
        gaps.loss_of_embeddings(soft).sum().backward()
        losses, nll = gaps.loss(ids[[2, 0, 1]]), one.nll(prompts, TARGETS)
        results.append((losses, soft.grad, nll, one.hidden(prompts), one.generate(prompts)))
    for single, spread in zip(results[0][:-1], results[1][:-1], strict=True):
        torch.testing.assert_close(single, spread, atol=1e-4, rtol=1e-4)
    assert results[0][-1] == results[1][-1]


def test_undefended_is_without_edits_too():
    model = tiny()
    prompt = [Prompt(user("Why?"))]
    defended = model.edited([Roll(1, (PROMPT, LAST, REPLY))])
    assert not torch.equal(defended.hidden(prompt), model.hidden(prompt))
    assert torch.equal(defended.undefended().hidden(prompt), model.hidden(prompt))
