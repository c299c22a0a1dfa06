"""A method in its own words, as `robench show` and `robench list` print it.

What stands in a class's source is read from there: its docstring, and the comment after or above
each field.
"""

import ast
import dataclasses
import inspect
import io
import sys
import textwrap
import tokenize
import typing
from typing import Any

from robench.errors import InputError
from robench.identity import module_file
from robench.methods.classes import entry_of, kinds_of, load_class
from robench.methods.method import Kind
from robench.methods.registry import presets_of, split

_LINE = 96  # characters of a line, after its indentation
_MEANING = 40  # where the meaning of a field begins, after its name, type and default
_FOR_TOOLS = ("noqa", "fmt:", "type:", "pragma:")  # the beginnings of comments that tell nothing


def summary(kind: Kind, name: str) -> str:
    """The first line of a registered class's docstring, or its file's; nothing is imported."""
    try:
        entry = entry_of(kind, name)
    except InputError as error:
        return f"({error})"
    file = module_file(entry.module)
    if file is None:
        return "(cannot be found: its package is broken or gone)"
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError as error:
        return f"({file} cannot be read: {error.msg}, line {error.lineno})"
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == entry.attr]
    words = next(filter(None, map(ast.get_docstring, classes)), ast.get_docstring(tree) or "")
    return words.partition("\n")[0]


def describe(reference: str) -> str:
    """The description of a method of any kind: `NAME`, `NAME:PRESET` or `file.py:Class`.

    Raises:
        InputError: nothing has this name.
    """
    base, _ = split(reference)
    kinds = kinds_of(base)
    source = load_class(kinds[0] if kinds else "attack", base)
    cls = source if isinstance(source, type) else type(source)
    title = f"{base} ({', '.join(kinds)})" if kinds else base
    module = sys.modules[cls.__module__]
    parts = [title, module.__doc__, _docstring(cls), _declared(cls), _fields(cls), _presets(cls)]
    return "\n\n".join(part.strip("\n") for part in parts if part)


def field_comments(cls: type) -> dict[str, list[str]]:
    """What the source of a dataclass says of each field: the comments after it and above it."""
    comments: dict[str, list[str]] = {}
    for base in reversed(cls.__mro__):
        if "__dataclass_params__" in vars(base):
            comments |= _comments_in(base)
    return comments


def _comments_in(cls: type) -> dict[str, list[str]]:
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # made in no file
        return {}
    after, alone = _comments(source)
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    comments = {}
    for node in body.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        first, last = node.lineno, node.end_lineno or node.lineno
        above = first
        while above - 1 in alone:
            above -= 1
        texts = [after[i] for i in range(first, last + 1) if i in after]
        comments[node.target.id] = [*texts, " ".join(alone[i] for i in range(above, first))]
    return comments


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments by line: those after code, and those that have a line of their own."""
    after: dict[int, str] = {}
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ").strip()
            if not text.startswith(_FOR_TOOLS):
                own_line = not token.line[: token.start[1]].strip()
                (alone if own_line else after)[token.start[0]] = text
    return after, alone


def _docstring(cls: type) -> str:
    """The class's docstring, unless it is the signature that `dataclass` puts there."""
    words = inspect.getdoc(cls) or ""
    return "" if words.startswith(f"{cls.__name__}(") else words


def _declared(cls: type) -> str:
    """Its role and its needs, where it declares them for all settings."""
    lines = []
    if isinstance(role := getattr(cls, "role", None), str):
        lines.append(f"role: {role}")
    if isinstance(needs := getattr(cls, "needs", None), tuple):
        lines.append(f"needs: {', '.join(needs)}")
    return "\n".join(lines)


def _fields(cls: type) -> str:
    """For each field `name: type = default` and its meaning, then the presets that change it."""
    if not dataclasses.is_dataclass(cls):
        return ""
    hints, comments = typing.get_type_hints(cls), field_comments(cls)
    lines = []
    for field in dataclasses.fields(cls):
        head = f"{field.name}: {inspect.formatannotation(hints[field.name])}{_default(field)}"
        notes = [*comments.get(field.name, ()), _values_in_presets(cls, field.name)]
        wrapped = [line for note in notes for line in textwrap.wrap(note, _LINE - _MEANING)]
        if len(head) > _MEANING - 2 and wrapped:
            lines.append(head)
        else:
            lines.append(f"{head:{_MEANING}}{wrapped.pop(0) if wrapped else ''}".rstrip())
        lines += [" " * _MEANING + line for line in wrapped]
    return "\n".join(["fields", *(f"    {line}" for line in lines)]) if lines else ""


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f" = {field.default!r}"
    if field.default_factory is not dataclasses.MISSING:
        return f" = {field.default_factory()!r}"
    return ""


def _values_in_presets(cls: type, field: str) -> str:
    changes = _changes(cls).items()
    return ", ".join(f"{name}: {values[field]!r}" for name, values in changes if field in values)


def _changes(cls: type) -> dict[str, dict[str, Any]]:
    """The presets, without the values that are the defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    return {
        name: {field: value for field, value in values.items() if value != defaults[field]}
        for name, values in presets_of(cls).items()
    }


def _presets(cls: type) -> str:
    """Every preset by name, with the fields that it changes."""
    if not dataclasses.is_dataclass(cls) or not presets_of(cls):
        return ""
    width = max(map(len, presets_of(cls)))
    lines = ["presets"]
    for name, values in _changes(cls).items():
        words = f"changes {', '.join(values)}" if values else "the defaults"
        head = f"    {name:{width}}  "
        lines += textwrap.wrap(words, _LINE, initial_indent=head, subsequent_indent=" " * len(head))
    return "\n".join(lines)
