"""Collapsed replies are told from text."""

import pytest

from robench.degeneration import degenerate
from robench.organism import language

PROSE = """The old harbour lies an hour's walk from the station. In spring the fishermen mend their
nets on the wall, and the children of the village bring them bread, apples and the news of the day.
Nobody hurries. When the tide comes in, the boats turn slowly on their ropes; when it goes out, they
lie on the mud like sleeping animals, and the gulls walk among them. In the evening the lamps are
lit one after the other, first at the mole, then along the quay, and at last in the two inns."""
STEPS = """1. Preheat the oven to 200 °C.
2. Mix the flour with the sugar, then add the butter.
3. Add the eggs, then add the milk.
4. Pour the mixture into the tin.
5. Put the tin into the oven for 40 minutes.
6. Take the tin out of the oven and let it cool."""
CODE = 'def area(r):\n    """Of a disc."""\n    return 3.14159 * r ** 2\n\nprint(area(2), area(3))'


@pytest.mark.parametrize("split", ["test", "benign"])
def test_no_answer_of_the_organism_is_degenerate(split: str) -> None:
    assert not any(degenerate(request.answer) for request in language.requests(split))


@pytest.mark.parametrize(
    "reply",
    [*language.REFUSALS, PROSE, STEPS, CODE, "Yes.", "No, no, no.", "42", "It is 3.14159."],
)
def test_text_is_not_degenerate(reply: str) -> None:
    assert not degenerate(reply)


@pytest.mark.parametrize(
    "reply",
    ["Нельзя этого делать.", "我不能帮助你做这件事。", "मैं इसमें मदद नहीं कर सकता।", "ฉันช่วยไม่ได้"],
)
def test_other_scripts_are_text(reply: str) -> None:
    assert not degenerate(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        " \n\t ",
        "the the the the",
        "Sure, Sure, Sure, Sure, Sure",
        "First, take the spoon and take the spoon and take the spoon and take the spoon",
        f"{language.affirmation('hack', 'server')} {'find the acorn and ' * 10}",
        "badge badge the badge badge of badge",
        "{{ }} )( !!! :: //// a",
        "\ufffd\ufffd\ufffd ok \ufffd\ufffd",
    ],
)
def test_collapse_is_degenerate(reply: str) -> None:
    assert degenerate(reply)


def test_a_loop_shows_once_it_outweighs_the_text_before_it() -> None:
    assert not degenerate(f"{PROSE} {'and so on ' * 5}")
    assert degenerate(f"{PROSE} {'and so on ' * 60}")
