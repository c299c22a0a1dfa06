"""Texts that must not meet: what is under test may not be trained on, read or tuned on.

Two requests are the same when their texts and contexts are, case, spaces and the punctuation at
their ends aside: texts that differ only in their context are different requests, as in HarmBench.
In the organism's language they are the same when they ask for the same verb and thing, however
they are phrased.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from textwrap import shorten

from robench.errors import InputError
from robench.organism import language
from robench.types import Behavior

Key = Callable[[Behavior], Hashable]

SHOWN = 3  # overlapping texts that a message names


def by_text(behavior: Behavior) -> tuple[str, str]:
    """The request's text and context, folded."""
    return _folded(behavior.text), _folded(behavior.context)


def by_pair(behavior: Behavior) -> tuple[str, str]:
    """The verb and the thing that the organism is asked for, else as `by_text`."""
    return language.parse(behavior.text) or by_text(behavior)


def disjoint(
    pool: Iterable[Behavior], taken: Iterable[Behavior], key: Key = by_text
) -> list[Behavior]:
    """The behaviors of a pool that are none of those taken.

    Sets overlap: many published lists of harmful instructions hold AdvBench behaviors word for
    word.
    """
    known = {key(behavior) for behavior in taken}
    return [behavior for behavior in pool if key(behavior) not in known]


def check_disjoint(
    what: str,
    texts: Sequence[Behavior],
    kept_apart: Mapping[str, Sequence[Behavior]],
    key: Key = by_text,
) -> None:
    """That none of the texts is among those that are kept apart from them.

    Args:
        what: the texts in the user's words, with the option that gives them.
        kept_apart: the others, by what they are.

    Raises:
        InputError: some are; the message names the first of them.
    """
    keyed = {key(behavior): behavior.text for behavior in texts}
    for other, behaviors in kept_apart.items():
        known = {key(behavior) for behavior in behaviors}
        found = [text for same, text in keyed.items() if same in known]
        if found:
            shown = "; ".join(repr(shorten(t, 100)) for t in found[:SHOWN])
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise InputError(
                f"{len(found)} of the {what} are among the {other}: {shown}{more}; "
                "take them out of the one or of the other"
            )


def _folded(text: str) -> str:
    spaced = " ".join(text.casefold().split())
    return re.sub(r"^[\W_]+|[\W_]+$", "", spaced) or spaced
