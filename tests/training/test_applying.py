"""Adapters from elsewhere: saved with embeddings, of wrappers, of unknown kinds, damaged."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from robench.errors import Failure, InputError
from robench.methods.registry import resolve
from robench.model.loading import find_model, load_model
from robench.model.text_half import auto_class
from robench.testing import tiny, tiny_context
from robench.training import adapter_applied, applying
from robench.types import Prompt, user

PROMPTS = [Prompt(user("Tell me how to wreck a lamp."))]
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def made(folder: Path, network, embeddings: bool | str = "auto", **settings) -> Path:
    """A LoRA adapter that changes the replies, saved as peft saves it."""
    with torch.random.fork_rng(), applying.without_deprecations():
        torch.manual_seed(1)
        lora = LoraConfig(**{"r": 2, "target_modules": ["q_proj", "up_proj"], **settings})
        adapter = get_peft_model(network, lora)
        for name, parameter in adapter.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        adapter.save_pretrained(folder, save_embedding_layers=embeddings)
        adapter.unload()
    return folder


def logits(network, ids) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=torch.tensor([ids])).logits[0, -1]


# Embeddings


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # of its own, tied
@pytest.mark.parametrize("is_folded", [True, False])
def test_embeddings_saved_with_an_adapter_take_the_models_place(
    family, is_folded, tmp_path, monkeypatch
):
    other, model = tiny(family), tiny(family)
    with torch.no_grad():
        other.network.get_input_embeddings().weight.mul_(-1.5)
    folder = made(tmp_path / "adapter", other.network, embeddings=True)
    (ids,) = model.chat.encode([model.chat.render(PROMPTS[0].messages)])
    as_peft = logits(PeftModel.from_pretrained(tiny(family).network, folder), ids)
    if not is_folded:
        monkeypatch.setattr(applying, "fold_adapter", lambda adapter: None)
    plain, embedding = model.hidden(PROMPTS), model.embedding.clone()
    with adapter_applied(model, folder) as target:
        torch.testing.assert_close(logits(target.network, ids), as_peft, atol=1e-5, rtol=1e-5)
        assert torch.equal(target.embedding, other.embedding)
        assert torch.equal(target.undefended().hidden(PROMPTS), plain)
        assert torch.equal(target.undefended().embedding, embedding)
        assert not torch.equal(target.hidden(PROMPTS), plain)
    assert torch.equal(model.hidden(PROMPTS), plain)
    assert torch.equal(model.network.get_input_embeddings().weight, embedding)


@pytest.mark.parametrize(
    "settings",
    [{"modules_to_save": ["lm_head", "embed_tokens"]}, {"modules_to_save": ["norm"]}],
)  # fmt: skip
def test_modules_that_were_trained_whole_go_with_the_adapter(settings, tmp_path):
    """peft's own unload leaves them in the base model."""
    other, model = tiny().network, tiny()
    with torch.no_grad():  # what is saved whole differs from the model's own
        for module in (other.model.norm, other.lm_head, other.model.embed_tokens):
            module.weight.mul_(-1.5)
    folder = made(tmp_path, other, **settings)
    modules = dict(model.network.named_modules())
    plain = model.hidden(PROMPTS)
    with adapter_applied(model, folder) as target:
        assert not torch.equal(target.hidden(PROMPTS), plain)
        assert torch.equal(target.undefended().hidden(PROMPTS), plain)
    assert dict(model.network.named_modules()) == modules
    assert torch.equal(model.hidden(PROMPTS), plain)


@pytest.mark.parametrize("is_folded", [True, False])
def test_biases_that_were_trained_go_with_the_adapter(is_folded, tmp_path, monkeypatch):
    """peft writes them over those of the base model."""
    other, model = tiny("qwen2").network, tiny("qwen2")
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.bias.add_(2.0)
    folder = made(tmp_path, other, bias="all")
    (ids,) = model.chat.encode([model.chat.render(PROMPTS[0].messages)])
    as_peft = logits(PeftModel.from_pretrained(tiny("qwen2").network, folder), ids)
    if not is_folded:
        monkeypatch.setattr(applying, "fold_adapter", lambda adapter: None)
    plain = model.hidden(PROMPTS)
    with adapter_applied(model, folder) as target:
        torch.testing.assert_close(logits(target.network, ids), as_peft, atol=1e-5, rtol=1e-5)
        assert torch.equal(target.undefended().hidden(PROMPTS), plain)
    assert torch.equal(model.hidden(PROMPTS), plain)


def test_embeddings_as_those_of_the_model_change_nothing(tmp_path):
    with_them = made(tmp_path / "with", tiny().network, embeddings=True)
    without = made(tmp_path / "without", tiny().network)
    states = []
    for folder in (with_them, without):
        with adapter_applied(tiny(), folder) as target:
            states.append(target.hidden(PROMPTS))
    assert torch.equal(*states)


def test_lora_on_the_embedding_is_off_in_the_undefended_view(tmp_path):
    model = tiny()
    folder = made(tmp_path, tiny().network, target_modules=["embed_tokens", "q_proj"])
    plain = model.hidden(PROMPTS)
    with adapter_applied(model, folder) as target:
        assert not torch.equal(target.hidden(PROMPTS), plain)
        assert torch.equal(target.undefended().hidden(PROMPTS), plain)


def test_an_adapter_with_tokens_of_its_own_is_a_hole(tmp_path):
    larger = tiny().network
    larger.resize_token_embeddings(1110)
    made(tmp_path, larger, embeddings=True)
    message = r"embeds 1110 tokens and the model 1102.*model:FOLDER"
    with pytest.raises(Failure, match=message), adapter_applied(tiny(), tmp_path):
        pass


# Wrappers


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "up_proj"],  # the vision tower's q_proj as well
        r".*language_model.*\.(q_proj|up_proj)",
        ["language_model.layers.0.self_attn.q_proj", "language_model.layers.1.mlp.up_proj"],
    ],
)
@pytest.mark.parametrize("old_names", [False, True])
def test_an_adapter_of_a_wrapper_fits_its_text_half(targets, old_names, tmp_path):
    plain = tiny()
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **plain.network.config.to_dict()},
        vision_config=VISION,
        image_token_index=5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrapper = auto_class(config).from_config(config, dtype=torch.float32).eval()
    wrapper.save_pretrained(tmp_path / "model")
    plain.chat.tokenizer.save_pretrained(tmp_path / "model")
    model = load_model(find_model(str(tmp_path / "model")), max_new_tokens=8)
    folder = made(tmp_path / "adapter", wrapper, target_modules=targets)
    (ids,) = model.chat.encode([model.chat.render(PROMPTS[0].messages)])
    expected = logits(PeftModel.from_pretrained(wrapper, folder), ids)
    if old_names:  # before transformers 4.52
        file = folder / "adapter_model.safetensors"
        renamed = {
            name.replace("model.model.language_model.", "model.language_model.model."): tensor
            for name, tensor in load_file(file).items()
        }
        save_file(renamed, file, metadata={"format": "pt"})
    before = model.hidden(PROMPTS)
    with adapter_applied(model, folder) as target:
        torch.testing.assert_close(logits(target.network, ids), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.hidden(PROMPTS), before)


# What is no adapter


def changed(folder: Path, **settings) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "OF_TOMORROW"}, "knows no adapters of the kind 'OF_TOMORROW': upgrade peft"),
        ({"peft_type": None}, "knows no adapters of the kind None"),
        ({"use_new_trick": True}, "asks for use_new_trick, which peft .* does not do: upgrade"),
        ({"new_trick": {"a": 1}}, "asks for new_trick"),
    ],
)
def test_configurations_that_peft_does_not_know(settings, message, tmp_path):
    folder = changed(made(tmp_path, tiny().network), **settings)
    with pytest.raises(InputError, match=message) as caught:
        _ = resolve("defense", f"adapter:{folder}").instance.files
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ['{"peft_type": "LORA"', "[]", "", "\xff"])
def test_a_damaged_configuration(text, tmp_path):
    folder = made(tmp_path, tiny().network)
    (folder / "adapter_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"adapter_config\.json is damaged"):
        _ = resolve("defense", f"adapter:{folder}").instance.files


def test_settings_of_a_later_peft_that_are_off_are_no_matter(tmp_path):
    folder = changed(made(tmp_path, tiny().network), new_trick=False, other=None, size=16, names=[])
    with adapter_applied(tiny(), folder) as target:
        assert target.adapter is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_replication": [[0, 2], [1, 2]]}, "it repeats layers"),
        ({"init_lora_weights": "pissa"}, "started by 'pissa', which changes the base model"),
        ({"rank_pattern": {"up_proj": "many"}}, "cannot be applied"),  # q_proj is on by then
    ],
)
def test_adapters_that_would_change_the_base_for_good(settings, message, tmp_path):
    model, folder = tiny(), changed(made(tmp_path, tiny().network), **settings)
    before = model.hidden(PROMPTS)
    with pytest.raises(Failure, match=message), adapter_applied(model, folder):
        pass
    assert torch.equal(model.hidden(PROMPTS), before)
    defense = resolve("defense", f"adapter:{folder}").instance
    with pytest.raises(Failure, match=message), defense.applied(model, tiny_context(), tmp_path):
        pass
