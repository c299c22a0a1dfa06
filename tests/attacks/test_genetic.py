"""The genetic operators and the search, against slow plain references (7.3)."""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from robench.errors import InputError
from robench.identity import source_digest
from robench.methods.registry import load_class

AutoDAN = load_class("attack", "autodan")
genetic = __import__(AutoDAN.__module__, fromlist=["genetic"]).genetic
ONE = "A one, a two. A three!\n\nA four? [REQUEST] A five."
OTHER = "B one, b two. B three!\n\nB four? [REQUEST] B five."


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_sentences(*texts: str) -> Counter:
    return Counter(
        s for t in texts for p in t.split("\n\n") for s in re.split(r"(?<=[,.!?])\s+", p)
    )


@dataclass(frozen=True)
class Settings:
    steps: int = 8
    elites: float = 0.1
    crossover: float = 0.5
    points: int = 5
    mutation: float = 0.0
    cycle: int = 1
    words: int = 0
    unseen: bool = False
    patience: int = 0


def value(text: str) -> float:
    """An artificial loss of a text."""
    return sum(ord(c) * (i + 1) for i, c in enumerate(text)) % 997 / 997


class Losses:
    """Artificial losses; records the texts that were scored."""

    def __init__(self, of=value):
        self.of = of
        self.scored: list[list[str]] = []

    def __call__(self, members):
        self.scored += [list(texts) for texts in members]
        return [torch.tensor([self.of(t) for t in texts]) for texts in members]


def run(settings, losses=None, seeds=(0,), size=12, synonyms=None, population=None):
    texts = population or [f"Say {i}. Then {i * 7}. Well {i * 3}. [REQUEST]" for i in range(size)]
    pool = genetic.Pool(texts, [f"New {i}. [REQUEST]" for i in range(5)])
    generators = [rng(seed) for seed in seeds]
    return list(genetic.search(pool, losses or Losses(), settings, synonyms or {}, generators))


# 19. Crossover


@pytest.mark.parametrize("points", [1, 2, 5])
def test_crossover_keeps_the_sentences_of_the_parents(points):
    seen = set()
    for seed in range(40):
        children = genetic.cross(ONE, OTHER, points, rng(seed))
        assert all_sentences(*children) == all_sentences(ONE, OTHER)
        for child in children:
            assert child.count("[REQUEST]") == 1
            # aligned: the sentence at each place is one parent's sentence at that place
            rows = zip(*map(genetic.sentences, (child, ONE, OTHER)), strict=True)
            assert all(c in (a, b) for row in rows for c, a, b in zip(*row, strict=True))
        seen.add(children)
    assert len(seen) > 5
    if points == 1:  # one cut per paragraph: at most one change of parents
        for child in (c for children in seen for c in children):
            for paragraph in genetic.sentences(child):
                sides = ["a" in s.lower().split() for s in paragraph if s != "[REQUEST]"]
                assert sum(x != y for x, y in pairwise(sides)) <= 1


def test_crossover_without_points_returns_the_parents_paragraph_by_paragraph():
    results = {genetic.cross("A. a. [REQUEST]", "B. [REQUEST]", 0, rng(s)) for s in range(20)}
    assert results == {("A. a. [REQUEST]", "B. [REQUEST]"), ("B. [REQUEST]", "A. a. [REQUEST]")}


def test_short_paragraphs_are_crossed_without_failing():
    for one, other in (("[REQUEST]", "Well [REQUEST]"), ("A.\n\n[REQUEST]", "B. C.\n\n[REQUEST]")):
        children = {genetic.cross(one, other, 5, rng(s)) for s in range(20)}
        assert len(children) > 1
        for pair in children:
            assert all_sentences(*pair) == all_sentences(one, other)


def test_short_texts_are_really_crossed():
    """Two sentences are enough; a range(1, points) of cuts would leave them as they are."""
    results = {genetic.cross("A. [REQUEST]", "B. C. [REQUEST]", 5, rng(s)) for s in range(40)}
    assert ("A. C. [REQUEST]", "B. [REQUEST]") in results


def test_a_child_without_one_placeholder_is_rejected():
    one, other = "[REQUEST] A. a.", "B. b. [REQUEST]"
    pairs = set()
    for seed in range(40):
        children = genetic.cross(one, other, 5, rng(seed))
        assert all(child.count("[REQUEST]") == 1 for child in children)
        pairs.add(children)
    assert (one, other) in pairs
    # a paragraph that only one parent has is dropped, and the request must not go with it
    assert genetic.cross("A.\n\n[REQUEST]", "[REQUEST]", 0, rng(1)) in {
        ("A.\n\n[REQUEST]", "[REQUEST]"), ("[REQUEST]", "[REQUEST]"),
    }  # fmt: skip


def test_pairs_are_crossed_with_the_chance_and_the_odd_one_is_copied():
    parents = [f"{c} one. {c} two. [REQUEST]" for c in "ABCDE"]
    assert genetic.mate(parents, 0.0, 5, rng()) == parents
    crossed = [genetic.mate(parents, 1.0, 5, rng(s)) for s in range(10)]
    assert all(children[4] == parents[4] for children in crossed)
    assert any(children[:2] != parents[:2] for children in crossed)


# 20. Roulette


def test_roulette_frequencies_are_the_softmax():
    scores = torch.tensor([-1.0, -2.0, -0.5, -4.0])
    draws = 20_000
    counts = torch.bincount(torch.tensor(genetic.roulette(scores, draws, rng())), minlength=4)
    p = scores.exp() / scores.exp().sum()
    assert ((counts - draws * p).abs() < 4 * (draws * p * (1 - p)).sqrt()).all()


@pytest.mark.parametrize("shift", [0.0, 3.0, -2000.0])
def test_roulette_does_not_depend_on_a_shift_or_underflow(shift):
    scores = torch.tensor([-1.0, -2.0, -0.5, -4.0], dtype=torch.float64)
    assert genetic.roulette(scores + shift, 100, rng()) == genetic.roulette(scores, 100, rng())
    assert not (scores - 2000).exp().any()  # what a plain exponential would draw from


# 21, 22. Elites, memory


@pytest.mark.parametrize("cycle", [1, 3])
def test_the_best_never_gets_worse(cycle):
    results = run(Settings(mutation=0.3, cycle=cycle), seeds=(0, 1))
    for row in (0, 1):
        losses = [f.loss for f in results if f.row == row]
        assert losses == sorted(losses, reverse=True)
        assert [f.last for f in results if f.row == row] == [False] * 8 + [True]


def test_elites_pass_unchanged():
    population = genetic._Population([f"Say {i}. [REQUEST]" for i in range(20)], rng())
    population.loss_of = {member: value(member) for member in population.members}
    best = sorted(population.members, key=value)[:4]
    new = lambda texts, _: ["New. [REQUEST]"] * len(texts)  # noqa: E731
    population.breed(1, new, Settings(elites=0.2, mutation=1.0), {})
    assert population.members == best + ["New. [REQUEST]"] * 16


def test_without_crossover_and_mutation_the_population_becomes_copies():
    losses = Losses()
    run(Settings(steps=60, crossover=0.0, elites=0.1), losses, size=8)
    assert sum(map(len, losses.scored)) == 8  # nothing new is ever scored
    population = genetic._Population([f"{i}. [REQUEST]" for i in range(8)], rng())
    population.loss_of = {member: float(i) for i, member in enumerate(population.members)}
    for step in range(1, 60):
        population.breed(step, [], Settings(crossover=0.0), {})
    assert set(population.members) == {"0. [REQUEST]"}


def test_a_member_is_scored_once_and_remembered_right():
    losses = Losses()
    results = run(Settings(mutation=0.2), losses, seeds=(0, 1))
    for row in (0, 1):
        scored = [text for texts in losses.scored[row::2] for text in texts]
        assert len(scored) == len(set(scored))
        assert len(scored) < 12 * 9
    for f in results:
        assert f.loss == pytest.approx(value(f.text))
        assert f.loss == pytest.approx(
            min(value(t) for ts in losses.scored[f.row : 2 * f.step + 2 : 2] for t in ts)
        )


def test_rows_do_not_depend_on_each_other():
    together = run(Settings(mutation=0.2, cycle=2), seeds=(3, 4, 5))
    alone = run(Settings(mutation=0.2, cycle=2), seeds=(4,))
    assert [f[1:] for f in together if f.row == 1] == [f[1:] for f in alone]


def test_patience_ends_a_search_without_progress():
    losses = Losses()
    texts = [f"{i}. [REQUEST]" for i in range(6)]
    results = run(Settings(crossover=0.0, patience=3), losses, population=texts)
    assert [f.step for f in results] == [0, 1, 2, 3]
    assert results[-1].last
    assert len(run(Settings(crossover=0.0), population=texts)) == 9


def test_a_loss_that_is_nan_ends_the_search_and_is_reported():
    results = run(Settings(), Losses(lambda text: math.nan))
    assert len(results) == 1
    assert results[0].last
    assert math.isnan(results[0].loss)


def test_mutation_takes_from_the_reservoir_with_its_chance():
    members = [f"m{i} [REQUEST]" for i in range(10_000)]
    reservoir = ["r1 [REQUEST]", "r2 [REQUEST]"]

    def draw(texts, generator):
        return genetic.from_reservoir(texts, reservoir, generator)

    mutated = genetic.mutate(members, draw, 0.1, rng())
    hits = Counter(new for old, new in zip(members, mutated, strict=True) if new != old)
    assert set(hits) == set(reservoir)
    assert abs(sum(hits.values()) - 1000) < 4 * math.sqrt(900)
    assert abs(hits[reservoir[0]] - hits[reservoir[1]]) < 4 * math.sqrt(1000)
    assert genetic.mutate(members, draw, 0.0, rng()) == members


def test_a_rewriting_that_loses_or_doubles_the_placeholder_is_rejected():
    texts = ["keeps [REQUEST]", "loses [REQUEST]", "doubles [REQUEST]"]
    new = {texts[0]: "new [REQUEST]", texts[1]: "new", texts[2]: "[REQUEST] [REQUEST]"}
    mutated = genetic.mutate(texts, lambda hit, _: [new[text] for text in hit], 1.0, rng())
    assert mutated == ["new [REQUEST]", *texts[1:]]


# 23. Words


def test_the_dictionary_of_words_by_hand():
    members = ["The calm pupil, the [REQUEST]", "A Calm TUTOR. REQUEST me: [REQUEST]"]
    first = genetic.word_values({}, members, [-1.0, -3.0], 0)
    assert first == {"pupil": -1.0, "calm": -2.0, "tutor": -3.0, "request": -3.0}
    second = genetic.word_values(first, ["calm calm tale [REQUEST]"], [-1.0], 0)
    assert second == {"pupil": -1.0, "tale": -1.0, "calm": -1.5, "tutor": -3.0, "request": -3.0}
    assert list(genetic.word_values(first, ["calm tale"], [-1.0], 3)) == ["pupil", "tale", "calm"]


WORDS = {"calm": -3.0, "quiet": -1.0, "still": -2.0, "tale": -4.0}
TABLE = {"calm": ["quiet", "still", "serene"], "the": ["calm"], "request": ["calm"]}


def test_synonyms_are_drawn_in_proportion_to_their_value():
    draws = 3000
    generator = rng()
    counts = Counter(genetic.reword("calm", WORDS, TABLE, 1.0, generator) for _ in range(draws))
    weights = {"calm": 1, "quiet": 3, "still": 2}  # value - lowest; an unseen one has the lowest
    for word, weight in weights.items():
        p = weight / 6
        assert abs(counts[word] - draws * p) < 4 * math.sqrt(draws * p * (1 - p))
    assert counts["serene"] == 0


def test_rewording_keeps_everything_else():
    text = 'The  "calm," the calm\'s [REQUEST]\n\n  Calm CALM; calmer.'
    table = {"calm": ["quiet"]}
    words = {"calm": -2.0, "quiet": -1.0}
    done = genetic.reword(text, words, table, 1.0, rng())
    assert done == 'The  "quiet," the calm\'s [REQUEST]\n\n  Quiet quiet; calmer.'
    assert genetic.reword("the [REQUEST]", WORDS, TABLE, 1.0, rng()) == "the [REQUEST]"
    assert genetic.reword("calm", words, {}, 1.0, rng()) == "calm"


def test_at_most_five_words_of_a_paragraph_change():
    text = f"{'calm ' * 8}\n\n{'calm ' * 3}"
    done = genetic.reword(text, {"calm": -2.0, "quiet": -1.0}, {"calm": ["quiet"]}, 1.0, rng())
    assert [p.count("quiet") for p in done.split("\n\n")] == [5, 3]


def official_reword(text, words, synonyms, chance, generator):
    """Both branches replace, as in the official code; they differ in the value of unseen words."""
    done = []
    for word in text.split():
        gate = bool(torch.rand(1, generator=generator) < chance)
        unseen = min(words.values()) if gate else 0.0
        scores = {s: words.get(s, unseen) for s in (word, *synonyms.get(word, ()))}
        weights = torch.tensor([s - min(scores.values()) for s in scores.values()])
        drawn = int(torch.multinomial(weights, 1, generator=generator)) if weights.any() else 0
        done.append([*scores][drawn])
    return " ".join(done)


def test_the_chance_decides_on_replacement_unlike_in_the_official_code():
    text = " ".join(["calm"] * 400)
    ours = [genetic.reword("calm", WORDS, TABLE, 0.5, rng(s)) != "calm" for s in range(400)]
    assert abs(sum(ours) - 400 * 0.5 * 5 / 6) < 4 * math.sqrt(400 * 0.25)
    assert genetic.reword("calm", WORDS, TABLE, 0.0, rng()) == "calm"
    official = official_reword(text, WORDS, TABLE, 0.0, rng()).split()
    assert official.count("calm") == 0  # the worst of the candidates is never drawn
    assert Counter(official).most_common(1)[0][0] == "serene"  # and unseen words count as best


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_with_unseen_words_the_official_code_is_followed(chance):
    """Words that the coin spares give way to what no member has, which alone brings in new ones."""
    words, synonyms = {"calm": -2.0, "quiet": -1.0}, {"calm": ["quiet", "serene"]}
    new = 0
    for seed in range(200):
        ours = genetic.reword("calm calm calm", words, synonyms, chance, rng(seed), unseen=True)
        assert ours == official_reword("calm calm calm", words, synonyms, chance, rng(seed))
        new += ours.count("serene")
        assert "serene" not in genetic.reword("calm calm calm", words, synonyms, chance, rng(seed))
    assert (new > 100) is (chance < 1)
    chosen = {p: AutoDAN(**AutoDAN.presets[p]).unseen for p in AutoDAN.presets}
    assert chosen == {"paper": False, "official": True, "harmbench": False, "demo": False}


def test_rewording_steps_are_between_crossover_steps():
    """With cycle 3, steps 1, 4, 7 exchange sentences and the others words."""
    kinds = []
    population = genetic._Population(
        ["calm a. [REQUEST]", "quiet b. [REQUEST]", "c. [REQUEST]"], rng()
    )
    for step in range(1, 8):
        population.loss_of = {m: value(m) for m in population.members}
        population.words = {}
        population.breed(step, [], Settings(cycle=3), {})
        kinds.append("words" if population.words else "sentences")
    assert kinds == ["sentences", "words", "words"] * 2 + ["sentences"]


# Files


def test_the_shipped_pool_is_valid():
    for preset in ("paper", "official", "harmbench", "demo"):
        attack = AutoDAN(**AutoDAN.presets[preset])
        pool = genetic.read_pool("", attack.population)
        assert len(pool.population) == attack.population
        assert not set(pool.population) & set(pool.reservoir)
        texts = [*pool.population, *pool.reservoir]
        assert all(text.count("[REQUEST]") == 1 and text == text.strip() for text in texts)
    assert len(set(genetic.read_pool("", 64).population)) == 64


def test_the_shipped_synonyms_are_valid():
    table = genetic.read_synonyms("")
    assert len(table) > 50
    for word, others in table.items():
        assert word.isalpha() and word not in genetic.STOPWORDS
        assert all(word in table[other] for other in others)


def test_the_reservoir_is_the_pools_own_or_begins_where_the_population_ends(tmp_path):
    file = tmp_path / "pool.json"
    texts = [f"{i} [REQUEST]" for i in range(5)]
    file.write_text(json.dumps({"population": texts, "reservoir": ["r [REQUEST]"]}))
    assert genetic.read_pool(str(file), 3) == (texts[:3], ["r [REQUEST]"])
    assert genetic.read_pool(str(file), 7) == ([*texts, *texts[:2]], ["r [REQUEST]"])
    file.write_text(json.dumps({"population": texts}))
    assert genetic.read_pool(str(file), 3) == (texts[:3], texts[3:])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the pool"),
        ("", "is not JSON"),
        ("[]", "has 0 texts"),
        ("3", "must be a list or"),
        ('{"population": []}', "has no population"),
        ('{"population": ["a"]}', r"population text 1 must have \[REQUEST\] once"),
        ('{"population": ["[REQUEST] [REQUEST]"]}', "once"),
        ('{"population": "[REQUEST]"}', "list of texts"),
        ('{"population": ["a [REQUEST]"]}', "has no reservoir"),
        ('{"population": ["a [REQUEST]"], "reservoir": ["b"]}', "reservoir text 1"),
    ],
)
def test_a_bad_pool_is_reported_in_one_line(text, message, tmp_path):
    file = tmp_path / "pool.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        AutoDAN(pool=str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "message"), [(None, "cannot read"), ("one\ntwo", "two words")])
def test_bad_synonyms_are_reported_in_one_line(text, message, tmp_path):
    file = tmp_path / "synonyms.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=message):
        replace(AutoDAN(), synonyms=str(file))


# Pools of the official format, and WordNet


NEUTRAL = Path(__file__).parent / "neutral_pool.json"


def test_a_pool_of_the_official_format(tmp_path):
    """A list of texts of several paragraphs: the first are the population, the others mutate it."""
    texts = json.loads(NEUTRAL.read_text("utf-8"))
    twice = texts[1].replace("[REPLACE]", "[REPLACE] [REPLACE]")
    listed = [texts[0], twice, *texts[1:]]
    file = tmp_path / "prompt_group.json"
    file.write_text(json.dumps(listed))
    pool = genetic.read_pool(str(file), 8)
    ours = [text.replace("[REPLACE]", "[REQUEST]") for text in texts]
    assert pool.population == ours[:8] and pool.reservoir == ours[8:]
    assert all(len(genetic.sentences(text)) == 2 for text in pool.population)
    assert genetic.filled(ours[0], "Why?").messages[0]["content"] == texts[0].replace(
        "[REPLACE]", "Why?"
    )


@pytest.mark.parametrize(
    ("texts", "wrong"),
    [
        (["[REPLACE]"] * 4, "4 texts with .REPLACE. once, and a population of 4 needs more"),
        (["I am [MODEL]. [REPLACE]"] * 9, r"has \[MODEL\]: put the name there"),
        (["By [KEEPER]. [REPLACE]"] * 9, r"has \[KEEPER\]: put the name there"),
        (["[REPLACE]", 3], "must be a list of texts"),
    ],
)
def test_wrong_official_pools_are_reported(texts, wrong, tmp_path):
    file = tmp_path / "pool.json"
    file.write_text(json.dumps(texts))
    with pytest.raises(InputError, match=wrong):
        genetic.read_pool(str(file), 4)


def test_a_pickled_pool_is_not_read(tmp_path):
    file = tmp_path / "prompt_group.pth"
    torch.save(["[REPLACE]"] * 9, file)
    with pytest.raises(InputError, match="is pickled, which is never read here: save it as JSON"):
        genetic.read_pool(str(file), 4)


def wordnet_folder(folder: Path) -> Path:
    """Five synsets of our own in the format of WordNet's database."""
    lines = {
        "data.noun": [
            "  1 This line is a licence.",
            "00000001 10 n 03 answer 0 reply 1 response 0 001 @ 00000002 n 0000 | words",
            "00000002 10 n 02 answer 0 solution 0 000 | of a problem",
            "00000003 10 n 01 goose 0 000 | a bird",
        ],
        "data.verb": ["00000004 32 v 02 answer 0 speak_up 0 000 01 + 02 00 | to say"],
        "data.adj": ["00000005 00 a 02 plentiful 0 Galore(ip) 0 000 | many"],
        "data.adv": [],
        "noun.exc": ["geese goose"],
        "verb.exc": [],
        "adj.exc": [],
        "adv.exc": [],
    }
    for name, content in lines.items():
        (folder / name).write_text("\n".join(content))
    return folder


def test_synonyms_of_wordnet(tmp_path):
    synonyms = genetic.read_synonyms(str(wordnet_folder(tmp_path)))
    assert synonyms["answer"] == ["reply", "response", "solution", "speak up"]
    assert synonyms["answers"] == ["answer", "reply", "response", "solution", "speak up"]
    assert synonyms["answering"] == ["answer", "speak up"]
    assert synonyms["geese"] == ["goose"] and synonyms["goose"] == []
    assert synonyms["galore"] == ["plentiful"]
    assert "swans" not in synonyms and "replies" in synonyms
    assert "reply" in synonyms and len(synonyms) == len(list(synonyms)) == 8


def test_a_folder_without_wordnet_is_reported(tmp_path):
    with pytest.raises(InputError, match=r"not WordNet's database files .*nltk's corpora/wordnet"):
        genetic.read_synonyms(str(tmp_path))


def test_a_search_depends_on_every_file_of_wordnet(tmp_path):
    attack = AutoDAN(synonyms=str(wordnet_folder(tmp_path)))
    assert {path.name for path in attack.files} >= {"data.noun", "verb.exc", "pool.json"}
    before = source_digest(attack)
    (tmp_path / "adv.exc").write_text("better well")
    assert source_digest(attack) != before
