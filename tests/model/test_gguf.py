"""Models in GGUF files: the same numbers and ids, or one clear line and nothing left over."""

import errno
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import gguf as llama_cpp
import numpy as np
import pytest
import torch
from gguf_builders import write_gguf
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import PreTrainedModel

from robench.errors import InputError
from robench.methods.tiny import CONFIGS
from robench.model import cache, gguf
from robench.model.loading import find_model, load_model
from robench.testing import tiny
from robench.types import GAP, Prompt, user

PROMPTS = [Prompt(user("Why?")), Prompt(user("Tell me how to wreck a lamp."))]

# What splittings of text differ in, and the ids of none of it may
TEXTS = [
    "I have 12345 apples",
    "a  b   c    d",
    "  12, x   7 (  3)",
    "one\n\ntwo\n\n\n 3\r\n",
    "\t\tx\t1",
    "  leading and trailing  ",
    "café naïve Ünïcode, Привет 2024, 日本語のテキスト 123",
    "½ cup, x² and \uff13, ٣٤٥",
    "it's we'll I'D DON'T",
    "a\u200bb \u00a05 👩‍👩‍👧",
    "",
    "\n",
    " ",
]


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path) -> Path:
    """The folder of converted models."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def left_over(place: Path) -> list[str]:
    """What stands in the cache besides whole models and their locks."""
    paths = place.rglob("*") if place.is_dir() else []
    models = [path.parent for path in place.rglob("model.safetensors")]
    return [
        str(path.relative_to(place))
        for path in paths
        if not path.name.endswith((".work", ".lock")) and {path, path.parent}.isdisjoint(models)
    ]


# The same model


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_file_of_every_architecture_is_the_model(family, tmp_path, place, monkeypatch):
    monkeypatch.setitem(CONFIGS, "qwen3", ("Qwen3Config", {"head_dim": 128}))
    plain = tiny(family)
    file = write_gguf(tmp_path / "m.gguf", plain, architecture=family)
    files = find_model(str(file))
    model = load_model(files, max_new_tokens=8)
    torch.testing.assert_close(model.hidden(PROMPTS), plain.hidden(PROMPTS), atol=1e-5, rtol=0)
    assert model.generate(PROMPTS) == plain.generate(PROMPTS)
    rendered = [plain.chat.render(prompt.messages) for prompt in PROMPTS]
    assert [model.chat.render(prompt.messages) for prompt in PROMPTS] == rendered
    assert model.chat.encode([*rendered, *TEXTS]) == plain.chat.encode([*rendered, *TEXTS])
    assert model.usage.parameters == plain.usage.parameters
    assert files.name == str(file) and files.folder.parent == place
    assert left_over(place) == []


def test_a_folder_with_a_file_is_the_model(tmp_path):
    file = write_gguf(tmp_path / "m" / "m.gguf", tiny())
    assert find_model(str(file.parent)).weights == find_model(str(file)).weights
    shutil.copy(file, file.with_name("n.gguf"))
    with pytest.raises(InputError, match=r"holds 2 GGUF files \(m\.gguf, n\.gguf\); give one"):
        find_model(str(file.parent))
    shutil.copy(find_model(str(file)).folder / "model.safetensors", file.parent)
    with pytest.raises(InputError, match=r"no config\.json"):  # a folder of transformers
        find_model(str(file.parent))


def test_a_model_is_converted_once_whatever_its_file_is_called(tmp_path, place, monkeypatch):
    file = write_gguf(tmp_path / "m.gguf", tiny())
    first = find_model(str(file))
    monkeypatch.setattr(gguf, "_convert", None)
    moved = shutil.copy(file, tmp_path / "moved")  # known by its content
    assert find_model(str(moved)).folder == first.folder
    assert [path.name for path in place.iterdir() if path.name[-5:] != ".work"] == [
        first.folder.name
    ]
    other = write_gguf(tmp_path / "other.gguf", tiny(seed=1))
    with pytest.raises(TypeError):  # another content is converted
        find_model(str(other))


def test_settings_do_not_name_the_version_of_the_converter(tmp_path):
    folder = find_model(str(write_gguf(tmp_path / "m.gguf", tiny()))).folder
    assert not any("_version" in path.read_text() for path in folder.glob("*config.json"))


def test_replies_end_at_the_ends_of_turns_too(tmp_path):
    settings = {"tokenizer__ggml__eot_token_id": 7, "tokenizer__ggml__eom_token_id": 9}
    model = load_model(find_model(str(write_gguf(tmp_path / "m.gguf", tiny(), **settings))))
    eos = tiny().chat.tokenizer.eos_token_id
    assert sorted(model.network.generation_config.eos_token_id) == sorted({eos, 7, 9})


def multiplied_out(blocks: np.ndarray) -> np.ndarray:
    """Blocks of Q4_1: a scale, a minimum, then 32 numbers of 4 bits, the low halves first."""
    rows = blocks.reshape(-1, 20)
    scale, minimum = (
        rows[:, at : at + 2].copy().view(np.float16).astype(np.float32) for at in (0, 2)
    )
    nibbles = np.concatenate([rows[:, 4:] & 15, rows[:, 4:] >> 4], axis=1)
    return scale * nibbles + minimum


@pytest.mark.parametrize("kind", ["F16", "Q4_1", "Q8_0"])
def test_quantised_weights_are_multiplied_out(kind, tmp_path):
    model = tiny()
    file = write_gguf(tmp_path / "m.gguf", model, quantisation=kind)
    weights = load_file(find_model(str(file)).folder / "model.safetensors")
    exact = model.network.get_input_embeddings().weight.detach().numpy()
    got = weights["model.embed_tokens.weight"].numpy()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    blocks = llama_cpp.quantize(exact, llama_cpp.GGMLQuantizationType[kind])
    if kind == "Q4_1":
        np.testing.assert_allclose(
            got.reshape(-1, 32), multiplied_out(blocks), rtol=1e-6, atol=1e-7
        )
    steps = {"F16": 2**-10, "Q4_1": 1 / 15, "Q8_0": 1 / 127}[kind]
    assert 0 < np.abs(got - exact).max() <= steps * np.ptp(exact)
    for parameter in model.network.parameters():
        if parameter.ndim > 1:
            number = llama_cpp.GGMLQuantizationType[kind]
            rounded = llama_cpp.dequantize(
                llama_cpp.quantize(parameter.detach().numpy(), number), number
            )
            parameter.data = torch.from_numpy(rounded)
    converted = load_model(find_model(str(file))).hidden(PROMPTS)
    torch.testing.assert_close(converted, model.hidden(PROMPTS), atol=1e-5, rtol=0)


def test_gradients_and_rounded_weights(tmp_path):
    files = find_model(str(write_gguf(tmp_path / "m.gguf", tiny(), quantisation="Q8_0")))
    slots = load_model(files).slots([user(f"Why?{GAP}")], ["Sure"])
    soft = torch.zeros(1, 2, 32, requires_grad=True)
    slots.loss_of_embeddings(soft).sum().backward()
    assert soft.grad.abs().max() > 0
    half = load_model(files, dtype="bfloat16").network.get_input_embeddings().weight
    exact = load_model(files).network.get_input_embeddings().weight
    assert torch.equal(half, exact.to(torch.bfloat16))


# The same ids


@pytest.mark.parametrize("split", [*gguf._DIGITS_APART, "gpt-2"])
def test_texts_are_split_as_in_llama_cpp(split, tmp_path):
    """llama.cpp splits `\\p{N}` first, then as GPT-2: transformers leaves the first out."""
    model = tiny()
    built = load_model(find_model(str(write_gguf(tmp_path / "m.gguf", model, split=split))))
    backend = model.chat.tokenizer.backend_tokenizer
    if split != "gpt-2":
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    assert built.chat.encode(TEXTS) == model.chat.encode(TEXTS)
    split_text = built.chat.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a   77")
    pieces = ["a", "ĠĠ", "Ġ77"] if split == "gpt-2" else ["a", "ĠĠĠ", "7", "7"]
    assert [piece for piece, _ in split_text] == pieces


def test_special_tokens_are_one_id_and_texts_come_back(tmp_path):
    model, plain = load_model(find_model(str(write_gguf(tmp_path / "m.gguf", tiny())))), tiny()
    special = plain.chat.tokenizer.all_special_tokens
    assert len(special) > 3
    for token in special:
        text = f"a{token} b"
        assert model.chat.encode([text]) == plain.chat.encode([text])
        assert plain.chat.tokenizer.convert_tokens_to_ids(token) in model.chat.encode([text])[0]
    ids = model.chat.encode(TEXTS)
    assert model.chat.decode([row for row in ids if row]) == [text for text in TEXTS if text]


# One clear line, nothing left over


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def patched(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert content.count(old) >= 1 and len(old) == len(new)
    path.write_bytes(content.replace(old, new, 1))
    return path


BAD = {
    "empty": (lambda path: path.write_bytes(b"") or path, "is not a GGUF file"),
    "other": (lambda path: path.write_text("words") and path, "is not a GGUF file"),
    "magic alone": (lambda path: cut(write_gguf(path, tiny()), 4), "damaged, incomplete"),
    "head": (lambda path: cut(write_gguf(path, tiny()), 20), "damaged, incomplete"),
    "settings": (lambda path: cut(write_gguf(path, tiny()), 3000), "damaged, incomplete"),
    "tensors": (lambda path: cut(write_gguf(path, tiny()), -20000), "damaged, incomplete"),
    "last byte": (lambda path: cut(write_gguf(path, tiny()), -32), "damaged, incomplete"),
    "version": (
        lambda path: patched(write_gguf(path, tiny()), b"GGUF\3", b"GGUF\x09"),
        "unknown version of GGUF",
    ),
    "architecture": (
        lambda path: write_gguf(path, tiny(), architecture="gemma2"),
        "architecture 'gemma2' are not read, only llama, qwen2, qwen3",
    ),
    "quantisation": (
        lambda path: write_gguf(path, tiny(), tensors={"x.weight": np.zeros((2, 2), np.int8)}),
        "the quantisation I8 cannot be multiplied out; give another",
    ),
    "splitting": (
        lambda path: write_gguf(path, tiny(), split="tekken"),
        "its splitting of text ('tekken') is not read from GGUF, only gpt-2",
    ),
    "scaled positions": (
        lambda path: write_gguf(path, tiny(), llama__rope__scaling__type="yarn"),
        "its scaled rotary positions (yarn) are not read",
    ),
    "factors of positions": (
        lambda path: write_gguf(
            path, tiny(), tensors={"rope_freqs.weight": np.ones(4, np.float32)}
        ),
        "its scaled rotary positions (rope_freqs.weight) are not read",
    ),
    "a part": (
        lambda path: write_gguf(path, tiny(), split__count=2),
        "is a part of a split model: join the parts",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_said_in_one_line(case, tmp_path, place, call):
    write, message = BAD[case]
    file = write(tmp_path / "m.gguf")
    code, _, err = call("run", "--model", file)
    assert code == 2 and err.startswith(f"robench: {file}") and message in err, err
    assert err.count("\n") == 1
    assert left_over(place) == []


def test_tensors_without_a_place_are_told(tmp_path, place):
    extra = {"blk.0.attn_q.bias": np.ones(32, np.float32)}
    file = write_gguf(tmp_path / "m.gguf", tiny(), tensors=extra)
    with pytest.raises(InputError, match="1 of its 22 tensors have no place in a llama model"):
        find_model(str(file))
    assert left_over(place) == []


def test_a_shape_that_transformers_would_guess_wrongly_is_told(tmp_path, place, monkeypatch):
    """It takes 128 for the size of Qwen3's heads, whatever the file says."""
    monkeypatch.setitem(CONFIGS, "qwen3", ("Qwen3Config", {}))
    file = write_gguf(tmp_path / "m.gguf", tiny("qwen3"), architecture="qwen3")
    with pytest.raises(InputError, match="cannot be converted") as told:
        find_model(str(file))
    assert "\n" not in str(told.value)
    assert left_over(place) == []


def test_a_file_without_a_template_wants_one(tmp_path, call):
    file = write_gguf(tmp_path / "m.gguf", tiny(), template=False)
    code, _, err = call("run", "--model", file)
    assert code == 2 and "no chat template; give one: --chat-template FILE" in err
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %} ->")
    model = load_model(find_model(str(file), chat_template=template))
    assert model.chat.render(user("Why?")) == "Why? ->"


def test_a_missing_file_is_told(tmp_path, call):
    code, _, err = call("run", "--model", tmp_path / "none.gguf")
    assert (code, err) == (2, f"robench: no file at {tmp_path / 'none.gguf'}\n")


def test_a_missing_package_is_told(tmp_path, monkeypatch):
    file = write_gguf(tmp_path / "m.gguf", tiny())
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'robench\[gguf\]'"):
        find_model(str(file))


def test_a_full_disk_is_told_before_the_work(tmp_path, place, call, monkeypatch):
    file = write_gguf(tmp_path / "m.gguf", tiny())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    code, _, err = call("run", "--model", file)
    assert code == 2 and "no room for the converted model: it takes 0.1 GB" in err
    assert f"0.0 GB free; set {cache.VARIABLE} to a folder with more" in err
    assert left_over(place) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_up_leaves_nothing_half_written(
    error, tmp_path, place, call, monkeypatch
):
    def save(network, folder, **options):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise error

    file = write_gguf(tmp_path / "m.gguf", tiny())
    with monkeypatch.context() as full:
        full.setattr(PreTrainedModel, "save_pretrained", save)
        code, _, err = call("run", "--model", file)
    assert code == 2 and f"the converted model cannot be kept under {place}" in err
    assert "No space left on device" in err
    assert not list(place.rglob("*.safetensors")) and left_over(place) == []
    assert load_model(find_model(str(file))).generate(PROMPTS)


def test_what_a_killed_conversion_left_is_no_model(tmp_path, place):
    file = write_gguf(tmp_path / "m.gguf", tiny())
    folder = find_model(str(file)).folder
    draft = folder.with_name(f"{folder.name}.work") / "draft"
    folder.rename(draft)  # as if it had been killed before the last step
    (draft / "model.safetensors").write_bytes(b"half")
    assert load_model(find_model(str(file)), max_new_tokens=8).generate(PROMPTS)
    assert not draft.exists()


HOLDER = """
import sys
from pathlib import Path
from robench.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_of_two_that_convert_at_once_the_second_is_told(tmp_path, place, call, capsys):
    file = write_gguf(tmp_path / "m.gguf", tiny())
    folder = find_model(str(file)).folder
    shutil.rmtree(folder)
    work = folder.with_name(f"{folder.name}.work")
    capsys.readouterr()
    pipe = subprocess.PIPE
    words = [sys.executable, "-c", HOLDER, str(work)]
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "held\n"
        code, _, err = call("run", "--model", file)
        other.communicate("\n")
    assert code == 2 and err.count("\n") == 1
    assert f"is in use by process {other.pid} on" in err
    assert f"it converts {file}; give the command again when it is done" in err
    assert not folder.exists() and left_over(place) == []


def test_of_two_that_convert_at_once_one_does(tmp_path, monkeypatch):
    file = write_gguf(tmp_path / "m.gguf", tiny())
    folder = find_model(str(file)).folder
    kept = folder.rename(tmp_path / "kept")

    @contextmanager
    def locked(work, advice):  # the other one ends just before
        kept.rename(folder)
        yield

    monkeypatch.setattr(cache, "locked", locked)
    monkeypatch.setattr(gguf, "_convert", None)
    assert find_model(str(file)).folder == folder
