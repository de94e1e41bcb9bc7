"""CSV and JSON-lines files, block by block: whatever the bytes are, every record is accounted for.

Files are read as bytes, unpacked, cut at line ends (outside quotes), decoded with U+FFFD for what
is not in their encoding, and parsed column-wise; a record of the wrong shape becomes a `Fault`.
JSON lines that the quick parser refuses are halved until those at fault are alone; Python judges
them.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv

from raysys.datasets.files import Block, Fault, Part, filled, lacks_needed, nothing_but
from raysys.datasets.mapping import (
    FROM_PATH,
    AnyFiles,
    Fit,
    RecordEvents,
    RecordFiles,
    RecordItems,
    fit,
    wanted,
)
from raysys.datasets.records import decode
from raysys.datasets.unpack import DAMAGE, unpacked

CHUNK: Final = 16 << 20
"""Bytes of text parsed at a time."""

_PEEK: Final = 1 << 20  # bytes of text looked at for columns before a file is read
_FEW: Final = 256  # lines that are not worth halving any more
_LONGEST: Final = 64 << 20  # a record longer than this ends at the chunk: an unclosed quote
_BOM: Final = b"\xef\xbb\xbf"
_NO_NUMBERS: Final = pl.Series([], dtype=pl.Int64)


@dataclass(frozen=True)
class _Lost:
    """The rest of a file cannot be read."""

    reason: str
    message: str


def peek(part: Part, files: AnyFiles) -> list[str] | None:
    """Column names of a CSV, or keys of the first JSON records; None if there are none to see."""
    if part.format == "csv" and files.header:
        return list(files.header)
    try:
        with fsspec.open(part.path, "rb") as opened:
            text = unpacked(opened).read(_PEEK).removeprefix(_BOM)
    except (OSError, *DAMAGE):
        return None
    text = _utf8(text, files.encoding)
    if part.format == "csv":
        return _take_header(text, files.delimiter)[0]
    records = [_parse_line(line) for line in text.decode("utf-8").split("\n")]
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
    quoted = not isinstance(files, RecordFiles) or files.quoted
    row = 0
    for chunk in _chunks(part, quoted=quoted):
        if isinstance(chunk, _Lost):
            yield nothing_but(_lost(chunk, row))
            return
        text = _utf8(chunk, files.encoding)
        if header is None:
            header, text = _take_header(text, files.delimiter)
            if header is None:
                continue
        if fitted is None:
            fitted = fit(files, header, derived, dict(part.told))
            fault = lacks_needed(fitted, header)
            if fault:
                yield nothing_but(fault)
                return
        keep = header if fitted.read is None else list(fitted.read)
        block, count = _parse_csv(text, header, keep or header[:1], files.delimiter, row, quoted)
        if count:
            block.lacking = () if row else fitted.lacking
            block.rows = filled(block.rows, fitted)
            yield block
        row += count
    if row == 0:
        yield nothing_but(Fault(0, "empty_file", "no rows"))


def read_jsonl(
    part: Part, files: AnyFiles, derived: frozenset[str] = frozenset()
) -> Iterator[Block]:
    """The records of a JSON-lines file as text columns; a name may be a dotted path into objects.

    Strings are as they are, everything else as JSON writes it. A key that no record of the file
    has is told as lacking with the last block.
    """
    if isinstance(files, RecordEvents | RecordItems):
        yield from _read_records(part, files)
        return
    row = 0
    names = wanted(files, derived)
    told = dict(part.told)
    seen: set[str] = set()
    for chunk in _chunks(part, quoted=False):
        if isinstance(chunk, _Lost):
            yield nothing_but(_lost(chunk, row))
            return
        text = _utf8(chunk, files.encoding)
        if names is None:
            lines = text.decode("utf-8").split("\n")
            keys = (key for line in lines for key in _parse_line(line) or ())
            names = list(dict.fromkeys([*files.columns.values(), *keys]))
        for block in _parse_json(text, names, row):
            row += block.rows.height + len(block.faults)
            seen |= {name for name in names if block.rows[name].null_count() < block.rows.height}
            block.rows = block.rows.with_columns(
                pl.col(name).fill_null(told[name.removeprefix(FROM_PATH)])
                for name in names
                if told.get(name.removeprefix(FROM_PATH)) is not None
            )
            yield block
    if row == 0:
        yield nothing_but(Fault(0, "empty_file", "no rows"))
        return
    lacking = fit(files, [*seen], derived, told).lacking
    if lacking:
        yield Block(pl.DataFrame(), _NO_NUMBERS, lacking=lacking)


def _read_records(part: Part, files: RecordEvents | RecordItems) -> Iterator[Block]:
    """The records of a JSON-lines file as nested columns of the types that the adapter states."""
    row = 0
    for chunk in _chunks(part, quoted=False):
        if isinstance(chunk, _Lost):
            yield nothing_but(_lost(chunk, row))
            return
        lines = pl.Series(_utf8(chunk, files.encoding).decode("utf-8").split("\n"))
        lines = lines.filter(lines.str.contains(r"\S"))
        rows, broken = decode(lines, files.record, files.screen)
        faults = [Fault(row + 1 + at, "line_does_not_parse", lines[at]) for at in broken.arg_true()]
        numbers = pl.int_range(row + 1, row + 1 + lines.len(), eager=True)
        row += lines.len()
        if lines.len():
            yield Block(rows.filter(~broken), numbers.filter(~broken), faults)
    if row == 0:
        yield nothing_but(Fault(0, "empty_file", "no rows"))


def _chunks(part: Part, *, quoted: bool) -> Iterator[bytes | _Lost]:
    """Whole records of a file, some megabytes at a time; last what stopped the reading, if so."""
    rest = b""
    first = True
    try:
        with fsspec.open(part.path, "rb") as opened:
            file = unpacked(opened)
            while data := file.read(CHUNK):
                rest += data.removeprefix(_BOM) if first else data
                first = False
                end = _last_end(rest, quoted)
                if end:
                    yield rest[:end]
                    rest = rest[end:]
    except FileNotFoundError:
        raise
    except DAMAGE as error:
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
    text: bytes,
    header: list[str],
    keep: list[str],
    delimiter: str,
    before: int,
    quoted: bool = True,
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
    for record in _python_rows(text, delimiter, quoted):
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


def _python_rows(text: bytes, delimiter: str, quoted: bool = True) -> Iterator[list[str]]:
    csv.field_size_limit(sys.maxsize)
    return csv.reader(
        io.StringIO(text.decode("utf-8"), newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    )


def _parse_json(text: bytes, names: list[str], before: int) -> Iterator[Block]:
    """Parse whole lines; `before` records came earlier in the file."""
    waiting = [text]
    while waiting:
        text = waiting.pop()
        lines = text.count(b"\n") + (not text.endswith(b"\n"))
        frame = _quick_json(text, names, lines)
        if frame is not None:
            numbers = pl.int_range(before + 1, before + lines + 1, eager=True)
            block = Block(frame, numbers)
        elif lines > _FEW:
            half = text.find(b"\n", len(text) // 2) + 1 or text.rfind(b"\n", 0, -1) + 1
            waiting += [piece for piece in (text[half:], text[:half]) if piece]
            continue
        else:
            block = _slow_json(text, names, before)
        before += block.rows.height + len(block.faults)
        if block.rows.height or block.faults:
            yield block


def _quick_json(text: bytes, names: list[str], lines: int) -> pl.DataFrame | None:
    """All lines at once, every value as text; None if one of them is not an object."""
    columns: dict[str, Any] = dict.fromkeys(names, pl.String)
    nested: dict[str, Any] = {}
    for name in names:
        *outer, last = name.split(".")
        inner = nested
        for key in outer:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                return None  # a value is wanted as a whole and in part
        if outer and inner.setdefault(last, pl.String) is not pl.String:
            return None
    if nested.keys() & columns.keys():
        return None
    try:
        frame = pl.read_ndjson(text, schema={**columns, **_structs(nested)})
    except pl.exceptions.PolarsError:
        return None
    if frame.height != lines:
        return None
    frame = frame.select(_value(name) for name in names)
    # polars writes objects and lists back as text without escaping what stands in their texts
    if b"\\" in text and any(column.str.contains(r"^[\[{]").any() for column in frame):
        return None
    return frame


def _structs(nested: dict[str, Any]) -> dict[str, Any]:
    return {
        key: pl.Struct(_structs(inner)) if isinstance(inner, dict) else inner
        for key, inner in nested.items()
    }


def _value(name: str) -> pl.Expr:
    """The value at a key, or at a dotted path into nested objects."""
    root, *path = name.split(".")
    if not path:
        return pl.col(name)
    value = pl.col(root)
    for key in path:
        value = value.struct.field(key)
    return pl.coalesce(pl.col(name), value).alias(name)


def _slow_json(text: bytes, names: list[str], before: int) -> Block:
    """Line by line with the standard library."""
    records: list[dict[str, Any]] = []
    numbers: list[int] = []
    faults: list[Fault] = []
    row = before
    for line in text.decode("utf-8").split("\n"):
        if not line.strip():
            continue
        row += 1
        record = _parse_line(line)
        if record is None:
            faults.append(Fault(row, "line_does_not_parse", line))
        else:
            records.append(record)
            numbers.append(row)
    columns = {name: _text_column([_at(r, name) for r in records]) for name in names}
    return Block(pl.DataFrame(columns), pl.Series(numbers, dtype=pl.Int64), faults)


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
