"""Exact McNemar against the binomial by hand, Holm against his own example's arithmetic."""

import math
from itertools import combinations

import pytest

from robench.results.comparison import compare, groups, holm, letters


def verdicts(letters: str) -> dict[str, str]:
    names = {"H": "harmful", "R": "refused", "?": "unscored"}
    return {str(i): names[letter] for i, letter in enumerate(letters)}


@pytest.mark.parametrize(
    ("ours", "theirs", "p"),
    [
        ("RRRRR", "HHHHH", 2 / 32),  # five won, none lost: 2 * 0.5^5
        ("HRRRR", "RHHHH", 2 * (1 + 5) / 32),  # four won, one lost
        ("HHRR", "HHRR", 1),  # concordant pairs say nothing
        ("HRRR?", "HHHH?", 2 / 8),
        ("RR?", "HHH", 2 / 4),  # unscored is not held
    ],
)
def test_mcnemar(ours, theirs, p):
    there = compare([(verdicts(ours), verdicts(theirs))])
    back = compare([(verdicts(theirs), verdicts(ours))])
    assert there.p == back.p == pytest.approx(p)
    assert (there.only_a, there.only_b) == (back.only_b, back.only_a)


def test_nothing_in_common_is_no_comparison():
    assert math.isnan(compare([(verdicts("RR"), {})]).p)
    assert math.isnan(compare([]).p)


def test_with_several_seeds_a_behavior_counts_for_the_side_that_more_of_them_broke():
    seeds = [("HHRR", "RRRH"), ("HRRH", "RHRR"), ("HRRR", "R?RR")]
    found = compare((verdicts(a), verdicts(b)) for a, b in seeds)
    assert found == (1, 0, 4)  # 0 with three seeds of three; 1 and 3 with as many on either side
    one = compare([(verdicts("HHRR"), verdicts("RRRH"))] * 3)
    assert one == compare([(verdicts("HHRR"), verdicts("RRRH"))]) == (2, 1, 4)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []
    found = holm([math.nan, 0.01])
    assert math.isnan(found[0]) and found[1] == pytest.approx(0.02)


def test_groups_are_the_largest_without_a_separated_pair():
    names = ["a", "b", "c", "d"]
    assert groups(names, []) == [names]
    assert groups(names, [("d", "a")]) == [["a", "b", "c"], ["b", "c", "d"]]
    assert groups(names, [("a", "b"), ("a", "c"), ("a", "d"), ("b", "d")]) == [
        ["a"], ["b", "c"], ["c", "d"],
    ]  # fmt: skip
    assert groups(names[:3], [("a", "b"), ("b", "c"), ("c", "a")]) == [["a"], ["b"], ["c"]]
    assert groups([], []) == []


def test_groups_are_the_maximal_cliques_of_what_is_not_separated():
    """By brute force over all subsets, for every graph of four names."""
    names = list("abcd")
    pairs = list(combinations(names, 2))
    subsets = [set(s) for k in range(1, 5) for s in combinations(names, k)]
    for chosen in range(2 ** len(pairs)):
        separated = [pair for i, pair in enumerate(pairs) if chosen >> i & 1]
        free = [s for s in subsets if not any(set(pair) <= s for pair in separated)]
        largest = [s for s in free if not any(s < other for other in free)]
        found = [set(group) for group in groups(names, separated)]
        assert sorted(map(sorted, found)) == sorted(map(sorted, largest))


def test_names_have_the_letters_of_their_groups():
    assert letters("abc", [["a", "b"], ["b", "c"]]) == {"a": "a", "b": "ab", "c": "b"}
    many = [[str(i)] for i in range(27)]
    assert letters(["0", "26"], many) == {"0": "a", "26": "aa"}
