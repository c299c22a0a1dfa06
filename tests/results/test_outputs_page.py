"""docs/outputs.md is what the words make it, and nothing is left undefined."""

from inspect import get_annotations
from pathlib import Path

import pytest

from robench.results import outputs_page
from robench.results.schema import Header, Question, Row

PAGE = Path(__file__).parents[2] / "docs" / "outputs.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text("utf-8") == outputs_page.page(), "python -m robench.results.outputs_page"


@pytest.mark.parametrize("record", outputs_page.RECORDS)
def test_every_field_of_a_record_is_there(record):
    inherited = get_annotations(Question) if record is Header else {}
    assert outputs_page.fields(record).keys() == get_annotations(record).keys() - inherited.keys()


def test_fields_of_a_row_have_their_meaning():
    meanings = outputs_page.fields(Row)
    assert meanings["refused"] == "Whether the reply reads as a refusal."
    assert meanings["step"] == "The optimisation step that the attempt comes from."
