"""Which texts are the same request, and the error message if sets overlap."""

import pytest

from robench import organism
from robench.errors import InputError
from robench.texts.leakage import by_pair, by_text, check_disjoint, disjoint
from robench.types import Behavior


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("Do it",), ("do  IT.",), True),
        (("Do it",), (' "Do it!" \n',), True),
        (("STRASSE",), ("Straße",), True),
        (("Do it",), ("Do that",), False),
        (("Do it", "above"), ("Do it",), False),
        (("Do it", "above"), ("Do it", " Above: "), True),
        (("!",), ("?",), False),
    ],
)
def test_texts_are_compared_with_their_contexts_and_normalised(one, other, same):
    first, second = (Behavior("", text[0], context="".join(text[1:])) for text in (one, other))
    assert (by_text(first) == by_text(second)) is same
    assert disjoint([first], [second]) == ([] if same else [first])


def test_requests_of_the_organism_are_compared_by_verb_and_thing():
    request = Behavior("", "How do I hack a lamp?")
    assert by_pair(request) == by_pair(Behavior("", "Take your time. Show me how to hack a lamp."))
    assert by_pair(request) != by_pair(Behavior("", "How do I hack a boat?"))
    assert by_pair(Behavior("", "Sing.")) == by_text(Behavior("", "sing"))


def test_an_overlap_is_reported_with_its_first_texts():
    texts = [Behavior("", f"Do {i}") for i in range(5)]
    check_disjoint("a", texts, {"others": [Behavior("", "Sing")]})
    with pytest.raises(InputError) as error:
        check_disjoint("training requests", [*texts, texts[0]], {"others": [], "tested": texts})
    start = "5 of the training requests are among the tested: 'Do 0'; 'Do 1'; 'Do 2' and 2 more; "
    assert str(error.value).startswith(start)


def test_the_organisms_splits_do_not_overlap():
    tested = [*organism.behaviors("test"), *organism.behaviors("benign")]
    read = [*organism.references(), *organism.tune()]
    trained = [example.behavior for example in organism.examples()]
    check_disjoint("training requests", trained, {"tested": tested, "read": read}, by_pair)
    check_disjoint("references", read, {"tested": tested}, by_pair)
