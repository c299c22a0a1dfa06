"""CRL and its hard negatives: the oracles and properties of defenses 6 that concern them."""

import math
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from robench.errors import Failure, InputError
from robench.identity import sources
from robench.methods.registry import load_class, resolve
from robench.testing import quick, tiny, tiny_context
from robench.training import loop
from robench.training.corpus import collate, draw_safe_texts, draw_texts, split_examples, tokenise
from robench.training.losses import DISTANCES, centroid, cosine_similarity, l2
from robench.training.modes import tuned_and_base, without_adapter
from robench.types import Lengths

CRL, CRLPlain = load_class("defense", "crl"), load_class("defense", "crl_plain")
SOURCE = __import__(CRL.__module__, fromlist=["Triplets"])
MINING = __import__(SOURCE.Mining.__module__, fromlist=["Mining"])

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def small(**settings):
    fields = {"rate": 1e-2, "dropout": 0.0, "micro": 1, "mined": 4, "safe_layers": (0.5, 1.0)}
    fields |= {"unsafe_layers": (0.5, 1.0), "bound": math.inf, "mining_rate": 1e-2}
    return replace(quick(CRL(**fields)), **settings)


@contextmanager
def wearing(model, spread=0.0, checkpointing=False):
    """The model with LoRA on that is being trained."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.0)
    adapter = get_peft_model(model.network, config).train()
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=spread)
    if checkpointing:
        model.network.gradient_checkpointing_enable({"use_reentrant": False})
    yield replace(model, adapter=adapter)
    model.network.gradient_checkpointing_disable()
    adapter.unload()


def lora(target):
    return {n: p for n, p in target.adapter.named_parameters() if "lora_" in n}


def gradients(target):
    return {n: p.grad.clone() for n, p in lora(target).items() if p.grad is not None}


def harmful_texts(model):
    return tokenise(model.chat, split_examples(tiny_context().examples).harmful)


def miner(target, **settings):
    return MINING.Mining(small(**settings), target, harmful_texts(target), tiny_context())


def read(target, batch, layers=(1, 2)):
    return target.forward(batch.ids, batch.all_text, layers, batch.all_text)[0]


# The losses


def test_the_presets_are_those_of_the_table_and_not_mixed():
    paper, release = resolve("defense", "crl:paper").instance, resolve("defense", "crl:release")
    release = release.instance
    for s, weights, margins, tau in (
        (paper, (0.5, 0.4, 0.9), (500, 1500), 1),
        (release, (0.5, 0.6, 0.7), (2, 3), 2),
    ):
        assert s.clip == 1
        assert (s.enough, s.bound, s.chance) == (1.85, 3, 0.25)
        assert (s.safe, s.unsafe, s.kl) == weights
        assert (s.safe_margin, s.unsafe_margin) == margins
        assert s.temperature == tau
        assert (s.rank, s.lora_alpha, s.dropout, s.rate, s.steps) == (16, 16, 0.05, 1e-4, 900)
        assert (s.batch, s.retain, s.micro) == (8, 4, 4)

    def distances(s):
        return s.safe_positive, s.safe_negative, s.unsafe_positive, s.unsafe_negative

    assert distances(paper) == ("mix",) * 4
    assert distances(release) == ("l2", "cos", "cos", "cos")


def test_the_release_and_the_later_code_mine_nothing():
    """train.sh has attack=False, and triplet_simko.py has no attack module."""
    lengths = Lengths(10, 5, len, reply=10)
    with wearing(tiny()) as target:
        for preset, mines in (("paper", True), ("release", False), ("triplet_simko", False)):
            crl = resolve("defense", f"crl:{preset}").instance
            plain = resolve("defense", f"crl_plain:{preset}").instance
            crl = replace(crl, mined=8)
            mining = crl.mining(target, harmful_texts(target), tiny_context())
            assert (mining is not None) == mines
            assert (crl.forecast(lengths) != plain.forecast(lengths)) == mines
    later = resolve("defense", "crl:triplet_simko").instance
    assert (later.batch, later.micro, later.steps, later.rate) == (4, 2, 1500, 2e-4)
    assert (later.safe_margin, later.unsafe_margin, later.refusals, later.clip) == (500, 1500, 0, 1)
    assert [round(32 * depth) for depth in later.unsafe_layers] == [21, 31]


def test_the_released_hinges_are_always_open():
    """d_cos is in [0, 2]: safe >= 0 - 2 + 2, unsafe >= 0 - 2 + 3; so the loss is linear."""
    s = resolve("defense", "crl_plain:release").instance
    tuned, base = torch.randn(2, 3, 50, 8) * torch.tensor([1e-3, 1, 1e3])[:, None, None]
    middle = centroid(base, None)
    safe = l2(tuned, base) - DISTANCES["cos"](tuned, middle[:, None]) + 2
    assert SOURCE.safe_loss(s, tuned, base, middle) == pytest.approx(safe.mean().item())
    unsafe = DISTANCES["cos"](tuned, middle[:, None]) - DISTANCES["cos"](tuned, base) + 3
    assert safe.min() >= 0 and unsafe.min() >= 1 - 1e-6
    assert SOURCE.unsafe_loss(s, tuned, base, middle) == pytest.approx(unsafe.mean().item())


@pytest.mark.parametrize(("away", "loss"), [(1489, 1), (1490, 0), (1600, 0)])
def test_the_papers_unsafe_hinge_closes_at_its_margin(away, loss):
    """h' = c = (x, 0), h = (0, 0): d_mix(h', c) = 0, d_mix(h', h) = x + 10 as no cosine is left."""
    tuned, base = torch.tensor([[[float(away), 0.0]]]), torch.zeros(1, 1, 2)
    s = resolve("defense", "crl_plain:paper").instance
    assert SOURCE.unsafe_loss(s, tuned, base, tuned[:, 0]).item() == pytest.approx(loss, abs=1e-3)


@pytest.mark.parametrize(("distance", "moves"), [("mix", True), ("none", False)])
def test_the_harmful_side_moves_the_safe_loss_through_its_centroid(distance, moves):
    s = small(safe_negative=distance)
    tuned, base, harmful = torch.randn(3, 1, 6, 4).requires_grad_().unbind()
    losses = [
        SOURCE.safe_loss(s, tuned, base, centroid(h, None)).item() for h in (harmful, 5 * harmful)
    ]
    assert (losses[0] != losses[1]) == moves


@pytest.mark.parametrize(("distance", "moves"), [("l2", True), ("none", False)])
def test_only_the_centroid_terms_move_an_untrained_adapter(distance, moves):
    """B = 0: h' = h, so d(h', h) = 0 at its minimum and the KL is 0, with gradients of zero."""
    s = small(safe_positive="l2", unsafe_negative="l2")
    s = replace(s, safe_negative=distance, unsafe_positive=distance)
    with wearing(tiny()) as target:
        losses = SOURCE.Triplets(s, target, tiny_context()).backward(1)
        assert losses["kl"] == pytest.approx(0, abs=1e-6)
        if not moves:
            assert losses["safe"] == pytest.approx(s.safe_margin)
            assert losses["unsafe"] == pytest.approx(s.unsafe_margin)
        largest = max(g.abs().max().item() for g in gradients(target).values())
        assert largest > 1e-3 if moves else largest < 1e-5
        frozen = [p for n, p in target.adapter.named_parameters() if "lora_" not in n]
        assert all(p.grad is None for p in frozen)


def test_a_step_is_that_of_a_plain_loop():
    """Every text alone, every token by itself, the formulas of 2.1 spelled out, off B = 0."""
    settings = small(
        batch=2, retain=3, safe=0.5, unsafe=0.6, kl=0.7, safe_margin=2.0, unsafe_margin=3.0,
        safe_positive="l2", safe_negative="cos", unsafe_positive="cos", unsafe_negative="l2",
        safe_layers=(0.5, 0.5), unsafe_layers=(0.5, 0.5), temperature=2.0, reduction="batchmean",
        chance=0.0,
    )  # fmt: skip
    with wearing(tiny(), spread=0.2) as target:
        goal = SOURCE.Triplets(settings, target, tiny_context())
        state = goal.rng.get_state().clone()
        goal.mining = None
        goal.backward(1)
        found = gradients(target)
        target.adapter.zero_grad()
        goal.rng.set_state(state)
        harmful, safe = (
            draw_texts(goal.texts.harmful, 2, goal.rng),
            draw_safe_texts(goal.texts, settings.batch, settings.refusals, goal.rng),
        )
        retained = draw_texts(goal.texts.harmless, 3, goal.rng)

        def read_alone(text):
            ids = torch.tensor([text.prompt + text.reply])
            mask = torch.ones_like(ids)
            output = target.network(ids, mask, output_hidden_states=True)
            with without_adapter(target):
                base = target.network(ids, mask, output_hidden_states=True)
            reply = slice(len(text.prompt), None)
            return output, base, [o.hidden_states[1][0, reply] for o in (output, base)]

        moved = [read_alone(text)[2] for text in harmful]
        centre = torch.cat([tuned for tuned, _ in moved]).mean(0)
        cos = lambda x, y: 1 - torch.dot(x, y) / (x.norm() * y.norm())  # noqa: E731
        unsafe = [
            (cos(h, centre) - (h - h0).norm() + 3).relu()
            for tuned, base in moved for h, h0 in zip(tuned, base, strict=True)
        ]  # fmt: skip
        kept = [
            ((h - h0).norm() - cos(h, centre) + 2).relu()
            for text in safe for h, h0 in zip(*read_alone(text)[2], strict=True)
        ]  # fmt: skip
        divergence = 0
        for text in retained:
            output, base, _ = read_alone(text)
            p, q = (x.logits[0] / 2 for x in (base, output))
            p, q = p.log_softmax(-1), q.log_softmax(-1)
            divergence = divergence + 4 * (p.exp() * (p - q)).sum() / 3
        loss = 0.5 * torch.stack(kept).mean() + 0.6 * torch.stack(unsafe).mean()
        (loss + 0.7 * divergence).backward()
        for name, expected in gradients(target).items():
            torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-3)


def test_an_attack_without_a_finite_loss_ends_the_training(monkeypatch):
    with wearing(tiny()) as target:
        mining = miner(target)
        nan = torch.tensor(math.nan, requires_grad=True)
        monkeypatch.setattr(MINING, "answer_loss", lambda *_: nan * 1)
        with pytest.raises(Failure, match="loss of harmful answers is nan"):
            mining.advance(mining.settings.every)


def test_micro_batches_are_averaged():
    """Two micro-batches give the mean of both gradients, each with a centroid of its own."""
    with wearing(tiny(), spread=0.1) as target:
        whole = SOURCE.Triplets(small(micro=2, every=9), target, tiny_context())
        losses = whole.backward(1)
        expected = gradients(target)
        target.adapter.zero_grad()
        parts = SOURCE.Triplets(small(micro=1, every=9), target, tiny_context())
        both = [parts.backward(1), parts.backward(1)]
        for name in losses:
            assert losses[name] == pytest.approx((both[0][name] + both[1][name]) / 2, rel=1e-5)
        for name, gradient in gradients(target).items():
            torch.testing.assert_close(gradient / 2, expected[name])


def test_training_moves_harmful_states_and_spares_harmless_ones(tmp_path):
    ctx, s = tiny_context(), small(steps=50, batch=4, retain=4, every=10, iterations=5)
    s = replace(s, safe_margin=5.0, unsafe_margin=20.0, reduction="mean")
    with s.applied(tiny(), ctx, tmp_path / "cache") as target:
        found = split_examples(ctx.examples)
        drift, similar = [], []
        for side in (found.harmful, found.harmless):
            batch = collate(tokenise(target.chat, side))
            with torch.no_grad():
                tuned, base = tuned_and_base(target, batch, [1, 2], batch.response)
            drift.append(l2(tuned, base).mean().item())
            similar.append(cosine_similarity(tuned, base).mean().item())
        assert similar[0] < 0.8
        assert drift[1] < 0.8 * drift[0]


# Mining


def test_the_identity_changes_nothing_and_eye_doubles_the_blocks_output():
    with wearing(tiny(), spread=0.1) as target:
        batch = collate(harmful_texts(target)[:4])
        with torch.no_grad():
            clean = read(target, batch, (1,))
            for init, factor in (("identity", 1), ("eye", 2)):
                mining = miner(target, init=init, chance=1.0, early=0.0)
                mining._new_module()
                mining.recent = [0.0]
                with mining.attacked(batch.ids, len(batch.ids)):
                    torch.testing.assert_close(read(target, batch, (1,)), factor * clean)
                assert torch.equal(read(target, batch, (1,)), clean)


def test_the_module_stays_in_fp32_where_adapters_do_not():
    """Adam's small steps on W would be lost in bf16."""
    h = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = 1.003 * torch.eye(32)  # 1 in bf16
    module = MINING.Affine(1, weight, torch.zeros(32))
    with torch.autocast("cpu", torch.bfloat16):
        found = module(h, torch.zeros(1, 5))
    assert torch.equal(found, h + (h.float() @ weight.T).bfloat16())
    assert not torch.equal(found, h + h @ weight.T.bfloat16())


def test_a_bf16_model_trains_as_an_fp32_one(tmp_path):
    """All of it: mining, products in bf16, losses in fp32."""
    curves = []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny()
        model.network.to(dtype)
        with small(steps=5, batch=4, retain=4).applied(
            model, tiny_context(), tmp_path / str(dtype)
        ):
            pass
        record = yaml.safe_load((tmp_path / str(dtype) / "robench_defense.yaml").read_text())
        curves.append(record["curves"])
    for name in curves[0]:
        assert curves[1][name] == pytest.approx(curves[0][name], rel=0.05, abs=0.02), name


def test_an_attack_meets_the_harmful_rows_alone():
    with wearing(tiny(), spread=0.1) as target, torch.no_grad():
        batch = collate(harmful_texts(target)[:4])
        clean = read(target, batch)
        mining = miner(target, init="eye", chance=1.0)
        mining._new_module()
        mining.recent = [0.0]
        with mining.attacked(batch.ids, 3):
            attacked = read(target, batch)
        own = int(batch.all_text[:3].sum())
        assert torch.equal(attacked[:, own:], clean[:, own:])
        assert not torch.allclose(attacked[1, :own], clean[1, :own])


def test_an_attack_lowers_its_loss_and_leaves_the_adapter():
    with wearing(tiny(), spread=0.1) as target:
        before = {name: p.detach().clone() for name, p in lora(target).items()}
        mining = miner(target, iterations=60, every=1, enough=0.0)
        batch = collate(harmful_texts(target)[:8])
        mining.recent = [0.0]
        with torch.no_grad():
            clean = MINING.answer_loss(target, batch).item()
        mining.advance(1)
        with torch.no_grad(), MINING._module_applied(target, mining.module, batch.ids, 8):
            attacked = MINING.answer_loss(target, batch).item()
        assert attacked < 0.8 * clean
        assert mining.log[0][2] == 60
        assert all(torch.equal(before[name], p) for name, p in lora(target).items())
        assert all(p.requires_grad and p.grad is None for p in lora(target).values())
        assert target.network.training
        assert mining.module.weight.grad is None
        assert not any(m._forward_hooks for m in target.network.modules())


def test_the_loss_of_answers_is_that_of_each_alone():
    """Padding does not count, and only the reply's tokens do."""
    with wearing(tiny(), spread=0.1) as target, torch.no_grad():
        texts = harmful_texts(target)[:3]
        texts[1] = texts[1]._replace(reply=texts[1].reply[:5])
        total = 0.0
        for text in texts:
            ids = torch.tensor([[*text.prompt, *text.reply]])
            logits = target.network(ids).logits[0].log_softmax(-1)
            for at in range(len(text.prompt), ids.shape[1]):
                total -= logits[at - 1, ids[0, at]].item()
        mean = total / sum(len(text.reply) for text in texts)
        assert MINING.answer_loss(target, collate(texts)).item() == pytest.approx(mean, rel=1e-5)


def test_training_of_a_module_ends_early_when_it_does_well():
    with wearing(tiny()) as target:
        mining = miner(target, iterations=200, enough=math.inf, mined=8)
        mining.advance(2)
        assert mining.log[0][2] == math.ceil(MINING.WINDOW / 8)


def test_modules_come_and_are_used_as_documented():
    """Retrained at 10, 20, ..., used by a quarter of the batches from then on, while they work."""
    with wearing(tiny()) as target:
        mining = miner(target, every=10, iterations=1, mined=1, early=1.0)
        ids, first = torch.zeros(2, 3, dtype=torch.long), None
        for step in range(1, 201):
            mining.advance(step)
            with mining.attacked(ids, 1):
                pass
            first = first or (mining.attacked_batches and step)
        assert [row[0] for row in mining.log] == list(range(10, 201, 10))
        assert {row[1] for row in mining.log} == {1, 2}
        assert first >= 10
        # 191 draws of 0.25: mean 47.75, four standard deviations are 24
        assert abs(mining.attacked_batches - 47.75) < 24
        used = mining.attacked_batches
        notes = mining.notes()
        assert (notes["attacked"], notes["micro_batches"], notes["expected"]) == (used, 200, 50)
        assert notes["share_of_expected"] == pytest.approx(used / 50)
        mining.recent = [4.0]
        object.__setattr__(mining.settings, "bound", 3.9)
        for _ in range(50):
            with mining.attacked(ids, 1):
                pass
        assert mining.attacked_batches == used


def test_the_bound_is_in_nats_and_the_undefended_loss_is_recorded():
    with wearing(tiny(), spread=0.5) as target:
        with without_adapter(target):
            batch = collate(harmful_texts(target))
            undefended = MINING.answer_loss(target, batch).item()
        mining = miner(target, bound=3.0)
        assert mining.notes()["undefended_loss"] == pytest.approx(undefended, rel=0.05)
        for losses, works in (([2.9], True), ([3.1], False), ([1.0, 4.9], True), ([], False)):
            mining.recent = losses
            assert mining.works() == works


def test_mining_that_is_hardly_used_is_warned_of(tmp_path):
    """17 of 150 where 37.5 are expected is too few; 28.2 and more are not."""
    with wearing(tiny()) as target:
        mining = miner(target)
        mining.batches = 150
        for attacked, warned in ((17, True), (28, True), (29, False), (60, False)):
            mining.attacked_batches = attacked
            assert bool(mining.warnings()) == warned
    with small(steps=2, batch=2, every=9).applied(tiny(), tiny_context(), tmp_path / "cache"):
        pass
    record = yaml.safe_load((tmp_path / "cache" / "robench_defense.yaml").read_text())
    assert record["notes"]["warnings"][0].startswith("hard negatives were used in 0 of 2 ")
    card = (tmp_path / "cache" / "README.md").read_text()
    assert "**Note:** hard negatives were used in 0 of 2 micro-batches" in card
    assert "- mining, expected: 0.5" in card


@pytest.mark.parametrize("attacked", [False, True])
def test_checkpointed_gradients_are_the_same(attacked):
    """Recomputed blocks see the module where the forward pass saw it, and nowhere else."""
    found = []
    for checkpointing in (False, True):
        with wearing(tiny(), 0.1, checkpointing) as target:
            s = small(every=1, chance=1.0 if attacked else 0.0, init="eye", early=0.0)
            goal = SOURCE.Triplets(s, target, tiny_context())
            goal.backward(1)
            assert goal.mining.attacked_batches == attacked
            found.append(gradients(target))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dies_at", [4, 6, 8])
def test_a_killed_training_resumes_exactly(tmp_path, monkeypatch, dies_at):
    """A checkpoint at 3 is older than the first module, one at 6 as old as its second."""
    monkeypatch.setattr(loop, "EVERY", 3)
    s = small(steps=9, every=4 if dies_at == 4 else 3, chance=0.6, dropout=0.1)
    with s.applied(tiny(), tiny_context(), tmp_path / "whole"):
        pass
    honest = SOURCE.Triplets.backward

    def dying(self, step):
        if step == dies_at:
            raise KeyboardInterrupt
        return honest(self, step)

    monkeypatch.setattr(SOURCE.Triplets, "backward", dying)
    with pytest.raises(KeyboardInterrupt), s.applied(tiny(), tiny_context(), tmp_path / "cut"):
        pass
    monkeypatch.setattr(SOURCE.Triplets, "backward", honest)
    torch.rand(7)
    with s.applied(tiny(), tiny_context(), tmp_path / "cut"):
        pass
    weights = [(tmp_path / f / "adapter_model.safetensors").read_bytes() for f in ("whole", "cut")]
    assert weights[0] == weights[1]
    records = [(tmp_path / f / "robench_defense.yaml").read_text() for f in ("whole", "cut")]
    records = [r[r.index("notes:") :] for r in records]
    assert records[0] == records[1] and "modules" in records[0]


def test_the_file_of_mining_is_part_of_the_identity():
    for method in (CRL, CRLPlain):
        assert Path(MINING.__file__) in sources(method.__module__)


def test_the_forecast_counts_what_mining_does():
    """25 steps, a module every 10: 2 trainings of 7 iterations, 14 of upkeep (11-19, 21-25)."""
    lengths = Lengths(10, 5, len, reply=10)
    mined = replace(CRL(), steps=25, every=10, iterations=7, mined=2).forecast(lengths)
    plain = replace(CRLPlain(), steps=25).forecast(lengths)
    assert mined.backward_tokens - plain.backward_tokens == (2 * 7 + 14) * 2 * (10 + 10)


def test_settings_are_checked():
    for wrong in ({"micro": 0}, {"chance": 2.0}, {"unsafe_layers": ()}, {"temperature": 0.0}):
        with pytest.raises(ValueError):
            CRL(**wrong)
    with pytest.raises(InputError, match="safe_positive"):
        resolve("defense", "crl", settings={"safe_positive": "manhattan"})
