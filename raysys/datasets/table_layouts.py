"""How a table is written, told by its first lines: kind, delimiter, header."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Literal

import polars as pl

from raysys.datasets.csv_records import DELIMITERS, records
from raysys.datasets.relevance_names import is_known, side
from raysys.errors import UserError

Kind = Literal["csv", "jsonl", "json", "parquet", "qrels"]

ENDINGS: Final[dict[str, Kind]] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".tab": "csv",
    ".qrels": "qrels",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
"""What a name says; the content of a text file overrules it. Others are told by content alone."""

_PACKED: Final = (".gz", ".bz2", ".xz", ".zst", ".zstd", ".zip")
_LINES: Final = 50  # by which a delimiter is chosen
_MOSTLY: Final = 0.9
_QRELS: Final = tuple(
    re.compile(rf"\S+{gap}(?:Q?\d+{gap})?\S+{gap}-?\d+(?:\.\d+)?\s*") for gap in (" +", r"\t")
)
_FEATURES: Final = re.compile(r"\S+\s+qid:\S+\s+\d+:")
_NUMBER: Final = re.compile(r"\s*-?\d+(?:\.\d+)?\s*")


@dataclass(frozen=True)
class Layout:
    """How a table is written.

    Attributes:
        kind: `csv` with any delimiter; `qrels`: fields between blanks, without a header.
        columns: their names; of a file without a header as it is known to be.
        delimiter: of a CSV.
        quoted: whether quotation marks enclose fields.
        header: whether the first line names the columns.
        doubtful: the first line looks like data, and is taken for the names of columns.
    """

    kind: Kind
    columns: tuple[str, ...]
    delimiter: str = ","
    quoted: bool = True
    header: bool = True
    doubtful: bool = False

    def header_end(self, text: bytes) -> int:
        """Where the header of a CSV ends: behind the first line end outside quotes."""
        end = text.find(b"\n") + 1
        while end and self.quoted and text.count(b'"', 0, end) % 2:
            end = text.find(b"\n", end) + 1
        return end or len(text)


def ending_of(path: Path) -> str:
    """The ending that tells the kind, in lower case: that before those of packing."""
    names = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _PACKED]
    return names[-1] if names else ""


def layout_of(text: str, path: Path, wanted: Sequence[str] = ()) -> Layout:
    """The layout of a text file.

    Args:
        text: its first lines, whole.
        path: of it.
        wanted: columns that are asked for by name.

    Raises:
        UserError: features without texts, as learning to rank knows them.
        PolarsError: JSON that cannot be read.
    """
    kind = ENDINGS.get(ending_of(path))
    begin = text.lstrip()[:1]
    if kind == "jsonl" or (begin == "{" and _is_object(text.lstrip().split("\n", 1)[0])):
        if begin == "[":
            return Layout("json", ())
        return Layout("jsonl", _keys(text))
    lines = [line for line in islice(io.StringIO(text), 4 * _LINES) if line.strip()][:_LINES]
    if lines and all(_FEATURES.match(line) for line in lines):
        raise UserError(
            "lines of features (`grade qid:1 1:0.5 …`), without texts",
            where=str(path),
            mend="give a file of queries and texts, or qrels with --join of both",
        )
    if lines and any(all(map(form.fullmatch, lines)) for form in _QRELS):
        width = len(lines[0].split())
        if all(len(line.split()) == width for line in lines):
            middle = ("iteration",) if width == 4 else ()
            return Layout("qrels", ("query_id", *middle, "doc_id", "grade"), header=False)
    delimiter = _delimiter("".join(lines), ending_of(path), wanted)
    rows = _rows("".join(lines), delimiter, quoted=delimiter != "\t")
    return _csv(text, rows, delimiter, path, wanted)


def _csv(
    text: str, rows: list[list[str]], delimiter: str, path: Path, wanted: Sequence[str]
) -> Layout:
    """The layout of a CSV, whose names may be missing."""
    first = rows[0] if rows else []
    named = any(is_known(name) or name.strip() in wanted for name in first)
    if not named:
        given = _given(first, path)
        if given:
            return Layout("csv", given, delimiter, header=False)
    line = text.lstrip("\r\n").encode()
    line = line[: Layout("csv", ()).header_end(line)]
    columns = pl.read_csv(line, n_rows=0, separator=delimiter).columns
    doubtful = not named and any(_NUMBER.fullmatch(field) for field in first)
    return Layout("csv", tuple(columns), delimiter, doubtful=doubtful)


def _given(first: list[str], path: Path) -> tuple[str, ...] | None:
    """Names for the columns of a file of the field's that has none; None: it is no such file."""
    of = side(path.name)
    if any(" " in field.strip() for field in first[:1]):
        return None
    if len(first) == 2 and of:
        return ("query_id", "query") if of == "query" else ("doc_id", "text")
    if len(first) == 4 and first[1].startswith("http"):
        return ("doc_id", "url", "title", "text")
    if len(first) == 4 and all(map(_NUMBER.fullmatch, first[:2])):
        return ("query_id", "doc_id", "query", "passage")
    return None


def _delimiter(text: str, ending: str, wanted: Sequence[str]) -> str:
    """What gives most names that are known or asked for, else rows of the same width."""
    usual = "\t" if ending in (".tsv", ".tab") else ","

    def fits(mark: str) -> tuple[int, bool, bool, int]:
        rows = _rows(text, mark, quoted=mark != "\t")
        width = len(rows[0]) if rows else 1
        if width < 2:
            return 0, False, mark == usual, 0
        names = sum(is_known(name) or name.strip() in wanted for name in rows[0])
        steady = sum(len(row) == width for row in rows) >= _MOSTLY * len(rows)
        return names, steady, mark == usual, width

    return max(DELIMITERS, key=fits)


def _rows(text: str, delimiter: str, *, quoted: bool) -> list[list[str]]:
    """The first records of a CSV."""
    return list(islice(records(text, delimiter, quoted=quoted), _LINES))


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _keys(text: str) -> tuple[str, ...]:
    """Keys of JSON lines, in the order in which they come up."""
    return tuple(pl.read_ndjson(io.BytesIO(text.encode()), infer_schema_length=None).columns)
