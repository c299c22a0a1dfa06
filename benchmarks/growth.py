"""Cost of GCG's candidate pass by behaviors, width, suffix length and target length, and the share
of the device's matrix product rate that it reaches.

python -m benchmarks.growth [--model organism] [--shape 8b]

FLOPs are those that are executed: 2 N per token that was read, with N the parameters without the
input embedding. The rate is measured in the same run, on a product of the model's own shape.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from benchmarks.models import ask, asked
from benchmarks.recording import record
from robench import organism
from robench.model import ChatModel
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
    ask(parser)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    model = asked(args)
    peak = product_rate(model, args.repeats)
    rows: list[list[object]] = []
    for name, values in VARIED.items():
        for value in values:
            seconds, tokens = candidate_pass(model, {**BASE, name: value}, args.repeats)
            rate = 2 * model.usage.parameters * tokens / seconds
            candidates = {**BASE, name: value}
            count = candidates["behaviors"] * candidates["width"]
            rows.append([
                name, value, 1e3 * seconds / candidates["behaviors"], tokens / count,
                rate / 1e9, f"{rate / peak:.0%}",
            ])  # fmt: skip
    record(
        f"growth: {args.model}, {args.dtype}, otherwise "
        + ", ".join(f"{name} {value}" for name, value in BASE.items()),
        ["varied", "", "ms per behavior-step", "tokens per candidate", "GFLOP/s", "of products"],
        rows,
        f"matrix products: {peak / 1e9:.4g} GFLOP/s",
        device=args.device,
    )


def candidate_pass(model: ChatModel, size: dict[str, int], repeats: int) -> tuple[float, float]:
    """Seconds and tokens of one pass over all candidates: one swap each, positions in turn."""
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
    slots.loss(ids, parent)
    before = model.usage.forward_tokens
    seconds = timed(lambda: slots.loss(ids, parent), model.device, repeats)
    return seconds, (model.usage.forward_tokens - before) / repeats


def product_rate(model: ChatModel, repeats: int) -> float:
    """FLOP/s of (tokens, d) @ (d, 4 d), the tokens as many as a pass has."""
    d, tokens = model.width, max(model.chunks.enough, 1024)
    left = torch.randn(tokens, d, device=model.device).to(model.dtype)
    right = torch.randn(d, 4 * d, device=model.device).to(model.dtype)

    def products() -> None:
        for _ in range(50):
            left @ right

    products()
    return 50 * 2 * tokens * d * 4 * d / timed(products, model.device, repeats)


def timed(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median seconds of `work`, waiting for the device."""
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
