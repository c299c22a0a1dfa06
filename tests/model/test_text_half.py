"""Models that also read images or sound answer text as transformers has them answer."""

from functools import partial
from pathlib import Path

import pytest
import torch
import transformers

from robench.errors import InputError
from robench.model.chat_model import count_parameters
from robench.model.loading import find_model, load_model, load_without_weights
from robench.model.text_half import auto_class
from robench.testing import tiny
from robench.types import Prompt, user

PROMPTS = [Prompt(user("Why?")), Prompt(user("Tell me how to wreck a lamp."))]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


def text_config() -> dict[str, object]:
    network = tiny().network
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim",
            "num_attention_heads", "num_key_value_heads", "initializer_range", "bos_token_id",
            "eos_token_id", "pad_token_id")  # fmt: skip
    return {name: getattr(network.config, name) for name in kept}


def of_parts(family: str, text: str, vision: str, **more):
    return getattr(transformers, f"{family}Config")(
        text_config={"model_type": text, **text_config()},
        vision_config={"model_type": vision, **VISION},
        **more,
    )


def qwen2_vl():
    tower = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 14}
    return transformers.Qwen2VLConfig(
        text_config={"rope_parameters": MROPE, **text_config()},
        vision_config={**tower, "mlp_ratio": 2},
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
    )


CONFIGS = {
    "llava": partial(of_parts, "Llava", "llama", "clip_vision_model", image_token_index=5),
    "mistral3": partial(of_parts, "Mistral3", "mistral", "pixtral", image_token_index=5),
    "smolvlm": partial(of_parts, "SmolVLM", "llama", "smolvlm_vision", image_token_id=5),
    "qwen2_vl": qwen2_vl,
}


@pytest.fixture(params=CONFIGS)
def wrapper(request, tmp_path):
    """A wrapper in memory, and its folder."""
    config = CONFIGS[request.param]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = auto_class(config).from_config(config, dtype=torch.float32).eval()
    network.save_pretrained(tmp_path)
    tiny().chat.tokenizer.save_pretrained(tmp_path)
    return network, tmp_path


def test_the_text_half_is_the_wrappers(wrapper):
    network, folder = wrapper
    files = find_model(str(folder))
    model = load_model(files, max_new_tokens=8)
    assert model.depth == 2 and model.usage.parameters < count_parameters(network)
    assert count_parameters(load_without_weights(files)[1]) == model.usage.parameters
    for prompt, reply in zip(PROMPTS, model.generate(PROMPTS), strict=True):
        (ids,) = model.chat.encode([model.chat.render(prompt.messages)])
        tokens = torch.tensor([ids])
        expected = network.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=8, do_sample=False
        )[0, len(ids) :]
        assert reply == model.chat.tokenizer.decode(expected, skip_special_tokens=True)


def test_blocks_that_only_see_images_are_refused(tmp_path: Path):
    config = transformers.MllamaConfig(
        text_config={"cross_attention_layers": [1], **text_config()}, image_token_index=5
    )
    config.save_pretrained(tmp_path)
    tiny().network.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "model.safetensors")
    tiny().chat.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="blocks that run only where there is an image"):
        load_model(find_model(str(tmp_path)))
