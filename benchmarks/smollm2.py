"""A real model on a CPU: conversion, loading, replies, steps of GCG and of the soft prompt, memory.

python -m benchmarks.smollm2 [--dtype bfloat16] [--threads 1] [--widths 64 128]

Of everything the seconds of the clock and of the processor: on a machine that others use, too, the
first are larger.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from benchmarks.recording import record
from robench.methods.registry import resolve
from robench.model import cache
from robench.model.chat_model import ChatModel
from robench.model.loading import find_model, load_model
from robench.texts import geography
from robench.types import Context, Prompt, user

STEPS = 1, 3  # an attack's start costs the same in both
BATCHES = 1, 8


class Seconds(NamedTuple):
    wall: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--widths", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--behaviors", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load_before = os.getloadavg()[0]
    rows = [["convert", "s", *converting(args.model)]]
    loaded: list[ChatModel] = []
    spent = seconds(lambda: loaded.append(load_model(find_model(args.model), dtype=args.dtype)))
    rows.append(["load", "s", *spent])
    (model,) = loaded
    rows += [[f"replies, batch {n}", "tokens/s", *rate_of_replies(model, n)] for n in BATCHES]
    gcg, soft = (resolve("attack", name).instance for name in ("gcg:demo", "soft_prompt:demo"))
    for width in args.widths:
        step = of_a_step(model, replace(gcg, width=width), args.behaviors)
        rows.append([f"gcg, width {width}", "ms per behavior-step", *step])
    rows.append(["soft_prompt", "ms per behavior-step", *of_a_step(model, soft, args.behaviors)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    record(
        f"{args.model}, {args.dtype}, {args.threads} threads, {args.behaviors} behaviors",
        ["", "unit", "by the clock", "by the processor"],
        rows,
        f"Peak memory {peak:.1f} GiB; load of the machine {load_before:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after.",
        device="cpu",
    )


def seconds(work: Callable[[], Any]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def converting(name: str) -> Seconds:
    """Of the conversion, in a cache of its own."""
    before = os.environ.get(cache.VARIABLE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[cache.VARIABLE] = folder
        spent = seconds(lambda: find_model(name))
    del os.environ[cache.VARIABLE]
    if before is not None:
        os.environ[cache.VARIABLE] = before
    return spent


def rate_of_replies(model: ChatModel, batch: int) -> Seconds:
    """Tokens per second; the questions are such that replies are long."""
    prompts = [Prompt(user(f"Write a short story about a boat and {n} birds.")) for n in range(8)]
    prompts = prompts[:batch]
    model = replace(model, max_new_tokens=64)
    model.generate(prompts[:1])
    replies = []
    spent = seconds(lambda: replies.extend(model.replies(prompts)))
    tokens = sum(reply.tokens for reply in replies)
    return Seconds(*(tokens / value for value in spent))


def of_a_step(model: ChatModel, attack: Any, count: int) -> Seconds:
    """Milliseconds of an attack's step and behavior, its start left out."""
    behaviors = geography.behaviors("test", harmful=True)[:count]
    ctx = Context(references=(), tune=(), examples=(), seed=0)
    runs = [
        seconds(lambda: list(replace(attack, steps=steps).run(model, behaviors, ctx)))  # noqa: B023
        for steps in STEPS
    ]
    scale = 1000 / (STEPS[1] - STEPS[0]) / count
    return Seconds(*(scale * (more - fewer) for fewer, more in zip(*runs, strict=True)))


if __name__ == "__main__":
    main()
