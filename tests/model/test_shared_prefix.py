"""A prefix that is read once for all rows, against copies for every row and the formula."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from gap_helpers import Roll, architecture, draw
from torch.utils._python_dispatch import TorchDispatchMode

from robench.model import pruning, shared_prefix
from robench.model.chat_model import ChatModel
from robench.model.prefix import Prefix
from robench.model.scoring import longest
from robench.model.shared_prefix import (
    FEW_KEYS,
    NAME,
    attend_to_prefix,
    attention,
    is_faster,
    new_keys_values,
    supports,
)
from robench.model.slots import Slots
from robench.testing import tiny
from robench.types import GAP, LAST, PROMPT, REPLY, Prompt, user

LONG = "Explain, at length and in the end, how to wreck a boat, a lamp. " * 3
TARGET = "Sure, here is how to wreck a boat."
WINDOW = 256  # longer than prefix and new tokens together
TINY = ("llama", "llama3", "mistral", "qwen2", "gemma3", "phi3")
OTHERS = ("GemmaConfig", "Qwen3Config")


def made(family: str) -> ChatModel:
    """A family on the fused kernel, with windows longer than the prompts."""
    model = other(family) if family in OTHERS else tiny(family)
    model.network.set_attn_implementation("sdpa")
    if getattr(model.network.config, "sliding_window", None):
        model.network.config.sliding_window = WINDOW
    return model


def other(config: str, **settings) -> ChatModel:
    heads = {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
    return architecture(config, **heads, **settings)


def gap_of(model: ChatModel, text: str = LONG) -> Slots:
    return model.slots([user(f"{text}{GAP}")], [TARGET])


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Has an entry for every kernel that this attention calls."""
    real, entries = shared_prefix._attend, []
    monkeypatch.setattr(
        shared_prefix, "_attend", lambda *args, **kwargs: entries.append(1) or real(*args, **kwargs)
    )
    return entries


def copying(monkeypatch) -> None:
    monkeypatch.setattr(shared_prefix, "is_faster", lambda *args: False)


# Equal losses


@pytest.mark.parametrize("family", [*TINY, *OTHERS])
def test_losses_are_those_of_copies(family, calls, monkeypatch):
    model = made(family)
    ids = draw(model, 1, 6, 4)
    once = gap_of(model).loss(ids)
    assert len(calls) == 2 * model.depth  # in one pass: the prefix, and the new tokens
    copying(monkeypatch)
    torch.testing.assert_close(once, gap_of(model).loss(ids), atol=1e-5, rtol=0)
    assert len(calls) == 2 * model.depth


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("roles", [(PROMPT,), (LAST,), (REPLY,), (PROMPT, LAST, REPLY)])
def test_losses_under_edits(family, roles, calls, monkeypatch):
    model = made(family).edited([Roll(1, roles)])
    ids = draw(model, 1, 6, 4)
    once = gap_of(model).loss(ids)
    assert calls
    copying(monkeypatch)
    torch.testing.assert_close(once, gap_of(model).loss(ids), atol=1e-5, rtol=0)


def test_losses_under_an_adapter(calls, monkeypatch, with_lora):
    model = made("llama")
    ids = draw(model, 1, 6, 4)
    undefended = gap_of(model).loss(ids)
    with_lora(model, ["q_proj", "k_proj", "v_proj"], rank=8, init_lora_weights=False)
    before = len(calls)
    once = gap_of(model).loss(ids)
    assert len(calls) == before + 2 * model.depth and (once - undefended).abs().max() > 1e-3
    copying(monkeypatch)
    torch.testing.assert_close(once, gap_of(model).loss(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("text", ["Why", LONG])
def test_losses_under_autocast(text, calls, monkeypatch):
    """A defense's context may be one: values are then of another type than queries and keys."""
    model = replace(made("llama"), around=partial(torch.autocast, "cpu", torch.bfloat16))
    ids = draw(model, 1, 6, 4)
    once = gap_of(model, text).loss(ids)
    assert calls
    copying(monkeypatch)
    torch.testing.assert_close(once, gap_of(model, text).loss(ids), atol=5e-2, rtol=0)


def test_candidates_with_a_common_beginning_and_pruning(calls, monkeypatch):
    monkeypatch.setattr(pruning, "MIN_PRUNED", 0)
    monkeypatch.setattr(pruning, "SAMPLE", 3)
    model = made("llama")
    parent = draw(model, 1, 6)
    ids = parent[:, None].repeat(1, 12, 1)
    ids[0, torch.arange(12), torch.arange(12) % 6] = draw(model, 12)
    model.chunks.enough = 30
    once, pruned = gap_of(model).loss(ids, parent), gap_of(model).loss(ids, parent, prune=True)
    assert len(calls) > 4 * model.depth
    assert once.argmin() == pruned.argmin()
    copying(monkeypatch)
    torch.testing.assert_close(once, gap_of(model).loss(ids), atol=1e-5, rtol=0)


def test_likelihoods_after_a_common_beginning(calls):
    model = made("llama")
    prompts = [Prompt(user(f"{LONG}{end}")) for end in ("Why?", "Please, why is that?", "How")]
    targets = ["Sure", TARGET, "Sure, here"]
    together = model.nll(prompts, targets)
    assert calls
    alone = [model.nll([p], [t]).item() for p, t in zip(prompts, targets, strict=True)]
    assert together.tolist() == pytest.approx(alone, abs=1e-5)


# The formula


@pytest.fixture(params=[0, shared_prefix.FEW_KEYS], ids=["kernels", "one softmax"])
def either(request, monkeypatch) -> None:
    """Both ways to attend on a CPU."""
    monkeypatch.setattr(shared_prefix, "FEW_KEYS", request.param)


@pytest.mark.parametrize("tilt", [0.0, 30.0, -30.0])
@pytest.mark.parametrize("kv", [1, 2, 4])
def test_attention_is_one_softmax_over_prefix_and_new_tokens(kv, tilt, either):
    """Also where nearly all weight, e^30 to 1, is on either part."""
    generator = torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    b, heads, time, length, d = 3, 4, 5, 7, 8
    query = rand(b, heads, time, d)
    query[..., 0] = 1
    keys, values = (rand(1, kv, length, d), rand(b, kv, time, d)), (
        rand(1, kv, length, d), rand(b, kv, time, d))  # fmt: skip
    keys[0][..., 0] += tilt
    attended, _ = attention(torch.nn.Module(), query, keys, values, None, scaling=0.4)
    key, value = (
        torch.cat([old.expand(b, -1, -1, -1), new], 2).repeat_interleave(heads // kv, 1).double()
        for old, new in (keys, values)
    )
    seen = torch.ones(time, length + time).tril(length).bool()
    scores = (0.4 * query.double() @ key.mT).masked_fill(~seen, -torch.inf)
    expected = (scores.softmax(-1) @ value).transpose(1, 2)
    torch.testing.assert_close(attended.double(), expected, atol=1e-5, rtol=0)
    assert attended.is_contiguous()


def test_attention_to_tokens_that_each_row_has_read_since(either):
    generator = torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    b, heads, time, d = 3, 4, 5, 8
    query = rand(b, heads, time, d)
    keys, values = (tuple(rand(rows, 2, n, d) for rows, n in ((1, 7), (b, 4), (b, time)))
                    for _ in range(2))  # fmt: skip
    attended, _ = attention(torch.nn.Module(), query, keys, values, None, scaling=0.4)
    key, value = (
        torch.cat([part.expand(b, -1, -1, -1) for part in parts], 2).repeat_interleave(2, 1)
        for parts in (keys, values)
    )
    seen = torch.ones(time, 11 + time).tril(11).bool()
    scores = (0.4 * query @ key.mT).masked_fill(~seen, -torch.inf)
    expected = (scores.softmax(-1) @ value).transpose(1, 2)
    torch.testing.assert_close(attended, expected, atol=1e-5, rtol=0)


# No copies


class Sizes(TorchDispatchMode):
    """Measures the bytes of the largest tensor that is computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


def test_no_row_gets_a_copy(monkeypatch):
    """No tensor of a pass is as large as one block's K or V of the prefix for all rows."""
    model = made("llama")
    slots = gap_of(model, LONG * 12)
    ids = draw(model, 1, 16, 2)
    keys, _ = slots._prefix.keys_values[0]
    copies = 16 * keys.nbytes
    with Sizes() as once:
        slots.loss(ids)
    copying(monkeypatch)
    with Sizes() as each:
        slots.loss(ids)
    assert once.largest < copies < each.largest


@pytest.mark.parametrize("copied", [False, True])
def test_new_keys_and_values_hold_no_copy_of_the_prefix(copied, monkeypatch):
    if copied:
        copying(monkeypatch)
    model = made("llama")
    prefix = Prefix.of(model, [list(range(20, 60))])
    embeds = model.embed(torch.full((3, 5), 21))
    with torch.no_grad(), attend_to_prefix(model, prefix, [0, 0, 0], 5, keep=True) as options:
        model.network(inputs_embeds=embeds, use_cache=True, **options)
    for tensor in (
        tensor for pair in new_keys_values(options["past_key_values"], 5) for tensor in pair
    ):
        assert tensor.shape == (3, 2, 5, 8)
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_the_cache_has_the_right_length_and_returns_the_parts_unchanged():
    model = made("llama")
    prefix = Prefix.of(model, [list(range(20, 60))])
    with torch.no_grad(), attend_to_prefix(model, prefix, [0, 0, 0], 5) as options:
        layer = options["past_key_values"].layers[1]
        new = torch.randn(3, 2, 5, 8), torch.randn(3, 2, 5, 8)
        for _ in range(2):
            assert layer.get_seq_length() == 40 and layer.get_mask_sizes(5) == (45, 0)
            for (old, returned), tensor, original in zip(
                layer.update(*new), new, prefix.keys_values[1], strict=True
            ):
                assert returned is tensor
                assert old.data_ptr() == original.data_ptr() and old.shape == (1, 2, 40, 8)
        positions = options["position_ids"]
    assert positions.tolist() == [[40, 41, 42, 43, 44]]
    usual = prefix.pass_options([0, 0, 0], 5, model.device)["position_ids"]
    assert torch.equal(positions.expand(3, -1), usual)


def test_a_shorter_row_is_read_without_its_padding(calls):
    """Rows of one owner among several, whose prefix is aligned to the right."""
    model = made("llama")
    slots = model.slots([user(f"{LONG * n}{GAP}") for n in (3, 1)], [TARGET] * 2)
    model.chunks.enough = 1
    ids = draw(model, 2, 4, 4)
    both = slots.loss(ids)
    assert len(calls) == 4 * model.depth
    for i in range(2):
        alone = gap_of(model, LONG * (3, 1)[i]).loss(ids[i : i + 1])
        torch.testing.assert_close(both[i], alone[0], atol=1e-5, rtol=0)


# When it is valid


def supported(model: ChatModel, owner=(0, 0), time: int = 4, tokens: int = 8) -> bool:
    pair = torch.zeros(2, 2, tokens, 8), torch.zeros(2, 2, tokens, 8)
    with torch.no_grad():
        return supports(model, Prefix((tokens, tokens), (pair, pair)), owner, time)


@pytest.mark.parametrize("family", [*TINY, *OTHERS])
def test_supported_families(family):
    assert supported(made(family))


def test_only_with_one_owner_a_prefix_and_no_gradients():
    model = made("llama")
    assert supported(model, owner=(1, 1))
    assert not supported(model, owner=(0, 1))
    assert not supported(model, tokens=0)
    prefix = Prefix.of(model, [[20] * 8])
    assert not supports(model, prefix, [0, 0], 4)  # gradients are on


@pytest.mark.parametrize("family", ["mistral", "gemma3", "phi3"])
def test_not_with_a_window_that_is_too_short(family):
    model = made(family)
    model.network.config.sliding_window = 12
    assert supported(model, time=4)
    assert not supported(model, time=5)


def test_not_for_attention_of_another_kind(monkeypatch):
    assert not supported(tiny("llama"))  # as it is written
    assert not supported(tiny("gemma2"))
    forced = tiny("gemma2")
    forced.network.config._attn_implementation = "sdpa"
    forced.network.config.sliding_window = WINDOW
    assert not supported(forced)
    sinks = other("GptOssConfig", num_local_experts=4, num_experts_per_tok=2)
    assert not supported(sinks)
    for change in ({"attn_logit_softcapping": 30.0}, {"use_bidirectional_attention": True}):
        model = made("gemma3")
        for name, value in change.items():
            monkeypatch.setattr(model.network.config, name, value)
        assert not supported(model)


def test_not_for_a_models_own_code():
    model = made("llama")
    assert supported(model)
    namespace = {"__module__": "transformers_modules.x"}
    model.network.__class__ = type("CustomLlama", (type(model.network),), namespace)
    assert not supported(model)


def test_on_the_cpu_it_is_faster_with_few_keys_or_a_long_prefix(monkeypatch):
    model = made("llama")

    def faster(length: int, time: int, rows: int = 2, since: int = 0) -> bool:
        keys_values = [(torch.zeros(rows, 2, since, 8),) * 2] if since else ()
        return is_faster(model, Prefix((length,), ()), [0] * rows, time, keys_values)

    assert faster(1, FEW_KEYS - 1) and not faster(2, FEW_KEYS - 1)  # few
    assert faster(1, FEW_KEYS - 5, since=4) and not faster(1, FEW_KEYS - 4, since=4)
    assert faster(FEW_KEYS, FEW_KEYS) and not faster(FEW_KEYS - 1, FEW_KEYS)
    assert not faster(FEW_KEYS, 1, rows=1)  # nothing to share
    monkeypatch.setattr(type(model), "dtype", torch.bfloat16)
    assert faster(8, 8) and not faster(7, 8)  # one softmax of all scores is for fp32


def test_few_keys_have_one_softmax(calls, monkeypatch):
    model = made("llama")
    slots, ids = gap_of(model, "Why"), draw(model, 1, 6, 4)
    assert 0 < slots._prefix.lengths[0] < FEW_KEYS - longest(slots.rows, 4)
    once = slots.loss(ids)
    assert not calls
    monkeypatch.setattr(shared_prefix, "FEW_KEYS", 0)
    monkeypatch.setattr(shared_prefix, "is_faster", lambda *args: True)
    torch.testing.assert_close(once, slots.loss(ids), atol=1e-5, rtol=0)
    assert calls
    before = len(calls)
    copying(monkeypatch)
    torch.testing.assert_close(once, slots.loss(ids), atol=1e-5, rtol=0)
    assert len(calls) == before


# The state afterwards


def test_the_network_is_as_before_a_pass_and_an_exception(calls):
    model = made("llama")
    prefix = Prefix.of(model, [[20] * 40])
    config = model.network.config.to_dict()
    slots, ids = gap_of(model), draw(model, 1, 6, 4)
    whole = slots.loss(ids)
    assert calls and model.network.config._attn_implementation == "sdpa"
    with (
        pytest.raises(torch.OutOfMemoryError),
        torch.no_grad(),
        attend_to_prefix(model, prefix, [0, 0], 4),
    ):
        assert model.network.config._attn_implementation == NAME
        raise torch.OutOfMemoryError
    assert model.network.config._attn_implementation == "sdpa"
    assert model.network.config.to_dict() == config
    assert torch.equal(slots.loss(ids), whole)


def test_passes_with_and_without_it_in_parallel(calls):
    """One row's prefix is long enough, the other's is not; both are scored at the same time."""
    model = made("llama")
    model.chunks.enough = 1
    slots = model.slots([user(f"{text}{GAP}") for text in (LONG, "Why")], [TARGET] * 2)
    parent = draw(model, 2, 6)
    ids = parent[:, None].repeat(1, 24, 1)
    ids[:, torch.arange(24), torch.arange(24) % 6] = draw(model, 2, 24)
    results = []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        try:
            for _ in range(threads):
                results.append(slots.loss(ids, parent))
                results.append(slots.loss(ids, parent, prune=True).amin(1))
                assert model.network.config._attn_implementation == "sdpa"
        finally:
            torch.set_num_threads(1)
    assert calls
    for losses, lowest in zip(results[::2], results[1::2], strict=True):
        torch.testing.assert_close(losses, results[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(lowest, results[0].amin(1), atol=1e-5, rtol=0)


def test_no_other_attention_accepts_a_shared_prefix(monkeypatch):
    """A network that ignores the switch fails; it never reads the new tokens alone."""
    model = made("llama")
    prefix = Prefix.of(model, [[20] * 40])
    embeds = model.embed(torch.full((2, 4), 21))
    for kernel in ("sdpa", "eager"):
        with torch.no_grad(), attend_to_prefix(model, prefix, [0, 0], 4) as options:
            model.network.config._attn_implementation = kernel
            with pytest.raises(AttributeError, match="tuple"):
                model.network(inputs_embeds=embeds, use_cache=True, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="other kernels: needs a CUDA GPU")
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-4), ("bfloat16", 5e-2)])
@pytest.mark.parametrize("family", [*TINY, *OTHERS])
def test_losses_are_those_of_copies_on_cuda(family, dtype, most, calls, monkeypatch):
    model = made(family)
    model.network.to("cuda", getattr(torch, dtype))
    for text in ("Why?", LONG):
        ids, before = draw(model, 1, 6, 4), len(calls)
        once = gap_of(model, text).loss(ids)
        assert len(calls) == before + 2 * model.depth
        with monkeypatch.context() as patched:
            copying(patched)
            each = gap_of(model, text).loss(ids)
        torch.testing.assert_close(once, each, atol=most, rtol=most)
