"""A model with an adapter folded into its weights, kept in the cache as a folder of its own.

To everything else it is one more model: attacks, defenses and other adapters stand on its weights.
"""

import shutil
from functools import partial
from hashlib import sha256
from pathlib import Path

from robench.model import cache

VERSION = 1  # of the folding; another one does not reuse its folders
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def adapted(name: str, base: Path, adapter: Path) -> Path:
    """The folder of a base model with a peft adapter in its weights, in float32.

    Args:
        name: what error messages call it.
        base: the folder of the base model, which is named by its content.
        adapter: the peft folder.

    Raises:
        InputError: the cache has no room, or another process is making it.
    """
    content = sha256(base.name.encode())
    for file in ADAPTER_FILES:
        content.update((adapter / file).read_bytes())
    folder = cache.location() / "adapted" / f"{content.hexdigest()[:32]}-{VERSION}"
    cache.build_once(name, folder, partial(_fold, name, base, adapter))
    return folder


def _fold(name: str, base: Path, adapter: Path, draft: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    cache.require_room(name, network.num_parameters(), draft)
    folded = PeftModel.from_pretrained(network, str(adapter)).merge_and_unload()
    folded.save_pretrained(draft)
    for file in base.iterdir():  # tokenizer, template and settings as they are
        if file.suffix != ".safetensors":
            shutil.copyfile(file, draft / file.name)
