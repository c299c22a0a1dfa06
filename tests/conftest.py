"""Shared by all tests: one thread (tiny models are slower on many), data, LoRA, the organism."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from robench import cli
from robench.judges.exact import Exact
from robench.model.chat_model import ChatModel
from robench.model.loading import BUILT_IN, find_model, load_model
from robench.training import loop
from robench.training.applying import without_deprecations
from robench.types import Attempt

torch.set_num_threads(1)

# A job in the background of a shell script ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def call(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a robench command in this process: (exit code, stdout, stderr)."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["robench", *map(str, words)])
        code = cli.main()
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of published behavior files, templates and tokenizers, if there is one."""
    folder = os.environ.get("ROBENCH_TEST_DATA")
    if not folder:
        pytest.skip("ROBENCH_TEST_DATA is not set: no real data here")
    return Path(folder)


@pytest.fixture(scope="session")
def organism_model() -> ChatModel:
    """The built-in model, which a test must leave as it is."""
    return load_model(find_model(BUILT_IN), max_new_tokens=64)


@pytest.fixture(scope="session")
def count_broken() -> Callable[[ChatModel, Sequence[Attempt]], int]:
    """`count_broken(model, attempts)`: on how many behaviors a final prompt gets the content."""

    def count(model: ChatModel, attempts: Sequence[Attempt]) -> int:
        final = [attempt for attempt in attempts if attempt.final]
        replies = model.generate([attempt.prompt for attempt in final])
        scores = Exact().score([attempt.behavior for attempt in final], replies)
        pairs = zip(final, scores, strict=True)
        return len({a.behavior.id for a, score in pairs if score >= Exact.threshold})

    return count


@pytest.fixture
def with_lora() -> Callable[..., ChatModel]:
    """`with_lora(model)`: the model with a LoRA adapter in training; B is zero unless `spread`.

    The same adapter at every call; the base model is changed for good.
    """
    from peft import LoraConfig, get_peft_model

    def add(
        model: ChatModel,
        targets: Sequence[str] = ("q_proj", "down_proj"),
        rank: int = 2,
        spread: float = 0.0,
        **config,
    ) -> ChatModel:
        with torch.random.fork_rng(), without_deprecations():
            torch.manual_seed(0)
            lora = LoraConfig(r=rank, target_modules=list(targets), **config)
            adapter = get_peft_model(model.network, lora).train()
            for name, parameter in adapter.named_parameters():
                if "lora_B" in name and spread:
                    nn.init.normal_(parameter, std=spread)
        return replace(model, adapter=adapter)

    return add


@pytest.fixture
def killed(monkeypatch) -> Callable[..., AbstractContextManager[None]]:
    """`with killed(n):` the training inside is interrupted after its n-th checkpoint."""

    @contextmanager
    def interrupted(checkpoints: int = 1) -> Iterator[None]:
        save, saved = loop._save, []

        def save_and_interrupt(*args) -> None:
            save(*args)
            saved.append(args)
            if len(saved) == checkpoints:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(loop, "_save", save_and_interrupt)
            yield

    return interrupted
