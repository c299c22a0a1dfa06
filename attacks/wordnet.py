"""Synonyms from WordNet's database files (Miller, 1995), as Princeton and nltk distribute them.

A word's synonyms are the lemmas of all synsets of its base forms, as nltk's `wordnet.synsets` finds
them: the word itself, the forms that WordNet lists as irregular, else those that its rules of
detachment give.

Differs: the rules are applied once, and a lemma of several words has spaces, not underscores.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from robench.errors import InputError

# Of each part of speech the endings that are replaced to get to a base form: WordNet's morphy(7)
ENDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "noun": (
        ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"),
        ("shes", "sh"), ("men", "man"), ("ies", "y"),
    ),
    "verb": (
        ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"),
        ("ing", ""),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip
_MARKER = re.compile(r"\(\w+\)$")  # of an adjective's syntax, as in "galore(ip)"


def files(folder: Path) -> tuple[Path, ...]:
    """The files of the database that are read."""
    names = [f"data.{kind}" for kind in ENDINGS] + [f"{kind}.exc" for kind in ENDINGS]
    return tuple(folder / name for name in names)


class WordNet(Mapping[str, list[str]]):
    """Word -> its synonyms, sorted, for every word of the database and its inflected forms.

    Iteration gives base forms alone.
    """

    def __init__(
        self,
        groups: Mapping[str, Mapping[str, set[str]]],
        irregular: Mapping[str, Mapping[str, list[str]]],
    ) -> None:
        """
        Args:
            groups: of each part of speech, base form -> all lemmas of its synsets.
            irregular: of each part of speech, inflected form -> base forms.
        """
        self.groups, self.irregular = groups, irregular

    def __getitem__(self, word: str) -> list[str]:
        lemmas = {
            lemma
            for kind, groups in self.groups.items()
            for form in self._base_forms(word, kind)
            for lemma in groups[form]
        }
        if not lemmas:
            raise KeyError(word)
        return sorted(lemmas - {word})

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({word for groups in self.groups.values() for word in groups}))

    def __len__(self) -> int:
        return len({word for groups in self.groups.values() for word in groups})

    def _base_forms(self, word: str, kind: str) -> list[str]:
        """The forms of a word that the database has as this part of speech."""
        forms = self.irregular[kind].get(word) or [
            word[: -len(ending)] + base for ending, base in ENDINGS[kind] if word.endswith(ending)
        ]
        return [form for form in dict.fromkeys([word, *forms]) if form in self.groups[kind]]


@lru_cache(1)
def read(folder: Path) -> WordNet:
    """The database in a folder.

    Raises:
        InputError: a file of it is missing or cannot be read.
    """
    try:
        groups = {kind: _groups(folder / f"data.{kind}") for kind in ENDINGS}
        irregular = {kind: _irregular(folder / f"{kind}.exc") for kind in ENDINGS}
    except (OSError, ValueError, IndexError) as error:
        raise InputError(
            f"the synonyms {folder} are not WordNet's database files (data.noun, noun.exc, ...), "
            f"as nltk's corpora/wordnet has them: {error}"
        ) from None
    return WordNet(groups, irregular)


def _groups(file: Path) -> dict[str, set[str]]:
    """Word -> all lemmas of the synsets of a data file that have it, in lower case."""
    groups: dict[str, set[str]] = {}
    for line in file.read_text("utf-8").splitlines():
        if line.startswith(" "):  # the licence
            continue
        fields = line.split()
        count = int(fields[3], 16)
        words = fields[4 : 4 + 2 * count : 2]
        lemmas = {_MARKER.sub("", word).replace("_", " ").lower() for word in words}
        for lemma in lemmas:
            groups.setdefault(lemma, set()).update(lemmas)
    return groups


def _irregular(file: Path) -> dict[str, list[str]]:
    """Inflected form -> base forms."""
    rows = [line.split() for line in file.read_text("utf-8").splitlines() if line.strip()]
    return {row[0]: row[1:] for row in rows}
