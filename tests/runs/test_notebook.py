"""From a notebook: objects, names and files alike, and an outcome that shows its tables."""

import sys
from dataclasses import dataclass

import pandas as pd
import pytest

import robench
from robench.errors import InputError
from robench.methods.registry import load_class
from robench.runs.plan import plan
from robench.types import Attempt, Prompt, user

SMALL = {"matrix": "smoke", "n": 2, "n_benign": 2}


@dataclass(frozen=True)
class Shouting:
    """The request in capitals."""

    marks: int = 1

    def run(self, model, behaviors, ctx):
        for b in behaviors:
            yield Attempt(b, Prompt(user(b.request.upper() + "!" * self.marks)), final=True)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    gcg = load_class("attack", "gcg")(steps=1, width=8, topk=4, init="!!!!", every=1)
    return robench.run(
        **SMALL,
        attacks=["direct", Shouting(), gcg, "scav"],
        defenses=["none", load_class("defense", "noop")()],
        settings={"scav": {"p0": [1e-2], "pairs": 8}},
        out=tmp_path_factory.mktemp("notebook") / "run",
    )


def test_an_outcome_has_its_tables(outcome):
    assert outcome.holes == 0
    assert list(outcome.leaderboard["defense"].sort_values()) == ["none", "noop"]
    assert list(dict.fromkeys(outcome.dsr["attack"])) == ["direct", "Shouting", "gcg", "scav"]
    assert set(outcome.dsr["tier"]) >= {"custom"}
    for name, table in (("dsr", outcome.dsr), ("leaderboard", outcome.leaderboard)):
        written = pd.read_csv(outcome.folder / f"{name}.csv")
        assert list(written) == list(table) and len(written) == len(table)
    assert "<table" in outcome._repr_html_() and "noop" in outcome._repr_html_()
    assert str(outcome) == (outcome.folder / "dsr.md").read_text("utf-8")
    rows = outcome.rows()
    asked = rows[rows["attack"] == "direct"].groupby("defense")["behavior"].nunique()
    assert dict(asked) == {"none": 2, "noop": 2}


def test_stored_prompts_come_back(outcome):
    rows = outcome.rows()
    for attack, access in (("Shouting", "text"), ("gcg", "text"), ("scav", "activation")):
        row = rows[(rows["attack"] == attack) & rows["final"]].iloc[0]
        prompt = robench.load_prompt(row)
        assert prompt.access == access == row["access"]


def test_a_second_call_has_nothing_to_do(outcome, capsys):
    again = robench.run(
        **SMALL, attacks=["direct"], defenses=["none"], out=outcome.folder,
        settings={},
    )  # fmt: skip
    assert "4 cells, 4 done, 0 to do" in capsys.readouterr().out
    assert again.holes == 0


def test_a_plan_is_made_without_loading_anything():
    planned = robench.plan(robench.Question.of(**SMALL, attacks=["direct"], defenses=["none"]))
    assert len(planned.forecast(tflops=1.0)) == 4
    assert planned.shared["max_new_tokens"] == 64


def test_an_edited_method_is_run_again_where_it_is_asked_for(tmp_path):
    out, asked = tmp_path / "run", {**SMALL, "defenses": ["none"]}
    robench.run(**asked, attacks=[Shouting()], out=out)
    with pytest.raises(InputError, match="--replace"):
        robench.run(**asked, attacks=[Shouting(marks=3)], out=out)
    assert robench.run(**asked, attacks=[Shouting(marks=3)], out=out, replace=True).holes == 0
    rows = robench.load_rows(out)
    texts = rows[rows["attack"] == "Shouting"]["artifact"].map(
        lambda a: a["messages"][0]["content"]
    )
    assert len(texts) == 2 and texts.str.endswith("!!!").all()


def test_replies_are_the_recorded_ones(outcome, monkeypatch, capsys):
    from robench import cli

    for attack in ("gcg", "scav"):
        row = outcome.rows().query(f"attack == '{attack}' and defense == 'noop'").iloc[0]
        words = ["replay", str(outcome.folder), "--cell", f"noop__{attack}"]
        monkeypatch.setattr(sys, "argv", ["robench", *words, "--behavior", row["behavior"]])
        assert cli.main() == 0
        assert "the recorded reply" in capsys.readouterr().out
    for wrong, told in (("nothing", "no cell"), ("no", "several cells")):
        monkeypatch.setattr(
            sys, "argv",
            ["robench", "replay", str(outcome.folder), "--cell", wrong, "--behavior", "x"],
        )  # fmt: skip
        assert cli.main() == 2 and told in capsys.readouterr().err


def test_a_matrix_of_ones_own_names_its_methods(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("attacks: [direct]\ndefenses: [none]\nn: 2\nbenign: 2\n")
    planned = plan(robench.Question.of(matrix=str(file)))
    assert planned.suite == {"name": "mine", "attacks": ["direct"]}
    assert planned.default_folder.parts[-1] == "mine"
