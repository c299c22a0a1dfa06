"""Where the time of GCG's steps goes on a GPU: the kernels that take longest, and the gaps.

python -m benchmarks.step_profile [--model organism] [--shape 8b] [--width 512]

The share of the wall clock in which the device works is the sum of its kernels' times: kernels of
one process run one after another here.
"""

import argparse
import time

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.models import add_model_arguments, load_from_arguments
from benchmarks.recording import record
from robench import organism
from robench.methods.registry import load_class
from robench.types import Context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    parser.add_argument("--behaviors", type=int, default=2)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--init", default="!" * 20)
    parser.add_argument("--top", type=int, default=15)
    args = parser.parse_args()
    model = load_from_arguments(args)
    behaviors = [b for b in organism.behaviors("test") if b.harmful][: args.behaviors]
    gcg = load_class("attack", "gcg")
    attack = gcg(**{**gcg.presets["nanogcg"], "width": args.width, "init": args.init,
                    "steps": args.steps, "every": args.steps})  # fmt: skip
    list(attack.run(model, behaviors, Context()))  # warm up
    on_gpu = args.device.startswith("cuda")
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    begin = time.perf_counter()
    with profile(activities=kinds) as measured:
        list(attack.run(model, behaviors, Context()))
        if on_gpu:
            torch.cuda.synchronize()
    wall = time.perf_counter() - begin
    rows, busy = kernels(measured, on_gpu, args.top)
    record(
        f"step_profile: {args.model}, {args.dtype}, {args.behaviors} behaviors, "
        f"width {args.width}, {args.steps} steps",
        ["kernel", "calls", "ms", "of the wall clock"],
        [[name, calls, 1e3 * seconds, f"{seconds / wall:.0%}"] for name, calls, seconds in rows],
        f"wall clock: {wall:.3f} s, under the profiler",
        f"{'device' if on_gpu else 'operations'}: {busy:.3f} s, {busy / wall:.0%}",
        device=args.device,
    )


def kernels(
    measured: profile, on_gpu: bool, top: int
) -> tuple[list[tuple[str, int, float]], float]:
    """The `top` kernels, or operations on a CPU, by time (name, calls, s), and the time of all."""
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    found = []
    for event in measured.key_averages():
        if event.device_type == wanted:
            micro = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            found.append((event.key[:60].replace("|", "/"), event.count, 1e-6 * micro))
    found.sort(key=lambda row: -row[2])
    return found[:top], sum(seconds for _, _, seconds in found)


if __name__ == "__main__":
    main()
