"""Seconds and peak memory of one training step of a defense.

python -m benchmarks.training [--defenses circuit_breaker crl:paper es2] [--model organism]

The difference between runs of 1 and of 1 + STEPS steps, so that what is done once does not count.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory
from benchmarks.models import add_model_arguments, load_from_arguments
from benchmarks.recording import record
from robench import organism
from robench.methods.registry import resolve
from robench.model.chat_model import ChatModel
from robench.types import Context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    parser.add_argument("--defenses", nargs="+", default=["circuit_breaker", "crl", "es2"])
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    model = load_from_arguments(args)
    rows: list[list[object]] = []
    for name in args.defenses:
        defense: Any = resolve("defense", name).instance
        memory.reset_peak(args.device)
        try:
            once = seconds(model, replace(defense, steps=1))
            each = (seconds(model, replace(defense, steps=1 + args.steps)) - once) / args.steps
            told = each if each > 0 else "less than the noise"
            rows.append([name, defense.batch, told, f"{memory.peak(args.device) / 2**20:.0f}"])
        except torch.cuda.OutOfMemoryError:
            rows.append([name, defense.batch, "out of memory", ""])
            torch.cuda.empty_cache()
    record(
        f"training: {args.model}, {args.dtype}, {args.steps} steps",
        ["defense", "batch", "seconds per step", "peak MiB"],
        rows,
        device=args.device,
    )


def seconds(model: ChatModel, defense: Any) -> float:
    """Of a whole training, with its data, in a folder of its own."""
    context = Context(references=organism.references(), examples=organism.examples())
    begin = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as scratch,
        defense.applied(model, context, Path(scratch) / "adapter"),
    ):
        return time.perf_counter() - begin


if __name__ == "__main__":
    main()
