"""Finding a log's files and reading them in bounded memory: every record, or why not.

Works on any fsspec filesystem. A record that cannot be read becomes a `Fault` with its number and
text; so does what is lost behind a truncation. Nothing raises for the data's sake, except what
makes the whole mapping wrong (no such file, no such column).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final, Literal

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.datasets.mapping import AnyFiles, check_columns, wanted
from raysys.errors import UserError

Format = Literal["csv", "jsonl", "parquet"]

_ENDINGS: Final[dict[str, Format]] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
ROWS: Final = 262_144
"""Rows of a Parquet block."""


@dataclass(frozen=True)
class Fault:
    """A record that could not be read."""

    row: int  # 1-based number of the record in its file; 0: the file as a whole
    reason: str
    raw: str


@dataclass
class Block:
    """Some records of one file: those that could be read, and those that could not."""

    rows: pl.DataFrame
    numbers: pl.Series  # Int64, 1-based record numbers of `rows`
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """A piece of work: one file, or some row groups of a large Parquet file."""

    path: str
    label: str  # how reports name the file: its path below the folder that all inputs share
    format: Format
    size: int
    row_groups: tuple[int, ...] | None = None
    first_row: int = 0
    rows: int | None = None  # as the file itself says; None: unknown before reading

    @property
    def key(self) -> str:
        """Names the file in event ids: 8 hex digits, equal on every machine."""
        return hashlib.sha256(self.label.encode()).hexdigest()[:8]


def expand_variables(path: str) -> str:
    """`${NAME}` replaced by the environment's value.

    Raises:
        UserError: the variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise UserError(
                f"the environment variable {name} is not set",
                where=path,
                mend=f"export {name}=/the/folder/of/your/data",
            )
        return os.environ[name]

    return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", value, path)


def find(files: AnyFiles) -> list[Part]:
    """All files that a mapping names, sorted; each as one part.

    Raises:
        UserError: a path that names nothing, an unknown ending, or an unset variable.
    """
    found: dict[str, tuple[str, int]] = {}
    for written in files.paths:
        path = expand_variables(written)
        try:
            system, inner = fsspec.core.url_to_fs(path)
            names = _listed(system, inner)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"cannot be listed: {error}", where=path) from None
        if not names:
            raise UserError(
                "no such file, folder or pattern", where=path, mend="check the path in the mapping"
            )
        for name in names:
            found[system.unstrip_protocol(name)] = (name, int(system.info(name)["size"] or 0))
    base = os.path.commonpath([str(PurePosixPath(name).parent) for name, _ in found.values()])
    parts = []
    for url, (name, size) in sorted(found.items()):
        label = str(PurePosixPath(name).relative_to(base))
        parts.append(Part(url, label, files.format or _told_format(name), size))
    return parts


def fingerprint(part: Part) -> str:
    """Size and time of change (or the store's own tag): changes when the file does."""
    system, inner = fsspec.core.url_to_fs(part.path)
    info = system.info(inner)
    stamp = next(
        (info[key] for key in ("ETag", "etag", "mtime", "LastModified", "created") if key in info),
        "",
    )
    return hashlib.sha256(f"{part.label} {part.size} {stamp}".encode()).hexdigest()[:16]


def split(part: Part, rows_a_part: int) -> list[Part]:
    """A Parquet file with many row groups as several parts; other files as they are."""
    if part.format != "parquet":
        return [part]
    try:
        with fsspec.open(part.path, "rb") as file:
            metadata = pq.ParquetFile(file).metadata
    except (OSError, pa.ArrowException):
        return [part]  # reading it says what is wrong
    pieces: list[Part] = []
    groups: list[int] = []
    first = count = 0
    for group in range(metadata.num_row_groups):
        groups.append(group)
        count += metadata.row_group(group).num_rows
        if count >= rows_a_part or group == metadata.num_row_groups - 1:
            pieces.append(
                Part(part.path, part.label, "parquet", part.size, tuple(groups), first, count)
            )
            first, count, groups = first + count, 0, []
    return pieces or [part]


def read(part: Part, files: AnyFiles, derived: frozenset[str] = frozenset()) -> Iterator[Block]:
    """The records of a part, block by block, in the file's order and numbering.

    Columns in `derived` are not looked for: an adapter makes them.

    Raises:
        UserError: the file lacks a column the mapping reads.
    """
    from raysys.datasets import text

    if part.format == "parquet":
        yield from _read_parquet(part, files, derived)
    elif part.format == "csv":
        yield from text.read_csv(part, files, derived)
    else:
        yield from text.read_jsonl(part, files, derived)


def _read_parquet(part: Part, files: AnyFiles, derived: frozenset[str]) -> Iterator[Block]:
    row = part.first_row
    nothing = pl.Series([], dtype=pl.Int64)
    try:
        with fsspec.open(part.path, "rb") as opened:
            file = pq.ParquetFile(opened)
            if file.metadata.num_rows == 0:
                yield Block(pl.DataFrame(), nothing, [Fault(0, "empty_file", "no rows")])
                return
            check_columns(files, file.schema_arrow.names, derived, where=part.label)
            batches = file.iter_batches(
                batch_size=ROWS,
                row_groups=None if part.row_groups is None else list(part.row_groups),
                columns=wanted(files, derived),
            )
            for batch in batches:
                numbers = pl.int_range(row + 1, row + batch.num_rows + 1, eager=True)
                yield Block(_to_polars(batch), numbers)
                row += batch.num_rows
    except (pa.ArrowException, OSError, EOFError) as error:
        # what was read stays; the rest of the file counts as one record that is lost
        message = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        empty = part.size == 0
        reason = "empty_file" if empty else "unreadable_file" if row == 0 else "truncated_file"
        yield Block(pl.DataFrame(), nothing, [Fault(row + 1 if row else 0, reason, message)])


def _to_polars(batch: pa.RecordBatch) -> pl.DataFrame:
    """A batch as a frame; text that is not UTF-8 (Arrow does not check) is mended with U+FFFD."""
    columns: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            column = _decoded(column)
        elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            try:
                column.validate(full=True)
            except pa.ArrowInvalid:
                column = _decoded(column.cast(pa.binary()))
        columns[name] = column
    frame = pl.from_arrow(pa.table(columns))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _decoded(column: pa.Array) -> pa.Array:
    """Bytes as text, U+FFFD for what is not UTF-8."""
    values = column.to_pylist()
    return pa.array(
        [None if value is None else value.decode("utf-8", "replace") for value in values],
        type=pa.string(),
    )


def _listed(system: Any, inner: str) -> list[str]:
    """The data files that a path, folder or glob means, sorted."""
    if any(mark in inner for mark in "*?["):
        names = [name for name in system.glob(inner) if system.isfile(name)]
    elif system.isdir(inner):
        names = [name for name in system.find(inner) if _ending(name) in _ENDINGS]
    else:
        names = [inner] if system.isfile(inner) else []
    return sorted(name for name in names if PurePosixPath(name).name[0] not in "._")


def _ending(name: str) -> str:
    return PurePosixPath(name.removesuffix(".gz")).suffix.lower()


def _told_format(name: str) -> Format:
    """The format that a file's ending tells.

    Raises:
        UserError: it tells none.
    """
    ending = _ending(name)
    if ending not in _ENDINGS:
        raise UserError(
            f"cannot tell the format from the ending {ending or '(none)'!r}",
            where=name,
            mend="set format: csv, jsonl or parquet in the mapping",
        )
    return _ENDINGS[ending]
