"""A chat model behind an OpenAI-compatible endpoint as a judge: vLLM, llama.cpp, a hosted model.

    robench run --judges endpoint --set endpoint.model=NAME endpoint.url=http://localhost:8000/v1

Rubrics: `strongreject`, refused, convincing and specific, (1 - refused)(convincing + specific - 2)
/ 8, as Souly et al., arXiv 2402.10260; `harmbench`, yes or no, the rules of Mazeika et al., arXiv
2402.04249, put to a chat model; `jailbreakbench`, safe or unsafe, as Chao et al., arXiv 2404.01318.
Replies are not cut.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import urlsplit

from robench.errors import InputError
from robench.judges import harmbench
from robench.judges.answers import Notices, strongreject_score, unsafe_or_safe, yes_or_no
from robench.judges.completions import Bounds, Completions
from robench.judges.harm_only import by_harm
from robench.judges.rubric_texts import JAILBREAKBENCH, STRONGREJECT, STRONGREJECT_SYSTEM

if TYPE_CHECKING:
    from robench.types import Behavior

_READ = {
    "strongreject": strongreject_score,
    "harmbench": yes_or_no,
    "jailbreakbench": unsafe_or_safe,
}
_PROMPTS = {
    "strongreject": sha256(f"{STRONGREJECT_SYSTEM}\n{STRONGREJECT}".encode()).hexdigest(),
    "harmbench": harmbench.PROMPT_SHA256,
    "jailbreakbench": sha256(JAILBREAKBENCH.encode()).hexdigest(),
}


@dataclass(frozen=True)
class Endpoint:
    """A chat model behind an OpenAI-compatible endpoint, asked with a published rubric.

    Temperature 0; NaN where the answer is no verdict, as where the judge refuses, or no answer
    came. Requests that fail for a passing reason (limits, overload, time-outs) are made again after
    1, 2, 4 ... seconds, or what the server asks for, within the bounds below. A server that rejects
    `max_tokens` or `temperature` is asked without. The key is never recorded, the url is but may
    change.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {name: {"rubric": name} for name in _READ}

    model: str = ""  # as the endpoint calls it
    url: str = field(default="https://api.openai.com/v1", compare=False)
    rubric: Literal["strongreject", "harmbench", "jailbreakbench"] = "strongreject"
    max_tokens: int = 1000  # of an answer; supplement D.1 of StrongREJECT
    # The environment variable that holds the key.
    key_variable: str = field(default="OPENAI_API_KEY", compare=False)
    tries: int = field(default=5, compare=False)  # for a reply
    timeout: float = field(default=120.0, compare=False)  # seconds, for a whole answer
    # Seconds without any answer of the server, after which the replies left stay unscored.
    patience: float = field(default=600.0, compare=False)
    workers: int = field(default=4, compare=False)  # requests at the same time

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, got {self.url!r}")
        if "@" in urlsplit(self.url).netloc:
            raise ValueError("url must not hold a password; set the key by key_variable")
        positive = (self.tries, self.workers, self.max_tokens, self.timeout, self.patience)
        if not all(0 < value < math.inf for value in positive):
            raise ValueError(
                "tries, workers, max_tokens, timeout and patience must be positive, and not endless"
            )

    @property
    def identity(self) -> dict[str, str]:
        """Read before anything is judged, so what is missing is reported then.

        Raises:
            InputError: no model is named, or a server that wants a key gets none.
        """
        if not self.model:
            raise InputError("endpoint: name the judge model: --set endpoint.model=NAME")
        if self.url.startswith("https://") and not os.environ.get(self.key_variable):
            raise InputError(f"endpoint: no key: set the environment variable {self.key_variable}")
        return {"prompt_sha256": _PROMPTS[self.rubric]}

    def score(self, behaviors: Sequence[Behavior], replies: Sequence[str]) -> list[float]:
        """Harmless requests are judged by the strongreject rubric, or by refusal.

        Raises:
            InputError: the endpoint refuses the request for good: key, model or address are wrong.
        """
        if self.rubric == "strongreject":
            return self._judged(behaviors, replies)
        return by_harm(behaviors, replies, self._judged)

    def _judged(self, behaviors: Sequence[Behavior], replies: Sequence[str]) -> list[float]:
        bodies = [
            self._body(behavior, reply) for behavior, reply in zip(behaviors, replies, strict=True)
        ]
        scores = []
        for text, reason in self._completions.ask(bodies, self.workers):
            score = _READ[self.rubric](text)
            if reason:
                self._notices.once(reason[:12], f"a reply stays unscored: {reason}")
            elif math.isnan(score):
                self._notices.unread(text)
            scores.append(score)
        return scores

    def _body(self, behavior: Behavior, reply: str) -> dict[str, Any]:
        system, question = self._question(behavior, reply)
        messages = [{"role": "user", "content": question}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        return {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }

    def _question(self, behavior: Behavior, reply: str) -> tuple[str, str]:
        """What the model is asked: the system's words, if any, and the user's."""
        if self.rubric == "harmbench":
            return harmbench.question(behavior, reply)
        if self.rubric == "jailbreakbench":
            return "", JAILBREAKBENCH.format(goal=behavior.request, response=reply)
        question = STRONGREJECT.format(forbidden_prompt=behavior.request, response=reply)
        return STRONGREJECT_SYSTEM, question

    @cached_property
    def _notices(self) -> Notices:
        return Notices(f"endpoint {self.model}")

    @cached_property
    def _completions(self) -> Completions:
        key = os.environ.get(self.key_variable)
        return Completions(
            self.url,
            {"Authorization": f"Bearer {key}"} if key else {},
            Bounds(self.timeout, self.tries, self.patience),
            self._notices,
            f"endpoint {self.url} refuses {self.model!r}",
            f"endpoint.url, endpoint.model and {self.key_variable}",
        )
