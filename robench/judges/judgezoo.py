"""The judges of the `judgezoo` package: Llama Guard, WildGuard and a dozen more.

Beyer et al., github.com/LLM-QC/judgezoo, of AdversariaLLM, arXiv 2511.04316. It is an extra, as it
brings much along: `pip install 'robench[judgezoo]'`. The package loads its models itself and puts
them on whatever devices there are.

    robench run --judges judgezoo:llama_guard_3
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar

from robench.errors import InputError
from robench.judges.harm_only import by_harm

if TYPE_CHECKING:
    from robench.types import Behavior

NAMES = (
    "adaptive_attacks",
    "advprefix",
    "aegis_guard",
    "intention_analysis",
    "jail_judge",
    "llama_guard_3",
    "llama_guard_4",
    "md_judge",
    "pair",
    "strong_reject",
    "strong_reject_rubric",
    "wildguard",
    "xstest",
)


@dataclass(frozen=True)
class JudgeZoo:
    """A judge of the `judgezoo` package, as Llama Guard or WildGuard: its `p_harmful`.

    NaN where it gives none. Harmless requests are scored by refusal, as most of these judges look
    for harm alone.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {name: {"judge": name} for name in NAMES}

    judge: str = "wildguard"  # as `judgezoo.Judge.from_name` knows it

    @property
    def identity(self) -> dict[str, str]:
        return {"judgezoo": _version()}

    @cached_property
    def _judge(self) -> Any:
        _version()
        from judgezoo import Judge

        try:
            return Judge.from_name(self.judge)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"judgezoo {self.judge!r} cannot be loaded: {reason[0]} "
                "(a gated model needs its licence accepted and HF_TOKEN set)"
            ) from error

    def score(self, behaviors: Sequence[Behavior], replies: Sequence[str]) -> list[float]:
        return by_harm(behaviors, replies, self._harm)

    def _harm(self, behaviors: list[Behavior], replies: list[str]) -> list[float]:
        if not behaviors:
            return []
        chats = [
            [
                {"role": "user", "content": behavior.request},
                {"role": "assistant", "content": reply},
            ]
            for behavior, reply in zip(behaviors, replies, strict=True)
        ]
        harmful = self._judge(chats)["p_harmful"]
        if len(harmful) == len(chats):
            return [math.nan if p is None else float(p) for p in harmful]
        # Some of its judges leave out what they cannot parse: whose score is whose is lost.
        if len(chats) == 1:
            return [math.nan]
        return [self._harm([b], [r])[0] for b, r in zip(behaviors, replies, strict=True)]


def _version() -> str:
    """The package's version.

    Raises:
        InputError: it is not installed.
    """
    try:
        return metadata.version("judgezoo")
    except metadata.PackageNotFoundError:
        raise InputError("judgezoo is not installed: pip install 'robench[judgezoo]'") from None
