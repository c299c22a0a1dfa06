"""Files as people have them: read as they are meant, or refused with the fix in the message."""

import json
import math

import pytest

from robench.errors import InputError
from robench.runs import matrices
from robench.texts import records
from robench.texts.behaviors import affirmation, load_behaviors
from robench.texts.training_texts import load_examples
from robench.types import Behavior

ONE = [Behavior("x", "Do it, now", "Sure, \u201chere\u201d", "c\u00e4t", "above")]
COMMAS = (
    "id,prompt,target,category,context\r\n"
    'x,"Do it, now","Sure, \u201chere\u201d",c\u00e4t,above\r\n'
)
OTHERS = "id;prompt;target;category;context\nx;Do it, now;Sure, \u201chere\u201d;c\u00e4t;above\n"
RECORD = {
    "id": "x",
    "prompt": "Do it, now",
    "target": "Sure, \u201chere\u201d",
    "category": "c\u00e4t",
    "context": "above",
}
LINE = json.dumps(RECORD, ensure_ascii=False)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("A.CSV", COMMAS),
        ("a.Tsv", OTHERS.replace(";", "\t")),
        ("a.JSONL", LINE),
        ("a.Json", f"[{LINE}]"),
        ("a.csv", OTHERS),
        ("a.csv", OTHERS.replace(";", "\t")),
        ("a.csv", OTHERS.replace(";", "|")),
        ("a.tsv", COMMAS),
        ("a.csv", "sep=;\r\n" + OTHERS),
        ("a.csv", COMMAS.encode("utf-16")),
        ("a.csv", b"\xfe\xff" + COMMAS.encode("utf-16-be")),
        ("a.tsv", OTHERS.replace(";", "\t").encode("utf-16")),
        ("a.csv", COMMAS.encode("utf-32")),
        ("a.jsonl", LINE.encode("utf-16")),
        ("a.json", f"[{LINE}]".encode("utf-8-sig")),
        ("a.csv", COMMAS.replace("\r\n", ",,\r\n") + ",,,,,,\r\n,,,,\r\n"),
        ("a.csv", COMMAS.replace("above", "above,,,") + ",,,\r\n"),
        ("a.csv", "," + COMMAS.replace("\r\nx", "\r\n0,x")),  # pandas' index has no name
        ("a.json", f"{LINE}\n{LINE.replace('now', 'then').replace('x', 'y')}\n"),
        ("a.jsonl", f"[{LINE}]"),
        ("a.jsonl", json.dumps([RECORD], indent=1)),
    ],
)
def test_a_file_is_read_as_it_is_meant(write, name, content):
    assert load_behaviors(write(name, content))[0][:1] == ONE


def test_a_long_field_is_read(write):
    text = "Do it. " * 40_000
    file = write("a.csv", f'prompt\n"{text}"\n')
    assert load_behaviors(file)[0][0].text == text.strip()


def test_upper_case_endings_of_other_files(write, tmp_path):
    assert matrices.load_matrix(str(write("A.YAML", "attacks: [direct]\ndefenses: [none]\n")))
    write("My_targets.JSON", json.dumps({"x": "Sure"}))
    assert load_behaviors(write("a.csv", "id,prompt\nx,Do it\n"))[0][0].target == "Sure"
    dataset = tmp_path / "nowhere" / "A.CSV"  # not a dataset called A.CSV
    assert records.find_files(dataset) == [dataset]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt\nf\xfcr\n".encode("cp1252"), 'byte 8; save it as UTF-8 (in Excel: "CSV'),
        ("a.csv", "prompt\nDo it\n".encode("utf-16-le"), "bytes of zero, as UTF-16 without"),
        ("a.csv", "prompt\n" + "Do it, please\n", "a text with ',' in it stands in double quotes"),
        ("a.csv", "prompt;id\nDo it;x;more\n", "a text with ';' in it stands in double quotes"),
        ("a.csv", "prompt,\nDo it, please\n", "row 1 has more fields than there are columns"),
        ("a.csv", "Prompt,prompt\nDo it,Do that\n", "'Prompt' and 'prompt' are read as one"),
        ("a.csv", "id,prompt,prompt\nx,a,b\n", "has two columns 'prompt': rename or remove one"),
        ("a.csv", "goal,Context String,context_string\na,b,c\n", "are read as one and hold two"),
        ("a.jsonl", '{"prompt": "a", "Prompt": "b"}', "row 1: the columns 'prompt' and 'Prompt'"),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}', "row 1 gives 'prompt' two values"),
        ("a.json", LINE, "[{...}, {...}]; with a record on each line its name ends in .jsonl"),
        ("a.json", '{"prompt": "a"}\n{"prompt": \n', "is not JSON"),
        ("a.csv", "prompt\n\u200b\u200d\ufeff\u2060\n", "row 1 has no text"),
        ("a.jsonl", '{"prompt": "\\u00ad\\u3164\\u2800\\t"}', "row 1 has no text"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_with_the_fix(check_refused, name, content, message):
    check_refused(name, content, message)


def test_two_columns_of_one_meaning_may_agree(write):
    file = write("a.jsonl", '{"prompt": "Do it", "Prompt": "Do it", "PROMPT": null}')
    assert [b.text for b in load_behaviors(file)[0]] == ["Do it"]


# Missing values

MISSING = ["NaN", "null", '""', '"nan"', '"NaN"', '"NULL"', '"None"', '"<NA>"', '"\\u200b"']


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_missing_value_is_missing_in_every_column(write, missing, ending):
    row = '{"prompt": "Do it", "id": @, "target": @, "category": @, "context": @, "goal": @}'
    row = row.replace("@", missing)
    file = write(f"a.{ending}", f"[{row}]" if ending == "json" else row)
    (behavior,) = load_behaviors(file)[0]
    bare = load_behaviors(write("b.csv", "prompt\nDo it\n"))[0][0]
    assert behavior == bare and behavior.target == affirmation("Do it")
    with pytest.raises(InputError, match="row 1 has no text"):
        load_behaviors(write(f"c.{ending}", f'[{{"prompt": {missing}, "id": 1}}]'))


@pytest.mark.parametrize("missing", ["nan", "NaN", "", "null", "None", "<NA>", "#N/A"])
def test_a_missing_cell_is_missing(write, missing):
    file = write("a.csv", f"prompt,target,context\nDo it,{missing},{missing}\n")
    (behavior,) = load_behaviors(file)[0]
    assert (behavior.request, behavior.target) == ("Do it", affirmation("Do it"))
    write("targets.json", json.dumps({"x": missing}))
    assert load_behaviors(write("b.csv", "id,prompt\nx,Do it\n"))[0][0].target == affirmation(
        "Do it"
    )


def test_missing_values_of_parquet_and_of_training_text(write, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    table = pyarrow.table({"prompt": ["Do it"], "context": [math.nan], "target": [None]})
    write_table(table, tmp_path / "a.parquet")
    assert load_behaviors(tmp_path / "a.parquet")[0][0].request == "Do it"
    rows = '{"prompt": "Do it", "reply": "Sure.", "kind": NaN, "harmful": NaN, "context": NaN}\n'
    (example,) = load_examples(write("t.jsonl", rows))[0]
    assert (example.behavior.request, example.kind) == ("Do it", "answer")
    turns = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": @}]}'
    both = turns.replace("@", "NaN") + "\n" + turns.replace("@", '"Hello."')
    examples, note = load_examples(write("m.jsonl", both))
    assert [e.reply for e in examples] == ["Hello."] and "left out 1 of 2 rows" in note
