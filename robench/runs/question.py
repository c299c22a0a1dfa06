"""The question that a run asks, as one object.

A field is declared here and nowhere else. It is an option of the command line (`--max-new-tokens`),
a keyword of `robench.run` (`max_new_tokens=`), and, where it is part of what every cell shares, an
entry of run.json. Nothing here imports torch, so that `--help` is quick.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from robench.config import assignments, fitted, read_value, suggestion
from robench.errors import InputError
from robench.results.words import TERMS
from robench.runs import matrices
from robench.runs.matrices import Matrix

DEVICES = ("cpu", "cuda", "mps")
Settings = Mapping[str, Mapping[str, Any]]  # method -> field -> value


def _about(help: str, **more: Any) -> dict[str, Any]:
    """What the command line says of a field, and what it may hold.

    Args:
        help: a line on what it means.
        more: `name`, where the option is not called like the field, and `flag`, where that of the
            command line is not; `least`, the lowest value; `choices`, the only ones;
            `command_line`, the type of its words there.
    """
    return {"help": help, **more}


@dataclass(frozen=True)
class ModelSpec:
    """The model under test, and where it works."""

    id: str = field(
        default="organism",
        metadata=_about("organism, smollm2, a folder, a GGUF file or a hub id", name="model"),
    )
    revision: str | None = field(default=None, metadata=_about("branch, tag or commit of a hub id"))
    chat_template: str | Path | None = field(
        default=None,
        metadata=_about(
            "Jinja file that replaces the tokenizer's template, or the name of one of several"
        ),
    )
    trust_remote_code: bool = field(
        default=False, metadata=_about("run code that comes with the model")
    )
    device: str | None = field(
        default=None, metadata=_about("cpu, cuda, cuda:1, mps; by default a GPU if there is one")
    )
    device_map: str | None = field(
        default=None, metadata=_about("auto: spread the model over all GPUs", choices=("auto",))
    )
    dtype: str | None = field(
        default=None,
        metadata=_about("float32, bfloat16, float16", choices=("bfloat16", "float16", "float32")),
    )
    threads: int | None = field(default=None, metadata=_about("CPU threads", least=1))


@dataclass(frozen=True)
class Texts:
    """The texts of a run: what is under test, and what methods read and train on."""

    behaviors: str | Path | None = field(
        default=None,
        metadata=_about("harmful requests under test: FILE, hub id or name, as harmbench"),
    )
    targets: str | Path | None = field(
        default=None, metadata=_about("affirmative beginnings: JSON file, id to target")
    )
    benign: str | Path | None = field(default=None, metadata=_about("harmless requests, as xstest"))
    reference: str | Path | None = field(
        default=None, metadata=_about("harmful instructions for probes and tuning")
    )
    reference_harmless: str | Path | None = field(
        default=None, metadata=_about("harmless instructions for probes")
    )
    train: tuple[str | Path, ...] = field(
        default=(), metadata=_about("prompts and replies for defenses: FILE ..., or DIR of a run")
    )
    n: int | None = field(
        default=None, metadata=_about("behaviors under test, drawn per category", least=1)
    )
    n_benign: int | None = field(
        default=None, metadata=_about("harmless requests asked of each defense", least=1)
    )
    known: str | None = field(
        default=None,
        metadata=_about("a model: keep requests that it answers right in all phrasings"),
    )


@dataclass(frozen=True)
class Replies:
    """How the model under test replies."""

    system: str | None = field(default=None, metadata=_about("system prompt"))
    max_new_tokens: int | None = field(
        default=None, metadata=_about("tokens of a reply, at most", least=1)
    )
    samples: int = field(
        default=0, metadata=_about("drawn replies besides the greedy one", least=0)
    )
    temperature: float | None = field(
        default=None, metadata=_about("of drawn replies, by default 1")
    )
    max_thinking_tokens: int | None = field(
        default=None,
        metadata=_about(
            "tokens of the thought of a model that thinks, at most; by default four times those of "
            "the reply",
            least=1,
        ),
    )
    template_args: Mapping[str, Any] = field(
        default_factory=dict,
        metadata=_about(
            "KEY=VALUE ... for the chat template, as enable_thinking=false",
            flag="--template-arg",
            command_line=list[str],
        ),
    )

    def __post_init__(self) -> None:
        if self.temperature is not None and not (self.samples and self.temperature > 0):
            raise InputError("--temperature is of drawn replies: give --samples, and more than 0")


@dataclass(frozen=True)
class Question:
    """Which attacks meet which defenses, of which model, on which texts, judged by whom."""

    matrix: str | Matrix = field(
        default="full",
        metadata=_about(f"{', '.join(matrices.names())} or FILE.yaml", command_line=str),
    )
    attacks: tuple[Any, ...] | None = field(
        default=None,
        metadata=_about(
            "NAME, NAME:PRESET, FILE.py:Class or LABEL=... of each", command_line=list[str]
        ),
    )
    defenses: tuple[Any, ...] | None = field(
        default=None, metadata=_about("likewise", command_line=list[str])
    )
    settings: Settings = field(
        default_factory=dict,
        metadata=_about("METHOD.FIELD=VALUE ...", flag="--set", command_line=list[str]),
    )
    seeds: tuple[int, ...] | None = field(default=None, metadata=_about("0 1 ...", least=0))
    tier: str | None = field(
        default=None,
        metadata=_about(TERMS["tier"], choices=("demo", "paper")),
    )
    judges: tuple[Any, ...] | None = field(
        default=None,
        metadata=_about("NAME or NAME:PRESET ...; the first decides", command_line=list[str]),
    )
    tune_judge: str | None = field(
        default=None,
        metadata=_about("the judge attacks tune by; by default the second, where there is one"),
    )
    protocol: str | None = field(
        default=None,
        metadata=_about(
            "a published one: its reply length, judge and requests", choices=("harmbench",)
        ),
    )
    judge_device: str | None = field(default=None, metadata=_about("by default --device"))
    model: ModelSpec = ModelSpec()
    texts: Texts = Texts()
    replies: Replies = Replies()

    @classmethod
    def of(cls, **options: Any) -> "Question":
        """The question of flat options, as `robench.run` and the command line take them.

        Raises:
            InputError: an unknown option, or a value that does not fit.
        """
        values: dict[str, dict[str, Any]] = {part: {} for part in ("", *_PARTS)}
        for name, value in options.items():
            if name not in OPTIONS:
                raise InputError(f"there is no option {name!r}{suggestion(name, OPTIONS)}")
            declared = OPTIONS[name]
            values[declared.part][declared.field.name] = declared.checked(value)
        parts = {name: cls(**values[name]) for name, cls in _PARTS.items()}
        return cls(**values[""], **parts)

    def named_matrix(self) -> Matrix:
        """The matrix that is named, as it is declared."""
        return matrices.load_matrix(self.matrix) if isinstance(self.matrix, str) else self.matrix

    def chosen_matrix(self) -> Matrix:
        """The matrix that is named, with what the question says in the place of its own.

        Raises:
            InputError: no such matrix, or nothing of some kind is asked.
        """
        given: dict[str, Any] = {
            "attacks": self.attacks,
            "defenses": self.defenses,
            "seeds": self.seeds,
            "n": self.texts.n,
            "benign": self.texts.n_benign,
        }
        given = {name: value for name, value in given.items() if value is not None}
        return replace(self.named_matrix(), **given)


class Option(NamedTuple):
    """A field of a question as an option: its flat name, the part that it belongs to, its type."""

    name: str
    part: str  # a field of Question, "" for Question itself
    field: "dataclasses.Field[Any]"
    type: Any

    @property
    def default(self) -> Any:
        if self.field.default is not dataclasses.MISSING:
            return self.field.default
        assert self.field.default_factory is not dataclasses.MISSING
        return self.field.default_factory()

    @property
    def command_line_type(self) -> Any:
        """The type that a word of the command line is read as: bool, int, float, Path or str, or a
        list of one of them."""
        declared = self.field.metadata.get("command_line")
        if declared is not None:
            return declared
        members = _members(self.type)
        plain = next(t for t in (bool, int, float, str) if t in members)
        return list[plain] if tuple in map(typing.get_origin, members) else plain  # type: ignore

    def checked(self, value: Any) -> Any:
        """The value as the field holds it.

        Raises:
            InputError: it is of another type, too low or none of the choices.
        """
        about = self.field.metadata
        if self.name in _READ:
            return _READ[self.name](value)
        if isinstance(value, str) and typing.Any in _members(self.type):
            raise InputError(f"{self.name} must be a list: {self.name}=[{value!r}]")
        if self.name != "matrix":
            value = fitted(value, self.type, self.name)
        numbers = value if isinstance(value, tuple) else (value,)
        if "least" in about and value is not None and min(numbers, default=0) < about["least"]:
            raise InputError(f"{self.name} must be at least {about['least']}, got {value}")
        if "choices" in about and value is not None and value not in about["choices"]:
            kind = self.name.replace("_", " ")
            raise InputError(f"no {kind} called {value!r}{suggestion(value, about['choices'])}")
        if self.name.endswith("device") and value is not None:
            _check_device(value)
        return value


def _members(hint: Any) -> tuple[Any, ...]:
    """The types that a hint is made of, at any depth."""
    inner = typing.get_args(hint)
    return (hint, *(member for part in inner for member in _members(part)))


def _settings(value: Any) -> Settings:
    """`{"gcg": {"steps": 100}}`, or the words of --set, `["gcg.steps=100"]`, as the former."""
    if isinstance(value, Mapping):
        if not all(isinstance(fields, Mapping) for fields in value.values()):
            raise InputError('settings must map methods to fields: {"gcg": {"steps": 100}}')
        return value
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InputError('settings must be {"gcg": {"steps": 100}} or ["gcg.steps=100"]')
    return assignments(value)


def _template_args(value: Any) -> dict[str, Any]:
    """`{"enable_thinking": False}`, or the words of --template-arg, as the former."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InputError('template_args must be {"enable_thinking": False} or ["KEY=VALUE"]')
    arguments = {}
    for word in value:
        key, equals, text = str(word).partition("=")
        if not (key and equals):
            raise InputError(f"--template-arg {word}: write it as KEY=VALUE")
        arguments[key] = read_value(text, f"--template-arg {key}")
    return arguments


# Options whose values are read in a way of their own
_READ = {"settings": _settings, "template_args": _template_args}


def _check_device(name: str) -> None:
    if name.partition(":")[0] not in DEVICES or name.endswith(":"):
        raise InputError(f"no device called {name!r}{suggestion(name, DEVICES)}")


_PARTS: dict[str, type] = {"model": ModelSpec, "texts": Texts, "replies": Replies}


def _options() -> dict[str, Option]:
    found = {}
    for part, cls in (("", Question), *_PARTS.items()):
        hints = typing.get_type_hints(cls)
        for declared in dataclasses.fields(cls):
            if declared.name not in _PARTS or part:
                name = declared.metadata.get("name", declared.name)
                found[name] = Option(name, part, declared, hints[declared.name])
    return found


# Every option of a question by its flat name.
OPTIONS: dict[str, Option] = _options()
