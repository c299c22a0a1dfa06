"""Files of records as people have them, read row by row: CSV, TSV, JSON Lines, JSON, Parquet.

Text is UTF-8, or UTF-16 or UTF-32 with the mark that Excel writes. A CSV may be separated by
commas, semicolons, tabs or bars, and its lines may end in separators; JSON Lines may be called
`.json`, and a JSON list `.jsonl`.
"""

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from robench.errors import InputError

Record = dict[str, Any]  # column name to value
Numbered = Iterator[tuple[int, Record]]  # the number of a row, the row

_LONGEST = 2**31 - 1  # characters of a CSV field; the library's default is 128 kB
_SEPARATORS = ",;\t|"
_MARKS = {  # the longer ones first: that of UTF-32 begins like that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_AS_UTF8 = 'save it as UTF-8 (in Excel: "CSV UTF-8")'


def content(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: it cannot be read, or is not text in UTF-8 or, with its mark, UTF-16 or UTF-32.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-SIG")
        raise InputError(f"{path} is not {name} text: byte {error.start}; {_AS_UTF8}") from None
    if "\0" in text:
        raise InputError(f"{path} has bytes of zero, as UTF-16 without its mark has: {_AS_UTF8}")
    return text


def parsed(text: str, where: str) -> Any:
    """The value of a JSON text.

    Raises:
        InputError: it is not JSON, or gives a key two values.
    """

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        for key, value in pairs:
            if record[key] != value and value == value:  # NaN is not itself
                raise InputError(f"{where} gives {key!r} two values")
        return record

    try:
        return json.loads(text, object_pairs_hook=to_dict)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error}") from None
    except RecursionError:
        raise InputError(f"{where} is not JSON that can be read: it is nested too deep") from None


def _csv(path: Path, separator: str = ",") -> Numbered:
    text, separator = _separated(content(path), separator)
    before = csv.field_size_limit(_LONGEST)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    try:
        header, *rows = [row for row in reader if row] or [[]]
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num} is not CSV: {error}; a quote inside a quoted text is "
            "written twice"
        ) from None
    finally:
        csv.field_size_limit(before)
    names = _names(path, header)
    for number, row in enumerate(rows, 1):
        if any(row):  # not separators alone, which spreadsheets leave below a table
            if any(row[len(names) :]):
                raise InputError(
                    f"{path}, row {number} has more fields than there are columns: a text with "
                    f"{separator!r} in it stands in double quotes"
                )
            fields = [*row, *[None] * (len(names) - len(row))]
            yield number, {name: v for name, v in zip(names, fields, strict=False) if name}


def _separated(text: str, usual: str) -> tuple[str, str]:
    """A CSV and its separator: that of a line `sep=;`, else the one with the most columns."""
    first, _, rest = text.partition("\n")
    if first.strip().lower().startswith("sep=") and len(first.strip()) == 5:
        return rest, first.strip()[-1]

    def columns(separator: str) -> int:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        try:
            return len(next((row for row in lines if row), []))
        except csv.Error:
            return 0

    return text, max(usual + _SEPARATORS, key=columns)


def _names(path: Path, header: list[str]) -> list[str]:
    """The names of columns, "" of one without: those at the end are none.

    Raises:
        InputError: two have the same.
    """
    names = [name.strip() for name in header]
    while names and not names[-1]:
        names.pop()
    repeated = [name for name, count in Counter(filter(None, names)).items() if count > 1]
    if repeated:
        raise InputError(f"{path} has two columns {repeated[0]!r}: rename or remove one")
    return names


def _tsv(path: Path) -> Numbered:
    return _csv(path, "\t")


def _jsonl(path: Path) -> Numbered:
    text = content(path)
    if text.lstrip().startswith("[") and _is_json(text):
        yield from _listed(parsed(text, str(path)), path)
        return
    yield from _lines(text, path)


def _json(path: Path) -> Numbered:
    text = content(path)
    if not text.strip():
        return
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1 and all(map(_is_json, lines[:2])) and not _is_json(text):
        yield from _lines(text, path)
        return
    yield from _listed(parsed(text, str(path)), path)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(text: str, path: Path) -> Numbered:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, row {number}"
            yield number, _record(parsed(line, where), where)


def _listed(rows: Any, path: Path) -> Numbered:
    if not isinstance(rows, list):
        raise InputError(
            f"{path} must be a list of records, [{{...}}, {{...}}]; with a record on each line its "
            "name ends in .jsonl"
        )
    for number, row in enumerate(rows, 1):
        yield number, _record(row, f"{path}, row {number}")


def _record(row: Any, where: str) -> Record:
    if not isinstance(row, dict):
        raise InputError(f"{where} is not a record, but a {type(row).__name__}")
    return row


def _parquet(path: Path) -> Numbered:
    try:
        import pyarrow
        from pyarrow.parquet import read_table
    except ImportError:
        raise InputError(
            f"{path}: reading Parquet needs pyarrow: pip install 'robench[parquet]'"
        ) from None
    try:
        yield from enumerate(read_table(path).to_pylist(), 1)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"cannot read {path}: {str(error).splitlines()[0]}") from None


# The ending of a file's name, in lower case -> its rows.
READERS: Mapping[str, Callable[[Path], Numbered]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
}
