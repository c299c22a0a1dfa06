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
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robench import organism
from robench.config import digest, suggestion
from robench.errors import InputError
from robench.model import gguf
from robench.model.fitness import (
    check_forward,
    check_ties,
    check_tokens,
    check_weights,
    quantization_of,
    refuse_adapters,
    refuse_unknown_quantization,
)
from robench.model.limits import refuse_unsupported
from robench.model.packaged import PACKAGED, packaged_model
from robench.model.text_half import auto_class, text_half

if TYPE_CHECKING:
    from robench.model.chat import Chat
    from robench.model.chat_model import ChatModel

BUILT_IN = "organism"
_EDGE = 2**20  # bytes that are hashed at each end of a weights file
_POINTER = b"version https://git-lfs"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# Other files that decide how text becomes ids, and where a reply ends
_SETTINGS = (
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
)
_CONFIG = "tokenizer_config.json"
_PROCESSOR = "chat_template.json"  # of models that also read images (LLaVA, SmolVLM)
_DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_NOT_DOWNLOADED = ["*/*", "consolidated*"]  # other formats of the same weights


@dataclass(frozen=True)
class ModelFiles:
    """A model's files.

    name:          of a folder its full path, else as the user gave it, with `@revision`
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

    def template_with(self, arguments: Mapping[str, Any] | None) -> str:
        """The hash of the chat template and of what it is given in every rendering."""
        return digest([self.template, dict(arguments)]) if arguments else self.template


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
        chat_template: a file that replaces the tokenizer's template, or the name of one of the
            tokenizer's own, where it has several.
        trust_remote_code: whether Python files of the model are downloaded and may run.

    Raises:
        InputError: there is no such model, or its folder has no weights, tokenizer or chat
            template.
    """
    if revision is not None:
        name = f"{name}@{revision}"
    folder = folder_of(name, trust_remote_code)
    name = full_name(name)
    refuse_adapters(name, folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{name}: no config.json in {folder}")
    weights = _weights(name, folder)
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        raise InputError(f"{name}: no tokenizer in {folder} (one of {', '.join(_TOKENIZERS)})")
    replacement = _replacement(folder, chat_template)
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
    template_args: Mapping[str, Any] | None = None,
    max_new_tokens: int = 256,
    max_thinking_tokens: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    device_map: str | None = None,
) -> ChatModel:
    """The model in memory, on `device` or, with a `device_map` ("auto"), spread over all GPUs.

    Raises:
        InputError: the files are damaged, incomplete or of an unknown architecture, config, weights
            and tokenizer do not fit each other, or the model does not fit into the GPUs.
    """
    from robench.model.chat_model import ChatModel

    chat, _ = load_without_weights(
        files, system, template_args
    )  # what does not fit is told in a second
    with _user_errors(files):
        network = _network(files, device, dtype, device_map)
    network.name_or_path = files.name  # appears in an adapter's record and card
    identity = digest([files.weights, files.template_with(template_args), system, dtype])
    model = ChatModel.of(network, chat, max_new_tokens, max_thinking_tokens)
    return replace(model, identity=identity)


def _network(files: ModelFiles, device: str, dtype: str, device_map: str | None) -> Any:
    """The text model with the weights of its files, all of which it uses."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(files.folder, trust_remote_code=files.trusted)
    packed = getattr(config, "quantization_config", None) is not None  # cannot be moved later
    with _without_report():
        network, info = auto_class(config).from_pretrained(
            files.folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=files.trusted,
            device_map={"": device} if packed and device_map is None else device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below
        )
    if note := check_weights(network, info):
        print(f"note: {files.name}: {note}", flush=True)
    if device_map is None:
        network = network if packed else network.to(device)
    elif torch.cuda.is_available() and {"cpu", "disk"} & {*network.hf_device_map.values()}:
        raise InputError(
            "it does not fit into the memory of the GPUs here; use more of them or a smaller "
            "--dtype"
        )
    network = text_half(network)
    check_ties(network)
    return network


def load_without_weights(
    files: ModelFiles,
    system: str | None = None,
    template_args: Mapping[str, Any] | None = None,
) -> tuple[Chat, Any]:
    """The chat and the network on the meta device, which is enough to estimate costs.

    Raises:
        InputError: they do not fit each other, or the network cannot be worked with.
    """
    import torch
    from transformers import AutoConfig

    chat = _chat(files, system, template_args)
    with _user_errors(files):
        config = AutoConfig.from_pretrained(files.folder, trust_remote_code=files.trusted)
        refuse_unknown_quantization(config)
        with torch.device("meta"):
            network = auto_class(config).from_config(config, trust_remote_code=files.trusted)
        network = text_half(network)
        refuse_unsupported(network)
        check_forward(network)
        check_tokens(chat.tokenizer, network)
    return chat, network


@contextmanager
def _without_report() -> Iterator[None]:
    """Hide transformers' report on weights: `check_weights` says what matters of it in one line."""
    log = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    log.addFilter(is_other)
    try:
        yield
    finally:
        log.removeFilter(is_other)


def _chat(files: ModelFiles, system: str | None, template_args: Mapping[str, Any] | None) -> Chat:
    from transformers import AutoTokenizer

    from robench.model.chat import Chat

    with _user_errors(files):
        tokenizer = AutoTokenizer.from_pretrained(files.folder, trust_remote_code=files.trusted)
    if files.chat_template is not None:
        tokenizer.chat_template = files.chat_template
    return Chat(tokenizer, system, template_args)


@contextmanager
def _user_errors(files: ModelFiles) -> Iterator[None]:
    """Report a damaged or unknown model in the user's words.

    Whatever is raised inside is: files of strangers, and code that may come with them, fail in
    every way there is.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except InputError as error:
        raise InputError(f"{files.name} cannot be loaded: {error}") from error
    except torch.OutOfMemoryError:
        raise InputError(
            f"{files.name} does not fit into the memory of this device; use a smaller --dtype, or "
            "--device-map auto to spread it over several GPUs"
        ) from None
    except Exception as error:
        raise InputError(_reason(files, error)) from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def _reason(files: ModelFiles, error: Exception) -> str:
    """Why a model cannot be loaded, in one line with the fix where it is known."""
    from safetensors import SafetensorError

    if "trust_remote_code" in str(error):
        return (
            f"{files.name} comes with code of its own, which does not run by default: read it, "
            "then give --trust-remote-code"
        )
    lines = str(error).strip().splitlines()
    reason = " ".join(line.strip() for line in lines[:2]) or type(error).__name__
    if isinstance(error, KeyError):
        reason = f"{reason} is not known"
    if isinstance(error, SafetensorError):
        reason = f"its weights are damaged or incomplete, download them again: {reason}"
    if isinstance(error, ImportError):
        packed = quantization_of(_json(files.folder / "config.json"))
        kind = f"its weights are quantised ({packed})" if packed else "it needs another package"
        install = f": pip install {error.name}" if error.name else ""
        reason = f"{kind}: {reason}{install}"
    return f"{files.name} cannot be loaded: {reason}"


def full_name(name: str) -> str:
    """What a model or adapter is known by: of a folder its full path, however it was given."""
    path = Path(name).expanduser()
    return str(path.resolve()) if name != BUILT_IN and path.is_dir() else name


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
        if (folder / _SINGLE).is_file() and shards != [_SINGLE]:  # transformers reads this one
            raise InputError(
                f"{name}: {folder} holds weights twice, {_SINGLE} and the shards of {_INDEX}: "
                "remove one of them"
            )
    else:
        shards = [_SINGLE]
    for shard in shards:
        if not (folder / shard).is_file():
            raise InputError(
                f"{name}: no weights in {folder}: {shard} is missing (only safetensors are read)"
            )
        with (folder / shard).open("rb") as stream:
            if stream.read(len(_POINTER)) == _POINTER:
                raise InputError(
                    f"{name}: {folder / shard} is Git LFS's pointer to weights, not weights: "
                    "git lfs pull"
                )
    stray = sorted(f.name for f in folder.iterdir() if _SHARD.fullmatch(f.name))
    if stray := [shard for shard in stray if shard not in shards]:
        raise InputError(
            f"{name}: {folder / stray[0]} belongs to no weights that are read; remove it, or add "
            f"the {_INDEX} that names it"
        )
    return [folder / shard for shard in shards]


def _template(folder: Path) -> Any:
    """The tokenizer's template: a text, or several with their names."""
    jinja = folder / "chat_template.jinja"
    return _text_of(jinja) if jinja.is_file() else _json(folder / _CONFIG).get("chat_template")


def _replacement(folder: Path, asked: str | Path | None) -> str | None:
    """What takes the place of the tokenizer's template: a file or one of several by its name; of a
    tokenizer without any, that of the processor beside it."""
    own = _template(folder)
    if asked is None:
        other = None if own else _json(folder / _PROCESSOR).get("chat_template")
        return other if isinstance(other, str) else None
    named = {one["name"]: one["template"] for one in own} if isinstance(own, list) else {}
    return str(named[asked]) if asked in named else _text_of(Path(asked))


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
        return file.read_text("utf-8-sig")  # an editor's mark is no part of it
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
