"""Cost of GCG's candidate pass by behaviors, width, suffix length, target length and the model's
blocks, and the share of the device's matrix product rate that it reaches.

python -m benchmarks.growth [--model organism] [--shape 8b]

FLOPs are those that are executed: two per weight of a linear layer and row that it reads, so the
output head counts only for the logits that are computed, and shared tokens count once. Products
of attention are left out. The rate of matrix products is measured in the same run, in the model's
precision and width. The peak memory of a GPU is that of each row; of a process it is the highest so
far.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import memory
from benchmarks.models import add_model_arguments, load_from_arguments
from benchmarks.recording import record, record_share
from robench import organism
from robench.model.chat_model import ChatModel
from robench.model.hooks import first_blocks_only
from robench.types import GAP, user

BASE = {"behaviors": 4, "width": 256, "suffix": 10, "target": 10}
VARIED = {
    "behaviors": (1, 4, 16),
    "width": (64, 256, 1024),
    "suffix": (5, 10, 20, 40),
    "target": (5, 10, 20),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vary", nargs="+", choices=[*VARIED, "blocks"], help="default: all")
    args = parser.parse_args()
    model = load_from_arguments(args)
    fastest = product_rate(model, args.repeats)
    blocks = [max(1, model.depth // part) for part in (4, 2, 1)]
    base, rows, shares = {**BASE, "blocks": model.depth}, [], []
    varied = {**VARIED, "blocks": blocks}
    for name in args.vary or varied:
        for value in varied[name]:
            size = {**base, name: value}
            memory.reset_peak(args.device)
            with shallow(model.network, size["blocks"]):
                seconds, tokens, flops = candidate_pass(model, size, args.repeats)
            shares.append(flops / seconds / fastest)
            rows.append([
                name, value, 1e3 * seconds / size["behaviors"],
                tokens / (size["behaviors"] * size["width"]), flops / seconds / 1e9,
                f"{shares[-1]:.0%}", f"{memory.peak(args.device) / 2**20:.0f}",
            ])  # fmt: skip
    record(
        f"growth: {args.model}, {args.dtype}, otherwise "
        + ", ".join(f"{name} {value}" for name, value in base.items()),
        [
            "varied",
            "",
            "ms per behavior-step",
            "tokens per candidate",
            "GFLOP/s",
            "of products",
            "peak MiB",
        ],
        rows,
        f"matrix products: {fastest / 1e9:.4g} GFLOP/s",
        device=args.device,
    )
    if args.device.startswith("cuda"):
        record_share(median(shares), args.device)


def candidate_pass(model: ChatModel, size: dict[str, int], repeats: int) -> tuple[float, int, int]:
    """Seconds, tokens, FLOPs of one pass over all candidates: one swap each, positions in turn."""
    behaviors = [b for b in organism.behaviors("test") if b.harmful][: size["behaviors"]]
    slots = model.slots(
        [user(f"{b.request}{GAP}") for b in behaviors],
        [" ".join([b.target] * 4) for b in behaviors],
    )
    for row in slots.rows:
        del row.target[size["target"] :]
    pool = model.allowed.nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(0)
    n, w, k = size["behaviors"], size["width"], size["suffix"]
    parent = pool[torch.randint(len(pool), (n, k), generator=generator)]
    ids = parent[:, None].repeat(1, w, 1)
    at = torch.arange(w)
    ids[:, at, at % k] = pool[torch.randint(len(pool), (n, w), generator=generator)]
    before = model.usage.forward_tokens
    flops = executed(model.network, lambda: slots.loss(ids, parent))
    tokens = model.usage.forward_tokens - before
    return timed(lambda: slots.loss(ids, parent), model.device, repeats), tokens, flops


@contextmanager
def shallow(network: Any, blocks: int) -> Iterator[None]:
    """The network with only its first blocks."""
    config, depth = network.config, network.config.num_hidden_layers
    with first_blocks_only(network, blocks):
        config.num_hidden_layers = blocks
        try:
            yield
        finally:
            config.num_hidden_layers = depth


def executed(network: nn.Module, work: Callable[[], object]) -> int:
    """FLOPs of the linear layers that `work` calls."""
    counts: list[int] = []  # several threads append

    def count(layer: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
        counts.append(2 * layer.weight.numel() * args[0][..., 0].numel())

    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in linear]
    try:
        work()
    finally:
        for handle in handles:
            handle.remove()
    return sum(counts)


def product_rate(model: ChatModel, repeats: int) -> float:
    """FLOP/s of (tokens, d) @ (d, 4 d), with as many tokens as a pass has."""
    d, tokens = model.width, max(model.chunks.enough, 1024)
    left = torch.randn(tokens, d, device=model.device).to(model.dtype)
    right = torch.randn(d, 4 * d, device=model.device).to(model.dtype)

    def products() -> None:
        for _ in range(50):
            left @ right

    timed(products, model.device, 1)  # warm up
    return 50 * 2 * tokens * d * 4 * d / timed(products, model.device, repeats)


def timed(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median seconds of `work`, until the device has finished."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return median(seconds)


if __name__ == "__main__":
    main()
