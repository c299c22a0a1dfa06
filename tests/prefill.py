"""Prefilling: the reply is started with the target. A stranger's attack, in one short file."""

from dataclasses import dataclass

from robench.types import Attempt, Prompt, user


@dataclass(frozen=True)
class Prefill:
    words: int = 3  # of the target, put into the model's mouth

    def run(self, model, behaviors, ctx):
        for behavior in behaviors:
            start = " ".join(behavior.target.split()[: self.words])
            messages = (*user(behavior.request), {"role": "assistant", "content": start})
            yield Attempt(behavior, Prompt(messages), final=True)
