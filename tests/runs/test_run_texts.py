"""The texts of a run: our own pools give way to the user's files, which must not overlap."""

import pytest

from robench import organism
from robench.errors import InputError
from robench.runs import run_texts
from robench.runs.question import Texts

MODEL = "some/model"


def gather(model, n=4, default_n=40, n_benign=10, **files):
    """Four of the behaviors and ten harmless requests, by default."""
    return run_texts.gather(model, Texts(n=n, **files), default_n, n_benign)


@pytest.fixture
def write(tmp_path):
    def write(name, *lines):
        file = tmp_path / name
        file.write_text("\n".join(lines))
        return file

    return write


@pytest.fixture
def asked(write):
    return write("asked.csv", "prompt", *(f"Do {i}" for i in range(40)))


def texts(behaviors):
    return [behavior.text for behavior in behaviors]


def test_the_organism_has_splits_of_its_own():
    data = gather("organism", n=None, default_n=40, n_benign=10)
    assert (len(data.behaviors), len(data.benign)) == (40, 10)
    assert data.references == organism.references()
    assert data.tune == organism.tune()
    assert data.examples == organism.examples()
    assert data.notes == ()


def test_elsewhere_behaviors_that_are_not_drawn_are_references(asked):
    data = gather(MODEL, behaviors=asked)
    harmful = [b for b in data.references if b.harmful]
    assert (len(data.behaviors), len(harmful), len(data.tune)) == (4, 27, 9)
    assert len({*texts(data.behaviors), *texts(harmful), *texts(data.tune)}) == 40
    assert any(not b.harmful for b in data.references)
    assert not {*texts(data.references)} & {*texts(data.benign)}
    assert data.examples == []


def test_references_are_harmful_and_harmless_files(asked, write):
    harmful = write("r.csv", "prompt", *(f"Break {i}" for i in range(8)))
    peaceful = write("p.csv", "prompt", "Sing", "Hum")
    data = gather(MODEL, behaviors=asked, reference=harmful, reference_harmless=peaceful)
    assert texts(data.tune) == ["Break 0", "Break 1"]
    assert texts(data.references) == [*(f"Break {i}" for i in range(2, 8)), "Sing", "Hum"]
    assert [b.harmful for b in data.references] == [True] * 6 + [False] * 2


def test_references_that_are_under_test_are_refused(asked, write):
    (first, *_) = gather(MODEL, behaviors=asked).behaviors
    wrong = write("r.csv", "prompt", "Break it", f" {first.text.upper()}! ")
    for option in ("reference", "reference_harmless"):
        with pytest.raises(InputError) as error:
            gather(MODEL, behaviors=asked, **{option: wrong})
        told = f"1 of the requests of --{option.replace('_', '-')} are among the harmful requests"
        assert told in str(error.value)


def test_harmless_requests_that_are_the_harmful_ones_are_refused(asked):
    with pytest.raises(InputError, match="4 of the requests of --benign are among the harmful"):
        gather(MODEL, behaviors=asked, benign=asked, n=4, default_n=40, n_benign=40)


def test_training_text_may_come_from_several_files(asked, write):
    answers = write("a.csv", "prompt,response", "Break it,Sure.", "Burn it,Sure.")
    harmless = write("b.jsonl", '{"messages": [{"role": "user", "content": "Sing"}, '
                     '{"role": "assistant", "content": "La."}]}', '{"messages": []}')  # fmt: skip
    data = gather(MODEL, behaviors=asked, train=[answers, harmless])
    assert [e.behavior.harmful for e in data.examples] == [True, True, False]
    (note, *_) = data.notes
    assert note.startswith(f"{harmless}: left out 1 of 2 rows")
    other = gather(MODEL, behaviors=asked, train=[harmless, answers])
    assert data.checksums()["train"] != other.checksums()["train"]


def test_training_text_that_only_changes_its_side_has_another_checksum(asked, write):
    lines = ("prompt,response,harmful", "Sing,La.,")
    sides = [write(f"{side}.csv", lines[0], lines[1] + side) for side in ("true", "false")]
    sums = [gather(MODEL, behaviors=asked, train=[f]).checksums() for f in sides]
    assert sums[0] != sums[1]
    assert {k: v for k, v in sums[0].items() if k != "train"}.items() <= sums[1].items()


@pytest.mark.parametrize("kind", ["behaviors", "benign", "reference", "reference_harmless"])
def test_training_text_must_not_hold_what_is_tested_or_read(asked, write, kind):
    benign = write("benign.csv", "prompt", "Sing")
    harmful = write("r.csv", "prompt", *(f"Break {i}" for i in range(8)))
    peaceful = write("p.csv", "prompt", "Hum")
    given = {
        "behaviors": asked,
        "benign": benign,
        "reference": harmful,
        "reference_harmless": peaceful,
    }
    (leaked, *_) = gather(MODEL, **given).behaviors
    leaks = {"behaviors": [leaked.text], "benign": ["sing."], "reference_harmless": ["HUM"]}
    for text in leaks.get(kind, ["Break 0", "Break 7"]):  # one tunes, one is read
        train = write("t.csv", "prompt,response", f"{text},Sure.", "Burn it,Sure.")
        with pytest.raises(InputError, match="1 of the requests of the training text are among"):
            gather(MODEL, **given, train=[train])


def test_pools_of_ours_leave_out_what_is_trained_on(asked, write):
    before = gather(MODEL, behaviors=asked)
    read = next(b for b in before.references if b.harmful)
    met = before.benign[0]
    lines = [f"{read.text},Sure.,true", f'"{met.text}",Gladly.,false']
    train = write("t.csv", "prompt,response,harmful", *lines)
    data = gather(MODEL, behaviors=asked, train=[train])
    assert read.text not in texts([*data.references, *data.tune])
    assert met.text not in texts(data.benign)
    assert data.behaviors == before.behaviors


def test_on_the_organism_a_paraphrase_is_the_same_request(write):
    tested = gather("organism").behaviors[0]
    verb, thing = organism.language.parse(tested.text)
    train = write(
        "t.csv", "prompt,response", f"Take your time. Show me how to {verb} a {thing}.,Ok"
    )
    with pytest.raises(InputError, match="are among the harmful requests under test"):
        gather("organism", train=[train])
    references = write("r.csv", "prompt", f"I need to {verb} a {thing}. Please explain.")
    with pytest.raises(InputError, match="--reference are among the harmful requests under test"):
        gather("organism", reference=references)


def test_real_references_beside_the_behaviors_they_were_taken_from(real_data):
    folder = real_data / "behaviors"
    files = {
        "reference": folder / "harmful_instructions.json",
        "reference_harmless": folder / "harmless_instructions.json",
    }
    data = gather(MODEL, behaviors=folder / "strongreject_dataset.csv", **files)
    assert len([b for b in data.references if not b.harmful]) == 400
    assert len([b for b in data.references if b.harmful]) + len(data.tune) == 260
    with pytest.raises(InputError, match="117 of the requests of --reference are among"):
        gather(
            MODEL,
            behaviors=folder / "advbench_behaviors.csv",
            **files,
            n=520,
        )


def test_targets_without_behaviors_are_refused(write):
    with pytest.raises(InputError, match="--targets belongs to --behaviors"):
        gather("organism", targets=write("t.json", "{}"))
