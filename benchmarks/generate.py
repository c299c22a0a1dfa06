"""Greedy replies: tokens per second of `ChatModel.replies` against transformers' `generate`.

python -m benchmarks.generate [--prompts 64] [--model organism] [--shape 8b]
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from benchmarks.models import add_model_arguments, load_from_arguments
from benchmarks.recording import record
from robench import organism
from robench.model.chat_model import ChatModel
from robench.types import Prompt, user


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model = load_from_arguments(args, args.max_new_tokens)
    requests = [b.request for split in ("test", "benign") for b in organism.behaviors(split)]
    prompts = [Prompt(user(text)) for text in (requests * args.prompts)[: args.prompts]]
    sides: dict[str, Callable[[], list[str]]] = {
        "transformers, one at a time": lambda: transformers_replies(model, prompts, 1),
        "transformers, all at once": lambda: transformers_replies(model, prompts, len(prompts)),
        "robench": lambda: model.generate(prompts),
    }
    tokens = sum(reply.tokens for reply in model.replies(prompts))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    texts = {}
    for _ in range(args.rounds):
        for name, work in sides.items():
            begin = time.perf_counter()
            texts[name] = work()
            seconds[name].append(time.perf_counter() - begin)
    rate = {name: tokens / median(rounds) for name, rounds in seconds.items()}
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


@torch.no_grad()
def transformers_replies(model: ChatModel, prompts: list[Prompt], size: int) -> list[str]:
    """transformers' own replies, in batches of `size` prompts, in the order of the prompts."""
    tokenizer, replies = model.chat.tokenizer, []
    tokenizer.padding_side = "left"
    ends = model.network.generation_config.eos_token_id
    for start in range(0, len(prompts), size):
        texts = [model.chat.render(p.messages) for p in prompts[start : start + size]]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        batch = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        output = model.network.generate(
            **batch,
            max_new_tokens=model.max_new_tokens,
            do_sample=False,
            pad_token_id=ends[0] if isinstance(ends, list) else ends,
        )
        new = output[:, batch["input_ids"].shape[1] :]
        replies += tokenizer.batch_decode(new, skip_special_tokens=True)
    return replies


if __name__ == "__main__":
    main()
