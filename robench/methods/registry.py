"""References to methods, and the configured methods that they stand for.

A reference is `[LABEL=]NAME[:PRESET]`, `[LABEL=]path/to/file.py:Class[:PRESET]`, or an object.
Presets stand in the class attribute `presets`: name -> fields that differ from the defaults. A
class that names a field in the attribute `argument` has no presets: what follows the colon is that
field's value (`adapter:FOLDER`).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from robench.config import as_dict, coerced, suggestion
from robench.errors import InputError
from robench.identity import sources
from robench.methods.classes import is_file, load_class, names, registered_name
from robench.methods.declarations import check_class, check_instance, configured, required
from robench.methods.faults import shown
from robench.methods.method import Kind, Method

__all__ = [
    "CUSTOM",
    "EXTERNAL",
    "Kind",
    "Method",
    "is_file",
    "load_class",
    "method_name",
    "names",
    "parse",
    "presets_of",
    "refuse_unused_settings",
    "resolve",
    "resolve_all",
    "split",
]

EXTERNAL = "external"  # the tier of what was made outside robench
CUSTOM = "custom"  # the tier of what no preset describes
RESERVED = ("benign", "benign_empty_turn", "benign_system")  # the cells of harmless requests
_LABEL = re.compile(r"([A-Za-z0-9_.-]+)=(.+)", re.DOTALL)


class Reference(NamedTuple):
    """The parts of a reference; label and preset may be ""."""

    label: str
    base: str
    preset: str


def parse(reference: str) -> Reference:
    """`LABEL=NAME:PRESET` -> (`LABEL`, `NAME`, `PRESET`), `LABEL=file.py:Class:PRESET` likewise."""
    labelled = _LABEL.fullmatch(reference)
    label, rest = labelled.groups() if labelled else ("", reference)
    head, _, last = rest.rpartition(":")
    if not head or head.endswith(".py"):
        return Reference(label, rest, "")
    return Reference(label, head, last)


def split(reference: str) -> tuple[str, str]:
    """The base name and the preset of a reference, "" without one."""
    return parse(reference)[1:]


def resolve(
    kind: Kind,
    reference: object,
    tier: str = "demo",
    settings: Mapping[str, Any] | None = None,
) -> Method:
    """The configured method that a reference stands for.

    Args:
        kind: "attack", "defense" or "judge".
        reference: `[LABEL=]NAME[:PRESET]`, `[LABEL=]file.py:Class[:PRESET]`, or an object.
        tier: the preset of a bare name; a method without that preset takes its defaults.
        settings: fields set by hand, over the preset; they make the tier "custom".

    Raises:
        InputError: unknown name, preset or field; a file or class that is missing; a class that
            breaks the contract.
    """
    return _configure(_draft(kind, reference), tier, settings or {})


def resolve_all(
    kind: Kind,
    references: Iterable[object],
    tier: str = "demo",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Method]:
    """The configured methods of a run, each with a name of its own.

    Args:
        kind: "attack", "defense" or "judge".
        references: as for `resolve`.
        tier: as for `resolve`.
        settings: fields set by hand, by label, base name or class name of a method; names of other
            methods are ignored, see `refuse_unused_settings`.

    Raises:
        InputError: as `resolve`; no list; a method that is given twice.
    """
    if isinstance(references, str) or not isinstance(references, Iterable):
        example = repr(references) if isinstance(references, str) else "..."
        raise InputError(f"{kind}s must be a list: {kind}s=[{example}]")
    drafts = [_draft(kind, reference) for reference in references]
    methods = []
    for draft in drafts:
        fields: dict[str, Any] = {}
        for name in draft.set_names:
            fields.update((settings or {}).get(name, {}))
        methods.append(_configure(draft, tier, fields))
    return _disambiguated(drafts, methods)


def refuse_unused_settings(settings: Iterable[str], methods: Sequence[Method]) -> None:
    """Refuse settings of methods that a run does not have.

    Args:
        settings: the METHODs of `--set METHOD.FIELD=VALUE`.
        methods: all attacks, defenses and judges of the run.

    Raises:
        InputError: one of them is none of these.
    """
    known = {name for method in methods for name in method.set_names}
    for name in settings:
        if name not in known:
            bases = {method.base for method in methods}
            raise InputError(f"--set: this run has no method {name!r}{suggestion(name, bases)}")


def presets_of(cls: type) -> dict[str, dict[str, Any]]:
    """The named presets of a method's class: field values that differ from its defaults."""
    return getattr(cls, "presets", {})


def method_name(kind: Kind, instance: object) -> str:
    """The registered name of an object's class, else the class's name."""
    return registered_name(kind, type(instance)) or type(instance).__name__


class _Draft(NamedTuple):
    """What a reference says before its fields are set.

    longer: the name that it takes where another method has the same; "" where it has no longer one
    """

    kind: Kind
    name: str
    base: str
    preset: str
    source: Any  # a class, or an object
    longer: str

    @property
    def cls(self) -> type:
        return self.source if isinstance(self.source, type) else type(self.source)

    @property
    def set_names(self) -> tuple[str, ...]:
        """What settings may call it, the nearest last: a label, or the whole reference."""
        nearest = (self.name, self.base) if self.longer else (self.base, self.name)
        return self.cls.__name__, *nearest


def _draft(kind: Kind, reference: object) -> _Draft:
    if isinstance(reference, type):
        name = reference.__name__
        raise InputError(f"{name} is a class: give an object, {name}(), or the name of a method")
    draft = (
        _draft_of_text(kind, reference)
        if isinstance(reference, str)
        else _draft_of_object(kind, reference)
    )
    if draft.name in RESERVED:
        raise InputError(
            f"{kind} {draft.name!r} has the name of the harmless requests: give it a label, "
            "LABEL=REFERENCE"
        )
    check_class(kind, draft.base, draft.cls)
    return draft


def _draft_of_text(kind: Kind, text: str) -> _Draft:
    label, base, preset = parse(text)
    source = load_class(kind, base)
    if label in names(kind) and label != base:
        raise InputError(f"{text}: {label!r} is the name of another {kind}; choose another label")
    whole = f"{base}:{preset}" if preset else base
    if label or not is_file(base):
        return _Draft(kind, label or whole, base, preset, source, "")
    short = f"{source.__name__}:{preset}" if preset else source.__name__
    name = whole if source.__name__ in names(kind) else short
    return _Draft(kind, name, base, preset, source, whole)


def _draft_of_object(kind: Kind, source: object) -> _Draft:
    cls = type(source)
    name = registered_name(kind, cls)
    files = sources(cls.__module__)
    base = name or (f"{shown(files[0])}:{cls.__name__}" if files else cls.__name__)
    name = name or (base if cls.__name__ in names(kind) else cls.__name__)
    if hasattr(cls, "argument"):
        name = f"{name}:{getattr(source, cls.argument)}"
    return _Draft(kind, name, base, "", source, base)


def _configure(draft: _Draft, tier: str, settings: Mapping[str, Any]) -> Method:
    kind, base, preset = draft.kind, draft.base, draft.preset
    if not isinstance(draft.source, type):
        return _configured_object(draft, tier, settings)
    cls = draft.cls
    if hasattr(cls, "argument"):
        if not preset:
            raise InputError(f"{kind} {base!r} needs a {cls.argument}: {base}:VALUE")
        instance = configured(kind, base, cls, {cls.argument: preset, **settings})
        is_plain = draft.name == f"{base}:{preset}"  # no label: it is called by what it stands for
        name = f"{base}:{getattr(instance, cls.argument)}" if is_plain else draft.name
        return Method(kind, name, base, EXTERNAL, instance)
    presets = presets_of(cls)
    if preset and preset not in presets:
        raise InputError(f"{kind} {base!r} has no preset {preset!r}{suggestion(preset, presets)}")
    fields = {**presets.get(preset or tier, {}), **settings}
    instance = configured(kind, base, cls, fields)
    return Method(kind, draft.name, base, CUSTOM if settings else preset or tier, instance)


def _configured_object(draft: _Draft, tier: str, settings: Mapping[str, Any]) -> Method:
    """An object as it is, with the fields that are set by hand."""
    kind, name, base, preset, source, _ = draft
    if preset:
        raise InputError(f"{kind} {base!r} is a ready object: it has no presets")
    if settings:
        try:
            source = replace(source, **coerced(draft.cls, settings, where=base))
        except ValueError as error:
            raise InputError(str(error)) from None
    check_instance(kind, base, source)
    if hasattr(draft.cls, "argument"):
        return Method(kind, name, base, EXTERNAL, source)
    return Method(kind, name, base, _tier_of(source, tier), source)


def _tier_of(instance: Any, tier: str) -> str:
    """The preset that the fields of an object are those of, the given tier first."""
    cls, fields = type(instance), as_dict(instance)
    if required(cls):
        return CUSTOM
    for name in (tier, *presets_of(cls)):
        if as_dict(cls(**coerced(cls, presets_of(cls).get(name, {}), where=name))) == fields:
            return name
    return CUSTOM


def _disambiguated(drafts: Sequence[_Draft], methods: Sequence[Method]) -> list[Method]:
    """The methods, each with a name of its own.

    A name that the user wrote stays. Where another method has the same, a class in a file takes
    the whole reference, and objects of one class the fields in which they differ.
    """
    counts = Counter(method.name for method in methods)
    named = []
    for draft, method in zip(drafts, methods, strict=True):
        if counts[method.name] > 1 and draft.longer:
            peers = [peer for peer in methods if peer.name == method.name]
            method = method._replace(name=_longer_name(draft, method, peers))
        named.append(method)
    for name, count in Counter(method.name for method in named).items():
        if count > 1:
            one, other, *_ = (method for method in named if method.name == name)
            if one == other:
                raise InputError(f"{one.kind} {name} is given twice")
            raise InputError(
                f"two {one.kind}s are called {name!r}: give one of them a label, LABEL=REFERENCE"
            )
    return named


def _longer_name(draft: _Draft, method: Method, peers: Sequence[Method]) -> str:
    if isinstance(draft.source, type):
        return draft.longer
    alike = [peer for peer in peers if peer.base == method.base]
    name = method.name if len(alike) == len(peers) else draft.longer
    values, others = as_dict(method.instance), [as_dict(peer.instance) for peer in alike]
    differing = [field for field in values if any(values[field] != o[field] for o in others)]
    if not differing:
        return name
    return f"{name}({', '.join(f'{field}={values[field]!r}' for field in differing)})"
