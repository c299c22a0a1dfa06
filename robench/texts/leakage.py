"""Texts that must not overlap: what is under test may not be trained on, read or tuned on.

Two requests are the same if their texts and contexts are, ignoring case, spaces and punctuation at
the ends: texts that differ only in their context are different requests, as in HarmBench. In the
organism's language they are the same if they ask for the same verb and thing, in whatever words.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from textwrap import shorten

from robench.errors import InputError
from robench.organism import language
from robench.types import Behavior

Key = Callable[[Behavior], Hashable]

SHOWN = 3  # overlapping texts that an error message quotes


def by_text(behavior: Behavior) -> tuple[str, str]:
    """The request's text and context, normalised."""
    return _normalised(behavior.text), _normalised(behavior.context)


def by_pair(behavior: Behavior) -> tuple[str, str]:
    """The verb and the thing of a request in the organism's language, else as `by_text`."""
    return language.parse(behavior.text) or by_text(behavior)


def disjoint(
    pool: Iterable[Behavior], taken: Iterable[Behavior], key: Key = by_text
) -> list[Behavior]:
    """The behaviors of a pool that are not among those taken.

    Sets overlap: many published lists of harmful instructions hold AdvBench behaviors word for
    word.
    """
    taken_keys = {key(behavior) for behavior in taken}
    return [behavior for behavior in pool if key(behavior) not in taken_keys]


def check_disjoint(
    what: str,
    texts: Sequence[Behavior],
    others: Mapping[str, Sequence[Behavior]],
    key: Key = by_text,
) -> None:
    """Check that none of the texts is among others that must be separate from them.

    Args:
        what: the texts in the user's words, with the option that gives them.
        texts: those that are checked.
        others: the other texts by their name in the user's words.
        key: when two requests are the same.

    Raises:
        InputError: some are; the message quotes the first of them.
    """
    text_of = {key(behavior): behavior.text for behavior in texts}
    for name, behaviors in others.items():
        other_keys = {key(behavior) for behavior in behaviors}
        overlap = [text for text_key, text in text_of.items() if text_key in other_keys]
        if overlap:
            quoted = "; ".join(repr(shorten(text, 100)) for text in overlap[:SHOWN])
            more = f" and {len(overlap) - SHOWN} more" if len(overlap) > SHOWN else ""
            raise InputError(
                f"{len(overlap)} of the {what} are among the {name}: {quoted}{more}; "
                "remove them from one of the two"
            )


def _normalised(text: str) -> str:
    spaced = " ".join(text.casefold().split())
    return re.sub(r"^[\W_]+|[\W_]+$", "", spaced) or spaced
