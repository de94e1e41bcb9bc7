"""Files of rows in blocks of some megabytes: tables, JSON lines, Python lines, lists, Parquet.

Whatever the file is, a block has the columns that its layout names, as texts, the number of each
row, and the rows that do not parse.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.datasets.arrow_values import to_polars
from raysys.datasets.chunks import Lost, chunks
from raysys.datasets.files import ROWS, Part
from raysys.datasets.open_quotes import mended
from raysys.datasets.records import decode
from raysys.datasets.sequence_columns import Layout
from raysys.datasets.sequence_layout import python_line
from raysys.datasets.sequences import readable
from raysys.datasets.text import parse_csv, take_header
from raysys.errors import UserError

log = logging.getLogger("raysys")

_ONE: Final = "\x1f"  # stands for a delimiter of several characters


@dataclass
class SequenceBlock:
    """Rows by their columns in the file, their numbers from 1, and those that do not parse."""

    rows: pl.DataFrame
    numbers: pl.Series
    faults: list[tuple[int, str]] = field(default_factory=list)


def blocks(path: Path, layout: Layout, encoding: str = "utf-8") -> Iterator[SequenceBlock]:
    """The rows of a file, block by block.

    Args:
        path: of the file, packed or not.
        layout: see `sequence_layout`.
        encoding: of a text file.

    Raises:
        UnicodeDecodeError: the text is in another encoding.
        UserError: it is damaged, or cannot be read.
    """
    if layout.kind == "parquet":
        yield from _parquet(path, layout)
        return
    part = Part(str(path), path.name, "csv" if layout.kind == "table" else "jsonl", 0)
    header = list(layout.header) if layout.header else None
    row = 0
    for chunk in chunks(part, quoted=layout.kind == "table" and layout.quoted):
        if isinstance(chunk, Lost):
            if chunk.reason == "truncated_file":
                what = f"is damaged or ends in the middle ({chunk.message})"
                raise UserError(what, where=str(path), mend="copy or download it again")
            raise UserError(f"cannot be read: {chunk.message}", where=str(path))
        text = chunk.decode(encoding).encode() if encoding != "utf-8" else _checked(chunk)
        if layout.shape == "lines":
            block = _lines(text, row)
        elif layout.kind == "json":
            block = json_block(_split(text), row, layout)
        elif layout.kind == "python":
            block = _python(_split(text), row, layout)
        else:
            text, delimiter = _one_delimiter(text, layout.delimiter)
            if header is None:
                header, text = take_header(text, delimiter)
            if header is None:
                continue
            keep = list(layout.columns.given)
            parsed, n = parse_csv(text, header, keep, delimiter, row, layout.quoted)
            if layout.quoted and n < text.count(b"\n"):
                text, marks = mended(text, delimiter, len(header))
                if marks:
                    parsed, n = parse_csv(text, header, keep, delimiter, row)
                    log.warning(
                        "%s: %d quotation marks that nothing closes are read as characters",
                        path, marks,
                    )  # fmt: skip
            if not parsed.rows.width:
                continue
            # an open quote that stays one swallows lines: each of them is lost
            faults = [
                (fault.row, line)
                for fault in parsed.faults
                for line in fault.raw.strip("\r\n").split("\n")
            ]
            block = SequenceBlock(parsed.rows, parsed.numbers, faults)
        row += block.rows.height + len(block.faults)
        yield block


def _checked(text: bytes) -> bytes:
    """The same text.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    text.decode()
    return text


def _one_delimiter(text: bytes, delimiter: str) -> tuple[bytes, str]:
    """Text whose delimiter is one character, and that."""
    if delimiter == " ":
        text = re.sub(rb"(?m)^[ \t]+|[ \t]+(?=\r?$)", b"", text)
        return re.sub(rb"[ \t]+", _ONE.encode(), text), _ONE
    if len(delimiter) > 1:
        return text.replace(delimiter.encode(), _ONE.encode()), _ONE
    return text, delimiter


def _split(text: bytes) -> pl.Series:
    """Lines that are not blank."""
    lines = pl.Series(text.decode("utf-8").split("\n"), dtype=pl.String)
    return lines.filter(lines.str.contains(r"\S"))


def _lines(text: bytes, before: int) -> SequenceBlock:
    lines = _split(text)
    return SequenceBlock(pl.DataFrame({"items": lines}), _numbers(before, lines.len()))


def _numbers(before: int, n: int) -> pl.Series:
    return pl.int_range(before + 1, before + n + 1, eager=True)


def json_block(lines: pl.Series, before: int, layout: Layout) -> SequenceBlock:
    """Objects, one a text; `before` rows came up to here."""
    columns = layout.columns
    types: dict[str, Any] = {}
    if columns.events:
        inner = {name: pl.String for name in (columns.item, columns.time) if name}
        types[columns.events] = pl.List(pl.Struct(inner))
    elif columns.items:
        types[columns.items] = pl.List(pl.String)
    outside: tuple[str | None, ...] = (
        columns.session,
        columns.user,
        columns.action,
        columns.within,
    )
    if not columns.events:
        outside += (columns.item, columns.time)
    types = {**dict.fromkeys((name for name in outside if name), pl.String), **types}
    rows, broken = decode(lines, types)
    faults = [(before + 1 + at, lines[at]) for at in broken.arg_true()]
    return SequenceBlock(
        rows.filter(~broken), _numbers(before, lines.len()).filter(~broken), faults
    )


def _python(lines: pl.Series, before: int, layout: Layout) -> SequenceBlock:
    """Line by line: nothing else reads what Python writes, and nothing is run."""
    names = layout.columns.given
    events = layout.columns.events
    inner = [name for name in (layout.columns.item, layout.columns.time) if name]
    if events:
        names = tuple(name for name in names if name not in inner)
    columns: dict[str, list[Any]] = {name: [] for name in names}
    numbers, faults = [], []
    for number, line in enumerate(lines, start=before + 1):
        record = python_line(line)
        if record is None:
            faults.append((number, line))
            continue
        numbers.append(number)
        for name in names:
            value = record.get(name)
            if name == events:
                columns[name].append(_inner(value, inner))
            else:
                columns[name].append(None if value is None else str(value))
    schema: dict[str, Any] = dict.fromkeys(names, pl.String)
    if events:
        schema[events] = pl.List(pl.Struct(dict.fromkeys(inner, pl.String)))
    return SequenceBlock(
        pl.DataFrame(columns, schema=schema), pl.Series(numbers, dtype=pl.Int64), faults
    )


def _inner(value: Any, names: list[str]) -> list[dict[str, str | None]]:
    """Of a list of objects what is read, as texts."""
    found = [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
    return [{n: None if one.get(n) is None else str(one[n]) for n in names} for one in found]


def _parquet(path: Path, layout: Layout) -> Iterator[SequenceBlock]:
    names = list(layout.columns.given)
    if layout.shape == "nested":
        inner = {layout.columns.item, layout.columns.time}
        names = [name for name in names if name not in inner]
    row = 0
    with readable(path) as file:
        try:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS, columns=names):
                frame = to_polars(batch)
                yield SequenceBlock(_texts(frame, layout.columns.time), _numbers(row, frame.height))
                row += frame.height
        except pa.ArrowException as error:
            what = f"cannot be read behind row {row:,}: {str(error).splitlines()[0]}"
            raise UserError(what, where=str(path), mend="copy or write it again") from None


def _texts(frame: pl.DataFrame, time: str | None) -> pl.DataFrame:
    """Ids as texts, those of whole numbers among fractions (pandas, of a column with gaps), too."""

    def text(value: pl.Expr, kind: pl.DataType) -> pl.Expr:
        if isinstance(kind, pl.List | pl.Array):
            if isinstance(kind, pl.Array):
                value = value.arr.to_list()
            if isinstance(kind.inner, pl.Struct):
                return value
            return value.list.eval(text(pl.element(), kind.inner))  # type: ignore[arg-type]
        if kind.is_float():
            whole = value.cast(pl.Int64, strict=False)
            same = whole.cast(kind) == value
            return pl.when(same).then(whole.cast(pl.String)).otherwise(value.cast(pl.String))
        return value if isinstance(kind, pl.Struct) else value.cast(pl.String)

    return frame.with_columns(
        text(pl.col(name), kind).alias(name) for name, kind in frame.schema.items() if name != time
    )
