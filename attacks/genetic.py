"""Genetic search over texts: the operators on strings and the loop that several attacks share.

A member is a message with one placeholder for the request. It is read as paragraphs (apart by
blank lines) of sentences (apart by blanks behind , . ! ?). Crossover exchanges sentences, rewording
exchanges words for synonyms that did well, mutation brings in members of a reservoir. All draws
come from a generator per behavior, so that no behavior depends on those beside it.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from robench.errors import InputError
from robench.types import Attempt, Behavior, Prompt, user

PLACEHOLDER = "[REQUEST]"
REPLACED = 5  # words of a paragraph that one rewording replaces, at most (official code)

_FUNCTION_WORDS = """
    a about above after again all am an and any are as at be because been before being below
    between both but by can could did do does doing down during each few for from further had has
    have having he her here hers him his how i if in into is it its just me more most my no nor not
    now of off on once only or other our out over own same she should so some such than that the
    their them then there these they this those through to too under until up us very was we were
    what when where which while who whom why will with would you your
"""
STOPWORDS = frozenset(_FUNCTION_WORDS.split())  # neither valued nor replaced

_BLANK_LINES = re.compile(r"(\n[^\S\n]*\n\s*)")
_BEHIND_SENTENCE = re.compile(r"(?<=[,.!?])\s+")
_WORD = re.compile(rf"{re.escape(PLACEHOLDER)}|[A-Za-z]+(?:'[a-z]+)?")


class Pool(NamedTuple):
    """Prototypes: those that begin, and those that mutation draws from."""

    population: list[str]
    reservoir: list[str]


class Settings(Protocol):
    """What a search is told; an attack passes itself."""

    @property
    def steps(self) -> int: ...  # generations
    @property
    def elites(self) -> float: ...  # the share of a population that passes unchanged
    @property
    def crossover(self) -> float: ...  # p_c, of a pair to be crossed and of a word to be replaced
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
    def pool(self) -> str: ...  # JSON file of prototypes, "" = the one that ships
    @property
    def synonyms(self) -> str: ...  # file of synonyms, "" = the one that ships
    @property
    def patience(self) -> int: ...  # steps without progress that end a search, 0 = none do


# Members and a generator -> as many texts that take their place
Rewrite = Callable[[Sequence[str], torch.Generator], list[str]]


class Found(NamedTuple):
    """The best member of behavior `row` up to `step`; `last` when its search ends here."""

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
) -> Iterator[Found]:
    """Search for every behavior at once; a finding per behavior and step, from step 0.

    Args:
        pool: the first generation, and the reservoir.
        losses_of: losses (to be minimised) of the members of each behavior. It is asked once for
            every behavior and step, and never twice for the same member of a behavior.
        settings: rates and schedule.
        synonyms: word -> words that may take its place.
        generators: one per behavior.
        rewrite: what mutation does; without it, members give way to random ones of the reservoir.
    """
    rewrite = rewrite or (lambda texts, generator: drawn(texts, pool.reservoir, generator))
    populations = [_Population(list(pool.population), generator) for generator in generators]
    for step in range(settings.steps + 1):
        going = [row for row, population in enumerate(populations) if not population.done]
        if step:
            for row in going:
                populations[row].breed(step, rewrite, settings, synonyms)
        wanted = [population.unknown() for population in populations]
        for population, members, losses in zip(populations, wanted, losses_of(wanted), strict=True):
            population.known.update(zip(members, losses.tolist(), strict=True))
        for row in going:
            yield populations[row].found(row, step, settings)


def attempts(
    findings: Iterable[Found],
    behaviors: Sequence[Behavior],
    filled: Callable[[str, Behavior], Prompt],
    every: int,
) -> Iterator[Attempt]:
    """What of a search is recorded: each `every`-th step, and the last of each behavior."""
    traces: list[list[float]] = [[] for _ in behaviors]
    for row, step, text, loss, last in findings:
        traces[row].append(loss)
        if last or (step and step % every == 0):
            prompt = filled(text, behaviors[row])
            yield Attempt(behaviors[row], prompt, step, final=last, trace=tuple(traces[row]))


def filled(template: str, request: str) -> Prompt:
    """The template with the request in its place."""
    return Prompt(user(template.replace(PLACEHOLDER, request)))


class _Population:
    """The generations of one behavior."""

    def __init__(self, members: list[str], generator: torch.Generator) -> None:
        self.members = members
        self.generator = generator
        self.known: dict[str, float] = {}  # every member ever scored, and its loss
        self.words: dict[str, float] = {}
        self.best = math.inf
        self.stale = 0
        self.done = False

    def unknown(self) -> list[str]:
        return [member for member in dict.fromkeys(self.members) if member not in self.known]

    def breed(
        self,
        step: int,
        rewrite: Rewrite,
        settings: Settings,
        synonyms: Mapping[str, Sequence[str]],
    ) -> None:
        """Replace the members by the next generation, the best of this one in front."""
        members = sorted(self.members, key=self.known.__getitem__)
        scores = -torch.tensor([self.known[member] for member in members], dtype=torch.float64)
        kept = max(1, int(settings.elites * len(members)))
        generator = self.generator
        if (step - 1) % settings.cycle == 0:
            parents = [members[i] for i in roulette(scores, len(members) - kept, generator)]
            offspring = mate(parents, settings.crossover, settings.points, generator)
        else:
            self.words = valued(self.words, members, scores.tolist(), settings.words)
            offspring = [
                reword(member, self.words, synonyms, settings.crossover, generator)
                for member in members[kept:]
            ]
        self.members = members[:kept] + mutate(offspring, rewrite, settings.mutation, generator)

    def found(self, row: int, step: int, settings: Settings) -> Found:
        text = min(self.members, key=self.known.__getitem__)
        broken = any(math.isnan(self.known[member]) for member in self.members)
        loss = math.nan if broken else self.known[text]
        self.stale = 0 if loss < self.best else self.stale + 1
        self.best = loss
        patient = not settings.patience or self.stale < settings.patience
        self.done = broken or not patient or step == settings.steps
        return Found(row, step, text, loss, self.done)


def roulette(scores: Tensor, draws: int, generator: torch.Generator) -> list[int]:
    """Indices drawn with replacement, with the probabilities softmax(scores)."""
    probabilities = (scores - scores.max()).softmax(0)
    return torch.multinomial(probabilities, draws, replacement=True, generator=generator).tolist()


def mate(
    parents: Sequence[str], chance: float, points: int, generator: torch.Generator
) -> list[str]:
    """As many children as parents: consecutive pairs, crossed with a chance, otherwise copied."""
    children = list(parents)
    for i in range(0, len(parents) - 1, 2):
        if _happens(chance, generator):
            children[i : i + 2] = cross(parents[i], parents[i + 1], points, generator)
    return children


def cross(one: str, other: str, points: int, generator: torch.Generator) -> tuple[str, str]:
    """Multi-point crossover: two children, which take turns in their parents' sentences.

    Each pair of paragraphs is cut at `points` places that both have, fewer where they are short;
    a fair coin per segment says whether it changes sides. Paragraphs that only one parent has are
    dropped.

    Differs: a child that has not exactly one placeholder is refused, and its parent stays; the
    official code lets the request get lost.
    """
    children: tuple[list[str], list[str]] = ([], [])
    for a, b in zip(sentences(one), sentences(other), strict=False):
        places = min(len(a), len(b)) - 1
        cuts = sorted((torch.randperm(places, generator=generator)[:points] + 1).tolist())
        coins = torch.randint(2, (len(cuts) + 1,), generator=generator).tolist()
        mixed: tuple[list[str], list[str]] = ([], [])
        for start, stop, coin in zip([0, *cuts], [*cuts, None], coins, strict=True):
            mixed[coin].extend(a[start:stop])
            mixed[1 - coin].extend(b[start:stop])
        for child, paragraph in zip(children, mixed, strict=True):
            child.append(" ".join(paragraph))
    first, second = ("\n\n".join(child) for child in children)
    return (
        first if first.count(PLACEHOLDER) == 1 else one,
        second if second.count(PLACEHOLDER) == 1 else other,
    )


def sentences(text: str) -> list[list[str]]:
    """The sentences of each paragraph; every paragraph has at least one."""
    paragraphs = _BLANK_LINES.sub("\n\n", text.strip()).split("\n\n")
    return [_BEHIND_SENTENCE.split(paragraph) for paragraph in paragraphs]


def mutate(
    members: Sequence[str], rewrite: Rewrite, chance: float, generator: torch.Generator
) -> list[str]:
    """Rewrite members, each with a chance; one that would lose its placeholder stays as it is."""
    hits = (torch.rand(len(members), generator=generator) < chance).nonzero().flatten().tolist()
    mutated = list(members)
    if hits:
        for i, text in zip(hits, rewrite([members[i] for i in hits], generator), strict=True):
            if text.count(PLACEHOLDER) == 1:
                mutated[i] = text
    return mutated


def drawn(texts: Sequence[str], reservoir: Sequence[str], generator: torch.Generator) -> list[str]:
    """A random text of the reservoir for each: what the official code does without an API key."""
    return [reservoir[_below(len(reservoir), generator)] for _ in texts]


def valued(
    words: Mapping[str, float], members: Sequence[str], scores: Sequence[float], top: int
) -> dict[str, float]:
    """The momentum dictionary: word -> value, best first, the `top` best of them (0 = all).

    A word's value is the mean score of the members with it, halfway between that and its former
    value where it has one.
    """
    heard: dict[str, list[float]] = {}
    for member, score in zip(members, scores, strict=True):
        found = {word.lower() for word in _WORD.findall(member) if word != PLACEHOLDER}
        for word in found - STOPWORDS:
            heard.setdefault(word, []).append(score)
    values = dict(words)
    for word, seen in heard.items():
        mean = sum(seen) / len(seen)
        values[word] = (values[word] + mean) / 2 if word in values else mean
    best = sorted(values, key=lambda word: (-values[word], word))
    return {word: values[word] for word in (best[:top] if top else best)}


def reword(
    text: str,
    words: Mapping[str, float],
    synonyms: Mapping[str, Sequence[str]],
    chance: float,
    generator: torch.Generator,
) -> str:
    """Replace words, each with a chance, by a synonym drawn in proportion to its value.

    The word itself takes part; values count from the least among the candidates, and those that
    the dictionary lacks have the least. Stopwords and the placeholder stay.

    Differs: the official code replaces a word also where the chance p_c says no, and then values
    unseen synonyms at 0, the best of all scores, as these are negative.
    """
    least = min(words.values(), default=0.0)
    left = REPLACED

    def other(match: re.Match[str]) -> str:
        nonlocal left
        word = match[0].lower()
        if not left or word in STOPWORDS or word not in synonyms:
            return match[0]
        candidates = [word, *synonyms[word]]
        values = [words.get(candidate, least) for candidate in candidates]
        weights = torch.tensor([value - min(values) for value in values])
        if not weights.any() or not _happens(chance, generator):
            return match[0]
        chosen = candidates[int(torch.multinomial(weights, 1, generator=generator))]
        if chosen == word:
            return match[0]
        left -= 1
        return chosen.title() if match[0].istitle() else chosen

    parts = []
    for part in _BLANK_LINES.split(text):
        left = REPLACED
        parts.append(_WORD.sub(other, part))
    return "".join(parts)


def check_settings(settings: Settings) -> None:
    """Refuse settings out of range, and files that cannot be used.

    Raises:
        ValueError: names the setting and its range.
        InputError: names the file and what is wrong with it.
    """
    for name, least in (("steps", 1), ("population", 2), ("cycle", 1), ("every", 1)):
        if getattr(settings, name) < least:
            raise ValueError(f"{name} must be at least {least}")
    for name in ("points", "words", "patience"):
        if getattr(settings, name) < 0:
            raise ValueError(f"{name} must not be negative")
    for name in ("crossover", "mutation"):
        if not 0 <= getattr(settings, name) <= 1:
            raise ValueError(f"{name} must be in [0, 1]")
    if not 0 <= settings.elites < 1:
        raise ValueError("elites must be in [0, 1)")
    read_pool(settings.pool, settings.population)
    read_synonyms(settings.synonyms)


def files(settings: Settings) -> tuple[Path, ...]:
    """What a search depends on besides the attack's own file."""
    return Path(__file__), pool_file(settings.pool), synonyms_file(settings.synonyms)


def pool_file(path: str) -> Path:
    """The file that a field `pool` names."""
    return Path(path).expanduser() if path else Path(__file__).parent / "pool.json"


def synonyms_file(path: str) -> Path:
    """The file that a field `synonyms` names."""
    return Path(path).expanduser() if path else Path(__file__).parent / "synonyms.txt"


def read_pool(path: str, size: int) -> Pool:
    """The first `size` prototypes of a pool; the reservoir is its own, or else what is left.

    The file is JSON: {"population": [texts], "reservoir": [texts]}, each text with the placeholder
    once. "" is the pool that ships.

    Differs: the official code asks for more prototypes than members; here a short pool repeats.

    Raises:
        InputError: the file cannot be read, lacks prototypes, or one has not one placeholder.
    """
    file = pool_file(path)
    try:
        found = json.loads(_text(file, "pool"))
    except json.JSONDecodeError as error:
        raise InputError(f"the pool {file} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f'the pool {file} must be {{"population": [...], "reservoir": [...]}}')
    parts = []
    for part in ("population", "reservoir"):
        texts = found.get(part, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"the pool {file}: {part} must be a list of texts")
        for number, text in enumerate(texts, start=1):
            if text.count(PLACEHOLDER) != 1:
                raise InputError(
                    f"the pool {file}: {part} text {number} must have {PLACEHOLDER} once"
                )
        parts.append(texts)
    population, reservoir = parts
    if not population:
        raise InputError(f"the pool {file} has no population")
    reservoir = reservoir or population[size:]
    if not reservoir:
        raise InputError(f"the pool {file} has no reservoir: add one, or texts beyond {size}")
    return Pool([population[i % len(population)] for i in range(size)], reservoir)


def read_synonyms(path: str) -> dict[str, list[str]]:
    """Word -> its synonyms, from a file with a group of them per line; "" is what ships.

    Raises:
        InputError: the file cannot be read, or no line has two words.
    """
    file = synonyms_file(path)
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
