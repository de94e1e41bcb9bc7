"""CSV files, block by block: whatever the bytes are, every record is accounted for.

Files are read as bytes, unpacked, cut at line ends (outside quotes), decoded with U+FFFD for what
is not in their encoding, and parsed column-wise; a record of the wrong shape becomes a `Fault`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv

from raysys.datasets.chunks import BOM, Lost, as_fault, chunks, utf8
from raysys.datasets.csv_records import records
from raysys.datasets.encodings import as_utf8
from raysys.datasets.fetching import opened
from raysys.datasets.files import Block, Fault, Part, filled, lacks_needed, nothing_but
from raysys.datasets.json_lines import parse_line
from raysys.datasets.layouts import settled
from raysys.datasets.mapping import (
    AnyFiles,
    Fit,
    RecordFiles,
    TableFiles,
    fit,
)
from raysys.datasets.open_quotes import mended
from raysys.datasets.unpack import DAMAGE, unpacked

log = logging.getLogger("raysys")

_PEEK: Final = 1 << 20  # bytes of text looked at for columns before a file is read
_NO_NUMBERS: Final = pl.Series([], dtype=pl.Int64)


def peek(part: Part, files: AnyFiles) -> list[str] | None:
    """Column names of a CSV, or keys of the first JSON records; None if there are none to see."""
    if part.format == "csv" and files.header:
        return list(files.header)
    if part.format == "csv":
        files = settled(part.path, files)
    try:
        with opened(part.path) as packed:
            text = as_utf8(unpacked(packed), files.encoding).read(_PEEK).removeprefix(BOM)
    except (OSError, *DAMAGE):
        return None
    text = utf8(text, files.encoding)
    if part.format == "csv":
        return take_header(text, files.delimiter)[0]
    records = [parse_line(line) for line in text.decode("utf-8").split("\n")]
    keys: dict[str, None] = {}
    for record in records:
        keys |= dict.fromkeys(_paths(record or {}))
    return list(keys) or None


def _paths(record: dict[str, Any], prefix: str = "", depth: int = 4) -> Iterator[str]:
    """The keys of a record, and dotted paths into its objects."""
    for key, value in record.items():
        yield prefix + key
        if isinstance(value, dict) and depth:
            yield from _paths(value, f"{prefix}{key}.", depth - 1)


def read_csv(part: Part, files: AnyFiles, derived: frozenset[str] = frozenset()) -> Iterator[Block]:
    """The records of a CSV as text columns; see `files.read`."""
    header = list(files.header) if files.header else None
    fitted: Fit | None = None
    sure = isinstance(files, TableFiles) and files.quoted is True
    files = settled(part.path, files)
    quoted = not isinstance(files, RecordFiles | TableFiles) or files.quoted is not False
    row = 0
    for chunk in chunks(part, quoted=quoted, encoding=files.encoding):
        if isinstance(chunk, Lost):
            yield nothing_but(as_fault(chunk, row))
            return
        text = utf8(chunk, files.encoding)
        if header is None:
            header, text = take_header(text, files.delimiter)
            if header is None:
                continue
        if fitted is None:
            fitted = fit(files, header, derived, dict(part.told))
            fault = lacks_needed(fitted, header)
            if fault:
                yield nothing_but(fault)
                return
        keep = header if fitted.read is None else list(fitted.read)
        keep = keep or header[:1]
        block, count = parse_csv(text, header, keep, files.delimiter, row, quoted)
        fewer = count < text.count(b"\n") or block.faults  # else no mark has swallowed a line
        if quoted and not sure and fewer and b'"' in text:
            text, marks = mended(text, files.delimiter, len(header))
            if marks:
                _tell(part.path, marks)
                block, count = parse_csv(text, header, keep, files.delimiter, row, quoted)
        if count:
            block.lacking = () if row else fitted.lacking
            block.rows = filled(block.rows, fitted)
            yield block
        row += count
    if row == 0:
        yield nothing_but(Fault(0, "empty_file", "no rows"))


@functools.lru_cache(maxsize=1024)
def _tell(path: str, marks: int) -> None:
    log.warning(
        "%s: %s quotation marks that nothing closes are read as characters; `quoted` may say "
        "what marks are",
        *(path, f"{marks:,}"),
    )


def take_header(text: bytes, delimiter: str) -> tuple[list[str] | None, bytes]:
    """The first line that is not blank as column names (repeated ones numbered), and the rest."""
    while text:
        end = _first_end(text)
        line, text = text[:end], text[end:]
        if line.strip():
            names = next(records(line.decode("utf-8"), delimiter), [])
            seen: dict[str, int] = {}
            header = []
            for name in names:
                name = name.strip()
                seen[name] = seen.get(name, 0) + 1
                header.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
            return header, text
    return None, text


def _first_end(text: bytes) -> int:
    """Behind the first line end outside quotes, or the end."""
    end = text.find(b"\n") + 1
    while end and text.count(b'"', 0, end) % 2:
        end = text.find(b"\n", end) + 1
    return end or len(text)


def parse_csv(
    text: bytes,
    header: list[str],
    keep: list[str],
    delimiter: str,
    before: int,
    quoted: bool = True,
) -> tuple[Block, int]:
    """Parse whole records; `before` of them came earlier in the file. Also how many these are.

    Args:
        text: UTF-8.
        header: names of all columns.
        keep: those that are wanted.
        delimiter: one character.
        before: records.
        quoted: whether fields may be.
    """
    bad: dict[int, str] = {}

    def invalid(record: Any) -> str:
        bad[int(record.number)] = record.text
        return "skip"

    if not text.strip(b"\r\n"):
        return Block(pl.DataFrame(), _NO_NUMBERS), 0
    try:
        table = pacsv.read_csv(
            pa.BufferReader(text),
            read_options=pacsv.ReadOptions(
                use_threads=False, column_names=header, block_size=len(text) + 1
            ),
            parse_options=pacsv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
                invalid_row_handler=invalid,
            ),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.large_string() for name in header},
                include_columns=keep,
                strings_can_be_null=False,
            ),
        )
    except (pa.ArrowException, OverflowError):
        return _parse_slowly(text, header, keep, delimiter, before, quoted)
    count = table.num_rows + len(bad)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    frame.columns = table.column_names  # one without a name has been given one
    numbers = pl.int_range(1, count + 1, eager=True)
    if bad:
        numbers = numbers.filter(~numbers.is_in(list(bad)))
    faults = [Fault(before + at, "line_does_not_parse", line) for at, line in bad.items()]
    return Block(frame, numbers + before, faults), count


def _parse_slowly(
    text: bytes,
    header: list[str],
    keep: list[str],
    delimiter: str,
    before: int,
    quoted: bool,
) -> tuple[Block, int]:
    """Row by row with the standard library, for text that Arrow's parser refuses as a whole."""
    columns: dict[str, list[str]] = {name: [] for name in keep}
    at = {name: header.index(name) for name in keep}
    numbers: list[int] = []
    faults: list[Fault] = []
    count = 0
    for record in records(text.decode("utf-8"), delimiter, quoted=quoted):
        if not record:
            continue
        count += 1
        if len(record) != len(header):
            faults.append(Fault(before + count, "line_does_not_parse", delimiter.join(record)))
            continue
        numbers.append(before + count)
        for name, values in columns.items():
            values.append(record[at[name]])
    frame = pl.DataFrame(columns, schema=dict.fromkeys(keep, pl.String))
    return Block(frame, pl.Series(numbers, dtype=pl.Int64), faults), count
