"""How a file of texts is written, told by its first bytes: format, delimiter, quotation marks."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import IO, Any, Final

from raysys.datasets.chunks import BOM, utf8
from raysys.datasets.csv_records import DELIMITERS, records
from raysys.datasets.encodings import SAMPLE, as_utf8
from raysys.datasets.fetching import opened
from raysys.datasets.mapping import AnyFiles, TableFiles, TableFormat
from raysys.datasets.unpack import DAMAGE, ArchiveError, unpacked
from raysys.errors import UserError

ENDINGS: Final[dict[str, TableFormat]] = {
    ".ann": "brat",
    **dict.fromkeys((".conll", ".bio", ".iob", ".iob2", ".bioes", ".bmes", ".ner"), "conll"),
}
"""Of files of texts alone, beside those that every file may have."""

TAG: Final = re.compile(r"(?:O|[BIESMLU][-_]\S+)")
"""What a token's tag is in any of the schemes."""

_BLANKS: Final = re.compile("[ \t]+")  # no others: a token may hold them
LABEL: Final = "__label__"
START: Final = "-DOCSTART-"
TRIPLE: Final = "\x01"
_ROWS: Final = 50  # by which a delimiter is chosen
_LINES: Final = 2000  # by which a format is told
_MOSTLY: Final = 0.9
_OFFICE: Final = "save the sheet as CSV (UTF-8) and give that"
_FOREIGN: Final = (
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", _OFFICE),
    (b"ARROW1", "an Arrow file", "save it as Parquet: datasets.load_from_disk(…).to_parquet(…)"),
    (b"\x80\x04", "a pickle", "pickles run code; save it as Parquet or JSON lines"),
    (b"\x80\x03", "a pickle", "pickles run code; save it as Parquet or JSON lines"),
    (b"<?xml", "XML", "write its records as JSON lines"),
    (b"SQLite format", "a database", "export the table as CSV"),
)


def settled(path: str, files: AnyFiles) -> AnyFiles:
    """What is read of a CSV at `path`, with the delimiter and quotation marks that it has."""
    if not isinstance(files, TableFiles) or (files.delimiter and files.quoted is not None):
        return files
    lines = sample(path, files.encoding) or ""
    delimiter = files.delimiter or _delimiter(lines, files)
    quoted = _quoted(lines, delimiter) if files.quoted is None else files.quoted
    return files.model_copy(update={"delimiter": delimiter, "quoted": quoted})


def told_format(
    path: str, ending: str, known: TableFormat | None, files: TableFiles
) -> TableFormat | None:
    """The format of a file; None: nothing tells it.

    Args:
        path: of the file.
        ending: of its name.
        known: what the ending says, if it says something.
        files: what is read of it.

    Raises:
        UserError: a format that is not read, with how to convert it.
    """
    if known == "parquet" or ending in ENDINGS:
        return ENDINGS.get(ending, "parquet")
    try:
        with opened(path) as file:
            start = file.read(16)
            if start.startswith(b"PAR1"):
                return "parquet"
            _refuse(start, path)
            file.seek(0)
            text = _first_lines(file, path, files.encoding)
    except ArchiveError as error:
        what, _, mend = str(error).partition(": ")
        where = path.removeprefix("file://")
        raise UserError(f"is {what}, which is not read", where=where, mend=mend) from None
    except (OSError, *DAMAGE):
        return known  # reading it says what is wrong
    if not text.strip():
        return known
    if known != "csv" and text.lstrip()[0] in "[{":
        return _json_kind(text)
    lines = [line for line in text.split("\n")[:_LINES] if line.strip()]
    special = _special(lines)
    named = files.header is not None and special != "conll"
    if special and not named and not _has_header(lines[0], files):
        return special
    if known == "csv" and files.bare and not _has_header(lines[0], files):
        return "csv" if _width(text, files) > 1 else "lines" if ending == ".txt" else "csv"
    if known is None and _width(text, files) > 1:
        return "csv"
    return known


def sample(path: str, encoding: str) -> str | None:
    """The first lines of a text file, unpacked and decoded; None: it cannot be read."""
    try:
        with opened(path) as packed:
            return _first_lines(packed, path, encoding)
    except (OSError, *DAMAGE):
        return None


def _first_lines(packed: IO[bytes], path: str, encoding: str) -> str:
    name = PurePosixPath(path).name
    data = as_utf8(unpacked(packed), encoding, name).read(SAMPLE)
    if len(data) >= SAMPLE:
        data = data[: data.rfind(b"\n") + 1] or data
    return utf8(data.removeprefix(BOM), encoding).decode().replace("\r\n", "\n")


def conll_split(lines: Sequence[str]) -> str | None:
    """What stands between the columns of token lines: a tab, or None for blanks."""
    tabs = sum("\t" in line for line in lines if line.strip())
    return "\t" if tabs > len(lines) / 2 else None


def token_fields(line: str, between: str | None) -> list[str]:
    """Columns of a token line; the token may be a blank, of which only the tag is left."""
    if not line.strip():
        return []
    if between:
        return line.split(between)
    fields = _BLANKS.split(line.rstrip())
    return [fields[0] or " ", *fields[1:]]


def tag_column(rows: Sequence[Sequence[str]]) -> int | None:
    """The last column of token lines that holds tags alone, not only O; None: there is none."""
    width = min(map(len, rows), default=0)
    for column in reversed(range(width)):
        tags = [row[column] for row in rows]
        if all(TAG.fullmatch(tag) for tag in tags) and any(tag != "O" for tag in tags):
            return column
    return None


def parsed(line: str) -> Any:
    """A line of JSON, or of what Python prints for a dict or list; None: it is neither."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        pass
    if line.lstrip()[:1] not in ("{", "[", "("):
        return None
    try:
        return ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def is_project(record: Any) -> bool:
    """Whether an object is no row but holds annotations of its own: of Label Studio, or of MAVE."""
    if not isinstance(record, dict):
        return False
    inner = isinstance(record.get("data"), dict)
    studio = inner and any(name in record for name in ("annotations", "completions"))
    return studio or isinstance(record.get("paragraphs"), list)


def _refuse(start: bytes, path: str) -> None:
    for magic, what, mend in _FOREIGN:
        if start.startswith(magic):
            where = path.removeprefix("file://")
            raise UserError(f"is {what}, which is not read", where=where, mend=mend)


def _json_kind(text: str) -> TableFormat:
    """Lines of plain objects are `jsonl`, anything else that begins so is `json`."""
    first = text.lstrip().split("\n", 1)[0].strip()
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):
        record = None
    if record is None:
        odd = first in ("{", "[") or first[0] == "[" or isinstance(parsed(first), dict)
        return "json" if odd else "jsonl"
    if not isinstance(record, dict) or is_project(record):
        return "json"
    nested = [value for value in record.values() if isinstance(value, list | dict)]
    whole = len(record) <= 2 and len(nested) == len(record) and len(text.strip()) == len(first)
    return "json" if whole else "jsonl"


def _special(lines: Sequence[str]) -> TableFormat | None:
    """The format of text lines that are no CSV."""
    if sum(LABEL in line for line in lines) >= _MOSTLY * len(lines) and any(
        line.startswith(LABEL) for line in lines
    ):
        return "fasttext"
    if sum(line.count(TRIPLE) == 2 for line in lines) >= _MOSTLY * len(lines):
        return "triples"
    tokens = [line for line in lines if not line.startswith((START, "# "))]
    if not tokens:
        return None
    between = conll_split(tokens)
    rows = [token_fields(line, between) for line in tokens]
    widths = [len(row) for row in rows]
    width = max(set(widths), key=widths.count)
    fitting = [row for row in rows if len(row) == width]
    if width < 2 or len(fitting) < _MOSTLY * len(rows):
        return None
    tagged = tag_column(fitting) is not None or tag_column(fitting[1:]) is not None
    return "conll" if tagged else None


def _has_header(line: str, files: TableFiles) -> bool:
    """Whether the first line names a column that is asked for."""
    names = {name.strip().strip('"') for mark in DELIMITERS for name in line.split(mark)}
    return bool(names & set(files.columns.values()))


def _rows(text: str, delimiter: str, *, quoted: bool = True) -> Iterator[list[str]]:
    """The records of a CSV that are not blank."""
    every = records(text, delimiter, quoted=quoted)
    return (row for row in every if any(field.strip() for field in row))


def _columns(text: str, delimiter: str) -> tuple[list[str], int]:
    """The first record of a CSV, and how many fields its records have; 1: not always as many."""
    first: list[str] = []
    for quoted in (True, False) if delimiter == "\t" else (True,):  # see `_quoted`
        rows = list(islice(_rows(text, delimiter, quoted=quoted), _ROWS))
        first = rows[0] if rows else []
        if sum(len(row) == len(first) for row in rows) >= _MOSTLY * len(rows):
            return first, max(1, len(first))
    return first, 1


def _width(text: str, files: TableFiles) -> int:
    marks = (files.delimiter,) if files.delimiter else DELIMITERS
    return max(_columns(text, mark)[1] for mark in marks)


def _delimiter(text: str, files: TableFiles) -> str:
    """The delimiter with which a file has most of the columns that are asked for.

    Of several the one that parts its rows into most fields, if into equally many.
    """
    wanted = set(files.columns.values())

    def fits(mark: str) -> tuple[float, int]:
        first, width = _columns(text, mark)
        if files.header:
            return float(width == len(files.header)), width
        return len(wanted & {name.strip() for name in first}), width

    return max(DELIMITERS, key=fits)  # the first of equal ones


def _quoted(text: str, delimiter: str) -> bool:
    """Whether quotation marks enclose fields: in files with tabs they may be inches."""
    if delimiter != "\t" or '"' not in text:
        return True
    lines = [line for line in text.split("\n") if line.strip()]
    width = lines[0].count(delimiter) + 1
    bare = sum(line.count(delimiter) + 1 != width for line in lines)
    parsed_rows = list(_rows(text, delimiter))
    if bare > sum(len(row) != width for row in parsed_rows):
        return True
    fields = [field for line in lines for field in line.split(delimiter) if '"' in field]
    proper = sum(
        len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', "")
        for field in fields
    )
    return proper > len(fields) / 2
