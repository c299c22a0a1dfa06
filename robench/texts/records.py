"""Tables of records: CSV, TSV, JSONL, JSON or Parquet, from a local file or a dataset on the hub.

A dataset is named `OWNER/NAME/FILE`, where FILE is a path inside it that may contain `*`, or
`OWNER/NAME` if it has a single file of a supported kind. Columns are matched by their names
ignoring case, spaces and underscores.
"""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from robench.errors import InputError
from robench.texts.readers import READERS, Record

Row = tuple[str, Record]  # where the record is ("FILE, row 3"), the record by normalised columns
# What programs write where they have no value; as a request or a target it would mean nothing.
_NO_VALUE = ("nan", "<na>", "nat", "null", "none", "n/a", "#n/a")
_SHOWS_NOTHING = ("Cc", "Cf", "Zl", "Zp", "Zs")  # categories of Unicode: controls and spaces
_BLANKS = (
    "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\ufe0e\ufe0f\uffa0"  # letters and marks that do not
)

_DATASET = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/.+)?")


def find_files(reference: Path | str) -> list[Path]:
    """The files that a reference names: the local file, or those of a dataset on the hub.

    Raises:
        InputError: there is no such file, and the hub has none or cannot be reached.
    """
    path = Path(reference).expanduser()
    is_dataset = _DATASET.fullmatch(str(reference))
    is_local = path.exists() or (path.suffix.lower() in READERS and str(reference).count("/") == 1)
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
    """The first value of `columns` that is not missing, else None."""
    values = (record.get(_normalised(column)) for column in columns)
    return next((value for value in values if not is_missing(value)), None)


def is_missing(value: Any) -> bool:
    """Whether a value is none: None, NaN, a word for them, or text of which nothing is seen."""
    if isinstance(value, str):
        return value.strip().lower() in _NO_VALUE or not any(map(_is_seen, value))
    return value is None or value != value  # NaN, of whatever type, is not itself


def _is_seen(character: str) -> bool:
    return unicodedata.category(character) not in _SHOWS_NOTHING and character not in _BLANKS


def text(row: Row, *columns: str) -> str:
    """The text of the first of `columns` that is not empty, else "".

    Raises:
        InputError: it holds something other than text.
    """
    place, record = row
    return as_text(value(record, *columns), f"{place}: {columns[0]}")


def as_text(value: Any, what: str) -> str:
    """A value as text without spaces at its ends; "" if it is missing.

    Raises:
        InputError: `what` is not text, or not valid Unicode, which no tokenizer accepts.
    """
    if isinstance(value, (dict, list)):
        raise InputError(f"{what} must be text, got a {type(value).__name__}")
    if is_missing(value):
        return ""
    stripped = str(value).strip()
    if re.search("[\ud800-\udfff]", stripped):
        raise InputError(f"{what} contains half a surrogate pair, which is not valid Unicode")
    return stripped


def _normalised(column: str) -> str:
    return re.sub(r"[\s_]", "", column).lower()


def _rows(path: Path, needs: dict[str, Sequence[str]]) -> list[Row]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} must be a {', '.join(READERS)} file")
    rows = list(reader(path))
    if not rows:
        raise InputError(f"{path} has no rows")
    header = list(dict.fromkeys(column for _, row in rows for column in row))
    for need, columns in needs.items():
        if not {_normalised(c) for c in columns} & {_normalised(c) for c in header}:
            raise InputError(
                f"{path} has no column for the {need}: it needs one of {', '.join(columns)}, "
                f"it has {shorten(', '.join(header), 200)}"
            )
    return [(f"{path}, row {n}", _by_normalised(row, f"{path}, row {n}")) for n, row in rows]


def _by_normalised(row: Record, where: str) -> Record:
    """A row by its normalised columns.

    Raises:
        InputError: two of its columns are read as one and hold two values.
    """
    record: Record = {}
    column_of: dict[str, str] = {}
    for column, value in row.items():
        name = _normalised(column)
        if is_missing(record.get(name)):
            record[name], column_of[name] = value, column
        elif not is_missing(value) and value != record[name]:
            raise InputError(
                f"{where}: the columns {column_of[name]!r} and {column!r} are read as one and hold "
                "two values: rename or remove one"
            )
    return record


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
    files = sorted(f.filename for f in listing if Path(f.filename).suffix.lower() in READERS)
    if len(files) != 1:
        names = f" ({shorten(', '.join(files), 300)})" if files else ""
        raise InputError(
            f"the dataset {dataset} has {len(files)} files of the kinds {', '.join(READERS)}"
            f"{names}; name one: {dataset}/FILE"
        )
    return files[0]
