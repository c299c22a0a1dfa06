"""From a name to a model: what identifies it, and the errors if it cannot be loaded."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3Config

from robench import organism
from robench.errors import InputError
from robench.model.chat_model import count_parameters
from robench.model.hooks import blocks
from robench.model.loading import BUILT_IN, find_model, load_model, load_without_weights
from robench.testing import FAMILIES, tiny
from robench.types import Prompt, user

PROMPTS = [Prompt(user("Why?")), Prompt(user("Tell me how to wreck a lamp."))]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def saved(folder: Path, family: str = "llama", **options) -> Path:
    model = tiny(family)
    model.network.save_pretrained(folder, **options)
    model.chat.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return saved(tmp_path / "model")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_every_family_is_the_model(family, tmp_path):
    files = find_model(str(saved(tmp_path / "model", family)))
    model, plain = load_model(files, max_new_tokens=8), tiny(family)
    torch.testing.assert_close(model.hidden(PROMPTS), plain.hidden(PROMPTS), atol=1e-5, rtol=0)
    assert model.generate(PROMPTS) == plain.generate(PROMPTS)
    chat, network = load_without_weights(files)
    assert count_parameters(network) == model.usage.parameters
    assert chat.render(user("Why?")) == model.chat.render(user("Why?"))


def test_shards_are_one_model(tmp_path):
    folder = saved(tmp_path / "model", max_shard_size="20KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    files = find_model(str(folder))
    assert load_model(files, max_new_tokens=8).generate(PROMPTS) == tiny().generate(PROMPTS)
    (folder / "consolidated.safetensors").write_bytes(b"the same weights in another format")
    assert find_model(str(folder)).weights == files.weights
    shards[1].unlink()
    with pytest.raises(InputError, match=f"{shards[1].name} is missing"):
        find_model(str(folder))


def test_an_index_names_files_of_its_folder_alone(folder):
    index = {"weight_map": {"lm_head.weight": "../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="does not name weights files of its folder"):
        find_model(str(folder))


def test_weights_that_lack_a_part_are_rejected(folder):
    """transformers would initialise the missing part at random, with a warning."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"the weights lack model\.layers\.2"):
        load_model(find_model(str(folder)))


def changed(path: Path) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "changed": True}))
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
)
def test_every_file_that_matters_is_part_of_the_identity(folder, name):
    before = find_model(str(folder))
    changed(folder / name)
    assert find_model(str(folder)).weights != before.weights
    assert find_model(str(folder)).template == before.template


def test_identity_does_not_depend_on_the_place(folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    (moved / "README.md").write_text("words")
    one, other = find_model(str(folder)), find_model(str(moved))
    assert (one.weights, one.template) == (other.weights, other.template)


def test_a_chat_template_from_a_file(folder, tmp_path):
    original = find_model(str(folder))
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %} ->")
    files = find_model(str(folder), chat_template=file)
    assert files.weights == original.weights and files.template != original.template
    assert load_model(files).chat.render(user("Why?")) == load_without_weights(files)[0].render(
        user("Why?")
    )
    assert load_model(files).chat.render(user("Why?")) == "Why? ->"
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="no chat template; give one: --chat-template FILE"):
        find_model(str(folder))
    assert find_model(str(folder), chat_template=file).template == files.template
    with pytest.raises(InputError, match=r"cannot read the chat template .*none\.jinja"):
        find_model(str(folder), chat_template=tmp_path / "none.jinja")


def test_a_template_in_the_tokenizers_config(folder):
    template = (folder / "chat_template.jinja").read_text()
    before = find_model(str(folder))
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    assert find_model(str(folder)) == before


def test_code_of_the_model_does_not_run_by_default(folder):
    config = json.loads((folder / "config.json").read_text())
    custom = {"model_type": "custom", "auto_map": {"AutoConfig": "custom.Custom"}}
    (folder / "config.json").write_text(json.dumps({**config, **custom}))
    witness = folder / "ran"
    (folder / "custom.py").write_text(
        "from transformers import LlamaConfig\n"
        f"open({str(witness)!r}, 'w').close()\n"
        "class Custom(LlamaConfig):\n    model_type = 'custom'\n"
    )
    with pytest.raises(InputError, match="read it, then give --trust-remote-code"):
        load_model(find_model(str(folder)))
    assert not witness.exists()
    trusted = find_model(str(folder), trust_remote_code=True)
    assert trusted.weights != find_model(str(folder)).weights
    with pytest.raises(InputError, match="cannot be loaded"):  # its code has only a config
        load_model(trusted)
    assert witness.exists()


def test_the_text_part_of_an_image_model_loads(tmp_path):
    """As google/gemma-3-4b-it is stored: the text model under a prefix, beside a vision tower."""
    plain = tiny("gemma3")
    config = Gemma3Config(
        text_config=plain.network.config.to_dict(),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=1,
    )
    network = AutoModelForCausalLM.from_config(config)
    network.get_decoder().load_state_dict(plain.network.get_decoder().state_dict())
    assert blocks(network) is network.get_decoder().layers  # not the vision tower's
    network.save_pretrained(tmp_path)
    plain.chat.tokenizer.save_pretrained(tmp_path)
    model = load_model(find_model(str(tmp_path)), max_new_tokens=8)
    torch.testing.assert_close(model.hidden(PROMPTS), plain.hidden(PROMPTS), atol=1e-5, rtol=0)
    assert model.generate(PROMPTS) == plain.generate(PROMPTS)
    assert (
        count_parameters(load_without_weights(find_model(str(tmp_path)))[1])
        == model.usage.parameters
    )


def test_a_device_map_on_a_cpu_is_the_same_model(folder):
    mapped = load_model(find_model(str(folder)), max_new_tokens=8, device_map="auto")
    assert torch.equal(mapped.hidden(PROMPTS), load_model(find_model(str(folder))).hidden(PROMPTS))


# The hub


@pytest.fixture
def download(monkeypatch, folder):
    """Replaces snapshot_download by one that returns a folder or raises; gives its calls."""
    calls = []

    def answer(raises=None):
        def snapshot(repository, **options):
            calls.append((repository, options))
            if raises:
                raise raises
            place = folder.with_name("snapshots") / COMMIT  # as the hub's cache has it
            shutil.copytree(folder, place, dirs_exist_ok=True)
            return str(place)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        return calls

    return answer


def test_a_hub_id_is_pinned_to_its_commit(download, folder):
    calls = download()
    files = find_model("owner/name@v2")
    assert (files.name, files.commit) == ("owner/name@v2", COMMIT)
    assert find_model("owner/name", revision="v2") == files
    assert files.weights == find_model(str(folder)).weights
    assert find_model("owner/name").name == "owner/name"
    revisions = [(repository, options["revision"]) for repository, options in calls]
    assert revisions == [("owner/name", "v2"), ("owner/name", "v2"), ("owner/name", None)]
    assert not any("py" in pattern for pattern in calls[0][1]["allow_patterns"])
    find_model("owner/name", trust_remote_code=True)
    assert "*.py" in calls[-1][1]["allow_patterns"]
    assert find_model(str(folder)).commit == ""


def response(status: int) -> SimpleNamespace:
    """As much of an HTTP response as the hub's errors read."""
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            lambda: hub.GatedRepoError("gated", response=response(403)),
            r"gated: accept its licence at https://\S+/owner/name and set HF_TOKEN",
        ),
        (
            lambda: hub.RepositoryNotFoundError("none", response=response(404)),
            r"no such model, or it is private: see https://\S+/owner/name, and set HF_TOKEN",
        ),
        (
            lambda: hub.RevisionNotFoundError("none", response=response(404)),
            r"no revision 'v2'; see https://\S+/owner/name/commits",
        ),
        (lambda: hub.LocalEntryNotFoundError("offline"), "cannot be reached .* HF_HOME"),
        (lambda: OSError("Connection refused"), "cannot be reached .* HF_HOME"),
        (lambda: hub.HfHubHTTPError("500 Server Error", response=response(500)), "500 Server"),
        (lambda: hub.HFValidationError("Repo id must be nice"), "Repo id must be nice"),
    ],
)
def test_errors_of_the_hub_are_reported_with_the_fix(download, error, message):
    download(error())
    with pytest.raises(InputError, match=message) as caught:
        find_model("owner/name@v2")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("owner/name@v2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("organizm", "did you mean 'organism'"),
        ("a/b/c", "a hub id is owner/name or owner/name@revision"),
        ("./nowhere", "no model folder at ./nowhere"),
    ],
)
def test_impossible_names(name, message):
    with pytest.raises(InputError, match=message):
        find_model(name)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "model.safetensors is missing"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_what_a_folder_lacks_is_named(folder, file, message):
    (folder / file).unlink()
    with pytest.raises(InputError, match=message):
        find_model(str(folder))


def test_damaged_weights_are_reported_in_one_line(folder):
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="damaged or incomplete, download them again"):
        load_model(find_model(str(folder)))
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (folder / "model.safetensors").write_bytes(pointer)
    with pytest.raises(InputError, match="pointer to weights, not weights: git lfs pull"):
        find_model(str(folder))


def test_weights_under_other_names_are_named(folder):
    file = folder / "model.safetensors"
    save_file({f"module.{k}": v for k, v in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"lack lm_head\.weight and \d+ more, and have module\."):
        load_model(find_model(str(folder)))


def test_the_built_in_model_is_found_without_torch():
    assert find_model(BUILT_IN).folder == organism.FOLDER
