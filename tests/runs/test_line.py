"""The line from command to CSV, in a process of its own; interrupted, refused, and with holes."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from robench import load_rows, run
from robench.errors import InputError
from robench.organism import behaviors
from robench.results.store import RunStore
from robench.runs.question import Question
from robench.runs.train import train as train_defense

QUICK = [
    "gcg.steps=2",
    "gcg.width=16",
    "gcg.topk=8",
    "autodan.steps=2",
    "autodan.population=4",
    "soft_prompt.steps=4",
    "scav.p0=[1e-4]",
    "circuit_breaker.steps=3",
    "crl.steps=3",
    "es2.steps=3",
    "es2.batch=8",
]
COLUMNS = [
    "model",
    "defense",
    "attack",
    "access",
    "role",
    "tier",
    "judge",
    "seed",
    "n",
    "harmful",
    "refused",
    "degenerate",
    "harmless",
    "unscored",
    "asr",
    "dsr",
    "dsr_lo",
    "dsr_hi",
    "dsr_any",
    "seconds",
    "tflop",
    "dsr_mean_tag",
    "samples",
    "asr_samples_any",
    "asr_samples_mean",
    "score_mean",
    "score_lo",
    "score_hi",
    "dsr_quarter",
    "dsr_half",
    "flags",
    "attack_failed",
]
BOARD = [
    "rank",
    "model",
    "defense",
    "suite",
    "tier",
    "n",
    "seeds",
    "dsr_worst",
    "dsr_worst_lo",
    "dsr_worst_hi",
    "dsr_worst_any",
    "dsr_mean",
    "strongest_attack",
    "attacks_missing",
    "dsr_text",
    "dsr_embedding",
    "dsr_activation",
    "benign_compliance",
    "benign_refused",
    "benign_degenerate",
    "benign_empty_turn",
    "benign_system",
    "gate",
    "train_seconds",
    "harness_version",
    "p_vs_none",
    "rank_lo",
    "rank_hi",
    "group",
    "rank_note",
    "attacks_failed",
    "dsr_worst_at_40",
    "dsr_worst_at_60",
    "dsr_worst_at_80",
    "defense_note",
    "flags",
    "dsr_worst_by_seed",
]


def words(out: Path, *more: object, settings: Sequence[str] = QUICK) -> list[str]:
    base = ["run", "--out", str(out), "--n", "4", "--n-benign", "8", "--threads", "1"]
    return [*base, *(["--set", *settings] if settings else []), *map(str, more)]


def process(
    *line: str, program: str = "from robench.cli import main; import sys; sys.exit(main())"
):
    """robench in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", program, *line], capture_output=True, text=True, timeout=240
    )


def answers(out: Path) -> pd.DataFrame:
    """Every row without what differs from one run to the next: times and folders."""
    rows = load_rows(out)
    kept = [name for name in rows if name not in ("seconds", "tflop", "run")]
    return rows[kept].sort_values(["defense", "attack", "behavior", "step"]).reset_index(drop=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("line") / "run"
    done = process(*words(out))
    assert done.returncode == 0, done.stderr
    assert "it/s" not in done.stderr and "%|" not in done.stderr  # no bar without a terminal
    assert "36/36 es2 x scav, seed 0: done in " in done.stdout  # but a line per finished cell
    return out


def test_tables(finished):
    table = pd.read_csv(finished / "dsr.csv")
    assert list(table) == COLUMNS
    assert len(table) == 4 * 6 * 2  # defenses x attacks x judges
    assert (table["n"] == 4).all()
    assert ((table["asr"] + table["dsr"]).round(9) == 1).all()
    assert (table["tier"] == "demo").sum() == 4 * 2 * 2  # direct and repe; the others were set
    board = pd.read_csv(finished / "leaderboard.csv")
    assert list(board) == BOARD
    assert set(board["defense"]) == {"none", "circuit_breaker", "crl", "es2"}
    assert (board["suite"] == "full").all()
    board = board.set_index("defense")
    assert board.loc["circuit_breaker", "train_seconds"] > 0
    assert board["defense_note"].dropna().to_dict() == {"es2": "reimplementation, unverified"}
    pairs = pd.read_csv(finished / "pairs.csv")
    assert set(pairs["a"]) == {"circuit_breaker", "crl", "es2"}
    assert board["rank"].isna().all()  # four behaviors show no difference
    assert "soft_prompt" in (finished / "dsr.md").read_text()


def test_rows_hold_what_is_needed_to_replay(finished):
    rows = load_rows(finished)
    assert rows[rows["attack"] == "gcg"]["roundtrip_ok"].all()
    soft = rows[rows["attack"] == "soft_prompt"].iloc[0]
    file, _, key = soft["artifact"]["tensors"].partition(":")
    from safetensors.torch import load_file

    (path,) = finished.glob(f"cells/none__soft_prompt*/tensors/{file}")
    assert load_file(path)[f"{key}.soft"].shape[1] == 128
    assert not list(finished.rglob("*.pt")) and not list(finished.rglob("*.pkl"))


def test_a_finished_run_loads_no_transformers(finished):
    program = (
        "import sys\n"
        "from robench.cli import main\n"
        "assert main() == 0\n"
        "assert 'transformers' not in sys.modules and 'peft' not in sys.modules\n"
    )
    done = process(*words(finished), program=program)
    assert done.returncode == 0, done.stderr
    assert "36 done, 0 to do" in done.stdout


def test_the_tables_are_a_function_of_the_cells(finished, call):
    before = {name: (finished / name).read_text() for name in ("dsr.csv", "leaderboard.csv")}
    for name in before:
        (finished / name).unlink()
    assert call("leaderboard", finished)[0] == 0
    assert before == {name: (finished / name).read_text() for name in before}


# A process that dies in the middle of its n-th write of rows, or after its n-th checkpoint
DYING = """
import os, signal, sys
from robench import files
from robench.cli import main

left, name = int(sys.argv.pop(1)), sys.argv.pop(1)
whole = getattr(files, name)

def dying(path, content):
    global left
    if name == "write_bytes" and not path.name.endswith("checkpoint.safetensors"):
        return whole(path, content)
    left -= 1
    if not left and name == "append_lines":
        with path.open("ab") as file:
            file.write("".join(content).encode()[:-7])
    else:
        whole(path, content)
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

setattr(files, name, dying)
sys.exit(main())
"""


def test_killed_in_the_middle_of_writes_it_ends_with_the_same_answers(finished, tmp_path):
    some = ["--defenses", "none", "circuit_breaker", "--attacks", "direct", "gcg", "repe"]
    settings = [text for text in QUICK if text.startswith(("circuit_breaker", "gcg"))]
    out = tmp_path / "killed"
    line = words(out, *some, settings=settings)
    for write in (2, 1, 9):
        done = process(str(write), "append_lines", *line, program=DYING)
        assert done.returncode == -signal.SIGKILL, done.stderr
    done = process(*line)
    assert done.returncode == 0, done.stderr
    found, expected = answers(out), answers(finished)
    same = expected["attack"].isin(found["attack"]) & expected["defense"].isin(found["defense"])
    pd.testing.assert_frame_equal(found, expected[same].reset_index(drop=True))
    assert set(found["attack"]) > {"direct", "gcg", "repe"} and found["defense"].nunique() == 2


def test_another_question_is_refused_by_name(finished, call):
    for more, named in [
        (["--n", "5"], "n = 4, not 5"),
        (["--seeds", "1"], "seeds = [0], not [1]"),
        (["--judges", "keyword"], "judges"),
        (["--max-new-tokens", "9"], "max_new_tokens"),
        (["--system", "Be brief."], "system"),
        (["--set", "gcg.steps=3"], "gcg with attack_fields"),
    ]:
        code, out, err = call(*words(finished, *more))
        assert code == 2, out
        assert named in err and len(err.strip().splitlines()) == 1


def test_attacks_may_be_added_and_other_versions_warn(finished, tmp_path, call):
    out = shutil.copytree(finished, tmp_path / "run")
    record = json.loads((out / "run.json").read_text())
    record["versions"]["numpy"] = "0.0.1"
    (out / "run.json").write_text(json.dumps(record))
    more = ["--attacks", "direct", "prefilling", "--defenses", "none"]
    code, told, err = call(*words(out, *more, settings=()))
    assert code == 0
    assert "warning: numpy was 0.0.1 here" in told + err
    board = pd.read_csv(out / "leaderboard.csv").set_index("defense")
    assert board.loc["circuit_breaker", "attacks_missing"] == "prefilling"
    assert board["suite"].str.startswith("custom-").all()


def test_dry_run_plans_and_writes_nothing(tmp_path, call):
    code, out, _ = call(*words(tmp_path / "dry", "--dry-run"))
    assert code == 0
    assert "36 cells, 0 done, 36 to do" in out and "TFLOP" in out
    assert not (tmp_path / "dry").exists()


def test_a_failing_cell_is_a_hole_never_a_success(tmp_path, call):
    file = tmp_path / "failing.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from robench.types import Attempt, Prompt, user\n"
        "@dataclass(frozen=True)\n"
        "class NaN:\n"
        "    def run(self, model, behaviors, ctx):\n"
        "        for b in behaviors:\n"
        "            yield Attempt(b, Prompt(user(b.text)), 3, final=True, trace=(float('nan'),))\n"
        "@dataclass(frozen=True)\n"
        "class Bug:\n"
        "    def run(self, model, behaviors, ctx):\n"
        "        yield from [][1]\n"
    )

    def run_of(attack: str, *more: object) -> tuple[int, str, str]:
        asked = ["--attacks", "direct", f"{file}:{attack}", "--defenses", "none"]
        return call(*words(tmp_path / attack, *asked, *more, settings=()))

    code, out, err = run_of("NaN")
    assert code == 3
    assert "is nan by step 3" in out + err
    table = pd.read_csv(tmp_path / "NaN" / "dsr.csv")
    hole = table[table["attack"] == "NaN"]
    assert (hole["unscored"] == 4).all() and hole["dsr"].isna().all()
    code, _, err = run_of("Bug")
    assert code == 2
    assert "attack 'Bug' (" in err and "failing.py:11): IndexError" in err
    code, out, err = run_of("Bug", "--keep-going")
    assert code == 3 and "IndexError" in out + err


def test_smoke_shows_an_attack_that_breaks_and_a_defense_that_holds(tmp_path):
    outcome = run(matrix="smoke", threads=1, out=tmp_path / "run")
    held = outcome.dsr.query("judge == 'exact'").set_index(["defense", "attack"])["dsr"]
    assert held["none", "direct"] == 1 and held["none", "repe"] <= 0.25
    assert held["dpo", "repe"] >= 0.75
    board = outcome.leaderboard.set_index("defense")
    assert board.loc["dpo", "rank"] == 1 and board.loc["dpo", "gate"] == "pass"
    assert "Few behaviors: all (n = 8)." in str(outcome)


def test_a_defense_that_fails_is_a_hole_in_each_of_its_cells(tmp_path):
    file = tmp_path / "failing.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from robench.errors import Failure\n"
        "@dataclass(frozen=True)\n"
        "class Diverging:\n"
        "    def applied(self, model, ctx, cache):\n"
        "        raise Failure('training stopped: loss is nan at step 7')\n"
    )
    outcome = run(
        matrix="smoke",
        attacks=["direct", "soft_prompt"],
        defenses=["none", f"{file}:Diverging", "circuit_breaker"],
        settings=["soft_prompt.steps=3", "circuit_breaker.steps=3"],
        out=tmp_path / "run",
    )
    assert outcome.holes == 3
    reasons = [reason for *_, reason in RunStore(tmp_path / "run").cells() if reason]
    assert len(reasons) == 5 and all(  # harmless requests were to be asked in two other ways
        "nan at step 7" in reason for reason in reasons
    )


def test_a_full_disk_is_told_and_loses_nothing(tmp_path, call):
    out = tmp_path / "full"
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
    line = words(out, "--attacks", "direct", "--defenses", "none", settings=())
    done = process(*line, program=limit + "from robench.cli import main; sys.exit(main())")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "kept" in done.stderr
    assert call(*line)[0] == 0
    assert (pd.read_csv(out / "dsr.csv")["unscored"] == 0).all()


def test_a_file_where_the_folder_should_be(tmp_path, call):
    (tmp_path / "file").write_text("")
    assert call(*words(tmp_path / "file" / "run"))[0] == 2


def test_two_seeds_are_two_cells_each(tmp_path):
    out = tmp_path / "run"
    outcome = run(defenses=["none"], attacks=["direct"], n=4, seeds=[0, 1], out=out)
    assert outcome.holes == 0
    assert len(list(out.glob("cells/*"))) == 2 * (1 + 3)  # direct, and three of harmless requests
    assert set(load_rows(out)["seed"]) == {0, 1}


def test_train_makes_an_adapter_that_a_run_takes(tmp_path, call):
    """Killed after a checkpoint, it resumes; what comes out is a row of a table."""
    folder, checkpoint = tmp_path / "made", tmp_path / "made.checkpoint.safetensors"
    line = ["train", "circuit_breaker", "--out", str(folder), "--threads", "1"]
    line += ["--set", "circuit_breaker.steps=40"]
    done = process("1", "write_bytes", *line, program=DYING)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert checkpoint.exists() and not folder.exists()
    assert call(*line)[0] == 0
    assert not checkpoint.exists()
    code, _, err = call(*line)
    assert code == 2 and "already exists" in err
    out = tmp_path / "run"
    row = f"adapter:{folder}"
    assert run(defenses=["none", row], attacks=["direct"], n=4, out=out).holes == 0
    board = pd.read_csv(out / "leaderboard.csv")
    assert set(board["defense"]) == {"none", row}


def test_train_refuses_what_it_cannot_do(tmp_path):
    def train(defense, out, **options):
        train_defense(defense, out, Question.of(**options))

    with pytest.raises(InputError, match="trains nothing"):
        train("none", out=tmp_path / "a")
    with pytest.raises(InputError, match="no defense called"):
        train("nothing", out=tmp_path / "a")
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="already exists"):
        train("circuit_breaker", out=tmp_path / "there")
    texts = tmp_path / "texts.csv"
    tested = behaviors("test")[0].text
    texts.write_text(f"prompt,reply,kind,harmful\n{tested},Sure.,answer,true\n")
    with pytest.raises(InputError, match="under test"):
        train("circuit_breaker", out=tmp_path / "a", train=[texts])
