"""What tests of judges share."""

from pathlib import Path

import pytest

from robench.testing import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on the disk."""
    path = tmp_path_factory.mktemp("judge")
    loaded = tiny()
    loaded.network.save_pretrained(path)
    loaded.chat.tokenizer.save_pretrained(path)
    return path
