"""The command line. Exit codes: 0 done, 1 a bug in robench, 2 wrong input, 3 finished with holes,
130 interrupted.

What loads torch is imported inside the command that needs it, so that `--help` and `list` answer at
once. Options that belong to a question are declared in `runs.question` alone.
"""

import errno
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from robench import __version__, console
from robench.config import suggestion
from robench.errors import Failure, InputError
from robench.methods import registry
from robench.results.words import COLUMNS, OUTCOMES
from robench.runs import matrices
from robench.runs.question import OPTIONS, Option, Question
from robench.runs.terminal import paged
from robench.runs.terminal import show as show_tables

WRONG_INPUT, HOLES, INTERRUPTED = 2, 3, 130  # Typer itself turns Ctrl-C into 130

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)

# Options with several values after one word
MANY = (
    "--attacks", "--defenses", "--judges", "--seeds", "--set", "--tasks", "--template-arg",
    "--tested", "--train",
)  # fmt: skip
KINDS: dict[str, registry.Kind] = {"attacks": "attack", "defenses": "defense", "judges": "judge"}

# What commands on a finished run ask of its model: where it works, and what the run was told
OF_A_FINISHED_RUN = (
    "chat_template", "trust_remote_code", "device", "device_map", "threads",
)  # fmt: skip
OF_A_TRAINING = (
    *OF_A_FINISHED_RUN, "model", "revision", "dtype", "train", "behaviors", "settings", "tier",
    "system", "template_args",
)  # fmt: skip
OF_TEXTS = (
    *OF_A_FINISHED_RUN, "model", "revision", "dtype", "behaviors", "targets", "benign", "n",
    "n_benign", "judges", "judge_device", "settings", "system", "max_new_tokens",
)  # fmt: skip

TABLES = ("dsr.md", "leaderboard.csv")  # those of a run that a reader wants first

# What commands are for, as `robench --help` has them in groups
RUNS, RESULTS = "Ask, and ask more of a run", "Look at a run"
METHODS, TEXTS = "Attacks, defenses and judges", "Make models and texts"
ONE_LINE = 64  # characters of what a command does, so that help fits into 80


class Grouped(TyperGroup):
    """Lists its commands by what they are for (`rich_help_panel`), each in a line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = cast(dict[str, TyperCommand | TyperGroup], self.commands)
        for title in dict.fromkeys(command.rich_help_panel for command in commands.values()):
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (name, command.get_short_help_str(ONE_LINE))
                        for name, command in commands.items()
                        if command.rich_help_panel == title
                    ]
                )


app = typer.Typer(
    cls=Grouped,
    help="Measure how well safety defenses of language models hold against published attacks.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
organism = typer.Typer(help="The built-in model.")
app.add_typer(organism, name="organism", rich_help_panel=TEXTS)


def main() -> int:
    """Run the command of `sys.argv`; the user's mistakes become one line on stderr."""
    console.forgive()
    try:
        code = app(spread(sys.argv[1:]) or ["--help"], prog_name="robench", standalone_mode=False)
    except InputError as error:
        return _complain(str(error))
    except typer.TyperException as error:
        return _complain(error.format_message())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            kept = "; what was recorded is kept, and the same command resumes"
        elif error.errno in UNWRITABLE:
            kept = ""
        else:
            raise
        place = f": {error.filename}" if error.filename else ""
        return _complain(f"{error.strerror}{place}{kept}")
    if code == INTERRUPTED:
        _complain("interrupted; the same command resumes")
    return code or 0


def spread(arguments: Sequence[str]) -> list[str]:
    """Repeat an option before each of its values: `--seeds 0 1` -> `--seeds 0 --seeds 1`.

    Typer's options take a fixed number of values, so this comes before it.
    """
    words: list[str] = []
    option = ""
    for word in arguments:
        if word.startswith("-"):
            name = word.partition("=")[0]
            option = name if name in MANY else ""
        elif option and words[-1] != option:
            words.append(option)
        words.append(word)
    return words


def asks(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command options of a question besides its own; it receives a `question` of them.

    Args:
        names: of the options, by default all.
    """
    chosen = [OPTIONS[name] for name in names or OPTIONS]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        def called(**values: Any) -> Any:
            given = {o.name: values.pop(o.name) for o in chosen}
            asked = {name: value for name, value in given.items() if value not in (None, [])}
            return command(question=Question.of(**asked), **values)

        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.name != "question"
        ]
        parameters = [*own, *map(_parameter, chosen)]
        called.__name__, called.__doc__ = command.__name__, command.__doc__
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return called

    return decorate


def _parameter(option: Option) -> inspect.Parameter:
    """A question's option as a parameter for Typer."""
    about = option.field.metadata
    kind = option.command_line_type
    default = option.default if isinstance(option.default, (bool, int, str)) else None
    flag = about.get("flag", f"--{option.name.replace('_', '-')}")
    made = typer.Option(flag, help=about["help"], min=about.get("least"))
    annotation: Any = Annotated[kind if default is not None else kind | None, made]
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"robench {__version__}")
        raise typer.Exit


@app.callback()
def robench(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel=RUNS)
@asks()
def run(
    question: Question,
    out: Annotated[Path | None, typer.Option(help="by default results/runs/MATRIX")] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="a cell that fails becomes a hole")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="run cells of changed methods again")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the forecast and stop")] = False,
    tflops: Annotated[
        float | None,
        typer.Option(min=1e-6, help="of the device, sustained; by default it is measured"),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(help="N, auto (one per GPU) or HOST:PORT of a Ray cluster; docs/scale.md"),
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0.01, help="by default 1; 0.5: two workers share one")
    ] = None,
    chunk_timeout: Annotated[
        float | None, typer.Option(min=1, help="seconds until a worker that hangs is replaced")
    ] = None,
) -> int:
    """Ask a matrix of attacks and defenses, or resume a run."""
    from robench.runs.plan import plan
    from robench.runs.workers import Workers

    many = Workers.of(workers, gpus_per_worker, chunk_timeout)
    planned = plan(question, here=not (many and many.address))
    if dry_run:
        typer.echo(planned.preview(out, tflops))
        return 0
    outcome = planned.run(out, keep_going=keep_going, replace=replace, tflops=tflops, workers=many)
    show_tables(str(outcome))
    name_files(*_of_run(outcome.folder))
    return HOLES if outcome.holes else 0


@app.command(rich_help_panel=RUNS)
def status(folder: Annotated[Path, typer.Argument(metavar="DIR")]) -> None:
    """Tell how far a run is, and how long the rest takes."""
    from robench.runs.status import Status

    typer.echo(str(Status.of(folder)))


@app.command(rich_help_panel=RUNS)
@asks(*OF_A_FINISHED_RUN)
def utility(
    question: Question,
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    tasks: Annotated[
        list[str] | None, typer.Option(help="tasks of lm_eval; by default the organism's own")
    ] = None,
    include_path: Annotated[Path | None, typer.Option(help="folder with more tasks")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="of lm_eval; a GPU takes more")] = 1,
) -> int:
    """Ask harmless tasks of each defended model of a run.

    They join its leaderboard.
    """
    from robench.results.tables import tables
    from robench.runs.utility import measure

    holes = measure(folder, tasks or (), include_path, batch_size, question.model)
    show_tables(tables([folder], page=True))
    name_files(*_of_run(folder))
    return HOLES if holes else 0


@app.command(rich_help_panel=RUNS)
@asks("judges", "settings", "judge_device")
def judge(question: Question, folder: Annotated[Path, typer.Argument(metavar="DIR")]) -> int:
    """Let further judges score the replies of a run.

    Nothing is attacked again.
    """
    from robench.results.tables import tables
    from robench.runs.devices import choose_device
    from robench.runs.rejudge import judge as rejudge

    if not question.judges:
        raise InputError("name the judges: --judges harmbench strongreject")
    device = choose_device(question.judge_device)
    found = rejudge(folder, question.judges, question.settings, device)
    show_tables(tables([folder], page=True))
    if found.unscored:
        typer.echo(
            f"{found.unscored} replies could not be scored; the same command tries them again"
        )
    for name in found.silent:
        typer.echo(f"no reply to a harmful request could be scored by {name}", err=True)
    name_files(*_of_run(folder))
    return HOLES if found.silent else 0


@app.command(rich_help_panel=RESULTS)
def leaderboard(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...")],
    judge: Annotated[
        str, typer.Option(help=f"{COLUMNS['judge']}; by default each run's first")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="folder for the tables; by default that of a single run")
    ] = None,
) -> None:
    """Rebuild the tables of runs from their cells alone."""
    from robench.results.tables import tables

    show_tables(tables(folders, judge, out))
    name_files(*((out or folders[0]) / name for name in TABLES))


@app.command(rich_help_panel=RESULTS)
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...")],
    out: Annotated[
        Path | None, typer.Option(help="the page; by default report.html of a single run")
    ] = None,
    replies: Annotated[
        bool, typer.Option("--replies", help="show prompts and replies, which may be harmful")
    ] = False,
    compare: Annotated[Path | None, typer.Option(help="another run, to compare with")] = None,
    open_: Annotated[bool, typer.Option("--open", help="open the page in a browser")] = False,
) -> None:
    """Write the page of some runs: one file that needs no network."""
    from robench.results.report.write import show, write

    page = write(folders, out, replies, compare)
    name_files(page)
    if open_:
        show(page)


@app.command(rich_help_panel=RESULTS)
def plot(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    kind: Annotated[
        str, typer.Argument(help="matrix, leaderboard, budget, pareto, categories or training")
    ],
    out: Annotated[Path, typer.Option(help="a file that ends in .pdf, .svg or .png")],
    columns: Annotated[int, typer.Option(min=1, max=2, help="of a paper, that it spans")] = 2,
) -> None:
    """Draw a plot of a run for a paper."""
    from robench.results.plots.write import write

    write(folder, kind, out, columns)
    name_files(out)


@app.command("inspect", rich_help_panel=RESULTS)
def inspect_run(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    broke: Annotated[
        bool, typer.Option("--broke", help=f"only those broken: {OUTCOMES['harmful']}")
    ] = False,
    defense: Annotated[str, typer.Option(help=f"alone: {COLUMNS['defense']}")] = "",
    attack: Annotated[str, typer.Option(help=f"alone: {COLUMNS['attack']}")] = "",
    replies: Annotated[
        bool, typer.Option("--replies", help="show prompts and replies, which may be harmful")
    ] = False,
) -> None:
    """Print what was asked, tried, said and judged, by behavior."""
    from robench.results.answers import read_answers, requests, require_cells
    from robench.results.inspection import inspected

    answers = read_answers([folder])
    require_cells(answers, folder)
    paged(inspected(answers, requests([folder]), broke, defense, attack, replies))


@app.command("compare", rich_help_panel=RESULTS)
def compare_defenses(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    a: Annotated[str, typer.Argument(metavar="DEFENSE", help=COLUMNS["defense"])],
    b: Annotated[str, typer.Argument(metavar="DEFENSE", help="what it is compared with")],
) -> None:
    """Tell which behaviors flip between two defenses of a run.

    And whether that is noise.
    """
    from robench.results.answers import read_answers, require_cells
    from robench.results.flips import flips

    answers = read_answers([folder])
    require_cells(answers, folder)
    typer.echo(str(flips(answers, a, b)))


@app.command(rich_help_panel=RESULTS)
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    format: Annotated[str, typer.Option(help="parquet, every-eval-ever or inspect")],
    out: Annotated[Path | None, typer.Option(help="by default in the run's folder")] = None,
    replies: Annotated[
        bool, typer.Option("--replies", help="inspect shows prompts and replies, as parquet does")
    ] = False,
) -> None:
    """Write the rows or the numbers of a run in another format."""
    from robench.results.export import export as write

    name_files(*write(folder, format, out, replies))


@app.command(rich_help_panel=RESULTS)
def verify(folder: Annotated[Path, typer.Argument(metavar="DIR")]) -> int:
    """Make every number of a folder again, and say which differ."""
    from robench.results.verify import verify as again

    compared, problems = again(folder)
    for problem in problems:
        typer.echo(problem)
    if problems:
        return HOLES
    typer.echo(f"{folder}: {compared} values, all as they follow from what lies beneath them")
    return 0


@app.command(rich_help_panel=RUNS)
@asks(*OF_A_FINISHED_RUN)
def replay(
    question: Question,
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    cell: Annotated[str, typer.Option(help="a folder under DIR/cells, or how its name begins")],
    behavior: Annotated[str, typer.Option(help="the id of a request")],
    show: Annotated[bool, typer.Option("--show", help="print the replies")] = False,
) -> int:
    """Generate again from stored prompts, and compare the replies."""
    from robench.runs.replay import replay as again

    replayed = again(folder, cell, behavior, question.model)
    for attempt in replayed:
        name = f"{behavior} {attempt.tag}".strip()
        verdict = "the recorded reply" if attempt.same else "another reply than the recorded one"
        typer.echo(f"{name}, step {attempt.step}: {verdict}")
        if show:
            typer.echo(f"  recorded: {attempt.recorded!r}\n  now:      {attempt.reply!r}")
    return 0 if all(attempt.same for attempt in replayed) else HOLES


@app.command("list", rich_help_panel=METHODS)
def list_names(
    kind: Annotated[str, typer.Argument(metavar="attacks|defenses|judges|matrices|models")],
) -> None:
    """List what can be named, with a line on each; `show` tells more."""
    if kind == "models":
        from robench.model.packaged import listing

        typer.echo(
            f"{'organism':17} the built-in model, which refuses harmful requests and can be broken"
        )
        for line in listing():
            typer.echo(line)
        typer.echo(
            "any folder, GGUF file or hub id of a causal language model with a chat template"
        )
    elif kind == "matrices":
        for name in matrices.names():
            typer.echo(f"{name:16} {matrices.load_matrix(name).about}")
    elif kind in KINDS:
        from robench.methods.describe import summary

        for name in registry.names(KINDS[kind]):
            typer.echo(f"{name:16} {summary(KINDS[kind], name)}".rstrip())
    else:
        raise InputError(
            f"no kind called {kind!r}{suggestion(kind, (*KINDS, 'matrices', 'models'))}"
        )


@app.command(rich_help_panel=METHODS)
def show(
    name: Annotated[str, typer.Argument(help="a method, FILE.py:Class or a matrix")],
) -> None:
    """Show a method or a matrix: its fields, defaults and presets."""
    from robench.methods.describe import describe

    typer.echo(matrices.describe(name) if name in matrices.names() else describe(name))


@app.command(rich_help_panel=METHODS)
def check(reference: Annotated[str, typer.Argument(help="a name or FILE.py:Class")]) -> int:
    """Hold a method to its contract, on tiny models on the CPU."""
    from robench.methods import checks

    report = checks.check(reference)
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    problems = [f"{reference}: {problem}" for problem in report.problems]
    typer.echo("\n".join(problems) or f"{reference} passes")
    return WRONG_INPUT if report.problems else 0


@app.command(rich_help_panel=TEXTS)
@asks(*OF_A_TRAINING)
def train(
    question: Question,
    defense: Annotated[str, typer.Argument(help="NAME, NAME:PRESET or FILE.py:Class")],
    out: Annotated[Path, typer.Option(help="the adapter's folder, which must not exist yet")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> int:
    """Train one defense alone, into the folder of an adapter.

    For `robench run --defenses adapter:OUT`, or for the hub.
    """
    from robench.runs.train import train as train_defense

    try:
        train_defense(defense, out, question, seed)
    except Failure as failure:
        raise InputError(str(failure)) from failure
    name_files(out / "README.md")
    return 0


@app.command(rich_help_panel=TEXTS)
@asks(*OF_TEXTS)
def texts(
    question: Question,
    out: Annotated[Path, typer.Option(help="a .jsonl file, which must not exist yet")],
    run: Annotated[
        Path | None, typer.Option(help="DIR of a run whose harmful replies are used, too")
    ] = None,
    refusals: Annotated[
        Path | None, typer.Option(help="to draw from: a .txt file, a line each, or training text")
    ] = None,
    tested: Annotated[
        list[str] | None, typer.Option(help="sets of requests that must not be asked: FILE ...")
    ] = None,
) -> None:
    """Make training text (--train) from the model's own answers."""
    from robench.runs.make_texts import make_texts

    typer.echo(make_texts(question, out, run=run, refusals=refusals, tested=tested or ()))
    name_files(out)


@organism.command("train")
def train_organism(
    out: Annotated[Path, typer.Option(help="a new or empty folder")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make the organism again, from nothing but a seed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty; choose another --out")

    from robench.organism import trainer

    trainer.train(seed, out)
    name_files(out)


def name_files(*paths: Path) -> None:
    """The last line of a command that writes files: those to open."""
    typer.echo(f"to open: {', '.join(map(str, paths))}")


def _of_run(folder: Path) -> list[Path]:
    return [folder / name for name in ("report.html", *TABLES)]


def _complain(message: str) -> int:
    typer.echo(f"robench: {' '.join(message.splitlines())}", err=True)
    return WRONG_INPUT
