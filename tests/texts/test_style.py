"""Style of requests: what tells two sides apart, which references match, and the shipped ones."""

import math
import random

import pytest

from robench.texts.behaviors import draw_behaviors, harmless, harmless_references, load_behaviors
from robench.texts.style import (
    ENOUGH,
    FEATURES,
    LIMIT,
    Style,
    matched,
    style,
    style_accuracy,
    style_warning,
)
from robench.types import Behavior


def behavior(text, harmful=True, context=""):
    return Behavior(text, text, context=context, harmful=harmful)


def requests(n, seed, verbs=("Write", "Give", "List"), words=(5, 15), mark=""):
    """Requests of random length and first word, the same for the same seed."""
    rng = random.Random(seed)
    return [
        behavior(f"{rng.choice(verbs)} {'x ' * rng.randint(*words)}{seed}n{i}{mark}")
        for i in range(n)
    ]


# The features


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write a poem", (3, "", "write")),
        ("Write a poem about 7 ", (5, "", "write")),
        ("HOW so?", (2, "?", "how")),
        ("“Why?”", (1, "?", "why")),
        ('Say "hello."', (2, ".", "say")),
        ("Stop!)", (1, "!", "stop")),
        ("What's the following:", (3, "other", "what's")),
        ("Write on…", (2, "other", "write")),
        ("Schreibe, schön", (2, "", "schreibe")),
        ("", (0, "", "")),
        ("?", (1, "?", "")),
    ],
)
def test_style_is_length_final_mark_and_first_word(text, expected):
    assert style(behavior(text)) == Style(*expected)


def test_the_style_of_a_request_is_that_of_its_context_and_text():
    assert style(behavior("Is it so?", context="Given this.")) == Style(6, "?", "given")


# The accuracy


def test_sides_of_one_distribution_cannot_be_told_apart():
    accuracy = style_accuracy(requests(150, 1), requests(150, 2))
    assert abs(accuracy - 0.5) < 0.1
    assert style_warning(requests(150, 1), requests(150, 2)) == ""


def test_imperatives_and_questions_can_be_told_apart():
    questions = requests(60, 2, verbs=("How", "What", "Why"), mark="?")
    assert style_accuracy(requests(60, 1), questions) > 0.99


@pytest.mark.parametrize(
    ("feature", "difference"),
    [
        ("length", {"words": (25, 40)}),
        ("final mark", {"mark": "?"}),
        ("first word", {"verbs": ("How", "What", "Why")}),
    ],
)
def test_each_feature_alone_tells_sides_apart_and_is_named(feature, difference):
    sides = requests(60, 1), requests(60, 2, **difference)
    assert style_accuracy(*sides) > 0.95
    for name in FEATURES:
        accuracy = style_accuracy(*sides, [name])
        assert accuracy > 0.95 if name == feature else abs(accuracy - 0.5) < 0.15
    warning = style_warning(*sides)
    assert "\n" not in warning
    assert f"most of all by {feature}:" in warning
    assert f"; {feature} 100 %, " in warning
    assert "(accuracy 100 %; " in warning
    assert "--reference-harmless FILE" in warning


def test_sides_of_unequal_size_do_not_raise_the_accuracy():
    assert abs(style_accuracy(requests(300, 1), requests(30, 2)) - 0.5) < 0.12


def test_the_accuracy_is_the_same_again():
    sides = requests(40, 1), requests(40, 2, words=(9, 19))
    assert style_accuracy(*sides) == style_accuracy(*sides)


def test_too_few_references_have_no_accuracy_and_no_warning():
    questions = requests(20, 2, mark="?")
    for sides in [([], []), (requests(20, 1), []), (requests(1, 1), questions)]:
        assert math.isnan(style_accuracy(*sides))
        assert style_warning(*sides) == ""
    assert not math.isnan(style_accuracy(requests(2, 1), requests(2, 2)))


def test_a_warning_needs_more_than_the_limit_and_than_chance():
    sides = requests(100, 1), requests(100, 2, words=(8, 18))
    accuracy = style_accuracy(*sides)
    assert LIMIT < accuracy < 0.9
    assert style_warning(*sides) != ""
    assert style_warning(*sides, limit=accuracy + 0.01) == ""
    few = requests(8, 5), requests(8, 55, words=(8, 18))
    assert LIMIT < style_accuracy(*few) < 0.8  # random splits reach 0.5 + 0.6 / 2
    assert style_warning(*few) == ""


# The matching rule


def test_each_harmful_reference_gets_the_nearest_one_of_its_own():
    harmful = [behavior(t) for t in ("Write a b", "How so?", "Give a b c d e f", "Write a b c")]
    pool = [
        behavior(t, harmful=False)
        for t in ("Give x x x x x x", "How come?", "Write x x x", "Write x?", "Write x x", "Sing")
    ]
    chosen = [b.text for b in matched(harmful, pool)]
    assert chosen == ["Write x x", "How come?", "Give x x x x x x", "Write x x x"]


@pytest.mark.parametrize(
    ("pool", "chosen"),
    [
        (("Give x x x?", "Sing x"), "Sing x"),  # the mark before the first word and the length
        (("Sing x x x", "Give x x", "Sing" + 9 * " x"), "Give x x"),  # the first word before a word
        (("Give x x x x x x", "Give x x"), "Give x x"),
    ],
)
def test_what_counts_more_in_a_match(pool, chosen):
    harmful = [behavior("Give a b c")]
    (reference,) = matched(harmful, [behavior(t, harmful=False) for t in pool])
    assert reference.text == chosen


def test_matching_removes_what_tells_sides_apart():
    harmful = requests(80, 1)
    pool = [
        *requests(200, 2, verbs=("Write", "Give", "List", "How"), words=(3, 25)),
        *requests(150, 3, verbs=("How", "What"), mark="?"),
    ]
    assert style_accuracy(harmful, pool) > LIMIT
    chosen = matched(harmful, pool)
    assert len({b.id for b in chosen}) == len(chosen) == 80
    assert style_accuracy(harmful, chosen) < 0.55


def test_a_match_does_not_depend_on_the_order_of_the_pool():
    harmful, pool = requests(30, 1), requests(90, 2)
    assert matched(harmful, pool) == matched(harmful, pool[::-1])


def test_other_final_marks_fill_up_to_enough_and_not_beyond():
    questions = requests(60, 2, mark="?")
    assert len(matched(requests(50, 1), questions)) == 50
    assert len(matched(requests(300, 1), questions)) == 60
    both = [*requests(100, 3), *requests(300, 2, mark="?")]
    assert len(matched(requests(90, 1), both)) == 90
    assert len(matched(requests(300, 1), both)) == ENOUGH
    many = [*requests(200, 3), *questions]
    assert {style(b).mark for b in matched(requests(250, 1), many)} == {""}


def test_nothing_is_matched_with_nothing():
    assert matched([], requests(3, 1)) == matched(requests(3, 1), []) == []


# The shipped references


@pytest.mark.parametrize(
    ("name", "size", "before", "pool", "after"),
    [
        ("harmbench_behaviors_text_all.csv", 200, 0.95, 0.7, 0.5),
        ("advbench_behaviors.csv", 500, 0.95, 0.65, 0.62),
        ("strongreject_dataset.csv", 270, 0.85, 0.75, LIMIT),
        ("harmful_instructions.json", 260, 0.85, LIMIT, 0.56),
    ],
)
def test_published_sets_are_matched_by_the_shipped_references(
    real_data, name, size, before, pool, after
):
    harmful, _ = load_behaviors(real_data / "behaviors" / name)
    chosen = matched(harmful, harmless_references())
    assert len({b.id for b in chosen}) == len(chosen) >= size
    assert style_accuracy(harmful, harmless()[1::2]) > before
    assert style_accuracy(harmful, harmless_references()) > pool
    assert style_accuracy(harmful, chosen) < after
    assert style_warning(harmful, chosen) == ""
    assert "most of all by" in style_warning(harmful, harmless()[1::2])


@pytest.mark.parametrize("n", [30, 100])
def test_samples_of_published_sets_are_matched(real_data, n):
    for name in ("harmbench_behaviors_text_all.csv", "strongreject_dataset.csv"):
        harmful = draw_behaviors(load_behaviors(real_data / "behaviors" / name)[0], n)
        chosen = matched(harmful, harmless_references())
        assert len(chosen) == n
        assert style_accuracy(harmful, chosen) < 0.58
