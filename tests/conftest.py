"""What all tests share: one thread (tiny models are slower on many), and where real data is."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from robench import cli
from robench.training import loop

torch.set_num_threads(1)


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
    """The folder of published behavior files, templates and tokenizers, where there is one."""
    folder = os.environ.get("ROBENCH_TEST_DATA")
    if not folder:
        pytest.skip("ROBENCH_TEST_DATA is not set: no real data here")
    return Path(folder)


@pytest.fixture
def killed(monkeypatch) -> Callable[..., AbstractContextManager[None]]:
    """`with killed(n):` the training inside dies behind its n-th checkpoint."""

    @contextmanager
    def dying(checkpoints: int = 1) -> Iterator[None]:
        save, saved = loop._save, []

        def write(*args) -> None:
            save(*args)
            saved.append(args)
            if len(saved) == checkpoints:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(loop, "_save", write)
            yield

    return dying
