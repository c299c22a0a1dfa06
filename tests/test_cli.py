"""The command line: what it passes on, how it refuses, and how quickly it answers."""

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from robench import __version__, cli
from robench.errors import InputError
from robench.methods import registry
from robench.results.words import COLUMNS, OUTCOMES, TERMS
from robench.runs.question import OPTIONS, ModelSpec, Question, Replies, Texts
from robench.runs.train import train
from robench.runs.workers import Workers

HEAVY = ("numpy", "pandas", "peft", "torch", "transformers")


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The question and the options of a run, of which nothing is done."""
    asked = SimpleNamespace(question=None, options=None, error=None, holes=0)

    class Planned:
        def preview(self, *options):
            asked.options = options
            return "forecast"

        def run(self, out, **options):
            asked.options = {"out": out, **options}
            if asked.error:
                raise asked.error
            return SimpleNamespace(holes=asked.holes, folder=tmp_path)

    def plan(question, here):
        asked.question = question
        return Planned()

    monkeypatch.setattr("robench.runs.plan.plan", plan)
    return asked


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, _, err = result
    assert code == 2
    assert err.startswith("robench: ")
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


# Answers at once


@pytest.mark.parametrize(
    "words",
    [["--help"], ["run", "--help"], ["list", "attacks"], ["list", "matrices"], ["list", "models"]],
)
def test_help_and_lists_load_nothing_heavy(words):
    program = (
        "import sys; from robench.cli import main; "
        f"sys.argv[1:] = {words!r}; code = main(); "
        f"assert not {{*{HEAVY!r}}} & {{*sys.modules}}, {{*{HEAVY!r}}} & {{*sys.modules}}; "
        "sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_help_has_each_command_once_in_a_group_and_on_one_line(call):
    out = call("--help")[1]
    _, *groups = out.split("\n\n")[2:]
    assert [group.splitlines()[0] for group in groups] == [
        "Ask, and ask more of a run:", "Look at a run:", "Attacks, defenses and judges:",
        "Make models and texts:",
    ]  # fmt: skip
    lines = [line for group in groups for line in group.splitlines()[1:]]
    names = {command.name for command in cli.app.registered_commands if command.name}
    names |= {c.callback.__name__ for c in cli.app.registered_commands if not c.name}
    assert sorted(line.split()[0] for line in lines) == sorted({*names, "organism"})
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)
    assert all(len(line) <= 80 for line in lines)


def test_help_takes_the_words_of_the_output_from_where_they_are_defined(call):
    for command, word in (("run", TERMS["tier"]), ("leaderboard", COLUMNS["judge"]),
                          ("inspect", OUTCOMES["harmful"])):  # fmt: skip
        assert word in " ".join(call(command, "--help")[1].split())


def test_no_command_is_a_call_for_help(call):
    code, out, _ = call()
    assert code == 0
    assert "leaderboard" in out


def test_names_are_listed(call):
    assert "\nnone " in f"\n{call('list', 'defenses')[1]}"
    judges = dict(line.split(maxsplit=1) for line in call("list", "judges")[1].splitlines())
    assert judges["harmbench"].startswith("The HarmBench classifier")
    assert list(judges) == registry.names("judge")
    assert call("list", "models")[1].startswith("organism ")
    refused(call("list", "attack"), "did you mean 'attacks'?")


def test_a_method_is_shown_with_its_words_fields_and_presets(call):
    code, out, _ = call("show", "gcg")
    assert code == 0
    assert out.startswith("gcg (attack)")
    assert "steps: int = " in out
    assert "demo: " in out
    assert call("show", "gcg:paper")[1] == out
    refused(call("show", "gcgg"), "did you mean 'gcg'?")


def test_a_method_in_a_file_is_shown(call, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("class Mine:\n    '''My own attack.'''\n")
    assert "My own attack." in call("show", f"{file}:Mine")[1]


# What is passed on


@pytest.mark.parametrize(
    ("words", "spread"),
    [
        ("--seeds 0 1 --n 2", "--seeds 0 --seeds 1 --n 2"),
        ("--seeds=0 1", "--seeds=0 --seeds 1"),
        ("--set a.b=1 c.d=2 --set e.f=3", "--set a.b=1 --set c.d=2 --set e.f=3"),
        ("run --attacks a b --defenses c", "run --attacks a --attacks b --defenses c"),
        ("leaderboard a b", "leaderboard a b"),
        ("--attacks", "--attacks"),
    ],
)
def test_an_option_takes_several_values(words, spread):
    assert cli.spread(words.split()) == spread.split()


def test_without_options_the_question_is_the_default_one(call, asked):
    assert call("run")[0] == 0
    assert asked.question == Question()
    assert asked.options == {
        "out": None, "keep_going": False, "replace": False, "tflops": None, "workers": None,
    }  # fmt: skip


WORDS = (
    "--matrix smoke --model m --revision v1 --trust-remote-code "
    "--attacks a b --defenses c d --set a.x=1 b.y=2 "
    "--behaviors b.csv:all --targets t.json --benign h.csv --reference r.csv "
    "--reference-harmless p.csv --train t.csv u.csv --known k --n 3 --n-benign 5 --seeds 0 1 "
    "--tier paper --protocol harmbench --judges j k --tune-judge j --judge-device cpu "
    "--chat-template t.jinja "
    "--max-new-tokens 9 --samples 4 --temperature 0.7 --device cuda:1 --device-map auto "
    "--dtype bfloat16 --threads 2 --system kind --max-thinking-tokens 90 "
    "--template-arg enable_thinking=false style=plain"
)


def test_options_are_fields_of_the_question(call, asked):
    more = "--keep-going --replace --tflops 300 --out o --workers 4 --gpus-per-worker 0.5"
    call("run", *WORDS.split(), *more.split(), "--chunk-timeout", "60")
    assert asked.question == Question(
        matrix="smoke",
        attacks=("a", "b"),
        defenses=("c", "d"),
        settings={"a": {"x": "1"}, "b": {"y": "2"}},
        seeds=(0, 1),
        tier="paper",
        judges=("j", "k"),
        tune_judge="j",
        protocol="harmbench",
        judge_device="cpu",
        model=ModelSpec("m", "v1", "t.jinja", True, "cuda:1", "auto", "bfloat16", 2),
        texts=Texts(
            "b.csv:all", "t.json", "h.csv", "r.csv", "p.csv", ("t.csv", "u.csv"), 3, 5, "k"
        ),
        replies=Replies("kind", 9, 4, 0.7, 90, {"enable_thinking": False, "style": "plain"}),
    )
    assert asked.options == {
        "out": Path("o"), "keep_going": True, "replace": True, "tflops": 300.0,
        "workers": Workers(4, "", 0.5, 60.0),
    }  # fmt: skip


def test_every_option_of_a_question_is_one_of_the_command(call, asked):
    """A new field is an option at once, with its help."""
    told = " ".join(call("run", "--help")[1].split())
    for option in OPTIONS.values():
        flag = option.field.metadata.get("flag", f"--{option.name.replace('_', '-')}")
        assert flag in told and flag in f"{WORDS} --set"
    assert "extended, full, real, smoke or FILE.yaml" in told


def test_a_dry_run_prints_the_forecast(call, asked):
    assert call("run", "--dry-run", "--out", "o", "--tflops", "3")[:2] == (0, "forecast\n")
    assert asked.options == (Path("o"), 3.0)


def test_training_takes_what_a_run_takes_of_the_model(call, monkeypatch):
    taken = []
    monkeypatch.setattr("robench.runs.train.train", lambda *given: taken.extend(given))
    words = "--revision v1 --trust-remote-code --chat-template t.jinja --device-map auto"
    words += " --train a.csv b.csv --behaviors h.csv --set crl.steps=3 --seed 4"
    assert call("train", "crl", "--out", "o", "--model", "m", *words.split())[0] == 0
    question = Question(
        settings={"crl": {"steps": "3"}},
        model=ModelSpec("m", "v1", "t.jinja", True, device_map="auto"),
        texts=Texts("h.csv", train=("a.csv", "b.csv")),
    )
    assert taken == ["crl", Path("o"), question, 4]
    refused(call("train", "crl", "--out", "o", "--device", "cud"), "did you mean 'cuda'?")


def test_a_finished_run_is_asked_where_its_model_works(call, monkeypatch):
    taken = []
    monkeypatch.setattr("robench.runs.utility.measure", lambda *given: taken.append(given) or 0)
    monkeypatch.setattr("robench.results.tables.tables", lambda folders, page: "tables")
    words = "--tasks a b --batch-size 3 --threads 2 --device cpu --chat-template t.jinja"
    code, out, _ = call("utility", "o", *words.split())
    named = "to open: o/report.html, o/dsr.md, o/leaderboard.csv"
    assert code == 0 and out.splitlines() == ["tables", named]
    spec = ModelSpec(chat_template="t.jinja", device="cpu", threads=2)
    assert taken == [(Path("o"), ["a", "b"], None, 3, spec)]


def test_training_reads_the_model_as_it_is_told(monkeypatch, tmp_path):
    asked = SimpleNamespace()

    def find(name, **options):
        asked.found = (name, options)

    def load(found, **options):
        asked.map = options["device_map"]
        raise InputError("enough")

    monkeypatch.setattr("robench.model.loading.find_model", find)
    monkeypatch.setattr("robench.model.loading.load_model", load)
    told = {"revision": "v1", "chat_template": "t", "trust_remote_code": True}
    with pytest.raises(InputError, match="enough"):
        train("crl", tmp_path / "o", Question.of(**told, device_map="auto"))
    assert (asked.found, asked.map) == (("organism", told), "auto")
    with pytest.raises(InputError, match="not both"):
        train("crl", tmp_path / "o", Question.of(device="cpu", device_map="auto"))


# How it ends


def test_holes_are_told_by_the_exit_code(call, asked):
    asked.holes = 2
    assert call("run")[0] == 3


def test_a_wrong_input_is_one_line(call, asked):
    asked.error = InputError("no such thing\nat all")
    refused(call("run"), "no such thing at all")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_says_that_what_was_written_is_kept(call, asked, number):
    asked.error = OSError(number, "No room", "rows.jsonl")
    refused(call("run"), "No room: rows.jsonl; what was recorded is kept")


def test_a_missing_permission_is_one_line(call, asked):
    asked.error = PermissionError(errno.EACCES, "Permission denied", "run.json")
    refused(call("run"), "Permission denied: run.json")


def test_an_interrupt_tells_how_to_continue(call, asked):
    asked.error = KeyboardInterrupt()
    code, _, err = call("run")
    assert code == 130
    assert err == "robench: interrupted; the same command resumes\n"


@pytest.mark.parametrize("bug", [ZeroDivisionError(), FileNotFoundError(errno.ENOENT, "gone")])
def test_a_bug_keeps_its_traceback(call, asked, bug):
    asked.error = bug
    with pytest.raises(type(bug)):
        call("run")


# Bad input


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("run --n 0", "--n"),
        ("run --n many", "--n"),
        ("run --samples -1", "--samples"),
        ("run --temperature 0.5", "give --samples"),
        ("run --threads 0", "--threads"),
        ("run --max-new-tokens 0", "--max-new-tokens"),
        ("run --seeds -1", "--seeds"),
        ("run --attacks", "--attacks"),
        ("run --attack gcg", "--attacks"),
        ("run --device cud", "did you mean 'cuda'?"),
        ("run --device cuda:x", "cuda:x"),
        ("run --dtype float23", "did you mean 'float32'?"),
        ("run --tier papr", "did you mean 'paper'?"),
        ("rum", "run"),
        ("leaderboard", "DIR"),
        ("organism train", "--out"),
    ],
)
def test_a_wrong_word_is_refused_before_anything_is_loaded(call, words, told):
    refused(call(*words.split()), told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--attacks gcgg", "did you mean 'gcg'?"),
        ("--attacks gcg:papr", "did you mean 'paper'?"),
        ("--attacks ./nowhere.py:Mine", "no file './nowhere.py'"),
        ("--defenses circuit_braker", "did you mean 'circuit_breaker'?"),
        ("--judges keywords", "did you mean 'keyword'?"),
        ("--matrix smok", "did you mean 'smoke'?"),
        ("--model organsm", "did you mean 'organism'?"),
        ("--model ./nowhere", "nowhere"),
        ("--set gcg.step=3", "did you mean 'steps'?"),
        ("--set gcg.steps=many", "gcg.steps must be int"),
        ("--set gcgg.steps=3", "gcgg"),
        ("--set steps=3", "METHOD.FIELD=VALUE"),
        ("--behaviors nowhere.csv", "nowhere.csv"),
        ("--train nowhere.csv", "nowhere.csv"),
        ("--benign nowhere.csv", "nowhere.csv"),
        ("--n 100000", "there are"),
        ("--seeds 0 0", "twice"),
    ],
)
def test_a_wrong_name_is_refused_before_the_first_cell(call, tmp_path, words, told):
    out = tmp_path / "out"
    refused(call("run", *words.split(), "--dry-run", "--out", out), told)
    assert not out.exists()


def test_the_organisms_judge_is_not_asked_about_other_requests(call, tmp_path):
    (tmp_path / "asked.csv").write_text("prompt\nWrite a phishing mail\nPick a lock\n")
    words = ("run", "--behaviors", tmp_path / "asked.csv", "--dry-run", "--out", tmp_path / "out")
    refused(call(*words), "judge exact knows the organism's requests alone", "--judges keyword")
    assert call(*words, "--judges", "keyword", "--attacks", "direct", "--tflops", "1")[0] == 0


def test_a_folder_that_is_no_run_is_refused(call, tmp_path):
    refused(call("leaderboard", tmp_path), "is not a run folder")
    refused(call("leaderboard", tmp_path / "nowhere"), "is not a run folder")
    (tmp_path / "mine.txt").write_text("mine")
    refused(call("run", "--out", tmp_path), "is not a run folder")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_the_organism_overwrites_nothing(call, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    refused(call("organism", "train", "--out", tmp_path), "is not empty")
    refused(call("organism", "train", "--out", tmp_path / "mine.txt"), "is not empty")


def test_matrices_are_listed_and_shown(call):
    assert call("list", "matrices")[1].startswith("extended ")
    out = call("show", "smoke")[1]
    assert "attacks   direct repe" in out and "dpo.steps=50" in out
    assert call("--version")[1] == f"robench {__version__}\n"
