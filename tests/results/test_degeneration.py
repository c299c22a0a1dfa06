"""Collapsed replies are told from text."""

import math
import re
from pathlib import Path

import pytest

from robench.organism import language
from robench.results import degeneration
from robench.results.degeneration import LIMITS, calibrate, measure

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


def degenerate(reply: str) -> bool:
    return degeneration.degenerate(measure(reply))


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


def test_measures_of_a_reply() -> None:
    found = measure("the cat the dog the end", nll=math.log(7))
    assert found["dominant"] == 3 / 6 and found["repeated"] == 0 and found["nontext"] == 0
    assert found["perplexity"] == pytest.approx(7)
    assert measure("a b c a b c!")["repeated"] == pytest.approx(1 - 3 / 4)
    assert measure("a b c a b c!")["nontext"] == pytest.approx(1 / 7)
    assert measure("No, no, no.")["dominant"] is None


def test_pages_and_sources_of_any_length_compress_less_than_loops() -> None:
    root = Path(degeneration.__file__).parent
    files = [*root.glob("*.py"), *root.parent.glob("*.md")]
    rule = re.compile(r"^\|[ |-]+\|$", re.MULTILINE)  # of a wide table: a loop itself
    pages = [rule.sub("", file.read_text("utf-8")) for file in files]
    for length in (50, 200, 1000, 4000):
        pieces = [page[i : i + length] for page in pages for i in range(0, len(page), length)]
        assert (
            max(measure(piece)["compression"] for piece in pieces if piece) < LIMITS["compression"]
        )
    assert measure("illet" * 20)["compression"] > LIMITS["compression"]
    assert degenerate("illet" * 20)  # one word, so that no other measure sees it


def test_a_reply_that_the_undefended_model_would_never_write() -> None:
    assert degeneration.degenerate(measure("tower spoon gently of", nll=math.log(2000)))
    assert not degeneration.degenerate(measure("tower spoon gently of", nll=math.log(50)))


def test_limits_are_calibrated_on_harmless_replies() -> None:
    replies = [measure(PROSE, nll=math.log(p)) for p in (2.0, *[20.0] * 50, *[200.0] * 48, 2000.0)]
    limits = calibrate(replies)
    # of 100 values the median is 20 (the 50th and 51st are 20), the 90th 200: 200 * 10^3
    assert limits["perplexity"] == pytest.approx(200_000)
    assert {name: limits[name] for name in ("dominant", "repeated", "nontext")} == {
        name: LIMITS[name] for name in ("dominant", "repeated", "nontext")
    }
    assert calibrate(replies[:19]) == LIMITS


def test_a_model_that_writes_lists_gets_limits_of_its_own() -> None:
    """Half of the replies have no symbols, half are 40 % symbols: 0.4 + 3 (0.4 - 0.2) > 0.5."""
    plain, symbols = measure("four words of text"), measure("ab- cd- ef- ghi--")
    assert symbols["nontext"] == pytest.approx(5 / 14)
    limits = calibrate([plain] * 10 + [symbols] * 10)
    assert limits["nontext"] == pytest.approx(5 / 14 + 3 * 5 / 28)


def test_no_limit_on_a_share_is_out_of_reach() -> None:
    """Half symbols in half of the replies: 0.5 + 3 (0.5 - 0.25) is more than any reply can be."""
    limits = calibrate([measure("four words of text")] * 10 + [measure("ab-- cd-- e-")] * 10)
    assert limits["nontext"] == degeneration.HIGHEST < 1
    assert degeneration.degenerate(measure("-" * 40), limits)
