"""Genetic search over texts: the operators on strings and the loop that several attacks share.

A member is a message with one placeholder for the request. It is split into paragraphs (separated
by blank lines) of sentences (separated by spaces after , . ! ?). Crossover exchanges sentences,
rewording replaces words by synonyms that scored well, mutation brings in members of a reservoir.
All random numbers come from a generator per behavior, so no behavior depends on the others.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from robench.config import at_least, within
from robench.errors import InputError
from robench.types import Attempt, Behavior, Prompt, user

from . import wordnet

PLACEHOLDER = "[REQUEST]"
OFFICIAL_PLACEHOLDER = "[REPLACE]"
PLAIN = "plain"  # our own pool and synonyms for requests in English, which ship under that name
OFFICIAL_MARKS = ("[MODEL]", "[KEEPER]")  # names that the official code puts into older pools
MAX_REPLACED = 5  # words of a paragraph that one rewording replaces (official code)

_FUNCTION_WORDS = """
    a about above after again all am an and any are as at be because been before being below
    between both but by can could did do does doing down during each few for from further had has
    have having he her here hers him his how i if in into is it its just me more most my no nor not
    now of off on once only or other our out over own same she should so some such than that the
    their them then there these they this those through to too under until up us very was we were
    what when where which while who whom why will with would you your
"""
STOPWORDS = frozenset(_FUNCTION_WORDS.split())  # have no value and are not replaced

_BLANK_LINES = re.compile(r"(\n[^\S\n]*\n\s*)")
_AFTER_SENTENCE = re.compile(r"(?<=[,.!?])\s+")
_WORD = re.compile(rf"{re.escape(PLACEHOLDER)}|[A-Za-z]+(?:'[a-z]+)?")


class Pool(NamedTuple):
    """Prototypes: the first generation, and those that mutation draws from."""

    population: list[str]
    reservoir: list[str]


class Settings(Protocol):
    """The settings of a search: fields that an attack must have."""

    @property
    def steps(self) -> int: ...  # generations
    @property
    def elites(self) -> float: ...  # the share of a population that is kept unchanged
    @property
    def crossover(self) -> float: ...  # p_c, that a pair is crossed, and that a word is replaced
    @property
    def points(self) -> int: ...  # cuts per paragraph
    @property
    def mutation(self) -> float: ...  # p_m, per member
    @property
    def cycle(self) -> int: ...  # every cycle-th step exchanges sentences, the others words
    @property
    def words(self) -> int: ...  # kept in the dictionary, 0 = all
    @property
    def population(self) -> int: ...  # M
    @property
    def every(self) -> int: ...  # steps between recorded attempts
    @property
    def pool(self) -> str: ...  # file of prototypes, "" = the organism's
    @property
    def synonyms(self) -> str: ...  # file or WordNet's folder, "" = the organism's
    @property
    def unseen(self) -> bool: ...  # whether words give way to synonyms without a value
    @property
    def patience(self) -> int: ...  # steps without progress after which it ends, 0 = never


# Members and a generator -> as many texts that replace them
Rewrite = Callable[[Sequence[str], torch.Generator], list[str]]


class Result(NamedTuple):
    """The best member of behavior `row` after `step`; `last` if its search ends here."""

    row: int
    step: int
    text: str
    loss: float
    last: bool


def search(
    pool: Pool,
    losses_of: Callable[[Sequence[Sequence[str]]], Sequence[Tensor]],
    settings: Settings,
    synonyms: Mapping[str, Sequence[str]],
    generators: Sequence[torch.Generator],
    rewrite: Rewrite | None = None,
) -> Iterator[Result]:
    """Search for every behavior at once; a result per behavior and step, from step 0.

    Args:
        pool: the first generation, and the reservoir.
        losses_of: losses (to be minimised) of the members of each behavior. It is called once per
            step, and never twice with the same member of a behavior.
        settings: rates and schedule.
        synonyms: word -> words that may replace it.
        generators: one per behavior.
        rewrite: the mutation; by default members are replaced by random ones of the reservoir.
    """
    rewrite = rewrite or (lambda texts, generator: from_reservoir(texts, pool.reservoir, generator))
    populations = [_Population(list(pool.population), generator) for generator in generators]
    for step in range(settings.steps + 1):
        running = [row for row, population in enumerate(populations) if not population.done]
        if step:
            for row in running:
                populations[row].breed(step, rewrite, settings, synonyms)
        unscored = [population.unscored() for population in populations]
        scored = zip(populations, unscored, losses_of(unscored), strict=True)
        for population, members, losses in scored:
            population.loss_of.update(zip(members, losses.tolist(), strict=True))
        for row in running:
            yield populations[row].result(row, step, settings)


def attempts(
    results: Iterable[Result],
    behaviors: Sequence[Behavior],
    filled: Callable[[str, Behavior], Prompt],
    every: int,
) -> Iterator[Attempt]:
    """The attempts of a search: every `every`-th step, and the last one of each behavior."""
    traces: list[list[float]] = [[] for _ in behaviors]
    for row, step, text, loss, last in results:
        traces[row].append(loss)
        if last or (step and step % every == 0):
            prompt = filled(text, behaviors[row])
            yield Attempt(behaviors[row], prompt, step, final=last, trace=tuple(traces[row]))


def filled(template: str, request: str) -> Prompt:
    """The template with the request in place of the placeholder."""
    return Prompt(user(template.replace(PLACEHOLDER, request)))


class _Population:
    """The generations of one behavior.

    loss_of: every member ever scored, and its loss
    words:   the momentum dictionary
    stale:   steps without progress
    """

    def __init__(self, members: list[str], generator: torch.Generator) -> None:
        self.members = members
        self.generator = generator
        self.loss_of: dict[str, float] = {}
        self.words: dict[str, float] = {}
        self.lowest_loss = math.inf
        self.stale = 0
        self.done = False

    def unscored(self) -> list[str]:
        return [member for member in dict.fromkeys(self.members) if member not in self.loss_of]

    def breed(
        self,
        step: int,
        rewrite: Rewrite,
        settings: Settings,
        synonyms: Mapping[str, Sequence[str]],
    ) -> None:
        """Replace the members by the next generation, which begins with the best of this one."""
        members = sorted(self.members, key=self.loss_of.__getitem__)
        scores = -torch.tensor([self.loss_of[member] for member in members], dtype=torch.float64)
        elites = max(1, int(settings.elites * len(members)))
        generator = self.generator
        if (step - 1) % settings.cycle == 0:
            parents = [members[i] for i in roulette(scores, len(members) - elites, generator)]
            offspring = mate(parents, settings.crossover, settings.points, generator)
        else:
            self.words = word_values(self.words, members, scores.tolist(), settings.words)
            offspring = [
                reword(member, self.words, synonyms, settings.crossover, generator, settings.unseen)
                for member in members[elites:]
            ]
        self.members = members[:elites] + mutate(offspring, rewrite, settings.mutation, generator)

    def result(self, row: int, step: int, settings: Settings) -> Result:
        """The best member of this generation; ends the search where it is due."""
        text = min(self.members, key=self.loss_of.__getitem__)
        has_nan = any(math.isnan(self.loss_of[member]) for member in self.members)
        loss = math.nan if has_nan else self.loss_of[text]
        self.stale = 0 if loss < self.lowest_loss else self.stale + 1
        self.lowest_loss = loss
        out_of_patience = 0 < settings.patience <= self.stale
        self.done = has_nan or out_of_patience or step == settings.steps
        return Result(row, step, text, loss, self.done)


def roulette(scores: Tensor, draws: int, generator: torch.Generator) -> list[int]:
    """Indices drawn with replacement, with the probabilities softmax(scores)."""
    probabilities = (scores - scores.max()).softmax(0)
    return torch.multinomial(probabilities, draws, replacement=True, generator=generator).tolist()


def mate(
    parents: Sequence[str], chance: float, points: int, generator: torch.Generator
) -> list[str]:
    """As many children as parents: each pair crossed with probability `chance`, else copied."""
    children = list(parents)
    for i in range(0, len(parents) - 1, 2):
        if _happens(chance, generator):
            children[i : i + 2] = cross(parents[i], parents[i + 1], points, generator)
    return children


def cross(one: str, other: str, points: int, generator: torch.Generator) -> tuple[str, str]:
    """Multi-point crossover of sentences: two children.

    Each pair of paragraphs is cut after the same sentences, at `points` places or as many as there
    are; a fair coin per segment decides whether the children swap it. Paragraphs that only one
    parent has are dropped.

    Differs: a child without exactly one placeholder is rejected, and its parent kept; in the
    official code the request may get lost.
    """
    children: tuple[list[str], list[str]] = ([], [])
    for a, b in zip(sentences(one), sentences(other), strict=False):
        places = min(len(a), len(b)) - 1
        cuts = sorted((torch.randperm(places, generator=generator)[:points] + 1).tolist())
        coins = torch.randint(2, (len(cuts) + 1,), generator=generator).tolist()
        paragraphs: tuple[list[str], list[str]] = ([], [])
        for start, stop, coin in zip([0, *cuts], [*cuts, None], coins, strict=True):
            paragraphs[coin].extend(a[start:stop])
            paragraphs[1 - coin].extend(b[start:stop])
        for child, paragraph in zip(children, paragraphs, strict=True):
            child.append(" ".join(paragraph))
    first, second = ("\n\n".join(child) for child in children)
    return (
        first if first.count(PLACEHOLDER) == 1 else one,
        second if second.count(PLACEHOLDER) == 1 else other,
    )


def sentences(text: str) -> list[list[str]]:
    """The sentences of each paragraph; every paragraph has at least one."""
    paragraphs = _BLANK_LINES.sub("\n\n", text.strip()).split("\n\n")
    return [_AFTER_SENTENCE.split(paragraph) for paragraph in paragraphs]


def mutate(
    members: Sequence[str], rewrite: Rewrite, chance: float, generator: torch.Generator
) -> list[str]:
    """Rewrite members with probability `chance`; one that would lose its placeholder is kept."""
    hits = (torch.rand(len(members), generator=generator) < chance).nonzero().flatten().tolist()
    mutated = list(members)
    if hits:
        for i, text in zip(hits, rewrite([members[i] for i in hits], generator), strict=True):
            if text.count(PLACEHOLDER) == 1:
                mutated[i] = text
    return mutated


def from_reservoir(
    texts: Sequence[str], reservoir: Sequence[str], generator: torch.Generator
) -> list[str]:
    """A random text of the reservoir for each: what the official code does without an API key."""
    return [reservoir[_below(len(reservoir), generator)] for _ in texts]


def word_values(
    words: Mapping[str, float], members: Sequence[str], scores: Sequence[float], top: int
) -> dict[str, float]:
    """The momentum dictionary: word -> value, sorted, the `top` best of them (0 = all).

    A word's value is the mean score of the members that contain it, averaged with its previous
    value if it has one.
    """
    scores_of: dict[str, list[float]] = {}
    for member, score in zip(members, scores, strict=True):
        in_member = {word.lower() for word in _WORD.findall(member) if word != PLACEHOLDER}
        for word in in_member - STOPWORDS:
            scores_of.setdefault(word, []).append(score)
    values = dict(words)
    for word, word_scores in scores_of.items():
        mean = sum(word_scores) / len(word_scores)
        values[word] = (values[word] + mean) / 2 if word in values else mean
    best = sorted(values, key=lambda word: (-values[word], word))
    return {word: values[word] for word in (best[:top] if top else best)}


def reword(
    text: str,
    words: Mapping[str, float],
    synonyms: Mapping[str, Sequence[str]],
    chance: float,
    generator: torch.Generator,
    unseen: bool = False,
) -> str:
    """Replace words, each with probability `chance`, by synonyms drawn in proportion to value.

    The word itself is a candidate. Values are measured from the lowest of the candidates; those
    that are not in the dictionary have its lowest value. Stopwords and the placeholder are kept.

    With `unseen`, as in the official code and not in the paper, the other words are replaced, too,
    and those that are not in the dictionary have the value 0, the best of all, as scores are
    negative: that is how words come in that no member has.
    """
    lowest = min(words.values(), default=0.0)
    remaining = MAX_REPLACED

    def replacement(match: re.Match[str]) -> str:
        nonlocal remaining
        word = match[0].lower()
        if not remaining or word in STOPWORDS or word not in synonyms:
            return match[0]
        candidates = [word, *synonyms[word]]
        weights = _weights(candidates, words, lowest)
        if (unseen or weights.any()) and not _happens(chance, generator):
            if not unseen:
                return match[0]
            weights = _weights(candidates, words, 0.0)
        if not weights.any():
            return match[0]
        synonym = candidates[int(torch.multinomial(weights, 1, generator=generator))]
        if synonym == word:
            return match[0]
        remaining -= 1
        return synonym.title() if match[0].istitle() else synonym

    parts = []
    for part in _BLANK_LINES.split(text):
        remaining = MAX_REPLACED
        parts.append(_WORD.sub(replacement, part))
    return "".join(parts)


def _weights(candidates: Sequence[str], words: Mapping[str, float], default: float) -> Tensor:
    """The candidates' values, measured from the lowest of them."""
    values = [words.get(candidate, default) for candidate in candidates]
    return torch.tensor([value - min(values) for value in values])


def check_settings(settings: Settings) -> None:
    """Check the ranges of the settings and that the files can be used.

    Raises:
        ValueError: names the setting and its range.
        InputError: names the file and its fault.
    """
    at_least(settings, 1, "steps", "cycle", "every")
    at_least(settings, 2, "population")
    at_least(settings, 0, "points", "words", "patience")
    within(settings, "[0, 1]", "crossover", "mutation")
    within(settings, "[0, 1)", "elites")
    read_pool(settings.pool, settings.population)
    read_synonyms(settings.synonyms)


def unsuited(settings: Settings, behaviors: Sequence[Behavior], name: str) -> str:
    """Why a search cannot work on these behaviors, as the end of a sentence; "" where it can.

    The data that ship are written for the organism. Elsewhere they make another attack, and a much
    weaker one than the published.
    """
    if problem := unsuited_pool(settings.pool, behaviors, name):
        return problem
    if settings.cycle > 1 and not settings.synonyms and not _of_the_organism(behaviors):
        return (
            "has no synonyms but the built-in model's: give the folder of WordNet's files that "
            f"nltk.download('wordnet') fills, with --set {name}.synonyms=FOLDER, or with "
            f"{name}.synonyms={PLAIN} our own, a weaker attack than the published one"
        )
    return ""


def unsuited_pool(pool: str, behaviors: Sequence[Behavior], name: str) -> str:
    """Why these behaviors cannot be put into a pool's prototypes, as `unsuited` says it."""
    if pool or _of_the_organism(behaviors):
        return ""
    return (
        "has no prompts but the built-in model's: give the authors' assets/prompt_group.pth of "
        "github.com/SheltonLiu-N/AutoDAN as JSON, or a file of your own, with "
        f"--set {name}.pool=FILE, or with {name}.pool={PLAIN} our own, a weaker attack than the "
        "published one"
    )


def _of_the_organism(behaviors: Sequence[Behavior]) -> bool:
    """Whether all behaviors are of the kind that the pool that ships is written for."""
    request = re.compile(json.loads(pool_file("").read_text("utf-8"))["requests"], re.IGNORECASE)
    return all(request.search(behavior.text) for behavior in behaviors)


def files(settings: Settings) -> tuple[Path, ...]:
    """The data files that a search depends on."""
    synonyms = synonyms_file(settings.synonyms)
    return pool_file(settings.pool), *(wordnet.files(synonyms) if synonyms.is_dir() else [synonyms])


def pool_file(path: str) -> Path:
    """The file that a field `pool` names."""
    return _data_file(path, "pool", ".json")


def synonyms_file(path: str) -> Path:
    """The file or folder that a field `synonyms` names."""
    return _data_file(path, "synonyms", ".txt")


def _data_file(path: str, stem: str, ending: str) -> Path:
    """The organism's file for "", the one in plain English for `plain`, else the user's."""
    if path in ("", PLAIN):
        return Path(__file__).parent / f"{stem}{path and '_' + path}{ending}"
    return Path(path).expanduser()


def read_pool(path: str, size: int) -> Pool:
    """The first `size` prototypes of a pool; the reservoir is its own, or the other prototypes.

    The file is JSON: a list of texts with [REPLACE] for the request, which is what the official
    file holds, or {"population": [texts], "reservoir": [texts]}, each text with [REQUEST] once. ""
    is the pool that ships.

    Differs: the official code needs more prototypes than members, here a short pool of ours
    repeats; and texts of an official pool that do not have [REPLACE] once are left out (one of
    500), because crossover could lose or multiply the request.

    Raises:
        InputError: the file cannot be read, lacks prototypes, or one of them does not have exactly
            one placeholder.
    """
    file = pool_file(path)
    content = _content(file)
    if isinstance(content, list):
        return _official(content, file, size)
    if not isinstance(content, dict):
        raise InputError(
            f'the pool {file} must be a list or {{"population": [...], "reservoir": [...]}}'
        )
    population, reservoir = (
        _prototypes(content.get(part, []), f"the pool {file}: {part}")
        for part in ("population", "reservoir")
    )
    if not population:
        raise InputError(f"the pool {file} has no population")
    reservoir = reservoir or population[size:]
    if not reservoir:
        raise InputError(
            f"the pool {file} has no reservoir: add one, or more than {size} texts of population"
        )
    return Pool([population[i % len(population)] for i in range(size)], reservoir)


def _content(file: Path) -> Any:
    if file.suffix == ".pth":
        raise InputError(
            f"the pool {file} is pickled, which is never read here: save it as JSON, as "
            "docs/real-models.md shows"
        )
    try:
        return json.loads(_text(file, "pool"))
    except json.JSONDecodeError as error:
        raise InputError(f"the pool {file} is not JSON: {error}") from None


def _official(texts: Sequence[Any], file: Path, size: int) -> Pool:
    """A pool of the official format: the first `size` texts, and the others as the reservoir."""
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"the pool {file} must be a list of texts")
    for mark in OFFICIAL_MARKS:
        if any(mark in text for text in texts):
            raise InputError(f"the pool {file} has {mark}: put the name there that it stands for")
    usable = [
        text.replace(OFFICIAL_PLACEHOLDER, PLACEHOLDER)
        for text in texts
        if text.count(OFFICIAL_PLACEHOLDER) == 1
    ]
    if len(usable) <= size:
        raise InputError(
            f"the pool {file} has {len(usable)} texts with {OFFICIAL_PLACEHOLDER} once, and a "
            f"population of {size} needs more: give a larger pool or a smaller population"
        )
    return Pool(usable[:size], usable[size:])


def _prototypes(texts: Any, what: str) -> list[str]:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{what} must be a list of texts")
    for number, text in enumerate(texts, start=1):
        if text.count(PLACEHOLDER) != 1:
            raise InputError(f"{what} text {number} must have {PLACEHOLDER} once")
    return texts


def read_synonyms(path: str) -> Mapping[str, Sequence[str]]:
    """Word -> its synonyms; "" is the list that ships.

    Args:
        path: a file with a group of synonyms per line, or a folder with WordNet's files.

    Raises:
        InputError: the file or folder cannot be read, or no line has two words.
    """
    file = synonyms_file(path)
    if file.is_dir():
        return wordnet.read(file)
    table: dict[str, list[str]] = {}
    for line in _text(file, "synonyms").lower().splitlines():
        group = line.split()
        for word in group:
            others = table.setdefault(word, [])
            others += [o for o in group if o != word and o not in others]
    if not any(table.values()):
        raise InputError(f"the synonyms {file} have no line of two words")
    return table


def _text(file: Path, what: str) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"the {what} {file} is not UTF-8 text: byte {error.start}") from None
    except OSError as error:
        raise InputError(f"cannot read the {what} {file}: {error.strerror}") from None


def _happens(chance: float, generator: torch.Generator) -> bool:
    return bool(torch.rand(1, generator=generator) < chance)


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (1,), generator=generator))
