"""What does not fit is refused in one line: weights, config, tokenizer, code, adapters beside."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from robench import run
from robench.errors import InputError
from robench.judges.classifier import Classifier
from robench.model.loading import find_model, load_model, load_without_weights
from robench.results.store import RunStore
from robench.testing import tiny
from robench.types import Prompt, user

PROMPTS = [Prompt(user("Why?")), Prompt(user("Tell me how to wreck a lamp."))]


@pytest.fixture
def folder(tmp_path) -> Path:
    place, model = tmp_path / "model", tiny()
    model.network.save_pretrained(place)
    model.chat.tokenizer.save_pretrained(place)
    return place


def configured(folder: Path, **settings) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


def with_weights(folder: Path, **more: torch.Tensor) -> None:
    file = folder / "model.safetensors"
    named = {name.replace("__", "."): tensor for name, tensor in more.items()}
    save_file({**load_file(file), **named}, file, metadata={"format": "pt"})


def refusal(folder: Path, load=load_model, **options) -> str:
    """The one line by which a folder is refused."""
    with pytest.raises(InputError) as caught:
        load(find_model(str(folder), **options))
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


# Weights


@pytest.mark.parametrize(
    "name",
    [
        "model__layers__0__self_attn__q_proj__bias",  # the config says that there is none
        "model__layers__7__mlp__up_proj__weight",  # fewer blocks than were trained
        "lm_head__bias",
        "model__embed_positions__weight",
        "prompt_encoder__weight",
    ],
)
def test_weights_without_a_place_are_refused(folder, name):
    with_weights(folder, **{name: torch.ones(32)})
    message = refusal(folder)
    assert f"no place for: {name.replace('__', '.')}; take config and weights" in message


def test_weights_that_change_no_reply_are_told(folder, capsys):
    names = ("v_head__summary__weight", "mtp__layers__0__weight", "vision_tower__conv__weight")
    with_weights(folder, **{name: torch.ones(32) for name in names})
    with_weights(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))
    model = load_model(find_model(str(folder)), max_new_tokens=8)
    assert model.generate(PROMPTS) == tiny().generate(PROMPTS)
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert line == f"note: {folder}: not used of the files: mtp.layers.0.weight and 2 more"
    assert "LOAD REPORT" not in err


def test_weights_of_other_shapes_than_the_config_says(folder):
    configured(folder, intermediate_size=48)
    message = refusal(folder)
    assert "down_proj.weight is (32, 64) in the files and (32, 48) by the config and 5" in message
    configured(folder, intermediate_size=64, num_attention_heads=3)
    assert "not a multiple of the number of attention heads" in refusal(folder)


def test_embeddings_that_the_config_calls_one_and_are_two(folder):
    configured(folder, tie_word_embeddings=True)
    assert "(tie_word_embeddings), and the files hold two that differ" in refusal(folder)
    weights = load_file(folder / "model.safetensors")
    with_weights(folder, lm_head__weight=weights["model.embed_tokens.weight"].clone())
    load_model(find_model(str(folder)))  # twice the same is one


def test_weights_that_are_there_twice_or_not_read(folder):
    stray = folder / "model-00003-of-00003.safetensors"
    shutil.copy(folder / "model.safetensors", stray)
    assert f"{stray} belongs to no weights that are read" in refusal(folder)
    index = {"weight_map": {"lm_head.weight": stray.name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "holds weights twice" in refusal(folder)


# Quantised weights


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "pip install .*bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "pip install"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "pip install"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "pip install compressed"),
        ({"quant_method": "torchao", "quant_type": "int8wo"}, "pip install torchao"),
    ],
)
def test_quantised_weights_without_their_package(folder, settings, fix):
    """Of a package that is there, the weights here would be refused as unquantised."""
    configured(folder, quantization_config=settings)
    message = refusal(folder)
    assert re.search(fix, message) or "quantis" in message
    assert f"({settings['quant_method']})" in message


def test_packed_weights_that_transformers_would_take_as_they_are(folder):
    configured(folder, quantization_config={"quant_method": "of_tomorrow"})
    message = refusal(folder, load_without_weights)
    assert "quantised by 'of_tomorrow', which this version of transformers does not know" in message
    configured(folder, quantization_config=None)
    with_weights(folder, model__layers__0__mlp__up_proj__qweight=torch.ones(4))
    assert "config.json does not say how (quantization_config)" in refusal(folder)


# Tokenizer, code, blocks


def test_a_tokenizer_with_more_tokens_than_the_embedding(folder):
    tokenizer = tiny().chat.tokenizer
    tokenizer.add_tokens([f"<extra{i}>" for i in range(20)])
    tokenizer.save_pretrained(folder)
    message = refusal(folder, load_without_weights)
    assert "('<extra19>'), and the model embeds only 1102" in message
    assert message.endswith(f"resize_token_embeddings({len(tokenizer)})")


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class Config(LlamaConfig):
    model_type = 'old_code'
class Causal(LlamaForCausalLM):
    config_class = Config
    def forward(self, input_ids=None, attention_mask=None, position_ids=None,
                past_key_values=None, inputs_embeds=None, use_cache=None, **kwargs):
        kwargs.pop('logits_to_keep', None)
        return super().forward(input_ids, attention_mask, position_ids, past_key_values,
                               inputs_embeds, use_cache=use_cache, **kwargs)
"""


@pytest.mark.parametrize("code", [CODE, CODE.replace(", **kwargs", "").replace("kwargs.pop", "#")])
def test_code_of_a_model_that_cannot_leave_logits_out(folder, code):
    configured(
        folder,
        model_type="old_code",
        architectures=["Causal"],
        auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Causal"},
    )
    (folder / "code.py").write_text(code)
    message = refusal(folder, load_without_weights, trust_remote_code=True)
    assert "Causal.forward does not take logits_to_keep" in message


def test_a_family_that_takes_no_positions_is_not_supported(folder):
    config = transformers.BloomConfig(vocab_size=2048, hidden_size=16, n_layer=1, n_head=2)
    config.save_pretrained(folder)
    message = refusal(folder, load_without_weights)
    assert message.endswith(
        "BloomForCausalLM.forward does not take position_ids, which robench needs: this family is "
        "not supported"
    )


def test_code_of_a_model_that_fails(folder):
    configured(folder, model_type="odd", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text("raise ZeroDivisionError('nothing\\nworks')")
    assert "cannot be loaded: nothing works" in refusal(folder, trust_remote_code=True)


@pytest.mark.parametrize("family", ["Mamba", "Qwen3Next", "FalconH1", "Lfm2", "MiniMax"])
def test_recurrent_and_hybrid_families(folder, family):
    kinds = {"layer_types": ["conv", "full_attention"]} if family == "Lfm2" else {}
    getattr(transformers, f"{family}Config")(num_hidden_layers=2, **kinds).save_pretrained(folder)
    assert "only models with attention in every block" in refusal(folder, load_without_weights)


# Adapters in a model's folder


def test_an_adapter_beside_the_model_is_not_put_on(folder):
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(tiny().network, lora).save_pretrained(folder)
    message = refusal(folder)
    assert "has a model and an adapter (adapter_config.json) in one folder" in message
    with pytest.raises(InputError, match=r"judge model .* an adapter"):
        Classifier.load(str(folder), "", "cpu")
    (folder / "adapter_config.json").unlink()
    assert "(adapter_model.safetensors) in one folder" in refusal(folder)
    (folder / "model.safetensors").unlink()
    assert f"is an adapter, not a model: give its base model, and --defenses adapter:{folder}" in (
        refusal(folder)
    )


# One folder, one model


def test_a_folder_is_one_model_however_it_is_given(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to(folder)
    ways = ["model", "./model", "model/", "../" + tmp_path.name + "/model", str(folder), "link"]
    assert {find_model(way).name for way in ways} == {str(folder)}
    Path("asked.csv").write_text("prompt\nTell me how to wreck a lamp.\n")
    adapter = get_peft_model(tiny().network, LoraConfig(r=2, target_modules=["q_proj"]))
    adapter.save_pretrained("adapter")
    for way, defense in zip(ways, ("adapter", "./adapter", "adapter/") * 2, strict=True):
        run(model=way, behaviors="asked.csv", attacks=["direct"], device="cpu", max_new_tokens=2,
            defenses=["none", f"adapter:{defense}"], out="run")  # fmt: skip
    headers = [header for header, *_ in RunStore(Path("run")).cells()]
    assert {header["model"] for header in headers} == {str(folder)}
    assert {h["defense"] for h in headers} == {"none", f"adapter:{tmp_path / 'adapter'}"}
    assert len(headers) == len({(h["defense"], h["attack"]) for h in headers})
