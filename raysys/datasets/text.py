"""CSV and JSON-lines files, block by block: whatever the bytes are, every record is accounted for.

Files are read as bytes, cut at line ends (outside quotes), decoded with U+FFFD for what is not in
their encoding, and parsed column-wise; a record of the wrong shape becomes a `Fault`.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv

from raysys.datasets.files import Block, Fault, Part
from raysys.datasets.mapping import AnyFiles, check_columns, wanted

CHUNK: Final = 16 << 20
"""Bytes of text parsed at a time."""

_LONGEST: Final = 64 << 20  # a record longer than this ends at the chunk: an unclosed quote
_BOM: Final = b"\xef\xbb\xbf"
_NO_NUMBERS: Final = pl.Series([], dtype=pl.Int64)


@dataclass(frozen=True)
class _Lost:
    """The rest of a file cannot be read."""

    reason: str
    message: str


def read_csv(part: Part, files: AnyFiles, derived: frozenset[str] = frozenset()) -> Iterator[Block]:
    """The records of a CSV as text columns; see `files.read`."""
    header = list(files.header) if files.header else None
    if header:
        check_columns(files, header, derived, where=part.label)
    row = 0
    for chunk in _chunks(part, quoted=True):
        if isinstance(chunk, _Lost):
            yield Block(pl.DataFrame(), _NO_NUMBERS, [_lost(chunk, row)])
            return
        text = _utf8(chunk, files.encoding)
        if header is None:
            header, text = _take_header(text, files.delimiter)
            if header is None:
                continue
            check_columns(files, header, derived, where=part.label)
        block, count = _parse_csv(
            text, header, wanted(files, derived) or header, files.delimiter, row
        )
        row += count
        if count:
            yield block
    if row == 0:
        yield Block(pl.DataFrame(), _NO_NUMBERS, [Fault(0, "empty_file", "no rows")])


def read_jsonl(
    part: Part, files: AnyFiles, derived: frozenset[str] = frozenset()
) -> Iterator[Block]:
    """The records of a JSON-lines file; a column's name may be a dotted path into the object."""
    row = 0
    names = wanted(files, derived)
    checked = False
    for chunk in _chunks(part, quoted=False):
        if isinstance(chunk, _Lost):
            yield Block(pl.DataFrame(), _NO_NUMBERS, [_lost(chunk, row)])
            return
        lines = _utf8(chunk, files.encoding).decode("utf-8").split("\n")
        records: list[dict[str, Any]] = []
        numbers: list[int] = []
        faults: list[Fault] = []
        for line in lines:
            if not line.strip():
                continue
            row += 1
            record = _parse_line(line)
            if record is None:
                faults.append(Fault(row, "line_does_not_parse", line))
            else:
                records.append(record)
                numbers.append(row)
        if names is None and records:
            names = list(dict.fromkeys(key for record in records for key in record))
        if not checked and records and names is not None:
            found = [name for name in names if any(_at(r, name) is not None for r in records)]
            known = list(dict.fromkeys([*found, *(key for r in records for key in r)]))
            check_columns(files, [*known, *_optional(files, known)], derived, where=part.label)
            checked = True
        columns = {name: _text_column([_at(r, name) for r in records]) for name in names or ()}
        yield Block(pl.DataFrame(columns), pl.Series(numbers, dtype=pl.Int64), faults)
    if row == 0:
        yield Block(pl.DataFrame(), _NO_NUMBERS, [Fault(0, "empty_file", "no rows")])


def _optional(files: AnyFiles, known: list[str]) -> list[str]:
    """Columns that JSON records may all leave out: those that a row does not need.

    They count as present, unless no record shares a single column with the mapping.
    """
    needed = {"user_id", "timestamp", "event_type", "item_id"}
    names = wanted(files) or []
    needs = {source for target, source in files.columns.items() if target in needed}
    return [name for name in names if name not in needs] if set(names) & set(known) else []


def _chunks(part: Part, *, quoted: bool) -> Iterator[bytes | _Lost]:
    """Whole records of a file, some megabytes at a time; last what stopped the reading, if so."""
    rest = b""
    first = True
    try:
        with fsspec.open(part.path, "rb") as opened:
            file = _unpacked(opened)
            while data := file.read(CHUNK):
                rest += data.removeprefix(_BOM) if first else data
                first = False
                end = _last_end(rest, quoted)
                if end:
                    yield rest[:end]
                    rest = rest[end:]
    except (EOFError, zlib.error) as error:
        yield from _whole(rest)
        yield _Lost("truncated_file", str(error))
        return
    except OSError as error:
        yield from _whole(rest)
        yield _Lost("unreadable_file", str(error))
        return
    if rest:
        yield rest


def _whole(rest: bytes) -> Iterator[bytes]:
    """What is left before a truncation, without the line it cuts."""
    end = rest.rfind(b"\n") + 1
    if end:
        yield rest[:end]


def _unpacked(opened: IO[bytes]) -> IO[bytes] | _Gunzip:
    """The file's bytes, unpacked if they are gzip (by content: endings lie)."""
    magic = opened.read(2)
    opened.seek(0)
    if magic == b"\x1f\x8b":
        return _Gunzip(opened)
    return opened


class _Gunzip:
    """Unpacks gzip and hands out everything before damage: `gzip.open` drops its last buffer."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._inflate = zlib.decompressobj(wbits=31)
        self._error: Exception | None = None

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; empty at the end; damage raises once all before it was handed out."""
        if self._error:
            raise self._error
        got: list[bytes] = []
        total = 0
        while total < size:
            if self._inflate.eof:  # a file may hold several members
                left = self._inflate.unused_data or self._packed.read(1 << 16)
                left = left.lstrip(b"\0")
                if not left:
                    break
                self._inflate = zlib.decompressobj(wbits=31)
            else:
                left = self._inflate.unconsumed_tail or self._packed.read(1 << 16)
                if not left:
                    self._error = EOFError("the gzip file ends before its end marker")
                    break
            try:
                data = self._inflate.decompress(left, size - total)
            except zlib.error as error:
                self._error = error
                break
            got.append(data)
            total += len(data)
        if not got and self._error:
            raise self._error
        return b"".join(got)


def _last_end(data: bytes, quoted: bool) -> int:
    """Where the last whole record ends: behind a line end outside quotes; 0 when there is none."""
    end = data.rfind(b"\n") + 1
    if not quoted or len(data) > _LONGEST:
        return end
    inside = data.count(b'"', 0, end) % 2 == 1
    while inside and end:  # step back over the line ends of the open quote
        opening = data.rfind(b'"', 0, end)
        end = data.rfind(b"\n", 0, opening) + 1
        inside = data.count(b'"', 0, end) % 2 == 1
    return end


def _utf8(data: bytes, encoding: str) -> bytes:
    """The same text as valid UTF-8; U+FFFD for what the encoding does not have."""
    if encoding != "utf-8":
        return data.decode(encoding, "replace").encode()
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace").encode()
    return data


def _take_header(text: bytes, delimiter: str) -> tuple[list[str] | None, bytes]:
    """The first line that is not blank as column names (repeated ones numbered), and the rest."""
    while text:
        end = _first_end(text)
        line, text = text[:end], text[end:]
        if line.strip():
            names = next(_python_rows(line, delimiter), [])
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


def _parse_csv(
    text: bytes, header: list[str], keep: list[str], delimiter: str, before: int
) -> tuple[Block, int]:
    """Parse whole records; `before` of them came earlier in the file. Also how many these are."""
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
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=invalid
            ),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.large_string() for name in header},
                include_columns=keep,
                strings_can_be_null=False,
            ),
        )
    except (pa.ArrowException, OverflowError):
        return _parse_slowly(text, header, keep, delimiter, before)
    count = table.num_rows + len(bad)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    numbers = pl.int_range(1, count + 1, eager=True)
    if bad:
        numbers = numbers.filter(~numbers.is_in(list(bad)))
    faults = [Fault(before + at, "line_does_not_parse", line) for at, line in bad.items()]
    return Block(frame, numbers + before, faults), count


def _parse_slowly(
    text: bytes, header: list[str], keep: list[str], delimiter: str, before: int
) -> tuple[Block, int]:
    """Row by row with the standard library, for text that Arrow's parser refuses as a whole."""
    columns: dict[str, list[str]] = {name: [] for name in keep}
    at = {name: header.index(name) for name in keep}
    numbers: list[int] = []
    faults: list[Fault] = []
    count = 0
    for record in _python_rows(text, delimiter):
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


def _python_rows(text: bytes, delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(sys.maxsize)
    return csv.reader(io.StringIO(text.decode("utf-8"), newline=""), delimiter=delimiter)


def _parse_line(line: str) -> dict[str, Any] | None:
    """One JSON object, None when the line is anything else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _at(record: dict[str, Any], path: str) -> Any:
    """The value at a key, or at a dotted path into nested objects; None where there is none."""
    if path in record:
        return record[path]
    value: Any = record
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def _text_column(values: list[Any]) -> pl.Series:
    """JSON values as text: strings as they are, everything else as JSON writes it."""
    texts = [
        value if isinstance(value, str) or value is None else json.dumps(value, ensure_ascii=False)
        for value in values
    ]
    try:
        return pl.Series(texts, dtype=pl.String)
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot say
        clean = [None if t is None else t.encode("utf-8", "replace").decode() for t in texts]
        return pl.Series(clean, dtype=pl.String)


def _lost(lost: _Lost, row: int) -> Fault:
    return Fault(row + 1 if row else 0, lost.reason, lost.message)
