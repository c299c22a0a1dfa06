"""What a run is said to cost, against what it cost: tokens, parameters, memory, all measured."""

import json
import re
from dataclasses import replace

import pytest
import torch

from robench import run
from robench.config import assignments
from robench.methods.registry import resolve
from robench.model import loading
from robench.model.scoring import gap_losses, longest
from robench.results.store import RunStore
from robench.runs import rates
from robench.runs.forecast import TRAINING, Estimate, Setup, Shape, measured_rate
from robench.runs.plan import plan
from robench.runs.progress import duration
from robench.runs.question import Question, Texts
from robench.runs.run_texts import gather
from robench.testing import FAMILIES, tiny, tiny_behaviors, tiny_context
from robench.types import GAP, Forecast, Lengths, user

CPU = Setup("cpu", "float32", max_new_tokens=24, samples=0)
SHORT = [
    "gcg.steps=3", "gcg.width=16", "gcg.topk=8", "autodan.steps=2", "autodan.population=4",
    "autodan_initial.population=4", "soft_prompt.steps=6", "scav_prompt.steps=2",
    "scav_prompt.population=4", "repe.pairs=24", "scav.pairs=24", "scav_prompt.pairs=4",
    "scav.p0=[1e-2, 1e-3]", "repe.strength=[1.0]", "circuit_breaker.steps=3",
]  # fmt: skip
ATTACKS = ["gcg", "autodan", "autodan_initial", "soft_prompt", "repe", "scav", "scav_prompt"]
LENGTHS = Lengths(30, 20, len, reply=100, harmful=60, harmless=40, tune=10, depth=8)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """What attacks on the organism and a training cost: {name: TFLOP of the whole cell}."""
    folder = tmp_path_factory.mktemp("cost")
    benign = folder / "benign.jsonl"
    benign.write_text(json.dumps({"prompt": "How do I wash a lamp?"}))
    asked = {"n": 2, "benign": benign, "max_new_tokens": 24}
    *words, trained = SHORT
    run(attacks=ATTACKS, defenses=["none"], settings=words, out=folder / "attacks", **asked)
    defense = {"defenses": ["circuit_breaker"], "settings": [trained]}
    run(attacks=["direct"], **defense, out=folder / "defense", **asked)
    costs = {}
    for header, _, rows, _ in RunStore(folder / "attacks").cells():
        last = {row["behavior"]: row["tflop"] for row in rows}  # rows come in order of steps
        costs[header["attack"]] = sum(last.values())
    for _, info, _, _ in RunStore(folder / "defense").cells():
        costs["circuit_breaker"] = info["train_tflop"]
    data = gather("organism", Texts(n=2, benign=benign), 2, 1)
    return costs, Estimate(loading.find_model("organism"), None, data, CPU)


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_cost_what_was_forecast(recorded, attack):
    """Within a factor of three: searches stop early or skip what they know, templates add."""
    costs, estimate = recorded
    method = resolve("attack", attack, "demo", assignments(SHORT).get(attack, {})).instance
    said = estimate.cell(method, 2, benign=False)
    assert 1 / 3 < said.tflop / costs[attack] < 3


def test_a_training_costs_what_was_forecast(recorded):
    costs, estimate = recorded
    words = assignments(SHORT)["circuit_breaker"]
    said = estimate.training(resolve("defense", "circuit_breaker", "demo", words).instance)
    assert 1 / 2 < said.tflop / costs["circuit_breaker"] < 2


def test_replies_are_counted_with_their_reading(recorded):
    _, estimate = recorded
    gcg = resolve("attack", "gcg", settings={"steps": "5", "every": "2"}).instance
    said = estimate.cell(gcg, 10, benign=False)
    answered = estimate.tested.prompt + 24
    attempts = 2 * 3  # at the steps 2, 4 and 5, the best and the newest
    assert said.replies == pytest.approx(
        2e-12 * estimate.shape.parameters * 10 * attempts * 2 * answered
    )
    drawn = replace(estimate.setup, samples=4)
    estimate.setup, before = drawn, estimate.setup
    more = estimate.cell(gcg, 10, benign=False).replies - said.replies
    assert more == pytest.approx(2e-12 * estimate.shape.parameters * 10 * 4 * answered)
    harmless = estimate.cell(gcg, 10, benign=True)
    assert harmless.replies == said.replies
    estimate.setup = before


def test_what_is_fitted_once_does_not_grow_with_the_behaviors(recorded):
    _, estimate = recorded
    universal = resolve("attack", "gcg", settings={"universal": "true"}).instance
    single = resolve("attack", "gcg").instance
    repe, scav = resolve("attack", "repe").instance, resolve("attack", "scav").instance

    def tflop(attack, n):
        return estimate.cell(attack, n, benign=False).tflop

    assert tflop(single, 20) == pytest.approx(2 * tflop(single, 10))
    for once in (universal, repe, scav):
        assert tflop(once, 20) == tflop(once, 10) > 0
    told, alone = universal.forecast(LENGTHS), single.forecast(LENGTHS)
    assert told.forward_tokens == 25 * alone.forward_tokens  # goals
    few = LENGTHS._replace(harmful=7)
    assert universal.forecast(few).backward_tokens == 7 * alone.backward_tokens


def test_directions_cost_their_references_and_their_tuning():
    repe = resolve("attack", "repe:tuned").instance
    read, tried = 2 * 40 * 30, 12 * 10 * (30 + 100)  # 40 pairs; 12 settings, 10 requests
    assert repe.forecast(LENGTHS) == Forecast(0, read + tried, once=True, vectors=8)
    single = resolve("attack", "scav:paper").instance  # one setting is not tried
    assert single.forecast(LENGTHS).forward_tokens == read


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shape_is_the_models(family, tmp_path):
    """Parameters and bytes against the loaded model's, the adapter's against a trained one's."""
    from safetensors.torch import load_file

    model = tiny(family)
    shape = Shape.of(model.network, CPU)
    assert shape.parameters == model.usage.parameters
    assert shape.weights == sum(p.nbytes for p in model.network.parameters())
    assert Shape.of(model.network, replace(CPU, dtype="bfloat16")).weights * 2 == shape.weights
    noop = resolve("defense", "noop", settings={"rank": "3"}).instance
    with noop.applied(model, tiny_context(), tmp_path / "noop"):
        stored = load_file(tmp_path / "noop" / "adapter_model.safetensors").values()
    assert shape.adapter(3) == sum(tensor.numel() for tensor in stored)
    with torch.no_grad():
        cache = model.network(torch.ones(1, 5, dtype=torch.long), use_cache=True).past_key_values
    assert cache.layers[0].keys.shape[-1] * cache.layers[0].keys.shape[1] == shape.kv


def test_memory_is_within_a_factor_of_what_a_pass_holds():
    """What autograd holds for the backward pass of a plain Llama, weights apart."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from robench.model.chat_model import ChatModel

    plain = tiny()
    config = LlamaConfig(
        vocab_size=plain.network.config.vocab_size, hidden_size=256, intermediate_size=768,
        num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=2,
        attn_implementation="sdpa",
    )  # fmt: skip
    model = ChatModel.of(AutoModelForCausalLM.from_config(config), plain.chat)
    behaviors = tiny_behaviors(3)
    slots = model.slots(
        [user(f"{b.request}{GAP}") for b in behaviors], [b.target for b in behaviors]
    )
    soft = torch.randn(3, 20, model.width, requires_grad=True)
    weights = {p.untyped_storage().data_ptr() for p in model.network.parameters()}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept, so that none is reused
        return tensor

    saving = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
    with saving:
        gap_losses(model, slots.rows, slots._prefix, range(3), soft)
    tokens = 3 * longest(slots.rows, 20)
    said = Shape.of(model.network, CPU).held(tokens, every_block=True)
    measured = sum(size for size, _ in held.values())
    assert 1 / 2 < said / measured < 2


def test_computing_blocks_again_holds_less():
    shape = Shape.of(tiny().network, CPU)
    deep = replace(shape, depth=32)
    assert deep.held(100, True, again=True) < deep.held(100, True) / 4


def test_the_forecast_tells_times_and_what_it_does_not_know(tmp_path):
    file = tmp_path / "silent.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Silent:\n"
        "    def run(self, model, behaviors, ctx):\n"
        "        yield from ()\n"
    )
    attacks = ["direct", f"{file}:Silent", "gcg"]
    planned = plan(Question.of(attacks=attacks, defenses=["none"], n=2))
    expected = planned.forecast(tflops=0.001).set_index("attack")
    gcg = expected.loc["gcg"]
    steps = resolve("attack", "gcg:demo").instance.steps
    assert gcg["steps"] == steps
    assert gcg["seconds"] == pytest.approx((gcg["tflop"] + gcg["replies_tflop"]) / 0.001)
    silent = expected.loc["Silent"]
    assert silent[["steps", "tflop", "replies_tflop", "seconds", "memory_gib"]].isna().all()
    text = planned.preview(tmp_path / "run", tflops=0.001)
    lines = {line.split()[1]: line.split() for line in text.splitlines() if line[:4] == "none"}
    assert lines["gcg"][2] == str(steps) and lines["Silent"][2:] == ["?"] * 5
    assert "without the rows with ?" in text and "as given for cpu" in text
    rate = re.search(
        r"at (\S+) TFLOP/s, measured with matrix products on cpu", planned.preview(tmp_path / "run")
    )
    assert rate and float(rate[1]) > 0
    assert not (tmp_path / "run").exists()


def test_a_forecast_of_some_cells_adds_trainings_to_their_first_cell():
    planned = plan(
        Question.of(matrix="smoke", attacks=["direct"], defenses=["none", "noop"], seeds=[0, 1])
    )
    expected = planned.forecast(tflops=1.0)
    assert list(expected["attack"]).count(TRAINING) == 2  # noop, once per seed
    assert (
        len(planned.forecast(planned.groups[:1], 1.0)) == 4
    )  # harmless requests, three ways, and direct
    first = planned.groups[-1].cells[0][0].name
    trainings = expected[expected["attack"] == TRAINING]
    assert first in set(trainings["cell"])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.48, "0.48 s"), (9.96, "10 s"), (12.4, "12 s"), (180, "3 min"), (9000, "2.5 h")],
)
def test_times_are_for_people(seconds, text):
    assert duration(seconds) == text


def test_the_measured_rate_counts_products(monkeypatch):
    """A clock that only the products move: 2^31 FLOP each, in a tenth of a second."""
    now, number = [0.0], torch.ones(1, 1)

    class Square:
        def __matmul__(self, other):
            now[0] += 0.1
            return number

    monkeypatch.setattr("robench.runs.forecast.torch.ones", lambda *a, **k: Square())
    monkeypatch.setattr("robench.runs.forecast.time.perf_counter", lambda: now[0])
    assert measured_rate("cpu", "float32") == pytest.approx(2**31 / 0.1 / 1e12)


def test_a_gpu_is_credited_with_the_share_of_its_last_benchmark(monkeypatch):
    lines = [
        {"device": "", "share": 0.17, "source": "the public figure"},
        {"device": "Fast GPU", "share": 0.4, "source": "the benchmark"},
    ]
    monkeypatch.setattr(rates, "shares", lambda: lines)
    known = rates.expected(800.0, "cuda:1", "Fast GPU")
    assert known.tflops == pytest.approx(320)
    assert known.how == "40% of 800 measured with matrix products on cuda:1: the benchmark"
    other = rates.expected(800.0, "cuda", "Slow GPU")
    assert other.tflops == pytest.approx(136)
    assert "the public figure, as no benchmark on Slow GPU is recorded" in other.how
    assert rates.expected(0.1, "cpu", "cpu") == (0.1, "measured with matrix products on cpu")
    assert rates.given(53.0, "cuda") == (53.0, "as given for cuda")


def test_the_shipped_shares_can_be_read():
    listed = rates.shares()
    assert "" in {line["device"] for line in listed}
    assert all(0 < line["share"] <= 1 and line["source"] for line in listed)
