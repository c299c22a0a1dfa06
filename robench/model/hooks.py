"""Hooks on decoder blocks that exist inside a with-block: read states, edit states.

Layer 0 is the embedding output, layer l the raw output of decoder block l (1-based), never the
state after the final norm.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robench.types import LAST, PAD, PROMPT, REPLY, Edit

EditRows = tuple[Edit, Tensor]  # an edit, the rows of the batch that it acts on


def blocks(network: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a causal language model, or of one that also reads images.

    Raises:
        LookupError: no module list has as many entries as the config has layers.
    """
    depth = network.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    for module in network.get_decoder().modules():  # type: ignore[operator]
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise LookupError(f"no list of {depth} decoder blocks in {type(network).__name__}")


def layer_number(layer: int, depth: int) -> int:
    """A layer 0..depth from a number that may count from the end (-1 is the last layer).

    Raises:
        ValueError: the model has no such layer.
    """
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"no layer {layer} in a model with {depth} decoder blocks")
    return layer % (depth + 1)


def at_depth(fraction: float, depth: int) -> int:
    """The layer at a depth fraction: max(1, round(f L))."""
    return max(1, round(fraction * depth))


@contextmanager
def captured_states(
    network: nn.Module, layers: Sequence[int], tokens: Tensor | None = None
) -> Iterator[dict[int, Tensor]]:
    """Collect the outputs (batch, time, d) of layers 0..L during the forward passes inside.

    Its hooks are registered after those of edits that are active, so it reads what later blocks
    read. Without gradients only the positions of `tokens` (batch, time) are held: (tokens, d). With
    gradients the graph holds the whole output anyway, and a selection inside a checkpointed block
    would be lost when the block is recomputed.
    """
    states: dict[int, Tensor] = {}

    def capture(layer: int) -> Callable[[Tensor], None]:
        def read(h: Tensor) -> None:
            if tokens is None or torch.is_grad_enabled():
                states[layer] = h
            else:
                states[layer] = h[tokens.to(h.device)]

        return read

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_layer_hook(network, layer, capture(layer)))
        yield states


@contextmanager
def first_blocks_only(network: nn.Module, depth: int) -> Iterator[None]:
    """Run only decoder blocks 1..depth in the forward passes inside; their hooks still act."""
    all_blocks = blocks(network)
    owner, name = next(
        (module, name)
        for module in network.modules()
        for name, child in module.named_children()
        if child is all_blocks
    )
    setattr(owner, name, nn.ModuleList(list(all_blocks)[:depth]))
    try:
        yield
    finally:
        setattr(owner, name, all_blocks)


@contextmanager
def replaced_output(network: nn.Module, layer: int, states: Tensor) -> Iterator[None]:
    """Replace the output of a layer by `states` (batch, time, d), of whatever length."""
    with _layer_hook(network, layer, lambda h: states.to(h)):
        yield


@contextmanager
def head_limited_to(network: nn.Module, tokens: Tensor) -> Iterator[None]:
    """Pass only the positions of `tokens` (batch, time) to the output head: (1, tokens, d)."""

    def select(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return args[0][tokens.to(args[0].device)][None], *args[1:]

    handle = network.get_output_embeddings().register_forward_pre_hook(select)  # type: ignore
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def edited(network: nn.Module, edits: Sequence[EditRows], roles: Tensor) -> Iterator[None]:
    """Apply edits in the forward passes inside.

    Args:
        network: the causal language model.
        edits: with their rows, in the order in which they act.
        roles: (batch, time) of the first pass; the positions of all later passes are the reply's.
    """

    def apply(edit: Edit, rows: Tensor) -> Callable[[Tensor], Tensor]:
        is_first_pass = True

        def change(h: Tensor) -> Tensor:
            nonlocal is_first_pass
            role = roles if is_first_pass else torch.full(h.shape[:2], REPLY)
            is_first_pass = False
            index, role = rows.to(h.device), role.to(h.device)  # blocks may be on several devices
            return h.index_copy(0, index, edit(h[index], role[index]).to(h.dtype))

        return change

    depth = len(blocks(network))
    with ExitStack() as stack:
        for edit, rows in edits:
            layer = layer_number(edit.layer, depth)
            stack.enter_context(_layer_hook(network, layer, apply(edit, rows)))
        yield


def prompt_roles(mask: Tensor) -> Tensor:
    """Roles (batch, time) of left-padded prompts: PAD, PROMPT, and LAST in the last column."""
    roles = torch.where(mask.bool(), PROMPT, PAD)
    roles[:, -1] = LAST
    return roles


def target_roles(first: Tensor, end: Tensor, time: int) -> Tensor:
    """Roles (batch, time) of prompts followed by their targets, right-padded.

    Args:
        first: (batch,) positions of the last prompt token, which predicts the target's first.
        end: (batch,) positions where padding begins.
        time: length of the rows.
    """
    position, first, end = torch.arange(time), first[:, None], end[:, None]
    roles = torch.where(position < first, PROMPT, REPLY)
    roles = torch.where(position == first, LAST, roles)
    return torch.where(position < end, roles, PAD)


@contextmanager
def _layer_hook(
    network: nn.Module, layer: int, function: Callable[[Tensor], Tensor | None]
) -> Iterator[None]:
    """Call a function with the layer's output, which its result replaces unless it is None."""
    modules = blocks(network)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        h = args[0] if args else kwargs["hidden_states"]
        new = function(h)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        # transformers 5 returns the tensor itself, older code and some families a tuple
        new = function(output if isinstance(output, Tensor) else output[0])
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
