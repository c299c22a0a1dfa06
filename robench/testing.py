"""For tests of methods of your own: tiny models, and the contract that methods are held to.

from robench.testing import attack_problems, tiny

assert not attack_problems(MyAttack())
"""

from robench.methods.checks import (
    Report,
    attack_problems,
    check,
    defense_problems,
    judge_problems,
    quick,
)
from robench.methods.tiny import FAMILIES, tiny, tiny_behaviors, tiny_context

__all__ = [
    "FAMILIES",
    "Report",
    "attack_problems",
    "check",
    "defense_problems",
    "judge_problems",
    "quick",
    "tiny",
    "tiny_behaviors",
    "tiny_context",
]
