"""JSON-lines files, block by block: quickly by polars, by halves where that fails.

Lines that the quick parser refuses are halved until those at fault are alone; Python judges them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import polars as pl

from raysys.datasets.chunks import Lost, as_fault, chunks, utf8
from raysys.datasets.files import Block, Fault, Part, nothing_but
from raysys.datasets.mapping import (
    FROM_PATH,
    AnyFiles,
    RecordEvents,
    RecordItems,
    RecordUsers,
    fit,
    wanted,
)
from raysys.datasets.records import decode

_FEW: Final = 256  # lines that are not worth halving any more
_NO_NUMBERS: Final = pl.Series([], dtype=pl.Int64)


def read_jsonl(
    part: Part, files: AnyFiles, derived: frozenset[str] = frozenset()
) -> Iterator[Block]:
    """The records of a JSON-lines file as text columns; a name may be a dotted path into objects.

    Strings are as they are, everything else as JSON writes it. A key that no record of the file
    has is told as lacking with the last block. Where the mapping reads all keys, a block has those
    that were met up to its end.
    """
    if isinstance(files, RecordEvents | RecordItems | RecordUsers):
        yield from _read_records(part, files)
        return
    row = 0
    asked = wanted(files, derived)
    names = [*files.columns.values()] if asked is None else asked
    told = dict(part.told)
    seen: set[str] = set()
    for chunk in chunks(part, quoted=False, encoding=files.encoding):
        if isinstance(chunk, Lost):
            yield nothing_but(as_fault(chunk, row))
            return
        text = utf8(chunk, files.encoding)
        if asked is None:
            names = list(dict.fromkeys([*names, *_keys(text)]))
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


def _keys(text: bytes) -> Iterator[str]:
    """The keys of all records, as they come."""
    for line in text.decode("utf-8").split("\n"):
        yield from parse_line(line) or ()


def _read_records(part: Part, files: RecordEvents | RecordItems | RecordUsers) -> Iterator[Block]:
    """The records of a JSON-lines file as nested columns of the types that the adapter states."""
    row = 0
    for chunk in chunks(part, quoted=False, encoding=files.encoding):
        if isinstance(chunk, Lost):
            yield nothing_but(as_fault(chunk, row))
            return
        lines = pl.Series(utf8(chunk, files.encoding).decode("utf-8").split("\n"))
        lines = lines.filter(lines.str.contains(r"\S"))
        rows, broken = decode(lines, files.record, files.screen)
        faults = [Fault(row + 1 + at, "line_does_not_parse", lines[at]) for at in broken.arg_true()]
        numbers = pl.int_range(row + 1, row + 1 + lines.len(), eager=True)
        row += lines.len()
        if lines.len():
            yield Block(rows.filter(~broken), numbers.filter(~broken), faults)
    if row == 0:
        yield nothing_but(Fault(0, "empty_file", "no rows"))


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
        record = parse_line(line)
        if record is None:
            faults.append(Fault(row, "line_does_not_parse", line))
        else:
            records.append(record)
            numbers.append(row)
    columns = {name: text_column([value_at(r, name) for r in records]) for name in names}
    return Block(pl.DataFrame(columns), pl.Series(numbers, dtype=pl.Int64), faults)


def parse_line(line: str) -> dict[str, Any] | None:
    """One JSON object, None when the line is anything else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def value_at(record: dict[str, Any], path: str) -> Any:
    """The value at a key, or at a dotted path into nested objects; None where there is none."""
    if path in record:
        return record[path]
    value: Any = record
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def text_column(values: list[Any]) -> pl.Series:
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
