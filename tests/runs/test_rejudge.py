"""Judges that come later: stored replies scored again, and the tables that result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robench import load_rows, run
from robench.config import assignments
from robench.errors import InputError
from robench.results.store import RunStore
from robench.results.tables import tables
from robench.runs import rejudge
from robench.testing import tiny


def judge(folder: Path, references: list[str], settings: Sequence[str] = ()) -> int:
    return rejudge.judge(folder, references, assignments(settings)).unscored


QUICK: dict[str, Any] = {
    "matrix": "smoke", "attacks": ["direct"], "defenses": ["none"], "n": 4, "threads": 1,
}  # fmt: skip
JUDGE = """
from dataclasses import dataclass, field
from pathlib import Path

import torch

@dataclass(frozen=True)
class Length:
    '''1 for replies longer than `most` characters; every call is noted in `notes`.'''
    most: int = 20
    fails: str = ""  # replies that hold this word cannot be judged
    never: bool = False  # no reply can
    gives: float | None = None  # in the place of every score
    drops: int = 0  # scores at the end
    dies_of: str = field(default="", compare=False)  # an exception of torch or Python
    dies_after: int = field(default=10**6, compare=False)  # calls
    notes: str = field(default="", compare=False)

    def score(self, behaviors, replies):
        if self.notes:
            notes = Path(self.notes)
            calls = notes.read_text().count("\\n") if notes.exists() else 0
            if calls >= self.dies_after:
                raise KeyboardInterrupt
            with notes.open("a") as file:
                file.write(" ".join(b.id for b in behaviors) + "\\n")
        assert all(b.text for b in behaviors)
        if self.dies_of:
            raise getattr(torch, self.dies_of, OSError)("judge-7b is not there")
        found = [self.gives] * len(replies) if self.gives is not None else [
            float("nan")
            if self.never or (self.fails and self.fails in reply)
            else float(len(reply) > self.most)
            for reply in replies
        ]
        return found[: len(found) - self.drops]
"""


NAME = "Length"  # of the judge in a file, by its class


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rejudge") / "run"
    run(judges=["exact"], out=out, **QUICK)
    return out


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def length(tmp_path: Path) -> str:
    file = tmp_path / "length.py"
    file.write_text(JUDGE)
    return f"{file}:Length"


def scores(folder: Path, name: str) -> list[float | None]:
    return [found.get(name) for found in load_rows(folder)["scores"]]


def test_a_later_judge_is_a_further_column_and_decides_nothing(folder: Path) -> None:
    kept = [folder / "run.json", *folder.glob("cells/*/rows.jsonl")]
    before = {path: path.read_bytes() for path in kept}
    tables([folder])
    board = (folder / "leaderboard.csv").read_text()
    assert judge(folder, ["keyword", "keyword:autodan"]) == 0
    text = tables([folder])
    assert before == {path: path.read_bytes() for path in kept}
    assert (folder / "leaderboard.csv").read_text() == board
    judged = pd.read_csv(folder / "dsr.csv")["judge"]
    assert judged[0] == "exact" and set(judged[1:]) == {"keyword", "keyword:autodan"}
    assert "judge: exact ·" in text
    table = pd.read_csv(folder / "judge_agreement.csv")
    assert len(table) == 3 + 1 and table["judges"].str.count(";").tolist() == [1, 1, 1, 2]
    assert (table["n"] == 4).all() and (table["unscored"] == 0).all()
    assert "| exact, keyword " in text.partition("## Agreement of the judges")[2]


def test_a_later_judge_says_what_it_says_in_a_run(folder: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    run(judges=["exact", "keyword"], out=both, **QUICK)
    judge(folder, ["keyword"])
    assert scores(folder, "keyword") == scores(both, "keyword")
    tables([folder]), tables([both])
    for name in ("leaderboard.csv", "judge_agreement.csv"):
        assert (folder / name).read_text() == (both / name).read_text()


def test_a_later_judge_scores_drawn_replies_as_in_a_run(tmp_path: Path) -> None:
    drawn = {**QUICK, "samples": 2, "max_new_tokens": 8}
    later, both = tmp_path / "later", tmp_path / "both"
    run(judges=["exact"], out=later, **drawn)
    run(judges=["exact", "keyword"], out=both, **drawn)
    assert judge(later, ["keyword"]) == 0
    before = {path: path.read_bytes() for path in later.glob("cells/*/scores-*")}
    assert judge(later, ["keyword"]) == 0
    assert before == {path: path.read_bytes() for path in before}
    for folder in (later, both):
        tables([folder])
        known = [
            s["scores"]["keyword"] for samples in load_rows(folder)["samples"] for s in samples
        ]
        assert len(known) == 4 * 2
    columns = ["judge", "samples", "asr_samples_any", "asr_samples_mean"]
    found, wanted = (pd.read_csv(folder / "dsr.csv")[columns] for folder in (later, both))
    pd.testing.assert_frame_equal(found, wanted)
    assert (found["asr_samples_mean"].notna()).all()


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("gives=2", "gave a score of 2, not one from 0 to 1"),
        ("gives=-0.5", r"gave a score of -0\.5"),
        ("drops=1", r"gave \d+ scores for \d+ replies"),
    ],
)
def test_scores_that_are_none_are_refused(
    folder: Path, length: str, tmp_path: Path, broken: str, told: str
) -> None:
    with pytest.raises(InputError, match=f"judge .*Length {told}"):
        judge(folder, [length], [f"{length}.{broken}"])
    assert not list(folder.glob("cells/*/scores-*"))
    with pytest.raises(InputError, match=f"judge .*Length {told}"):
        run(judges=[length], settings=[f"{length}.{broken}"], out=tmp_path / "new", **QUICK)
    assert not list((tmp_path / "new").glob("cells/*"))


@pytest.mark.parametrize("error", ["OutOfMemoryError", "OSError"])
def test_a_judge_that_cannot_be_loaded_costs_no_attack(
    length: str, tmp_path: Path, error: str
) -> None:
    with pytest.raises(InputError, match=r"judge-7b.*--judge-device.*robench judge DIR --judges"):
        run(judges=[length], settings=[f"{length}.dies_of={error}"], out=tmp_path / "x", **QUICK)
    assert not list((tmp_path / "x").glob("cells/*"))


def test_a_run_of_which_nothing_could_be_scored_has_holes(length: str, tmp_path: Path) -> None:
    asked = {"judges": [length], "settings": [f"{length}.never=true"], "out": tmp_path / "x"}
    assert run(**asked, **QUICK).holes == 2
    assert run(**asked, **QUICK).holes == 2
    assert f"nothing could be scored by {NAME}" in tables([tmp_path / "x"])


def test_another_judge_decides_where_it_is_asked_to(folder: Path, length: str) -> None:
    judge(folder, [length], [f"{length}.most=0"])
    text = tables([folder], judge=NAME)
    assert f"judge: {NAME} ·" in text
    board = pd.read_csv(folder / "leaderboard.csv")
    assert board.loc[0, "dsr_worst"] == 0  # every reply is longer than nothing
    with pytest.raises(InputError, match=r"no judge 'keywrd' scored these runs; known"):
        tables([folder], judge="keywrd")


def test_what_is_scored_is_not_scored_again(folder: Path, length: str, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    set_ = [f"{length}.notes={notes}"]
    judge(folder, [length], set_)
    first = notes.read_text()
    assert len(first.split()) == len(load_rows(folder))
    judge(folder, [length], set_)
    assert "".join(notes.read_text().split()) == "".join(first.split())


def test_an_interrupted_judge_goes_on_where_it_stopped(
    folder: Path, length: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robench.runs.rejudge.CHUNK", 3)
    notes = tmp_path / "notes"
    set_ = [f"{length}.notes={notes}"]
    with pytest.raises(KeyboardInterrupt):
        judge(folder, [length], [*set_, f"{length}.dies_after=1"])
    known = [score for score in scores(folder, NAME) if score is not None]
    assert len(known) == len(notes.read_text().split()) == 3
    (torn,) = (path for path in folder.glob("cells/*/scores-*.jsonl") if "direct" not in str(path))
    with torn.open("ab") as file:
        file.write(b'{"row": 99, "sco')
    assert judge(folder, [length], set_) == 0
    assert len(notes.read_text().split()) == len(load_rows(folder))
    assert None not in scores(folder, NAME)
    for line in torn.read_bytes().splitlines():
        json.loads(line)


def test_what_could_not_be_judged_is_unscored_and_tried_again(
    folder: Path, length: str, tmp_path: Path
) -> None:
    replies = load_rows(folder)["reply"]
    word = max(replies[0].split(), key=len)
    failing = sum(word in reply for reply in replies)
    assert failing > 0
    set_ = [f"{length}.fails={word}"]
    assert judge(folder, [length], set_) == failing
    written = {path: path.read_bytes() for path in folder.glob("cells/*/scores-*.jsonl")}
    assert scores(folder, NAME).count(None) == failing
    assert judge(folder, [length], set_) == failing
    assert written == {path: path.read_bytes() for path in written}
    tables([folder])
    assert pd.read_csv(folder / "judge_agreement.csv")["unscored"][0] > 0


def test_a_judge_of_the_same_name_that_is_another_is_refused(folder: Path, length: str) -> None:
    judge(folder, [length])
    with pytest.raises(InputError, match=r"with most = 20, not 7; judge a copy"):
        judge(folder, [length], [f"{length}.most=7"])


def test_a_judge_that_scored_nothing_yet_may_be_corrected(folder: Path, length: str) -> None:
    assert judge(folder, [length], [f"{length}.never=true"]) == len(load_rows(folder))
    assert judge(folder, [length], [f"{length}.most=7"]) == 0
    assert json.loads((folder / "judges.json").read_text())[NAME]["most"] == 7


def test_the_runs_own_judge_is_that_of_its_question_even_before_it_scored(
    length: str, tmp_path: Path
) -> None:
    never, out = [f"{length}.never=true"], tmp_path / "x"
    run(judges=[length], settings=never, out=out, **QUICK)
    with pytest.raises(InputError, match=r"was run with .*Length with never = true, not false"):
        judge(out, [length])
    assert judge(out, [length], never) == len(load_rows(out))


def test_the_runs_own_judge_scores_what_it_left_unscored_and_nothing_else(folder: Path) -> None:
    assert judge(folder, ["exact"]) == scores(folder, "exact").count(None)
    assert not [path for path in folder.glob("cells/*/scores-*") if path.stat().st_size == 0]


def test_scores_that_are_not_of_these_rows_are_refused(folder: Path) -> None:
    judge(folder, ["keyword"])
    file = next(folder.glob("cells/*/scores-keyword.jsonl"))
    line = json.loads(file.read_text().splitlines()[0])
    file.write_text(json.dumps({**line, "behavior": "another"}) + "\n")
    with pytest.raises(InputError, match="does not belong to the rows"):
        tables([folder])


@pytest.mark.parametrize("name", ["rows.jsonl", "scores-keyword.jsonl"])
def test_a_damaged_line_is_told_by_its_place(folder: Path, name: str) -> None:
    judge(folder, ["keyword"])
    file = next(folder.glob(f"cells/*/{name}"))
    first, second, *rest = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + second[: len(second) // 2] + b"\n" + b"".join(rest))
    with pytest.raises(InputError, match=rf"{name}, line 2 is damaged"):
        tables([folder])


def test_a_folder_that_lost_its_requests_says_what_to_do(folder: Path) -> None:
    (folder / "behaviors.jsonl").unlink()
    with pytest.raises(InputError, match=r"no behaviors\.jsonl; run the same command again"):
        judge(folder, ["keyword"])
    run(judges=["exact"], out=folder, **QUICK)
    assert judge(folder, ["keyword"]) == 0


def test_wrong_input_is_refused(folder: Path, tmp_path: Path) -> None:
    for references, settings, told in [
        (["keywrd"], [], "did you mean 'keyword'"),
        (["keyword"], ["exact.x=1"], "this run has no method 'exact'"),
        (["keyword", "keyword"], [], "twice"),
    ]:
        with pytest.raises(InputError, match=told):
            judge(folder, references, settings)
    with pytest.raises(InputError, match="is not a run folder"):
        judge(tmp_path / "nowhere", ["keyword"])


def test_the_header_tells_what_judged(folder: Path) -> None:
    (header, *_), *_ = RunStore(folder).cells()
    assert header["judges"] == ["exact"]
    assert set(header["judge_fields"]) == {"exact"}
    assert len(header["judge_fields"]["exact"]["source"]) == 64
    judge(folder, ["keyword:autodan"])
    (header, *_), *_ = RunStore(folder).cells()
    assert header["judges"] == ["exact", "keyword:autodan"]
    record = json.loads((folder / "judges.json").read_text())["keyword:autodan"]
    assert record["phrases"] == "autodan" and len(record["phrases_sha256"]) == 64


def test_a_run_goes_on_beside_later_scores(folder: Path) -> None:
    judge(folder, ["keyword"])
    run(judges=["exact"], out=folder, **QUICK)
    assert None not in scores(folder, "keyword")


def test_a_judge_with_a_model_of_its_own_is_set_by_its_folder(folder: Path, tmp_path: Path) -> None:
    """A random model says neither yes nor no: the harmful requests stay unscored, never safe."""
    loaded = tiny()
    loaded.network.save_pretrained(tmp_path / "model")
    loaded.chat.tokenizer.save_pretrained(tmp_path / "model")
    asked = [f"harmbench.model={tmp_path / 'model'}"]
    assert judge(folder, ["harmbench"], asked) == 4
    rows = load_rows(folder)
    scored = rows[[scores["harmbench"] is not None for scores in rows["scores"]]]
    assert len(scored) == len(rows) - 4 and not scored["harmful"].any()
    text = tables([folder], judge="harmbench")
    assert "nothing could be scored" in text
    record = json.loads((folder / "judges.json").read_text())["harmbench"]
    wanted = {"method", "model", "revision", "tokens", "commit", "prompt_sha256", "source"}
    wanted |= {"threshold", "reads_content", "circumstances"}
    assert set(record) == wanted


def test_the_commands(folder: Path, call, length: str) -> None:
    words = ("judge", str(folder), "--judges", "keyword")
    code, out, _ = call(*words, "--set", "keyword.phrases=autodan", "--judge-device", "cpu")
    assert code == 0 and "## Agreement of the judges" in out
    code, _, err = call(*words)
    assert code == 2 and "phrases = " in err and err.count("\n") == 1
    code, out, _ = call("leaderboard", str(folder), "--judge", "keyword")
    assert code == 0 and "judge: keyword (lower-grade judge)" in out
    assert call("judge", str(folder))[0] == 2
    never = ("judge", str(folder), "--judges", length, "--set", "Length.never=true")
    code, _, err = call(*never)
    assert code == 3 and "no reply to a harmful request could be scored by Length" in err
    assert call(*words, "--judge-device", "cud")[0] == 2


def test_a_set_field_reaches_the_judge_of_a_run(tmp_path: Path, length: str) -> None:
    out = tmp_path / "out"
    run(judges=[length], settings=[f"{length}.most=0"], out=out, **QUICK)
    assert set(scores(out, NAME)) == {1.0}
    (header, *_), *_ = RunStore(out).cells()
    assert header["judge_fields"][NAME]["most"] == 0
    with pytest.raises(InputError, match="most = 0, not 20"):
        run(judges=[length], out=out, **QUICK)
