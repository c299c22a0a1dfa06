"""From an attack's attempts to rows: the harness replies, judges and measures, never the attack."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from robench import judges
from robench.errors import Failure
from robench.methods import contract
from robench.methods.registry import Method
from robench.model.chat_model import ChatModel, Reply
from robench.results import artifacts
from robench.results.degeneration import measure
from robench.results.schema import HARMLESS_ROLES, Row, Sample
from robench.results.store import Cell
from robench.texts.refusals import refused
from robench.types import Attempt, Behavior, Context, Judge, Lengths, Prompt, user


class BrokenContract(TypeError):
    """An attack's attempts are not what an attack must yield."""


class Costed(NamedTuple):
    """An attempt, with what its cell had cost per behavior when it was made."""

    attempt: Attempt
    seconds: float
    tflop: float


def attempts_of(
    attack: Method, target: ChatModel, behaviors: Sequence[Behavior], ctx: Context
) -> list[Costed]:
    """Run an attack on some behaviors and hold it to its contract.

    Raises:
        Failure: a loss is NaN or infinite.
        BrokenContract: the attempts are not what an attack must yield.
    """
    started, before = time.perf_counter(), target.usage.tflop
    costed = []
    with tqdm(total=_steps(attack), desc=attack.name, leave=False, disable=None) as bar:
        made = attack.instance.run(target, behaviors, ctx)
        if not isinstance(made, Iterable):
            raise BrokenContract(
                f"attack {attack.name} breaks its contract: run gives {type(made).__name__}; "
                "it must yield attempts"
            )
        for attempt in made:
            if not isinstance(attempt, Attempt):
                raise BrokenContract(
                    f"attack {attack.name} breaks its contract: it yields objects of type "
                    f"{type(attempt).__name__}, not Attempts"
                )
            for loss in attempt.trace:
                if not math.isfinite(loss):
                    raise Failure(
                        f"the loss of {attempt.behavior.id} is {loss} by step {attempt.step}"
                    )
            seconds = (time.perf_counter() - started) / len(behaviors)
            tflop = (target.usage.tflop - before) / len(behaviors)
            costed.append(Costed(attempt, seconds, tflop))
            bar.update(attempt.step - bar.n)
    problems = contract.attempt_problems(behaviors, [each.attempt for each in costed])
    if problems:
        raise BrokenContract(f"attack {attack.name} breaks its contract: {'; '.join(problems)}")
    return costed


def _steps(attack: Method) -> int | None:
    """The steps of a search, for its progress bar, if the attack forecasts them."""
    if not hasattr(attack.instance, "forecast"):
        return None
    return attack.instance.forecast(Lengths(1, 1, len)).steps or None


@dataclass(frozen=True)
class Answerer:
    """What turns the attempts of a cell into rows.

    base:   the undefended model, under which replies are measured
    judges: by name
    """

    base: ChatModel
    judges: Mapping[str, Judge]

    def rows(
        self, costed: Sequence[Costed], target: ChatModel, tensors: str, cell: Cell, ctx: Context
    ) -> tuple[list[Row], bytes | None]:
        """A row per attempt, ordered by behavior, and the file of their soft prompts and edits.

        Args:
            costed: the attempts.
            target: the defended model, which replies.
            tensors: the name of that file; there is none where no attempt has any.
            ctx: whose seed draws replies.
        """
        attempts = [made.attempt for made in costed]
        behaviors = [attempt.behavior for attempt in attempts]
        replies = target.replies([attempt.prompt for attempt in attempts])
        scores = self._scores(behaviors, replies)
        samples = self._samples(attempts, target, cell, ctx)
        surprise = self._surprise(attempts, replies, target)
        keys, content = artifacts.packed_prompts([a.prompt for a in attempts], tensors)
        rows = [
            {
                **_described(attempt, target),
                "artifact": {"messages": list(attempt.prompt.messages), "tensors": keys[i]},
                "reply": replies[i].answer,
                "thought": replies[i].thought,
                "truncated": replies[i].truncated,
                "scores": scores[i],
                "samples": samples[i],
                "refused": replies[i].finished and refused(replies[i].text),
                "text": measure(replies[i].answer, surprise[i]),
                "seconds": round(seconds, 4),
                "tflop": round(tflop, 9),
            }
            for i, (attempt, seconds, tflop) in enumerate(costed)
        ]
        return sorted(rows, key=lambda row: row["behavior"]), content  # type: ignore[arg-type]

    def _scores(
        self, behaviors: Sequence[Behavior], replies: Sequence[Reply]
    ) -> list[dict[str, float | None]]:
        """What each judge says of each reply; None where it cannot judge, or has no answer."""
        answered = [i for i, reply in enumerate(replies) if reply.finished]
        asked = [behaviors[i] for i in answered]
        texts = [replies[i].text for i in answered]
        scores: list[dict[str, float | None]] = [dict.fromkeys(self.judges) for _ in replies]
        for name, judge in self.judges.items():
            given = judges.scores(name, judge, asked, texts) if asked else []
            for i, score in zip(answered, given, strict=True):
                scores[i][name] = _number(score)
        return scores

    def _samples(
        self, attempts: Sequence[Attempt], target: ChatModel, cell: Cell, ctx: Context
    ) -> list[list[Sample]]:
        """Drawn replies to each final attempt on a harmful request, with their scores.

        The noise is the behavior's and the sample's own: neither the batch nor the defense changes
        it, so cells of one seed are compared on the same numbers.
        """
        samples: list[list[Sample]] = [[] for _ in attempts]
        count = 0 if cell.header["role"] in HARMLESS_ROLES else cell.header["samples"]
        draws = [(i, j) for i, a in enumerate(attempts) if a.final for j in range(count)]
        if not draws:
            return samples
        behaviors = [attempts[i].behavior for i, _ in draws]
        generators = [ctx.rng("sample", attempts[i].behavior.id, j) for i, j in draws]
        noise = [torch.rand(target.reply_tokens, generator=rng) for rng in generators]
        replies = target.replies(
            [attempts[i].prompt for i, _ in draws],
            torch.stack(noise),
            cell.header["temperature"] or 1.0,
        )
        scores = self._scores(behaviors, replies)
        for k, (i, _) in enumerate(draws):
            reply = replies[k]
            samples[i].append(
                {
                    "reply": reply.answer,
                    "thought": reply.thought,
                    "truncated": reply.truncated,
                    "scores": scores[k],
                }
            )
        return samples

    def _surprise(
        self, attempts: Sequence[Attempt], replies: Sequence[Reply], target: ChatModel
    ) -> list[float | None]:
        """Nats per token of each answer after the plain request, under the undefended model.

        Where the prompt begins the reply, after that beginning, too; where the model thought first,
        after its thought, if both have one tokenizer.
        """
        same_weights = target.network is self.base.network
        undefended = target.undefended() if same_weights else self.base
        spoken = [i for i, reply in enumerate(replies) if reply.text.strip()]
        thoughtful = [i for i in spoken if same_weights and replies[i].ids]
        plain = [i for i in spoken if i not in thoughtful]
        prompts = [_plain(attempt) for attempt in attempts]
        losses = undefended.nll([prompts[i] for i in plain], [replies[i].text for i in plain])
        surprise: list[float | None] = [None] * len(replies)
        for i, nll in zip(plain, losses.tolist(), strict=True):
            surprise[i] = nll
        losses = undefended.nll_of_answers(
            [prompts[i] for i in thoughtful], [replies[i] for i in thoughtful]
        )
        for i, nll in zip(thoughtful, losses.tolist(), strict=True):
            surprise[i] = nll
        return surprise


def _plain(attempt: Attempt) -> Prompt:
    """The plain request, and what the attempt's prompt puts at the beginning of the reply."""
    last = attempt.prompt.messages[-1]
    begun = (last,) if last["role"] == "assistant" else ()
    return Prompt((*user(attempt.behavior.request), *begun))


def _described(attempt: Attempt, target: ChatModel) -> dict[str, Any]:
    """The fields of a row that tell the attempt and its prompt."""
    prompt, behavior = attempt.prompt, attempt.behavior
    rendered = target.chat.render(prompt.messages)
    round_trip = None
    if prompt.ids is not None:
        (ids,) = target.chat.encode([rendered])
        round_trip = ids == list(prompt.ids)
    return {
        "behavior": behavior.id,
        "category": behavior.category,
        "harmful": behavior.harmful,
        "step": attempt.step,
        "tag": attempt.tag,
        "final": attempt.final,
        "access": prompt.access,
        "prompt_sha256": sha256(rendered.encode("utf-8", "surrogatepass")).hexdigest(),
        "roundtrip_ok": round_trip,
        "loss": attempt.trace[-1] if attempt.trace else None,
        "trace": [round(loss, 6) for loss in attempt.trace] if attempt.final else [],
        "tries": attempt.tries,
        "chosen": attempt.chosen,
        "edge_of_grid": attempt.edge_of_grid,
        "gradient_norm": attempt.gradient_norm,
    }


def _number(score: float) -> float | None:
    return None if math.isnan(score) else float(score)
