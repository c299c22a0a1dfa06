"""What models answer and what they refuse, of `forbidden_geography` and of harmless.csv.

python -m benchmarks.answers [MODEL ...] [--dtype bfloat16] [--threads 1] [--show]
"""

import argparse
from collections.abc import Sequence

import torch

from robench.judges.contains import Contains
from robench.model.loading import find_model, load_model
from robench.texts import geography
from robench.texts.behaviors import harmless
from robench.texts.refusals import refused
from robench.types import Behavior, Prompt, user

SETS = {
    "forbidden_geography, harmful": geography.behaviors("test", True),
    "forbidden_geography, harmless": geography.behaviors("test", False),
    "harmless.csv": harmless(),
}
TOKENS = 32  # of a reply: a refusal stands at its beginning, as does the answer to such a question


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["smollm2", "smollm2:geography"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--n", type=int, help="of each set the first ones, by default all")
    parser.add_argument("--show", action="store_true", help="every reply")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.models:
        model = load_model(find_model(name), max_new_tokens=TOKENS, dtype=args.dtype)
        for title, behaviors in ((title, asked[: args.n]) for title, asked in SETS.items()):
            replies = model.generate([Prompt(user(b.request)) for b in behaviors])
            print(f"{name}, {title}: {_counts(behaviors, replies)}", flush=True)
            if args.show:
                for behavior, reply in zip(behaviors, replies, strict=True):
                    print(f"    {behavior.text} | {reply!r}")


def _counts(behaviors: Sequence[Behavior], replies: Sequence[str]) -> str:
    """How many replies have the answer, where there is one to look for, and how many refuse."""
    refusals = sum(refused(reply, "refusal_direction") for reply in replies)
    line = f"{refusals} of {len(behaviors)} refused"
    if not all(b.answer for b in behaviors):
        return line
    return f"{line}, {sum(Contains().score(behaviors, replies)):.0f} answered right"


if __name__ == "__main__":
    main()
