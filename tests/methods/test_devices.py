"""Every attack on every defense on a GPU: a pretended one always, a real one where there is one."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from pretended_device import Misplaced, pretended_gpu

import robench
from robench.methods.comparisons import left_behind, same_attempts, snapshot
from robench.methods.contract import attempt_problems
from robench.methods.registry import load_class, names, resolve
from robench.model.chat_model import ChatModel
from robench.testing import quick, tiny, tiny_behaviors, tiny_context
from robench.types import Attempt, Prompt, user

FAMILIES = ["llama", "gemma2", "phi3"]
DTYPES = ["float32", "bfloat16"]
DEFENSES = [
    name for name in names("defense") if not hasattr(load_class("defense", name), "argument")
]
REAL = pytest.param(
    nullcontext,
    id="real",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    ],
)
GPUS = [pytest.param(pretended_gpu, id="pretended"), REAL]


def on_gpu(family: str, dtype: str) -> ChatModel:
    model = tiny(family)
    model.network.to("cuda", getattr(torch, dtype))
    assert model.device.type == "cuda"
    return model


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("defense", DEFENSES)
def test_every_attack_on_every_defense(defense, family, dtype, gpu, tmp_path):
    with gpu():
        model, behaviors, ctx = on_gpu(family, dtype), tiny_behaviors(2), tiny_context()
        before = snapshot(model)
        applied = quick(resolve("defense", defense).instance).applied
        with applied(model, ctx, tmp_path / "cache") as target:
            for name in names("attack"):
                attack = quick(resolve("attack", name).instance)
                attempts = list(attack.run(target, behaviors, ctx))
                assert attempt_problems(behaviors, attempts) == [], name
                finals = [a.prompt for a in attempts if a.final]
                assert len(target.generate(finals)) == len(finals), name
        assert left_behind(model, before) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pretended_gpu_computes_what_the_cpu_does(family):
    """Otherwise it would check the devices of something else."""

    def attacked(model: ChatModel) -> list[Attempt]:
        attack = quick(resolve("attack", "gcg").instance)
        return list(attack.run(model, tiny_behaviors(2), tiny_context()))

    here = attacked(tiny(family))
    with pretended_gpu():
        there = attacked(on_gpu(family, "float32"))
    assert same_attempts(here, there)


@dataclass(frozen=True)
class Forgetful:
    """Makes its vectors where torch makes them by default."""

    def run(self, model, behaviors, ctx):
        for behavior in behaviors:
            vectors = torch.zeros(1, 4, model.width)
            model.network(inputs_embeds=vectors)
            yield Attempt(behavior, Prompt(user(behavior.request)))


@pytest.mark.parametrize("gpu", [pytest.param(pretended_gpu, id="pretended"), REAL])
def test_a_misplaced_tensor_is_caught(gpu: type[AbstractContextManager[None]]):
    attack = Forgetful()
    assert list(attack.run(tiny(), tiny_behaviors(1), tiny_context()))
    with gpu(), pytest.raises((Misplaced, RuntimeError), match=r"same device|one device"):
        list(attack.run(on_gpu("llama", "float32"), tiny_behaviors(1), tiny_context()))


def test_a_whole_run_says_on_a_gpu_what_it_says_on_the_cpu(tmp_path):
    asked = {
        "attacks": ["direct", "soft_prompt", "repe"],
        "defenses": ["none", "circuit_breaker"],
        "settings": {"soft_prompt": {"steps": 2}, "circuit_breaker": {"steps": 2}},
        "n": 2,
        "max_new_tokens": 6,
    }
    here = robench.run(**asked, device="cpu", out=tmp_path / "cpu")
    with pretended_gpu():
        there = robench.run(**asked, device="cuda", out=tmp_path / "cuda")
        assert there.holes == 0
        again = robench.run(**asked, device="cuda", out=tmp_path / "cuda")  # adapter and rows read
    for outcome in (there, again):
        assert outcome.rows()["reply"].tolist() == here.rows()["reply"].tolist()
