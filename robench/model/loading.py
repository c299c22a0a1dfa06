"""From a model's name to a ChatModel: where its files are, what identifies it, how it is loaded.

Finding and identifying a model needs neither torch nor transformers, so that a finished run can be
inspected without them.

A model larger than one GPU is spread over several (`device_map`): inputs and losses stay on the
device of the embedding; edits, keys and values of prefixes and the index of the needed logits are
moved to the device of each block. A test with blocks on a CPU and a GPU compares the results with
those of one device; it needs a GPU. A map over several GPUs cannot be tested without them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robench import organism
from robench.config import digest, suggestion
from robench.errors import InputError
from robench.model import gguf
from robench.model.packaged import PACKAGED, packaged_model

if TYPE_CHECKING:
    from robench.model.chat import Chat
    from robench.model.chat_model import ChatModel

BUILT_IN = "organism"
_EDGE = 2**20  # bytes that are hashed at each end of a weights file
_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# Other files that decide how text becomes ids, and where a reply ends
_SETTINGS = (
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
)
_CONFIG = "tokenizer_config.json"
_DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_NOT_DOWNLOADED = ["*/*", "consolidated*"]  # other formats of the same weights


@dataclass(frozen=True)
class ModelFiles:
    """A model's files.

    name:          as the user gave it, with `@revision`
    folder:        where they are
    weights:       a hash of config, weights and tokenizer (and of the model's own code, if trusted)
    template:      a hash of the chat template
    commit:        the hub's commit, "" of a local folder
    chat_template: a text that replaces the tokenizer's own template
    trusted:       whether code that comes with the model may run
    """

    name: str
    folder: Path
    weights: str
    template: str
    commit: str = ""
    chat_template: str | None = None
    trusted: bool = False


def find_model(
    name: str,
    *,
    revision: str | None = None,
    chat_template: str | Path | None = None,
    trust_remote_code: bool = False,
) -> ModelFiles:
    """The built-in organism, a packaged model, a folder, a GGUF file or a hub id.

    Args:
        name: `organism`, `smollm2`, a path, `owner/name` or `owner/name@revision`.
        revision: a branch, tag or commit of a hub id.
        chat_template: a file that replaces the tokenizer's template.
        trust_remote_code: whether Python files of the model are downloaded and may run.

    Raises:
        InputError: there is no such model, or its folder has no weights, tokenizer or chat
            template.
    """
    if revision is not None:
        name = f"{name}@{revision}"
    folder = folder_of(name, trust_remote_code)
    if not (folder / "config.json").is_file():
        raise InputError(f"{name}: no config.json in {folder}")
    weights = _weights(name, folder)
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        raise InputError(f"{name}: no tokenizer in {folder} (one of {', '.join(_TOKENIZERS)})")
    replacement = _text_of(Path(chat_template)) if chat_template is not None else None
    template = _template(folder) if replacement is None else replacement
    if not template:
        raise InputError(
            f"{name}: the tokenizer in {folder} has no chat template; "
            "give one: --chat-template FILE (Jinja)"
        )
    code = sorted(folder.glob("*.py")) if trust_remote_code else []
    small = [folder / file for file in ("config.json", _INDEX, *_TOKENIZERS, *_SETTINGS)]
    hashes = {file.name: _hash(file) for file in [*small, *code] if file.is_file()}
    settings = {key: v for key, v in _json(folder / _CONFIG).items() if key != "chat_template"}
    identity = digest([hashes, settings, [[file.name, _hash_ends(file)] for file in weights]])
    commit = folder.name if folder.parent.name == "snapshots" else ""  # the hub's cache
    return ModelFiles(
        name, folder, identity, digest(template), commit, replacement, trust_remote_code
    )


def load_model(
    files: ModelFiles,
    *,
    system: str | None = None,
    max_new_tokens: int = 256,
    device: str = "cpu",
    dtype: str = "float32",
    device_map: str | None = None,
) -> ChatModel:
    """The model in memory, on `device` or, with a `device_map` ("auto"), spread over all GPUs.

    Raises:
        InputError: the files are damaged, incomplete or of an unknown architecture, or the model
            does not fit into the GPUs.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from robench.model.chat_model import ChatModel

    with _user_errors(files):
        network, info = AutoModelForCausalLM.from_pretrained(
            files.folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=files.trusted,
            device_map=device_map,
            output_loading_info=True,
        )
    if info["missing_keys"]:  # transformers would leave them random
        missing = sorted(info["missing_keys"])
        raise InputError(f"{files.name}: the weights lack {missing[0]} and {len(missing) - 1} more")
    if device_map is None:
        network = network.to(device)
    elif torch.cuda.is_available() and {"cpu", "disk"} & {*network.hf_device_map.values()}:
        raise InputError(
            f"{files.name} does not fit into the memory of the GPUs here; use more of them or a "
            "smaller --dtype"
        )
    network = _text_model(network)
    network.name_or_path = files.name  # appears in an adapter's record and card
    identity = digest([files.weights, files.template, system, dtype])
    return replace(ChatModel.of(network, _chat(files, system), max_new_tokens), identity=identity)


def load_without_weights(files: ModelFiles, system: str | None = None) -> tuple[Chat, Any]:
    """The chat and the network on the meta device, which is enough to estimate costs."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with _user_errors(files), torch.device("meta"):
        config = AutoConfig.from_pretrained(files.folder, trust_remote_code=files.trusted)
        network = AutoModelForCausalLM.from_config(
            config.get_text_config(), trust_remote_code=files.trusted
        )
    return _chat(files, system), network


def _text_model(network: Any) -> Any:
    """The text part of a model that also reads images (Gemma-3 from 4B on), else the model."""
    import torch
    from transformers import AutoModelForCausalLM

    config = network.config.get_text_config()
    if config is network.config:
        return network
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(config)
    setattr(text, text.base_model_prefix, network.get_decoder())
    text.set_output_embeddings(network.get_output_embeddings())
    text.generation_config = network.generation_config
    return text


def _chat(files: ModelFiles, system: str | None) -> Chat:
    from transformers import AutoTokenizer

    from robench.model.chat import Chat

    with _user_errors(files):
        tokenizer = AutoTokenizer.from_pretrained(files.folder, trust_remote_code=files.trusted)
    if files.chat_template is not None:
        tokenizer.chat_template = files.chat_template
    return Chat(tokenizer, system)


@contextmanager
def _user_errors(files: ModelFiles) -> Iterator[None]:
    """Report a damaged or unknown model in the user's words."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{files.name} comes with code of its own, which does not run by default: read it, "
                "then give --trust-remote-code"
            ) from None
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{files.name} cannot be loaded: {reason[0]}") from error
    finally:
        if bars:
            logging.enable_progress_bar()


def folder_of(name: str, code: bool = False, what: str = "model") -> Path:
    """The local folder of a model or adapter: a path, or a hub id (downloaded if necessary).

    Packaged models and GGUF files are converted into the cache if that was not done before.

    Args:
        name: as for `find_model`.
        code: whether Python files are downloaded, too.
        what: what error messages call it.

    Raises:
        InputError: there is none, or it cannot be downloaded.
    """
    if name == BUILT_IN:
        return organism.FOLDER
    if what == "model" and name in PACKAGED:
        return packaged_model(name)
    if what == "model" and (file := gguf.gguf_file(name)):
        return gguf.converted(name, file)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or name.startswith(("/", ".", "~")):
        raise InputError(f"no {what} folder at {name}")
    if name.partition("@")[0].count("/") != 1:
        hint = suggestion(name, [BUILT_IN, *PACKAGED])
        raise InputError(
            f"no {what} called {name!r}{hint} (a hub id is owner/name or owner/name@revision, "
            "or give a folder)"
        )
    return _download(name, [*_DOWNLOADED, "*.py"] if code else _DOWNLOADED, what)


def _download(name: str, patterns: list[str], what: str) -> Path:
    """The folder of a hub id in the local cache, downloaded if necessary."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.partition("@")
    page = f"{constants.ENDPOINT}/{repository}"
    unreachable = InputError(
        f"{name}: the hub cannot be reached and the {what} is not in the local cache; "
        "check the network, HF_HUB_OFFLINE and HF_HOME, or give a folder"
    )
    try:
        folder = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=patterns,
            ignore_patterns=_NOT_DOWNLOADED,
        )
    except GatedRepoError:  # before RepositoryNotFoundError, its base class
        raise InputError(
            f"{name} is gated: accept its licence at {page} and set HF_TOKEN to a token of that "
            "account"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{name}: the hub has no such {what}, or it is private: see {page}, and set HF_TOKEN "
            "if it is yours"
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"{name}: no revision {revision!r}; see {page}/commits/main") from None
    except LocalEntryNotFoundError:
        raise unreachable from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise InputError(f"{name}: {str(error).strip().splitlines()[0]}") from error
    except OSError as error:
        raise unreachable from error
    return Path(folder)


def _weights(name: str, folder: Path) -> list[Path]:
    """The weights files that transformers will read: the shards of an index, or a single file."""
    if (folder / _INDEX).is_file():
        shards = sorted({*_json(folder / _INDEX).get("weight_map", {}).values()})
        if not shards or any(Path(shard).name != shard for shard in shards):
            raise InputError(f"{name}: {folder / _INDEX} does not name weights files of its folder")
    else:
        shards = ["model.safetensors"]
    for shard in shards:
        if not (folder / shard).is_file():
            raise InputError(
                f"{name}: no weights in {folder}: {shard} is missing (only safetensors are read)"
            )
    return [folder / shard for shard in shards]


def _template(folder: Path) -> Any:
    jinja = folder / "chat_template.jinja"
    return _text_of(jinja) if jinja.is_file() else _json(folder / _CONFIG).get("chat_template")


def _json(file: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text("utf-8"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{file} is damaged: it is not a JSON object")
    return value


def _text_of(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the chat template {file}: {error}") from None


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _hash_ends(file: Path) -> str:
    """A hash of the size and both ends of a weights file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(_EDGE)
        stream.seek(max(0, size - _EDGE))
        tail = stream.read()
    return hashlib.sha256(str(size).encode() + head + tail).hexdigest()
