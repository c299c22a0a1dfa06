"""A resolved method: the configured instance and its names."""

from typing import Any, Literal, NamedTuple

Kind = Literal["attack", "defense", "judge"]
KINDS: tuple[Kind, ...] = ("attack", "defense", "judge")
VERBS: dict[Kind, str] = {"attack": "run", "defense": "applied", "judge": "score"}


class Method(NamedTuple):
    """A reference that was resolved.

    kind:     attack, defense or judge
    name:     of its row or column in the tables; unique among the methods of a run
    base:     what its class is found by again: a registered name or `FILE.py:Class`
    tier:     the preset, "custom" where a field was set by hand, "external" of what was made
              outside robench
    instance: the configured object
    """

    kind: Kind
    name: str
    base: str
    tier: str
    instance: Any

    @property
    def set_names(self) -> tuple[str, ...]:
        """What `--set METHOD.FIELD=VALUE` may call it."""
        return type(self.instance).__name__, self.base, self.name
