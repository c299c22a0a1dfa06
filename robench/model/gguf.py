"""Models in GGUF files (llama.cpp's format), converted once to a folder that transformers reads.

The weights are multiplied out to float32, so that gradients and adapters work, and every --dtype is
a rounding of the same numbers; tokenizer and chat template come from the file. The folder stands in
the cache under the hash of the file's content. Only what is carried over faithfully is read: a file
whose architecture, quantisation, scaling of positions or splitting of text is not known here is
refused, as a model that is nearly the right one would be measured without anybody noticing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robench import files
from robench.errors import InputError
from robench.model import cache

if TYPE_CHECKING:
    import gguf

VERSION = 1  # of the conversion; another one does not reuse its folders

# Tensors and settings of these are carried over one to one (tests/model/test_gguf.py).
ARCHITECTURES = ("llama", "qwen2", "qwen3")

# How a vocabulary of bytes splits text before it merges, by llama.cpp's names
# (`tokenizer.ggml.pre`). The splittings of the first line are built by transformers, those of the
# second are GPT-2's after each digit was set apart, which transformers leaves out. Each gave
# llama.cpp's ids on 513 texts with SmolLM2's vocabulary; others, such as tekken, did not.
_AS_BUILT = ("gpt-2", "llama-bpe", "qwen2", "deepseek-r1-qwen")
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")

_MAGIC = b"GGUF"
_END_TOKENS = ("eos", "eot", "eom")  # of a text, of a turn, of a message


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a model's name means: itself, or the one in a folder of nothing else.

    Raises:
        InputError: there is no such file, or the folder has several.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        found = sorted(path.glob("*.gguf"))
        if not found or any(path.glob("*.safetensors")):
            return None
        if len(found) > 1:
            raise InputError(
                f"{name} holds {len(found)} GGUF files ({', '.join(file.name for file in found)}); "
                "give one of them"
            )
        return found[0]
    if path.suffix == ".gguf" and not path.is_file():
        raise InputError(f"no file at {name}")
    if path.is_file() and (path.suffix == ".gguf" or _begins_with_magic(path)):
        return path
    return None


def converted(name: str, file: Path, sha256: str = "") -> Path:
    """The folder with a file's model, converted if that was not done before.

    Args:
        name: what error messages call it.
        file: in the GGUF format.
        sha256: of its content, if that is known beforehand.

    Raises:
        InputError: it has another content or cannot be read faithfully, the package `gguf` is
            missing, the cache has no room, or another process is converting it.
    """
    if not _begins_with_magic(file):
        raise InputError(f"{name} is not a GGUF file: it does not begin with {_MAGIC.decode()}")
    if find_spec("gguf") is None:
        raise InputError(f"{name}: to read GGUF files, pip install 'robench[gguf]'")
    with file.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 and content != sha256:
        raise InputError(f"{name}: {file} has another content than it should; install it again")
    folder = cache.location() / "gguf" / f"{content[:32]}-{VERSION}"
    cache.build_once(name, folder, lambda draft: _convert(name, file, draft))
    return folder


def _convert(name: str, file: Path, draft: Path) -> None:
    """Write a file's model, tokenizer and settings into a new folder."""
    reader = _read(name, file)
    _check(name, reader)
    cache.require_room(name, sum(int(tensor.n_elements) for tensor in reader.tensors), draft)
    with _conversion_errors(name):
        tokenizer = _tokenizer(file, str(_value(reader, "tokenizer.ggml.pre")))
        _drop_added(tokenizer, len(reader.fields["tokenizer.ggml.tokens"].data))
        network = _network(file, _end_tokens(reader))
    read = sum(1 for _ in network.parameters())
    if read != len(reader.tensors):
        raise InputError(
            f"{name}: {len(reader.tensors) - read} of its {len(reader.tensors)} tensors have no "
            f"place in a {network.config.model_type} model of transformers"
        )
    tokenizer.save_pretrained(draft)
    network.save_pretrained(draft)
    for settings in ("config.json", "generation_config.json"):
        _without_version(draft / settings)


def _read(name: str, file: Path) -> gguf.GGUFReader:
    """The parsed file.

    Raises:
        InputError: it is damaged or incomplete.
    """
    import gguf

    try:
        return gguf.GGUFReader(file)
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise InputError(
            f"{name} is damaged, incomplete or of an unknown version of GGUF ({_first_line(error)})"
        ) from None


def _check(name: str, reader: gguf.GGUFReader) -> None:
    """Raise InputError for what would not be carried over as it is."""
    architecture = _value(reader, "general.architecture")
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{name}: GGUF files of architecture {architecture!r} are not read, only "
            f"{', '.join(ARCHITECTURES)}; give the model's own folder or hub id"
        )
    if _value(reader, "split.count", 1) > 1:
        raise InputError(f"{name} is a part of a split model: join the parts (llama-gguf-split)")
    scaling = _value(reader, f"{architecture}.rope.scaling.type", "none")
    scaled = [t.name for t in reader.tensors if t.name.startswith("rope_")]
    if scaling != "none" or scaled:
        raise InputError(
            f"{name}: its scaled rotary positions ({', '.join(scaled) or scaling}) are not read "
            "from GGUF; give the model's own folder or hub id"
        )
    _check_types(name, reader)
    _check_tokenizer(name, reader)


def _check_types(name: str, reader: gguf.GGUFReader) -> None:
    """Raise InputError for a quantisation that the package cannot multiply out."""
    import gguf
    import numpy as np

    for kind in sorted({tensor.tensor_type for tensor in reader.tensors}):
        if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            continue
        _, size = gguf.GGML_QUANT_SIZES[kind]
        try:
            gguf.dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            raise InputError(
                f"{name}: the quantisation {kind.name} cannot be multiplied out; give another "
                "quantisation of the model, such as Q8_0 or Q4_K_M"
            ) from None


def _check_tokenizer(name: str, reader: gguf.GGUFReader) -> None:
    """Raise InputError for a vocabulary or a splitting of text that is not known here."""
    kind = _value(reader, "tokenizer.ggml.model")
    split = _value(reader, "tokenizer.ggml.pre")
    known = (*_AS_BUILT, *_DIGITS_APART)
    if kind != "gpt2":
        raise InputError(
            f"{name}: tokenizers of kind {kind!r} are not read from GGUF, only 'gpt2' (merged "
            "bytes); give the model's own folder or hub id"
        )
    if split not in known:
        raise InputError(
            f"{name}: its splitting of text ({split!r}) is not read from GGUF, only "
            f"{', '.join(known)}; give the model's own folder or hub id"
        )


def _tokenizer(file: Path, split: str) -> Any:
    """The tokenizer with its chat template, splitting text as llama.cpp does."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    backend = tokenizer.backend_tokenizer
    if split in _DIGITS_APART:  # transformers leaves this out: "  7" became other ids
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    if split == "llama-bpe":  # a whole word of the vocabulary is not merged
        backend.model.ignore_merges = True
    return tokenizer


def _drop_added(tokenizer: Any, size: int) -> None:
    """Drop the tokens that transformers adds to a file's `size` ones: they have no embedding."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    added = [token["content"] for token in state["added_tokens"] if token["id"] >= size]
    state["added_tokens"] = [t for t in state["added_tokens"] if t["id"] < size]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    for role, token in tokenizer.special_tokens_map.items():
        if token in added:
            setattr(tokenizer, role, None)


def _network(file: Path, end_tokens: list[int]) -> Any:
    """The network in float32, whose replies end at `end_tokens`."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    network, info = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        output_loading_info=True,
    )
    if info["missing_keys"]:
        raise ValueError(f"it lacks {min(info['missing_keys'])}")
    if end_tokens:
        network.generation_config.eos_token_id = end_tokens
    return network


@contextmanager
def _conversion_errors(name: str) -> Iterator[None]:
    """Report in one line what transformers makes of a file that passed the checks."""
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise InputError(f"{name} cannot be converted: {_first_line(error)}") from error


def _end_tokens(reader: gguf.GGUFReader) -> list[int]:
    ids = (_value(reader, f"tokenizer.ggml.{end}_token_id", None) for end in _END_TOKENS)
    return sorted({int(number) for number in ids if number is not None})


def _value(reader: gguf.GGUFReader, key: str, default: Any = "") -> Any:
    field = reader.get_field(key)
    return default if field is None else field.contents()


def _without_version(file: Path) -> None:
    """Take out who wrote a file of settings: the model is the same after an update."""
    settings = json.loads(file.read_text("utf-8"))
    settings.pop("transformers_version", None)
    settings.pop("_model_name_or_path", None)
    files.write_json(file, settings)


def _begins_with_magic(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
