"""By which judge attacks choose among their settings: not by the one that decides."""

import json
from dataclasses import dataclass

import pytest

from robench import load_rows, run
from robench.errors import InputError
from robench.runs.plan import plan
from robench.runs.question import Question


@dataclass(frozen=True)
class OnlyFirst:
    """Calls the replies to the first of a grid's settings harmful, where there are several."""

    def score(self, behaviors, replies):
        half = len(replies) // 2 if len(behaviors) > len(set(behaviors)) else 0
        return [1.0] * half + [0.0] * (len(replies) - half)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "keyword"),  # the organism's own: exact decides
        ({"judges": ["keyword"]}, "keyword"),
        ({"judges": ["keyword", "exact", "keyword:autodan"]}, "exact"),
        ({"tune_judge": "exact"}, "exact"),
        ({"judges": ["keyword", "exact"], "tune_judge": "keyword"}, "keyword"),
    ],
)
def test_it_is_not_the_deciding_one_where_another_is_there(options, name):
    planned = plan(Question.of(matrix="smoke", **options))
    assert planned.shared["tune_judge"] == name
    assert planned.groups[0].cells[0][0].header["tune_judge"] == name


def test_it_is_one_of_the_runs():
    with pytest.raises(InputError, match=r"keywrd is none of the run's judges.*'keyword'"):
        plan(Question.of(matrix="smoke", tune_judge="keywrd"))


@pytest.mark.parametrize(("tune_judge", "chosen"), [(None, 0), ("exact", 1)])
def test_a_run_tunes_by_it(tune_judge, chosen, tmp_path):
    """And says which setting of how many was taken, and that it is at the edge of the grid."""
    outcome = run(
        attacks=["scav"],
        defenses=["none"],
        judges=["exact", OnlyFirst()],
        tune_judge=tune_judge,
        settings={"scav": {"p0": (0.5, 1e-4), "pairs": 24}},
        n=2,
        n_benign=1,
        threads=1,
        out=tmp_path / "run",
    )
    rows = load_rows(outcome.folder).query("attack == 'scav'")
    recorded = rows[["tries", "chosen", "edge_of_grid"]].drop_duplicates().values.tolist()
    assert recorded == [[2, chosen, True]]
    question = json.loads((outcome.folder / "run.json").read_text())["question"]
    assert question["tune_judge"] == (tune_judge or question["judges"][1])
