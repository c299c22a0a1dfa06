"""ChatModel: batched verbs equal single ones; edits act where they should and leave nothing."""

from dataclasses import dataclass

import pytest
import torch
from transformers import GenerationConfig

from robench.model.chat_model import ChatModel
from robench.model.decoding import sample_tokens
from robench.model.hooks import at_depth, blocks, captured_states, layer_number
from robench.testing import FAMILIES, tiny
from robench.training.corpus import Batch, collate, tokenise
from robench.types import GAP, LAST, PAD, PROMPT, REPLY, Behavior, Example, Prompt, user

TEXTS = ["Why?", "Tell me how to wreck a lamp.", "Please explain, at length, how to wreck a boat."]
PROMPTS = [Prompt(user(text)) for text in TEXTS]


@dataclass(frozen=True)
class Add:
    layer: int
    vector: torch.Tensor
    roles: tuple[int, ...] = (PROMPT, LAST, REPLY)

    def __call__(self, h, role):
        return h + self.vector * sum(role == r for r in self.roles)[..., None]


@dataclass(frozen=True)
class Spy:
    layer: int
    seen: list

    def __call__(self, h, role):
        self.seen.append(role.clone())
        return h


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_verbs_equal_single_ones(family):
    model = tiny(family)
    together = model.hidden(PROMPTS)
    assert together.shape == (3, model.depth + 1, model.width)
    alone = torch.cat([model.hidden([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert model.generate(PROMPTS) == [model.generate([p])[0] for p in PROMPTS]
    targets = ["Sure", "Sure, here is how", "No"]
    losses = model.nll(PROMPTS, targets)
    single = [model.nll([p], [t]).item() for p, t in zip(PROMPTS, targets, strict=True)]
    assert losses.tolist() == pytest.approx(single, abs=1e-5)


def reference_reply(
    model: ChatModel, prompt: Prompt, choose, ends: set[int]
) -> tuple[str, list[int]]:
    """A reply token by token, the whole row read again each time, without a cache."""
    (ids,) = model.chat.encode([model.chat.render(prompt.messages)])
    tokens: list[int] = []
    while len(tokens) < model.max_new_tokens and not ends & {*tokens}:
        logits = model.network(torch.tensor([ids + tokens])).logits[0, -1]
        tokens.append(int(choose(logits, len(tokens))))
    text = model.chat.tokenizer.decode(
        [token for token in tokens if token not in ends], skip_special_tokens=True
    )
    return text, tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_replies_equal_a_loop_without_cache(family):
    model = tiny(family)
    ends = {model.chat.tokenizer.eos_token_id}
    for prompt, reply in zip(PROMPTS, model.replies(PROMPTS), strict=True):
        text, tokens = reference_reply(model, prompt, lambda logits, _: logits.argmax(), ends)
        assert (reply.text, reply.tokens) == (text, len(tokens))
        assert reply.truncated != bool(ends & {*tokens})


def test_greedy_is_greedy_whatever_the_generation_config_says():
    """Qwen2.5 ships a repetition penalty, others sampling and minimal lengths."""
    plain, model = tiny(), tiny()
    model.network.generation_config = GenerationConfig(
        eos_token_id=model.chat.tokenizer.eos_token_id,
        do_sample=True,
        temperature=3.0,
        repetition_penalty=5.0,
        no_repeat_ngram_size=1,
        suppress_tokens=list(range(5, 400)),
    )
    bent = ChatModel.of(model.network, model.chat, model.max_new_tokens)
    assert bent.replies(PROMPTS) == plain.replies(PROMPTS)


def test_every_end_token_of_the_generation_config_ends_a_reply():
    """Llama-3 names three; the tokenizer's own ends a reply, too."""
    model = tiny()
    _, tokens = reference_reply(model, PROMPTS[1], lambda logits, _: logits.argmax(), set())
    other = tokens[3]
    assert other not in tokens[:3]
    ends = [model.chat.tokenizer.pad_token_id, other]
    model.network.generation_config = GenerationConfig(eos_token_id=ends)
    several = ChatModel.of(model.network, model.chat, model.max_new_tokens)
    (reply,) = several.replies(PROMPTS[1:2])
    assert (reply.truncated, reply.tokens) == (False, 4)
    assert reply.text == model.chat.tokenizer.decode(tokens[:3], skip_special_tokens=True)
    assert model.chat.tokenizer.eos_token_id in several._end_tokens


# Sampled replies


def test_draws_follow_the_softmax():
    """A uniform grid pushed through the quantile function gives the distribution itself."""
    scores = torch.randn(9, generator=torch.Generator().manual_seed(0))
    scores[4] = -torch.inf
    grid = 20_000
    noise = torch.arange(grid) / grid
    drawn = sample_tokens(scores.expand(grid, -1), noise, 0.7)
    shares = drawn.bincount(minlength=9) / grid
    torch.testing.assert_close(shares, (scores / 0.7).softmax(0), atol=2 / grid, rtol=0)
    assert shares[4] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_equal_a_loop_and_do_not_depend_on_the_batch(family):
    model = tiny(family)
    noise = torch.rand(3, model.max_new_tokens, generator=torch.Generator().manual_seed(0))
    together = model.replies(PROMPTS, noise, temperature=2.0)
    ends = {model.chat.tokenizer.eos_token_id}
    for i, prompt in enumerate(PROMPTS):
        assert model.replies([prompt], noise[i : i + 1], 2.0) == [together[i]]

        def choose(logits, step, u=noise[i]):
            below = (logits / 2.0).softmax(0).cumsum(0) <= u[step]
            return below.sum()

        assert reference_reply(model, prompt, choose, ends)[0] == together[i].text
    assert [reply.text for reply in together] != model.generate(PROMPTS)
    cold = model.replies(PROMPTS, noise, temperature=1e-4)
    assert [reply.text for reply in cold] == model.generate(PROMPTS)


def test_draws_with_vectors_and_edits():
    model = tiny()
    noise = torch.rand(1, model.max_new_tokens, generator=torch.Generator().manual_seed(0))
    messages = user(f"Why?{GAP}")
    seams = model.chat.seams(messages)
    (ids,) = model.chat.encode([f"{seams.before} the river{seams.after}"])
    gap = torch.tensor(ids[len(seams.before_ids) : len(ids) - len(seams.after_ids)])
    soft, text = Prompt(messages, soft=model.embed(gap)), Prompt(user("Why? the river"))
    assert model.replies([soft], noise) == model.replies([text], noise)
    edit = Add(1, 3 * torch.randn(model.width, generator=torch.Generator().manual_seed(1)))
    mine = Prompt(text.messages, edits=(edit,))
    assert model.replies([mine], noise) == model.edited([edit]).replies([text], noise)
    assert model.replies([mine], noise) != model.replies([text], noise)


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_of_tokens_equal_the_tokens(family):
    """Zero steps of a soft prompt are the text itself, bit for bit."""
    model = tiny(family)
    text = " the river"
    messages = user(f"Why?{GAP}")
    seams = model.chat.seams(messages)
    (ids,) = model.chat.encode([f"{seams.before}{text}{seams.after}"])
    gap = torch.tensor(ids[len(seams.before_ids) : len(ids) - len(seams.after_ids)])
    soft = Prompt(messages, soft=model.embed(gap))
    plain = Prompt(user(f"Why?{text}"))
    assert torch.equal(model.hidden([soft]), model.hidden([plain]))
    assert model.generate([soft]) == model.generate([plain])


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_raw_block_outputs(family):
    model = tiny(family)
    (ids,) = model.chat.encode([model.chat.render(user("Why?"))])
    with captured_states(model.network, range(3)) as states, torch.no_grad():
        published = model.network(torch.tensor([ids]), output_hidden_states=True).hidden_states
    for layer in range(model.depth):
        assert torch.equal(states[layer], published[layer])
    norm = model.network.model.norm
    torch.testing.assert_close(norm(states[model.depth]), published[model.depth])
    assert not torch.allclose(states[model.depth], published[model.depth])


def test_layer_numbers_and_depths():
    assert [layer_number(layer, 6) for layer in (0, 6, -1, -7)] == [0, 6, 6, 0]
    with pytest.raises(ValueError, match="layer 7"):
        layer_number(7, 6)
    assert [at_depth(f, 6) for f in (0.01, 10 / 32, 20 / 32, 1.0)] == [1, 2, 4, 6]


def test_roles_of_a_padded_batch():
    model, seen = tiny(), []
    prompts = [Prompt(p.messages, edits=()) for p in PROMPTS]
    model.edited([Spy(1, seen)]).generate(prompts)
    first = seen[0]
    lengths = sorted(len(model.chat.encode([model.chat.render(p.messages)])[0]) for p in prompts)
    assert sorted(first.ne(PAD).sum(1).tolist()) == lengths
    assert (first[:, -1] == LAST).all() and (first == LAST).sum() == 3
    assert all((role == REPLY).all() and role.shape[1] == 1 for role in seen[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_each_edit_sees_its_own_rows_and_leaves_no_hook(family):
    model = tiny(family)
    vector = torch.randn(model.width, generator=torch.Generator().manual_seed(0))
    edited = Prompt(PROMPTS[1].messages, edits=(Add(1, vector),))
    plain = model.hidden(PROMPTS)
    mixed = model.hidden([PROMPTS[0], edited, PROMPTS[2]])
    torch.testing.assert_close(mixed[[0, 2]], plain[[0, 2]], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed[1, 1], plain[1, 1] + vector, atol=1e-5, rtol=0)
    assert not torch.allclose(mixed[1, 2], plain[1, 2])
    assert torch.equal(model.hidden(PROMPTS), plain)
    assert not any(m._forward_hooks for m in model.network.modules())


def test_hooks_go_when_the_forward_pass_fails():
    model = tiny()

    @dataclass(frozen=True)
    class Broken:
        layer: int = 1

        def __call__(self, h, role):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        model.hidden([Prompt(user("Why?"), edits=(Broken(),))])
    assert not any(m._forward_hooks for m in model.network.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_attack_has_the_last_word(family):
    """The defense's edit acts first, the attack's edit undoes it."""
    model = tiny(family)
    vector = torch.ones(model.width)
    defended = model.edited([Add(1, vector)])
    attacked = Prompt(user("Why?"), edits=(Add(1, -vector),))
    torch.testing.assert_close(
        defended.hidden([attacked]), model.hidden([Prompt(user("Why?"))]), atol=1e-5, rtol=0
    )


def test_access_is_derived():
    assert Prompt(user("a")).access == "text"
    assert Prompt(user("a"), soft=torch.zeros(1, 2)).access == "embedding"
    assert Prompt(user("a"), edits=(Add(1, torch.zeros(2)),)).access == "activation"


def test_flops_follow_the_formula():
    model = tiny()
    model.usage.forward_tokens = model.usage.backward_tokens = 0
    (ids,) = model.chat.encode([model.chat.render(user("Why?"))])
    model.hidden([PROMPTS[0]])
    assert model.usage.forward_tokens == len(ids)
    assert model.usage.tflop == pytest.approx(2e-12 * model.usage.parameters * len(ids))


def batch() -> Batch:
    examples = [
        Example(Behavior("a", "Tell me how to wreck a lamp."), "Sure, here is how.", "answer"),
        Example(Behavior("b", "Why?"), "I cannot assist with that request.", "refusal"),
    ]
    return collate(tokenise(tiny().chat, examples))


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_is_the_plain_pass_at_the_wanted_tokens(family):
    model, texts = tiny(family), batch()
    with torch.no_grad():
        plain = model.network(texts.ids, texts.all_text.long(), output_hidden_states=True)
        states, logits = model.forward(
            texts.ids, texts.all_text, [0, 1], texts.response, logits=True
        )
    for layer in (0, 1):
        expected = plain.hidden_states[layer][texts.response]
        torch.testing.assert_close(states[layer], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, plain.logits[texts.response], atol=1e-5, rtol=0)


def test_without_logits_no_block_above_the_highest_layer_runs():
    model, texts = tiny(), batch()
    ran = []
    handles = [
        block.register_forward_hook(lambda *_, n=n: ran.append(n))
        for n, block in enumerate(blocks(model.network))
    ]
    whole, _ = model.forward(texts.ids, texts.all_text, [1, 2])
    assert ran == [0, 1]
    short, logits = model.forward(texts.ids, texts.all_text, [1])
    assert ran == [0, 1, 0] and not len(logits)
    torch.testing.assert_close(short[0], whole[0], atol=0, rtol=0)
    for handle in handles:
        handle.remove()


def test_the_reference_pass_holds_only_the_wanted_tokens():
    """After a pass without gradients only layers x wanted tokens x d numbers are held."""
    model, texts = tiny(), batch()
    tokens = texts.last_prompt_token
    with torch.no_grad(), captured_states(model.network, [0, 1, 2], tokens) as held:
        model.network(texts.ids, texts.all_text.long())
    assert sum(h.numel() for h in held.values()) == 3 * int(tokens.sum()) * 32
    assert all(h.untyped_storage().nbytes() == 4 * h.numel() for h in held.values())
    states, _ = model.forward(texts.ids, texts.all_text, [0, 1, 2], tokens)
    torch.testing.assert_close(states.detach(), torch.stack([held[l] for l in range(3)]))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_blocks_give_the_same_gradients(family):
    model, texts = tiny(family), batch()
    model.network.requires_grad_(True)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.network.gradient_checkpointing_enable({"use_reentrant": False})
        model.network.train()
        model.network.zero_grad()
        states, logits = model.forward(
            texts.ids, texts.all_text, [1, 2], texts.response, logits=True
        )
        (states.square().mean() + logits.square().mean()).backward()
        model.network.eval()
        gradients.append([p.grad.clone() for p in model.network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_on_bf16_weights_learns_in_fp32_and_multiplies_in_bf16(
    family, checkpointed, with_lora
):
    """States, logits and gradients are near fp32's; without the adapter they are the weights'."""
    texts, losses, gradients = batch(), [], []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny(family)
        model.network.to(dtype)
        targets = ["down_proj", "o_proj"]
        adapter = with_lora(model, targets, rank=4, init_lora_weights=False).adapter
        seen = []
        for name, module in adapter.named_modules():
            if name.endswith(("lora_A.default", "lora_B.default")):
                module.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out.dtype))
        if checkpointed:
            model.network.gradient_checkpointing_enable({"use_reentrant": False})
        adapter.train()
        states, logits = model.forward(texts.ids, texts.all_text, [1, 2], logits=True)
        loss = states.float().square().mean() + logits.float().square().mean()
        loss.backward()
        trained = [p for p in adapter.parameters() if p.requires_grad]
        assert set(seen) == {dtype} and {p.grad.dtype for p in trained} == {torch.float32}
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in trained]))
        adapter.eval()
        with torch.no_grad(), adapter.disable_adapter():
            plain = model.network(texts.ids, texts.all_text.long()).logits[texts.all_text]
            _, undefended = model.forward(texts.ids, texts.all_text, logits=True)
        torch.testing.assert_close(undefended, plain, atol=0, rtol=0)
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.998


def test_forward_refuses_edits():
    model, texts = tiny(), batch()
    with pytest.raises(ValueError, match="without edits"):
        model.edited([object()]).forward(texts.ids, texts.all_text, [1])
