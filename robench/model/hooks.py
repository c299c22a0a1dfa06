"""Hooks on decoder blocks that live inside a with-block: read states, edit states.

Layer 0 is the embedding output, layer l the raw output of decoder block l (1-based): never the
post-norm state.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robench.types import LAST, PAD, PROMPT, REPLY, Edit

# (an edit, the rows of the batch that it sees)
Placed = tuple[Edit, Tensor]


def blocks(network: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a causal language model, also of one that reads images besides.

    Raises:
        LookupError: no module list has as many entries as the config has layers.
    """
    depth = network.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    for module in network.get_decoder().modules():  # type: ignore[operator]
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise LookupError(f"no list of {depth} decoder blocks in {type(network).__name__}")


def number(layer: int, depth: int) -> int:
    """A layer 0..depth from a number that may count from the end.

    Raises:
        ValueError: the model has no such layer.
    """
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"layer {layer} of a model with {depth} decoder blocks")
    return layer % (depth + 1)


def at_depth(fraction: float, depth: int) -> int:
    """The layer at a depth fraction: max(1, round(f L))."""
    return max(1, round(fraction * depth))


@contextmanager
def kept(
    network: nn.Module, layers: Sequence[int], tokens: Tensor | None = None
) -> Iterator[dict[int, Tensor]]:
    """Collect the outputs (batch, time, d) of some layers 0..L during the forward passes inside.

    Registered after the edits that are already on, so it reads what later blocks read. Where no
    gradients are taken, only the positions of `tokens` (batch, time) are held: (tokens, d). With
    gradients the graph holds the whole output anyway, and a selection inside of a checkpointed
    block would not be met again when the block is computed a second time.
    """
    states: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[Tensor], None]:
        def read(h: Tensor) -> None:
            if tokens is None or torch.is_grad_enabled():
                states[layer] = h
            else:
                states[layer] = h[tokens.to(h.device)]

        return read

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_hooked(network, layer, keep(layer)))
        yield states


@contextmanager
def truncated(network: nn.Module, depth: int) -> Iterator[None]:
    """Let the forward passes inside end behind decoder block `depth`; hooks go on before."""
    whole = blocks(network)
    (owner, name) = next(
        (module, name)
        for module in network.modules()
        for name, child in module.named_children()
        if child is whole
    )
    setattr(owner, name, nn.ModuleList(list(whole)[:depth]))
    try:
        yield
    finally:
        setattr(owner, name, whole)


@contextmanager
def replaced(network: nn.Module, layer: int, states: Tensor) -> Iterator[None]:
    """Let `states` (batch, time, d) stand in the place of a layer's output, of whatever length."""
    with _hooked(network, layer, lambda h: states.to(h)):
        yield


@contextmanager
def selected(network: nn.Module, tokens: Tensor) -> Iterator[None]:
    """Let only the positions of `tokens` (batch, time) reach the output head: (1, tokens, d)."""

    def choose(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return args[0][tokens.to(args[0].device)][None], *args[1:]

    handle = network.get_output_embeddings().register_forward_pre_hook(choose)  # type: ignore
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def edited(network: nn.Module, placed: Sequence[Placed], roles: Tensor) -> Iterator[None]:
    """Let edits act on the forward passes inside.

    Args:
        network: the causal language model.
        placed: edits with their rows, in the order in which they act.
        roles: (batch, time) of the first pass; every later pass is the reply's.
    """

    def act(edit: Edit, rows: Tensor) -> Callable[[Tensor], Tensor]:
        reading = True

        def change(h: Tensor) -> Tensor:
            nonlocal reading
            role = roles if reading else torch.full(h.shape[:2], REPLY)
            reading = False
            where, role = rows.to(h.device), role.to(h.device)  # a layer may be on its own device
            return h.index_copy(0, where, edit(h[where], role[where]).to(h.dtype))

        return change

    depth = len(blocks(network))
    with ExitStack() as stack:
        for edit, rows in placed:
            stack.enter_context(_hooked(network, number(edit.layer, depth), act(edit, rows)))
        yield


def prompt_roles(mask: Tensor) -> Tensor:
    """Roles (batch, time) of left-padded prompts: PAD, PROMPT, and LAST in the last column."""
    roles = torch.where(mask.bool(), PROMPT, PAD)
    roles[:, -1] = LAST
    return roles


def target_roles(first: Tensor, end: Tensor, time: int) -> Tensor:
    """Roles (batch, time) of right-padded prompts with their targets behind them.

    Args:
        first: (batch,) the last prompt token, which predicts the target's first.
        end: (batch,) where padding begins.
        time: length of the rows.
    """
    at, first, end = torch.arange(time), first[:, None], end[:, None]
    roles = torch.where(at < first, PROMPT, REPLY)
    roles = torch.where(at == first, LAST, roles)
    return torch.where(at < end, roles, PAD)


@contextmanager
def _hooked(
    network: nn.Module, layer: int, act: Callable[[Tensor], Tensor | None]
) -> Iterator[None]:
    """Call `act` with the layer's output; what it returns, if anything, takes its place."""
    modules = blocks(network)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        h = args[0] if args else kwargs["hidden_states"]
        new = act(h)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        # transformers 5 returns the bare tensor, older code and some families a tuple
        new = act(output if isinstance(output, Tensor) else output[0])
        if new is None or isinstance(output, Tensor):
            return new
        return (new, *output[1:])

    if layer == 0:
        handle = modules[0].register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = modules[layer - 1].register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
