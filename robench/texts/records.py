"""Tables of records: CSV, TSV, JSONL, JSON or Parquet, from a local file or a dataset on the hub.

A dataset is named `OWNER/NAME/FILE`, where FILE is a path inside it that may contain `*`, or
`OWNER/NAME` if it has a single file of a supported kind. Columns are matched by their names
ignoring case, spaces and underscores.
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

Record = dict[str, Any]  # normalised column name to value
Row = tuple[str, Record]  # where the record is ("FILE, row 3"), the record

_DATASET = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/.+)?")


def find_files(reference: Path | str) -> list[Path]:
    """The files that a reference names: the local file, or those of a dataset on the hub.

    Raises:
        InputError: there is no such file, and the hub has none or cannot be reached.
    """
    path = Path(reference).expanduser()
    is_dataset = _DATASET.fullmatch(str(reference))
    is_local = path.exists() or (path.suffix in _READERS and str(reference).count("/") == 1)
    return _download(str(reference)) if is_dataset and not is_local else [path]


def read(files: Sequence[Path], **needs: Sequence[str]) -> list[Row]:
    """The rows of some files, in order.

    Args:
        files: of the supported kinds.
        needs: what every file must have -> columns, any one of which is enough.

    Raises:
        InputError: a file cannot be read, has no rows or lacks a column.
    """
    return [row for path in files for row in _rows(path, needs)]


def has(rows: Sequence[Row], *columns: str) -> bool:
    """Whether all of these columns occur in the rows."""
    return all(any(_normalised(column) in record for _, record in rows) for column in columns)


def value(record: Record, *columns: str) -> Any:
    """The first value of `columns` that is not empty, else None."""
    values = (record.get(_normalised(column)) for column in columns)
    return next((value for value in values if value not in (None, "")), None)


def text(row: Row, *columns: str) -> str:
    """The text of the first of `columns` that is not empty, else "".

    Raises:
        InputError: it holds something other than text.
    """
    place, record = row
    return as_text(value(record, *columns), f"{place}: {columns[0]}")


def as_text(value: Any, what: str) -> str:
    """A value as text without spaces at its ends; None is "".

    Raises:
        InputError: `what` is not text, or not valid Unicode, which no tokenizer accepts.
    """
    if value is None:
        return ""
    if isinstance(value, (dict, list)):
        raise InputError(f"{what} must be text, got a {type(value).__name__}")
    stripped = str(value).strip()
    if re.search("[\ud800-\udfff]", stripped):
        raise InputError(f"{what} contains half a surrogate pair, which is not valid Unicode")
    return stripped


def parsed(content: str, where: str) -> Any:
    """The value of a JSON text."""
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


def _normalised(column: str) -> str:
    return re.sub(r"[\s_]", "", column).lower()


def _rows(path: Path, needs: dict[str, Sequence[str]]) -> list[Row]:
    if path.suffix not in _READERS:
        raise InputError(f"{path} must be a {', '.join(_READERS)} file")
    rows = list(_READERS[path.suffix](path))
    if not rows:
        raise InputError(f"{path} has no rows")
    header = list(dict.fromkeys(column for _, row in rows for column in row))
    for need, columns in needs.items():
        if not {_normalised(c) for c in columns} & {_normalised(c) for c in header}:
            raise InputError(
                f"{path} has no column for the {need}: it needs one of {', '.join(columns)}, "
                f"it has {shorten(', '.join(header), 200)}"
            )
    return [
        (f"{path}, row {n}", {_normalised(column): value for column, value in row.items()})
        for n, row in rows
    ]


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
    text = content(path)
    rows = parsed(text, str(path)) if text.strip() else []
    if not isinstance(rows, list):
        raise InputError(f"{path} must be a list of records")
    for number, row in enumerate(rows, 1):
        yield number, _record(row, f"{path}, row {number}")


def _parquet(path: Path) -> Iterator[tuple[int, Record]]:
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


_READERS = {".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}


def _record(row: Any, where: str) -> Record:
    if not isinstance(row, dict):
        raise InputError(f"{where} is not a record, but a {type(row).__name__}")
    return row


def _download(reference: str) -> list[Path]:
    """The files of a dataset, from the local cache if the hub cannot be reached."""
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
            f"{reference} is not a local file, and the hub has no dataset {dataset} "
            "(a private one needs HF_TOKEN)"
        ) from None
    except OSError:
        raise InputError(
            f"{reference} is not a local file, the hub cannot be reached, and the dataset is not "
            "in the local cache; check the network or HF_HOME, or give a file"
        ) from None
    files = sorted(Path(folder).glob(pattern))
    if not files:
        raise InputError(f"{reference}: no {pattern} in the dataset {dataset} (or in its cache)")
    return files


def _only_file(dataset: str) -> str:
    """The one file of a dataset that can be read."""
    from huggingface_hub import snapshot_download

    listing = snapshot_download(dataset, repo_type="dataset", dry_run=True)
    files = sorted(f.filename for f in listing if Path(f.filename).suffix in _READERS)
    if len(files) != 1:
        names = f" ({shorten(', '.join(files), 300)})" if files else ""
        raise InputError(
            f"the dataset {dataset} has {len(files)} files of the kinds {', '.join(_READERS)}"
            f"{names}; name one: {dataset}/FILE"
        )
    return files[0]
