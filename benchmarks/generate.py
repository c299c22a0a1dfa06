"""Greedy replies: tokens per second of `ChatModel.replies` against transformers' `generate`.

python -m benchmarks.generate [--prompts 64] [--model organism] [--shape 8b]
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from benchmarks.models import ask, asked
from benchmarks.recording import record
from robench import organism
from robench.types import Prompt, user


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask(parser)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model = asked(args, args.max_new_tokens)
    prompts = [user(b.request) for split in ("test", "benign") for b in organism.behaviors(split)]
    prompts = (prompts * args.prompts)[: args.prompts]
    ends = model.network.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]

    def ours() -> list[str]:
        return [reply.text for reply in model.replies([Prompt(messages) for messages in prompts])]

    @torch.no_grad()
    def theirs(size: int) -> list[str]:
        """transformers alone, `size` prompts of a batch, in the order in which they come."""
        tokenizer, said = model.chat.tokenizer, []
        tokenizer.padding_side = "left"
        for start in range(0, len(prompts), size):
            texts = [model.chat.render(m) for m in prompts[start : start + size]]
            batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            batch = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
            out = model.network.generate(
                **batch,
                max_new_tokens=args.max_new_tokens,
                do_sample=False,
                pad_token_id=ends[0],
            )
            new = out[:, batch["input_ids"].shape[1] :]
            said += tokenizer.batch_decode(new, skip_special_tokens=True)
        return said

    sides: dict[str, Callable[[], list[str]]] = {
        "transformers, one at a time": lambda: theirs(1),
        "transformers, all at once": lambda: theirs(len(prompts)),
        "robench": ours,
    }
    tokens = sum(
        reply.tokens for reply in model.replies([Prompt(messages) for messages in prompts])
    )
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    texts = {}
    for _ in range(args.rounds):
        for name, work in sides.items():
            begin = time.perf_counter()
            texts[name] = work()
            seconds[name].append(time.perf_counter() - begin)
    rate = {name: tokens / median(found) for name, found in seconds.items()}
    same = [
        sum(a == b for a, b in zip(texts[name], texts["robench"], strict=True)) for name in sides
    ]
    record(
        f"generate: {args.model}, {args.dtype}, {len(prompts)} prompts, "
        f"at most {args.max_new_tokens} tokens",
        ["", "tokens per second", "replies as robench's"],
        [[name, rate[name], count] for name, count in zip(sides, same, strict=True)],
        f"ratio to one at a time: {rate['robench'] / rate['transformers, one at a time']:.2f}",
        f"ratio to all at once: {rate['robench'] / rate['transformers, all at once']:.2f}",
        device=args.device,
    )


if __name__ == "__main__":
    main()
