"""Tables of records: CSV, TSV, JSONL, JSON or Parquet, from a file here or a dataset on the hub.

A dataset is named as `OWNER/NAME/FILE`, where FILE is a path inside it that may hold `*`, or as
`OWNER/NAME` where it has a single file of a kind that is read here. Columns are known by their
names folded: whatever their case, spaces and underscores.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from robench.errors import InputError

Record = dict[str, Any]  # folded column name to value
Entry = tuple[str, Record]  # where the record stands ("FILE, row 3"), the record

_ON_THE_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/.+)?")


def find_files(reference: Path | str) -> list[Path]:
    """The files that a reference names: the one of that path, else those of a dataset.

    Raises:
        InputError: there is no such file, and the hub has none or cannot be reached.
    """
    path = Path(reference).expanduser()
    dataset = _ON_THE_HUB.fullmatch(str(reference))
    local = path.exists() or (path.suffix in _READERS and str(reference).count("/") == 1)
    return _download(str(reference)) if dataset and not local else [path]


def read(files: Sequence[Path], **needs: Sequence[str]) -> list[Entry]:
    """The rows of some files, in order.

    Args:
        needs: what every file must have -> columns of which one is enough.

    Raises:
        InputError: a file cannot be read, has no rows or lacks a column.
    """
    return [row for path in files for row in _rows(path, needs)]


def has(rows: Sequence[Entry], *columns: str) -> bool:
    """Whether all of these columns occur in the rows."""
    return all(any(fold(column) in record for _, record in rows) for column in columns)


def value(record: Record, *columns: str) -> Any:
    """The value of the first of `columns` in which the record says something, else None."""
    values = (record.get(fold(column)) for column in columns)
    return next((found for found in values if found not in (None, "")), None)


def text(row: Entry, *columns: str) -> str:
    """The words of the first of `columns` that holds any, else "".

    Raises:
        InputError: it holds something other than text.
    """
    where, record = row
    return words(value(record, *columns), f"{where}: {columns[0]}")


def words(found: Any, what: str) -> str:
    """A value as text without blanks at its ends; None is no text.

    Raises:
        InputError: `what` is no text, or such as no tokenizer takes.
    """
    if found is None:
        return ""
    if isinstance(found, (dict, list)):
        raise InputError(f"{what} must be text, got a {type(found).__name__}")
    stripped = str(found).strip()
    if re.search("[\ud800-\udfff]", stripped):
        raise InputError(f"{what} holds half a character")
    return stripped


def fold(column: str) -> str:
    return re.sub(r"[\s_]", "", column).lower()


def parsed(content: str, where: str) -> Any:
    """What JSON says."""
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error}") from None


def content(path: Path) -> str:
    """The UTF-8 text of a file."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: byte {error.start}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _rows(path: Path, needs: dict[str, Sequence[str]]) -> list[Entry]:
    if path.suffix not in _READERS:
        raise InputError(f"{path} must be a {', '.join(_READERS)} file")
    rows = list(_READERS[path.suffix](path))
    if not rows:
        raise InputError(f"{path} has no rows")
    found = list(dict.fromkeys(column for _, row in rows for column in row))
    for need, columns in needs.items():
        if not {fold(c) for c in columns} & {fold(c) for c in found}:
            raise InputError(
                f"{path} has no column for the {need}: it needs one of {', '.join(columns)}, "
                f"it has {shorten(', '.join(found), 200)}"
            )
    return [(f"{path}, row {n}", {fold(c): held for c, held in row.items()}) for n, row in rows]


def _csv(path: Path, delimiter: str = ",") -> Iterator[tuple[int, Record]]:
    lines = io.StringIO(content(path), newline="")
    reader = csv.DictReader(lines, strict=True, delimiter=delimiter)
    try:
        for number, row in enumerate(reader, 1):
            if None in row:
                raise InputError(f"{path}, row {number} has more fields than there are columns")
            yield number, row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is not CSV: {error}") from None


def _tsv(path: Path) -> Iterator[tuple[int, Record]]:
    return _csv(path, "\t")


def _jsonl(path: Path) -> Iterator[tuple[int, Record]]:
    for number, line in enumerate(content(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, row {number}"
            yield number, _record(parsed(line, where), where)


def _json(path: Path) -> Iterator[tuple[int, Record]]:
    held = content(path)
    rows = parsed(held, str(path)) if held.strip() else []
    if not isinstance(rows, list):
        raise InputError(f"{path} must hold a list of records")
    for number, row in enumerate(rows, 1):
        yield number, _record(row, f"{path}, row {number}")


def _parquet(path: Path) -> Iterator[tuple[int, Record]]:
    try:
        import pyarrow
        from pyarrow.parquet import read_table
    except ImportError:
        raise InputError(
            f"{path}: Parquet is read by pyarrow: pip install 'robench[parquet]'"
        ) from None
    try:
        yield from enumerate(read_table(path).to_pylist(), 1)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"cannot read {path}: {str(error).splitlines()[0]}") from None


_READERS = {".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}


def _record(held: Any, where: str) -> Record:
    if not isinstance(held, dict):
        raise InputError(f"{where} is no record, but a {type(held).__name__}")
    return held


def _download(reference: str) -> list[Path]:
    """The files of a dataset, from the local cache where the hub cannot be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    owner, name, *inside = reference.split("/", 2)
    dataset = f"{owner}/{name}"
    try:
        pattern = inside[0] if inside else _only_file(dataset)
        folder = snapshot_download(dataset, repo_type="dataset", allow_patterns=pattern)
    except GatedRepoError:
        raise InputError(
            f"{reference}: accept the conditions on https://huggingface.co/datasets/{dataset} "
            "and set HF_TOKEN"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise InputError(
            f"{reference} is no file here, and the hub has no dataset {dataset} "
            "(a private one needs HF_TOKEN)"
        ) from None
    except OSError:
        raise InputError(
            f"{reference} is no file here, the hub cannot be reached, and the dataset is not in "
            "the local cache; check the network or HF_HOME, or give a file"
        ) from None
    files = sorted(Path(folder).glob(pattern))
    if not files:
        raise InputError(f"{reference}: no {pattern} in the dataset {dataset}, as far as is cached")
    return files


def _only_file(dataset: str) -> str:
    """The one readable file of a dataset."""
    from huggingface_hub import snapshot_download

    listed = snapshot_download(dataset, repo_type="dataset", dry_run=True)
    files = sorted(f.filename for f in listed if Path(f.filename).suffix in _READERS)
    if len(files) != 1:
        named = f" ({shorten(', '.join(files), 300)})" if files else ""
        raise InputError(
            f"the dataset {dataset} has {len(files)} files of the kinds {', '.join(_READERS)}"
            f"{named}; name one: {dataset}/FILE"
        )
    return files[0]
