"""The cells of a run, grouped by the defense that they put on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, cast

from robench.config import as_dict
from robench.identity import source_digest
from robench.methods.faults import blamed, of
from robench.methods.registry import Method, resolve
from robench.results.schema import BENIGN, HARMLESS_ROLES, Header
from robench.results.store import Cell
from robench.runs.chunks import ChunkSize
from robench.runs.run_texts import RunTexts
from robench.runs.tasks import Group
from robench.runs.variants import variants

UNVERIFIED = "reimplementation, unverified"


def groups_of(
    shared: Mapping[str, Any],
    attacks: Sequence[Method],
    defenses: Sequence[Method],
    texts: RunTexts,
    size: ChunkSize,
) -> tuple[Group, ...]:
    """Every defense and seed with its cells: the harmless requests first, then the attacks.

    Args:
        shared: what all headers have in common, `model` and `seeds` among it.
        size: of chunks.
    """
    harmless = [resolve("attack", "direct")._replace(name=BENIGN), *variants()]
    sizes = {attack.name: size.of(attack) for attack in (*harmless, *attacks)}
    return tuple(
        Group(
            defense,
            seed,
            tuple(
                (_cell(shared, attack, defense, seed, texts, sizes[attack.name]), attack)
                for attack in (*harmless, *attacks)
            ),
        )
        for defense, seed in product(defenses, shared["seeds"])
    )


def _source(method: Method) -> str:
    with blamed(*of(method)):
        return source_digest(method.instance)


def _cell(
    shared: Mapping[str, Any],
    attack: Method,
    defense: Method,
    seed: int,
    texts: RunTexts,
    chunk: int,
) -> Cell:
    role = BENIGN if attack.name == BENIGN else getattr(attack.instance, "role", "attack")
    behaviors = texts.benign if role in HARMLESS_ROLES else texts.behaviors
    header: dict[str, Any] = {
        **shared,
        "defense": defense.name,
        "defense_fields": as_dict(defense.instance),
        "defense_tier": defense.tier,
        "defense_role": getattr(defense.instance, "role", "defense"),
        "defense_source": _source(defense),
        "defense_note": UNVERIFIED if getattr(defense.instance, "unverified", False) else "",
        "attack": attack.name,
        "attack_fields": as_dict(attack.instance),
        "attack_source": _source(attack),
        "tier": attack.tier,
        "role": role,
        "seed": seed,
        "planned": [behavior.id for behavior in behaviors],
        "chunk": chunk,
    }
    return Cell(shared["model"], defense.name, attack.name, seed, cast(Header, header))
