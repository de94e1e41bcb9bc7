"""What a file of sessions or sequences is, told by its beginning and not by its name.

JSON lines, one JSON document, Parquet, lines of Python's, tables with and without a header, lines
of items. What is no such thing is refused with what was seen and what can be done.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.datasets.arrow_values import to_polars
from raysys.datasets.chunks import BOM
from raysys.datasets.sequence_columns import Kinds, Layout, of_rows
from raysys.datasets.sequence_names import Columns, Task, by_name, is_time
from raysys.datasets.sequence_tables import Forced, of_table
from raysys.datasets.sequences import readable
from raysys.datasets.unpack import unpacked
from raysys.errors import UserError

SAMPLE: Final = 1 << 20
"""Bytes, unpacked, by which a file is told."""

_ROWS: Final = 500


def find_layout(path: Path, task: Task, asked: Columns, forced: Forced = "auto") -> Layout:
    """What the file is.

    Args:
        path: of the file, packed or not.
        task: what is asked.
        asked: columns that the user names.
        forced: what the user says it is.

    Raises:
        UserError: it cannot be read, or told, or lacks a column that was named; or it is a pickle.
    """
    sample, whole = _beginning(path)
    if sample[:4] == b"PAR1":
        return of_rows(_parquet_rows(path), "parquet", path, task, asked)
    _refuse_others(sample, path)
    text = _text(sample, path)
    lines = [line for line in text.split("\n") if line.strip()]
    if not whole and len(lines) > 1:
        lines.pop()
    if not lines:
        raise UserError("holds nothing", where=str(path), mend="name a file of events or lists")
    start = lines[0].lstrip()
    if start[0] in "[{":
        return _of_json(lines, path, task, asked, whole=whole)
    return of_table(lines, path, task, asked, forced)


def _beginning(path: Path) -> tuple[bytes, bool]:
    """The first bytes, and whether these are all."""
    with readable(path) as file:
        source = unpacked(file)
        parts, size = [], 0
        while size < SAMPLE and (part := source.read(SAMPLE - size)):
            parts.append(part)
            size += len(part)
        return b"".join(parts).removeprefix(BOM), not source.read(1)


def _refuse_others(sample: bytes, path: Path) -> None:
    if re.match(rb"\x80[\x02-\x05]|\(+(lp|dp|\d*\n|I\d)|\(\(l|[\]}]q\x00", sample):
        name = shlex.quote(str(path))
        raise UserError(
            "is a pickle, and pickles are not read: loading one runs what is in it",
            where=str(path),
            mend="if you trust it, write JSON lines from its pair of prefixes and labels: "
            "python -c 'import json, pickle, sys; "
            '[print(json.dumps({"session": list(map(int, s)), "label": int(y)})) '
            f'for s, y in zip(*pickle.load(open(sys.argv[1], "rb")))]\' {name} > CASES.jsonl; '
            "of a list of sessions write each list as a line",
        )
    if sample[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in sample:
        raise UserError("is no text in UTF-8 and no Parquet", where=str(path), mend="save as UTF-8")


def _text(sample: bytes, path: Path) -> str:
    return sample.decode("utf-8", "replace").replace("\r\n", "\n")


def _of_json(lines: list[str], path: Path, task: Task, asked: Columns, *, whole: bool) -> Layout:
    """JSON lines of lists, cases, events or records; else one document."""
    records = [record for line in lines[:_ROWS] if (record := _record(line)) is not None]
    first = _record(lines[0])
    alone = whole and len(lines) == 1
    if first is None:
        if python_line(lines[0]) is not None:
            found = [value for line in lines[:_ROWS] if (value := python_line(line)) is not None]
            return of_rows(columns_of(found), "python", path, task, asked)
        # a line that is broken is named as such; a document begins in the first and goes on
        broken = len(records) > 0 and lines[0].strip() not in ("[", "{")
        return Layout("native" if broken else "document", "json", asked, read_as="a JSON document")
    if isinstance(first, list):
        if any(isinstance(value, list | dict) for value in first):
            return Layout("document", "json", asked, read_as="a JSON document")
        return Layout("native", "json", read_as="JSON lines, a session each")
    named = bool({*asked.given} & first.keys())  # of the other file, if it is not this one's
    if task == "sessions" and isinstance(first.get("session"), list) and not named:
        what = "a case" if "label" in first else "a session"
        return Layout("native", "json", read_as=f"JSON lines, {what} each")
    if alone and not asked.named and _lists_by_key(first):
        return Layout("document", "json", asked, read_as="a JSON object, a list of items each")
    return of_rows(
        columns_of([r for r in records if isinstance(r, dict)]), "json", path, task, asked
    )


def _record(line: str) -> Any:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list | dict) else None


def python_line(line: str) -> dict[str, Any] | None:
    """A line as Python writes dicts: Steam's reviews and older ones of Amazon are such."""
    try:
        found = ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return found if isinstance(found, dict) else None


def _lists_by_key(content: dict[str, Any]) -> bool:
    known = by_name(list(content), list(content), list(content))
    lists = all(
        isinstance(value, list) and not any(isinstance(one, list | dict) for one in value)
        for value in content.values()
    )
    return lists and not known.named


def columns_of(records: Sequence[dict[str, Any]]) -> Kinds:
    """Columns: the keys that nine of ten records have; whoever wrote them can do without others."""
    seen = Counter(key for one in records for key, value in one.items() if value is not None)
    often = [key for key, count in seen.items() if count >= 0.9 * len(records)]
    example = {key: [one[key] for one in records if one.get(key) is not None] for key in often}
    lists = [key for key in often if all(isinstance(value, list) for value in example[key])]
    inner = {
        key: tuple(dict.fromkeys(name for value in example[key] for one in value for name in one))
        for key in lists
        if any(example[key])
        and all(isinstance(one, dict) for value in example[key] for one in value)
    }
    single = tuple(key for key in often if key not in lists)
    return Kinds(
        single,
        tuple(key for key in lists if key not in inner),
        inner,
        tuple(key for key in seen if key not in often),
        tuple(key for key in single if is_time([str(value) for value in example[key]])),
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _parquet_rows(path: Path) -> Kinds:
    with readable(path) as file:
        try:
            rows = pq.ParquetFile(file)
            schema = rows.schema_arrow
            flat = [f.name for f in schema if pa.types.is_integer(f.type) or _is_text(f.type)]
            some = next(rows.iter_batches(batch_size=_ROWS, columns=flat), None) if flat else None
        except pa.ArrowException as error:
            what = f"cannot be read as Parquet: {str(error).splitlines()[0]}"
            raise UserError(what, where=str(path), mend="copy or write it again") from None
    frame = to_polars(pa.RecordBatch.from_pylist([], schema=schema))
    lists, inner = [], {}
    for name, kind in frame.schema.items():
        if isinstance(kind, pl.List | pl.Array):
            if isinstance(kind.inner, pl.Struct):
                inner[name] = tuple(field.name for field in kind.inner.fields)
            else:
                lists.append(name)
    single = tuple(name for name in frame.columns if name not in lists and name not in inner)
    values = {} if some is None else {name: some.column(name).drop_null() for name in flat}
    told = {name for name, found in values.items() if is_time([str(v) for v in found.to_pylist()])}
    times = tuple(name for name in single if frame.schema[name].is_temporal() or name in told)
    return Kinds(single, tuple(lists), inner, times=times)
