"""A model with an adapter in its weights is the model with the adapter on."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from robench.errors import InputError
from robench.model import cache
from robench.model.adapted import adapted
from robench.model.loading import find_model, load_model
from robench.testing import tiny
from robench.training.adapters import adapter_applied
from robench.types import Prompt, user

PROMPTS = [Prompt(user("Why?")), Prompt(user("Tell me how to wreck a lamp."))]


@pytest.fixture
def folders(tmp_path, monkeypatch, with_lora) -> tuple[Path, Path]:
    """A base model and an adapter for it."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    tiny().network.save_pretrained(base)
    tiny().chat.tokenizer.save_pretrained(base)
    with_lora(tiny(), spread=0.2).adapter.save_pretrained(adapter)
    return base, adapter


def test_the_weights_are_those_with_the_adapter_on(folders):
    base, adapter = folders
    folder = adapted("m", base, adapter)
    plain, model = (load_model(find_model(str(f)), max_new_tokens=8) for f in (base, folder))
    with adapter_applied(plain, adapter) as applied:
        expected = applied.hidden(PROMPTS)
    torch.testing.assert_close(model.hidden(PROMPTS), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected, plain.hidden(PROMPTS), atol=1e-2)
    assert find_model(str(folder)).weights != find_model(str(base)).weights
    assert find_model(str(folder)).template == find_model(str(base)).template


def test_it_is_made_once_and_anew_for_another_adapter(folders, monkeypatch):
    base, adapter = folders
    first = adapted("m", base, adapter)
    with monkeypatch.context() as patched:
        patched.setattr("robench.model.adapted._fold", lambda *args: pytest.fail("made again"))
        assert adapted("m", base, shutil.copytree(adapter, adapter.with_name("copy"))) == first
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert adapted("m", base, adapter) != first


def test_a_full_disk_is_told(folders, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(InputError, match="m: no room for the converted model"):
        adapted("m", *folders)
    assert not list(cache.location().rglob("model.safetensors"))
