"""Soft prompts of many behaviors in one batch against robench's own rate at one behavior.

python -m benchmarks.soft_prompt [--behaviors 32] [--model organism] [--shape 8b]
"""

import argparse
import time
from statistics import median

from benchmarks.models import add_model_arguments, load_from_arguments
from benchmarks.recording import record
from robench import organism
from robench.methods.registry import load_class as method
from robench.types import Context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    parser.add_argument("--behaviors", type=int, default=32)
    parser.add_argument("--alone", type=int, default=4, help="of them also run one at a time")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model = load_from_arguments(args)
    chosen = [b for b in organism.behaviors("test") if b.harmful][: args.behaviors]
    soft_prompt = method("attack", "soft_prompt")
    attack = soft_prompt(**{**soft_prompt.presets["demo"], "steps": args.steps})

    def rate(groups: list[list]) -> tuple[float, list[float]]:  # type: ignore[type-arg]
        """Behavior-steps per second, and the loss of each behavior's last snapshot."""
        begin, losses = time.perf_counter(), {}
        for group in groups:
            for attempt in attack.run(model, group, Context()):
                if attempt.final:
                    losses[attempt.behavior.id] = attempt.trace[-1]
        count = args.steps * sum(map(len, groups))
        return count / (time.perf_counter() - begin), list(losses.values())

    rate([chosen[:1]])  # warm up
    alone, together = [], []
    for _ in range(args.rounds):
        alone.append(rate([[b] for b in chosen[: args.alone]]))
        together.append(rate([chosen]))
    apart = max(abs(a - b) for a, b in zip(alone[0][1], together[0][1], strict=False))
    one, many = (median(speed for speed, _ in rounds) for rounds in (alone, together))
    record(
        f"soft_prompt: {args.model}, {args.dtype}, {args.steps} steps, {args.rounds} rounds",
        ["behaviors in the batch", "behavior-steps per second"],
        [[1, one], [len(chosen), many]],
        f"largest difference of a final loss: {apart:.1e}",
        f"ratio: {many / one:.2f}",
        device=args.device,
    )


if __name__ == "__main__":
    main()
