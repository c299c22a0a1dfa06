"""The line from command to CSV, in a process of its own; interrupted, refused, and with holes."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robench import load_rows
from robench.organism import behaviors
from robench.results.store import RunStore
from robench.results.tables import tables
from robench.runs.runner import run

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
    "gate",
    "train_seconds",
    "harness_version",
    "p_vs_none",
]


def command(out: Path, *words: str, settings: Sequence[str] = QUICK) -> list[str]:
    base = [sys.executable, "-m", "robench", "run", "--out", str(out), "--n", "4", "--threads", "1"]
    return [*base, *(["--set", *settings] if settings else []), *words]


def robench(out: Path, *words: str, settings: Sequence[str] = QUICK) -> Any:
    line = command(out, *words, settings=settings)
    return subprocess.run(line, capture_output=True, text=True, timeout=240)


def answers(out: Path) -> pd.DataFrame:
    """Every row without what differs from one run to the next: times."""
    rows = load_rows(out)
    kept = [name for name in rows if name not in ("seconds", "tflop")]
    return rows[kept].sort_values(["defense", "attack", "behavior", "step"]).reset_index(drop=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("line") / "run"
    done = robench(out)
    assert done.returncode == 0, done.stderr
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
    assert board.set_index("defense").loc["circuit_breaker", "train_seconds"] > 0
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


def test_a_finished_run_is_quick_and_imports_no_transformers(finished):
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from robench.cli import main\n"
        "assert main() == 0\n"
        "assert 'transformers' not in sys.modules and 'peft' not in sys.modules\n"
        "print('took', time.perf_counter() - start)\n"
    )
    words = command(finished)[3:]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "28 done, 0 to do" in done.stdout
    assert float(done.stdout.split("took")[1]) < 5


def test_the_tables_are_a_function_of_the_cells(finished):
    before = {name: (finished / name).read_text() for name in ("dsr.csv", "leaderboard.csv")}
    for name in before:
        (finished / name).unlink()
    words = [sys.executable, "-m", "robench", "leaderboard", str(finished)]
    assert subprocess.run(words, capture_output=True, timeout=60).returncode == 0
    assert before == {name: (finished / name).read_text() for name in before}


def test_killed_at_random_points_it_ends_with_the_same_answers(finished, tmp_path):
    out, rng, kills = tmp_path / "killed", random.Random(0), 0
    for _ in range(5):
        with subprocess.Popen(
            command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(rng.uniform(1.5, 5))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
    with next(out.glob("cells/*/rows.jsonl"), out / "none").open("ab") as file:
        file.write(b'{"torn": ')
    done = robench(out)
    assert done.returncode == 0, done.stderr
    assert kills >= 2
    pd.testing.assert_frame_equal(answers(out), answers(finished))


def test_another_question_is_refused_by_name(finished):
    for words, named in [
        (["--n", "5"], "n = 4, not 5"),
        (["--seeds", "1"], "seeds = [0], not [1]"),
        (["--judges", "keyword"], "judges"),
        (["--max-new-tokens", "9"], "max_new_tokens"),
        (["--system", "Be brief."], "system"),
        (["--set", "gcg.steps=3"], "gcg with attack_fields"),
    ]:
        done = robench(finished, *words)
        assert done.returncode == 2, done.stdout
        assert named in done.stderr and "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_attacks_may_be_added_and_other_versions_warn(finished, tmp_path):
    prefill = f"{Path(__file__).parents[1] / 'prefill.py'}:Prefill"
    record = json.loads((finished / "run.json").read_text())
    record["versions"]["numpy"] = "0.0.1"
    (finished / "run.json").write_text(json.dumps(record))
    words = ["--attacks", "direct", prefill, "--defenses", "none"]
    done = robench(finished, *words, settings=())
    assert done.returncode == 0, done.stderr
    assert "warning: numpy was 0.0.1 here" in done.stdout + done.stderr
    board = pd.read_csv(finished / "leaderboard.csv").set_index("defense")
    assert board.loc["circuit_breaker", "attacks_missing"] == "Prefill"
    assert board["suite"].str.startswith("custom-").all()


def test_dry_run_plans_and_writes_nothing(tmp_path):
    done = robench(tmp_path / "dry", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "28 cells, 0 done, 28 to do" in done.stdout and "TFLOP" in done.stdout
    assert not (tmp_path / "dry").exists()


def test_a_failing_cell_is_a_hole_never_a_success(tmp_path):
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
    base = [sys.executable, "-m", "robench", "run", "--n", "4", "--threads", "1"]
    words = [*base, "--attacks", "direct", f"{file}:NaN", "--defenses", "none"]
    done = subprocess.run(
        [*words, "--out", str(tmp_path / "nan")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 3, done.stderr
    assert "is nan by step 3" in done.stdout
    table = pd.read_csv(tmp_path / "nan" / "dsr.csv")
    hole = table[table["attack"].str.contains("NaN")]
    assert (hole["unscored"] == 4).all() and hole["dsr"].isna().all()
    words[words.index(f"{file}:NaN")] = f"{file}:Bug"
    out = ["--out", str(tmp_path / "bug")]
    stopped = subprocess.run([*words, *out], capture_output=True, text=True, timeout=120)
    assert stopped.returncode == 1 and "IndexError" in stopped.stderr
    going = subprocess.run(
        [*words, *out, "--keep-going"], capture_output=True, text=True, timeout=120
    )
    assert going.returncode == 3 and "IndexError" in going.stdout


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
        out=tmp_path / "run",
    )
    assert outcome.holes == 3
    reasons = [reason for *_, reason in RunStore(tmp_path / "run").cells() if reason]
    assert len(reasons) == 3 and all("nan at step 7" in reason for reason in reasons)


def test_a_full_disk_is_told_and_loses_nothing(tmp_path):
    out = tmp_path / "full"
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
    code = limit + "from robench.cli import main; sys.exit(main())"
    words = command(out, "--attacks", "direct", "--defenses", "none", settings=())[3:]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "kept" in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "robench", *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (pd.read_csv(out / "dsr.csv")["unscored"] == 0).all()


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    done = robench(tmp_path / "file" / "run")
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_no_bar_where_there_is_no_terminal(finished):
    done = robench(finished, "--defenses", "none", "--attacks", "direct", settings=())
    assert "it/s" not in done.stderr and "%|" not in done.stderr


def test_two_seeds_are_two_cells_each(tmp_path):
    out = tmp_path / "run"
    outcome = run(defenses=["none"], attacks=["direct"], n=4, seeds=[0, 1], out=out)
    assert outcome.holes == 0
    assert len(list(out.glob("cells/*"))) == 4
    assert set(load_rows(out)["seed"]) == {0, 1}


def test_train_makes_an_adapter_that_a_run_takes(tmp_path):
    """Interrupted by a kill, it goes on; what comes out is a row of a table."""
    folder, words = tmp_path / "made", [sys.executable, "-m", "robench", "train"]
    words += ["circuit_breaker", "--out", str(folder), "--set", "circuit_breaker.steps=40"]
    checkpoint = tmp_path / "made.checkpoint.safetensors"
    with subprocess.Popen([*words, "--threads", "1"], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not checkpoint.exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert checkpoint.exists() and not folder.exists()
    done = subprocess.run([*words, "--threads", "1"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not checkpoint.exists()
    again = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert again.returncode == 2 and "is there already" in again.stderr
    out = tmp_path / "run"
    row = f"adapter:{folder}"
    assert run(defenses=["none", row], attacks=["direct"], n=4, out=out).holes == 0
    tables([out])
    board = pd.read_csv(out / "leaderboard.csv")
    assert set(board["defense"]) == {"none", row}


def test_train_refuses_what_it_cannot_do(tmp_path):
    from robench.errors import InputError
    from robench.runs.runner import train

    with pytest.raises(InputError, match="trains nothing"):
        train("none", out=tmp_path / "a")
    with pytest.raises(InputError, match="no defense called"):
        train("nothing", out=tmp_path / "a")
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="is there already"):
        train("circuit_breaker", out=tmp_path / "there")
    texts = tmp_path / "texts.csv"
    tested = behaviors("test")[0].text
    texts.write_text(f"prompt,reply,kind,harmful\n{tested},Sure.,answer,true\n")
    with pytest.raises(InputError, match="under test"):
        train("circuit_breaker", out=tmp_path / "a", train=[texts])
