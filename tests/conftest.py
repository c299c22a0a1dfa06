"""What all tests share: one thread (tiny models are slower on many), and where real data is."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from robench.training import loop

torch.set_num_threads(1)


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
