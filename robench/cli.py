"""The command line: run | train | judge | utility | leaderboard | list | show | check, and
organism train.

Exit codes: 0 done, 1 a bug, 2 wrong input, 3 finished with holes, 130 interrupted. What loads torch
is imported inside the command that needs it, so that `--help` and `list` answer at once.
"""

import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from robench.config import suggestion
from robench.errors import Failure, InputError
from robench.methods import registry

WRONG_INPUT, HOLES, INTERRUPTED = 2, 3, 130  # Typer itself turns Ctrl-C into 130

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)

# Options with several values after one word.
MANY = ("--attacks", "--defenses", "--judges", "--seeds", "--set", "--tasks", "--train")
DEVICES = ("cpu", "cuda", "mps")
DTYPES = ("bfloat16", "float16", "float32")
TIERS = ("demo", "paper")
KINDS: dict[str, registry.Kind] = {"attacks": "attack", "defenses": "defense", "judges": "judge"}

# Options that several commands have
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16, float16")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads")]
SystemOption = Annotated[str | None, typer.Option(help="system prompt")]
ModelOption = Annotated[str, typer.Option(help="organism, a model folder or a hub id")]
RevisionOption = Annotated[str | None, typer.Option(help="branch, tag or commit of a hub id")]
DeviceMapOption = Annotated[str | None, typer.Option(help="auto: spread the model over all GPUs")]
SettingsOption = Annotated[list[str] | None, typer.Option("--set", help="METHOD.FIELD=VALUE ...")]
TemplateOption = Annotated[
    Path | None, typer.Option(help="Jinja file in the place of the tokenizer's template")
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="run code that comes with the model")
]

app = typer.Typer(
    help="Measure how well safety defenses of language models hold against published attacks.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
organism = typer.Typer(help="The built-in model.")
app.add_typer(organism, name="organism")


def main() -> int:
    """Run the command of `sys.argv`; the user's mistakes become one line on stderr."""
    try:
        code = app(spread(sys.argv[1:]) or ["--help"], prog_name="robench", standalone_mode=False)
    except InputError as error:
        return _complain(str(error))
    except typer.TyperException as error:
        return _complain(error.format_message())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            kept = "; what was recorded is kept, and the same command continues"
        elif error.errno in UNWRITABLE:
            kept = ""
        else:
            raise
        place = f": {error.filename}" if error.filename else ""
        return _complain(f"{error.strerror}{place}{kept}")
    if code == INTERRUPTED:
        _complain("interrupted; the same command continues")
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


@app.command()
def run(
    matrix: Annotated[str, typer.Option(help="full, smoke or FILE.yaml")] = "full",
    model: ModelOption = "organism",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    attacks: Annotated[
        list[str] | None, typer.Option(help="NAME, NAME:PRESET or FILE.py:Class ...")
    ] = None,
    defenses: Annotated[list[str] | None, typer.Option(help="likewise")] = None,
    settings: SettingsOption = None,
    behaviors: Annotated[
        str | None, typer.Option(help="harmful requests: FILE, hub id or name, as harmbench")
    ] = None,
    targets: Annotated[
        Path | None, typer.Option(help="their affirmative beginnings: JSON, id to target")
    ] = None,
    benign: Annotated[str | None, typer.Option(help="harmless requests, as xstest")] = None,
    reference: Annotated[
        str | None, typer.Option(help="harmful instructions for probes and tuning")
    ] = None,
    reference_harmless: Annotated[
        str | None, typer.Option(help="harmless instructions for probes")
    ] = None,
    train: Annotated[
        list[str] | None, typer.Option(help="prompts and replies for defenses: FILE ...")
    ] = None,
    n: Annotated[int | None, typer.Option(min=1, help="behaviors, drawn per category")] = None,
    seeds: Annotated[list[int] | None, typer.Option(min=0, help="0 1 ...")] = None,
    tier: Annotated[str | None, typer.Option(help="preset of bare names: demo or paper")] = None,
    judges: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME:PRESET ...; the first decides")
    ] = None,
    judge_device: Annotated[str | None, typer.Option(help="by default --device")] = None,
    system: SystemOption = None,
    chat_template: TemplateOption = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="length of replies")] = None,
    samples: Annotated[int, typer.Option(min=0, help="drawn replies beside the greedy one")] = 0,
    temperature: Annotated[float | None, typer.Option(help="of --samples, by default 1")] = None,
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="a failed cell becomes a hole")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
    tflops: Annotated[
        float | None,
        typer.Option(min=1e-6, help="of the device, sustained: for the hours of the plan"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="by default results/runs/MATRIX")] = None,
) -> int:
    """Ask a matrix of attacks and defenses, or go on where an interrupted run stopped."""
    _a_device(device)
    _a_device(judge_device)
    _known("device map", device_map, ("auto",))
    _known("dtype", dtype, DTYPES)
    _known("tier", tier, TIERS)

    from robench.results import tables
    from robench.runs import runner

    outcome = runner.run(
        matrix=matrix,
        model=model,
        revision=revision,
        trust_remote_code=trust_remote_code,
        attacks=attacks or None,
        defenses=defenses or None,
        settings=settings or (),
        behaviors=behaviors,
        targets=targets,
        benign=benign,
        reference=reference,
        reference_harmless=reference_harmless,
        train=train or (),
        n=n,
        seeds=seeds or None,
        tier=tier,
        judges=judges or None,
        judge_device=judge_device,
        system=system,
        chat_template=chat_template,
        max_new_tokens=max_new_tokens,
        samples=samples,
        temperature=temperature,
        device=device,
        device_map=device_map,
        dtype=dtype,
        threads=threads,
        keep_going=keep_going,
        dry_run=dry_run,
        tflops=tflops,
        out=out,
    )
    if not dry_run:
        typer.echo(tables.tables([outcome.folder]))
    return HOLES if outcome.holes else 0


@app.command()
def utility(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    tasks: Annotated[
        list[str] | None, typer.Option(help="tasks of lm_eval; by default the organism's own")
    ] = None,
    include_path: Annotated[Path | None, typer.Option(help="folder with more tasks")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="of lm_eval; a GPU takes more")] = 1,
    chat_template: Annotated[Path | None, typer.Option(help="as the run was told")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="as the run was told")
    ] = False,
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    threads: ThreadsOption = None,
) -> int:
    """Ask harmless tasks of each defended model of a run; they join its leaderboard."""
    _a_device(device)

    from robench.results import tables
    from robench.runs import utility as room

    holes = room.measure(
        folder,
        tasks or (),
        include_path=include_path,
        batch_size=batch_size,
        chat_template=chat_template,
        trust_remote_code=trust_remote_code,
        device=device,
        device_map=device_map,
        threads=threads,
    )
    typer.echo(tables.tables([folder]))
    return HOLES if holes else 0


@app.command()
def judge(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    judges: Annotated[list[str], typer.Option(help="NAME or NAME:PRESET ...")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="JUDGE.FIELD=VALUE ...")
    ] = None,
    judge_device: DeviceOption = None,
) -> None:
    """Let further judges score the replies of a run; nothing is attacked again."""
    _a_device(judge_device)

    from robench.results import tables
    from robench.runs import rejudge, runner

    without = rejudge.judge(folder, judges, settings or (), runner.place(judge_device))
    typer.echo(tables.tables([folder]))
    if without:
        typer.echo(f"{without} replies could not be scored; the same command tries them again")


@app.command()
def leaderboard(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...")],
    judge: Annotated[
        str, typer.Option(help="whose verdicts count; by default each run's first")
    ] = "",
) -> None:
    """Rebuild the tables of runs from their cells alone."""
    from robench.results import tables

    typer.echo(tables.tables(folders, judge))


@app.command("list")
def list_names(
    kind: Annotated[str, typer.Argument(metavar="attacks|defenses|judges|models")],
) -> None:
    """List what can be named, with a line on each; `show` tells more."""
    if kind == "models":
        typer.echo("organism\nany folder or hub id of a causal language model with a chat template")
        return
    from robench.methods.describe import summary

    _known("kind", kind, (*KINDS, "models"))
    for name in registry.names(KINDS[kind]):
        typer.echo(f"{name:16} {summary(KINDS[kind], name)}".rstrip())


@app.command()
def show(name: Annotated[str, typer.Argument(help="a name or FILE.py:Class")]) -> None:
    """Show a method: what it says of itself, its fields, their defaults and its presets."""
    from robench.methods.describe import describe

    typer.echo(describe(name))


@app.command()
def check(reference: Annotated[str, typer.Argument(help="a name or FILE.py:Class")]) -> int:
    """Hold an attack, a defense or a judge to the contract, on tiny models on the CPU."""
    from robench.methods import checks

    problems, warnings = checks.check(reference)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo("\n".join(problems) or f"{reference} passes")
    return WRONG_INPUT if problems else 0


@app.command()
def train(
    defense: Annotated[str, typer.Argument(help="NAME, NAME:PRESET or FILE.py:Class")],
    out: Annotated[Path, typer.Option(help="the adapter's folder, not yet made")],
    model: ModelOption = "organism",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    texts: Annotated[
        list[str] | None, typer.Option("--train", help="prompts and replies: FILE ...")
    ] = None,
    behaviors: Annotated[
        str | None, typer.Option(help="requests that the training text must not hold")
    ] = None,
    settings: SettingsOption = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    tier: Annotated[str | None, typer.Option(help="preset of a bare name: demo or paper")] = None,
    system: SystemOption = None,
    chat_template: TemplateOption = None,
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
) -> int:
    """Train one defense, for `robench run --defenses adapter:OUT` or for the hub."""
    _a_device(device)
    _known("device map", device_map, ("auto",))
    _known("dtype", dtype, DTYPES)
    _known("tier", tier, TIERS)

    from robench.runs import runner

    try:
        runner.train(
            defense,
            out=out,
            model=model,
            revision=revision,
            trust_remote_code=trust_remote_code,
            train=texts or (),
            behaviors=behaviors,
            settings=settings or (),
            seed=seed,
            tier=tier,
            system=system,
            chat_template=chat_template,
            device=device,
            device_map=device_map,
            dtype=dtype,
            threads=threads,
        )
    except Failure as failure:
        raise InputError(str(failure)) from failure
    typer.echo(f"{out}: the adapter, its record and its card")
    return 0


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


def _a_device(name: str | None) -> None:
    if name and (name.partition(":")[0] not in DEVICES or name.endswith(":")):
        raise InputError(f"no device called {name!r}{suggestion(name, DEVICES)}")


def _known(what: str, name: str | None, known: Sequence[str]) -> None:
    if name is not None and name not in known:
        raise InputError(f"no {what} called {name!r}{suggestion(name, known)}")


def _complain(message: str) -> int:
    typer.echo(f"robench: {' '.join(message.splitlines())}", err=True)
    return WRONG_INPUT
