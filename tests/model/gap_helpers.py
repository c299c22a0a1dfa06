"""What tests of gaps share: random ids, an edit, other architectures."""

from dataclasses import dataclass

import torch
import transformers

from robench.model.chat import Chat
from robench.model.chat_model import ChatModel
from robench.testing import tiny


def draw(model: ChatModel, *shape: int) -> torch.Tensor:
    """Random ids of allowed tokens."""
    pool = model.allowed.nonzero().squeeze(1)
    return pool[torch.randint(len(pool), shape, generator=torch.Generator().manual_seed(1))]


@dataclass(frozen=True)
class Roll:
    """Rolls the states at the positions of some roles.

    Not merely a scaling, which the norms of later blocks would undo.
    """

    layer: int
    roles: tuple[int, ...]

    def __call__(self, h, role):
        selected = sum(role == r for r in self.roles).bool()
        return torch.where(selected[..., None], h.roll(1, -1), h)


def architecture(config: str, **settings) -> ChatModel:
    """A tiny random model of any architecture of transformers, with the organism's tokenizer."""
    tokenizer = tiny().chat.tokenizer
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.2,
        "vocab_size": len(tokenizer) + 8,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.AutoModelForCausalLM.from_config(
            getattr(transformers, config)(**shape, **settings)
        )
    return ChatModel.of(network, Chat(tokenizer), max_new_tokens=8)
