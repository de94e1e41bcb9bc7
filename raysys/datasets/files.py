"""Finding a log's files and reading them in bounded memory: every record, or why not.

Works on any fsspec filesystem. A record that cannot be read becomes a `Fault` with its number and
text; so does what is lost behind a truncation, and a file that cannot be used at all. Nothing
raises for the data's sake, except what makes the whole mapping wrong: no such file, or a column
that no file has. `find` sees to both, so that reading one file never stops a run.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Final, get_args
from urllib.parse import unquote

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.datasets.arrow_values import to_polars
from raysys.datasets.fetching import error_text, of_storage, opened
from raysys.datasets.mapping import (
    AnyFiles,
    Fit,
    RecordFiles,
    TableFiles,
    TableFormat,
    absent,
    check_columns,
    fit,
)
from raysys.datasets.records import conform
from raysys.errors import UserError

_ENDINGS: Final[dict[str, TableFormat]] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_PACKED: Final = (".gz", ".bz2", ".xz", ".zst", ".zstd")
_PEEKS: Final = 16  # files of JSON lines looked into for a column before one believes it is rare
_NO_NUMBERS: Final = pl.Series([], dtype=pl.Int64)
_HIVE_NULL: Final = "__HIVE_DEFAULT_PARTITION__"
_DATED: Final = re.compile(r"(?:^|/)(\d{4})/(\d{2})/(\d{2})(?=/)")

ROWS: Final = 262_144
"""Rows of a Parquet block."""


@dataclass(frozen=True)
class Fault:
    """A record that could not be read."""

    row: int  # 1-based number of the record in its file; 0: the file as a whole
    reason: str
    raw: str
    passing: bool = False  # of the storage, not of the content: another time it may be read


@dataclass
class Block:
    """Some records of one file: those that could be read, and those that could not."""

    rows: pl.DataFrame
    numbers: pl.Series  # Int64, 1-based record numbers of `rows`
    faults: list[Fault] = field(default_factory=list)
    lacking: tuple[str, ...] = ()  # of the file, told once: mapped columns that it does not have


@dataclass(frozen=True)
class Part:
    """A piece of work: one file, or some row groups of a large Parquet file."""

    path: str
    label: str  # how reports name the file: its path below the folder that a mapping's files share
    format: TableFormat
    size: int
    row_groups: tuple[int, ...] | None = None
    first_row: int = 0
    rows: int | None = None  # as the file itself says; None: unknown before reading
    told: tuple[tuple[str, str | None], ...] = ()  # what the path says: keys and values

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


def find(files: AnyFiles, derived: frozenset[str] = frozenset()) -> list[Part]:
    """All files that a mapping names, sorted; each as one part.

    Columns in `derived` are not looked for: an adapter makes them.

    Raises:
        UserError: see `named`; a column that no file has.
    """
    parts = named(files)
    _require_columns(files, parts, derived)
    return parts


def columns_of(files: AnyFiles, parts: Sequence[Part]) -> list[str]:
    """The columns that the first parts have, in the order in which they are met."""
    return list(dict.fromkeys(name for part in parts[:_PEEKS] for name in peek(part, files) or ()))


def named(files: AnyFiles) -> list[Part]:
    """All files that a mapping names, sorted, whatever their columns are.

    Raises:
        UserError: a path that names nothing, an unknown ending, or an unset variable.
    """
    found: dict[str, tuple[str, int]] = {}
    for written in files.paths:
        path = expand_variables(written)
        try:
            system, inner = fsspec.core.url_to_fs(path)
            sizes = _listed(system, inner, files)
        except Exception as error:  # clients of storage have errors of their own: no credentials, …
            raise UserError(f"cannot be listed: {error_text(error)}", where=path) from error
        if not sizes:
            raise UserError(
                "no such file, folder or pattern", where=path, mend="check the path in the mapping"
            )
        for name, size in sizes.items():
            found[system.unstrip_protocol(name)] = (name, size)
    base = os.path.commonpath([str(PurePosixPath(name).parent) for name, _ in found.values()])
    parts = []
    for url, (name, size) in sorted(found.items()):
        label = str(PurePosixPath(name).relative_to(base))
        form = files.format or _told_format(name, url, files)
        parts.append(Part(url, label, form, size, told=_told_by_path(name)))
    return parts


def _require_columns(files: AnyFiles, parts: Sequence[Part], derived: frozenset[str]) -> None:
    """Look into files until every mapped column was seen: mostly the first says it all.

    Raises:
        UserError: a column that no file has.
    """
    known: dict[str, None] = {}
    told: dict[str, str | None] = {}
    first = ""
    certain = True
    for number, part in enumerate(parts):
        columns = peek(part, files)
        if columns is None:
            continue
        first = first or part.label
        known |= dict.fromkeys(columns)
        told |= dict(part.told)
        certain &= part.format != "jsonl"
        if not absent(files, list(known), derived, told):
            return
        if not certain and number >= _PEEKS:
            break
    if first and (certain or _is_misspelt(files, list(known), derived, told)):
        check_columns(files, list(known), derived, told, where=first)


def _is_misspelt(
    files: AnyFiles, known: list[str], derived: frozenset[str], told: dict[str, str | None]
) -> bool:
    """Whether JSON records, of which we saw some, can be said to never have a mapped column.

    They leave out what they do not know. A column that every event needs should have been seen;
    any other counts as misspelt if a key that nothing is mapped to is nearly the same.
    """
    fitted = fit(files, known, derived, told)
    spare = [name for name in known if name not in (fitted.read or ())]
    return any(
        name in fitted.missing or difflib.get_close_matches(name, spare, n=1, cutoff=0.8)
        for name in absent(files, known, derived, told)
    )


def peek(part: Part, files: AnyFiles) -> list[str] | None:
    """A file's column names without reading it through; None if it cannot say.

    Of JSON lines: the keys of the first records, with dotted paths into nested objects.
    """
    from raysys.datasets import labelled_formats, text

    if part.format in ("csv", "jsonl"):
        return text.peek(part, files)
    if part.format != "parquet":
        return labelled_formats.peek(part, files)
    try:
        with opened(part.path) as file:
            names: list[str] = pq.ParquetFile(file).schema_arrow.names
            return names
    except (OSError, EOFError, pa.ArrowException):
        return None  # reading it says what is wrong


def fingerprint(part: Part) -> str:
    """Changes when the file does, or goes, or is moved to where its path says something else.

    Made of its size and time of change (or the store's own tag), and of what its path says. That
    of a file whose storage does not answer is another each time.
    """
    try:
        system, inner = fsspec.core.url_to_fs(part.path)
        info = system.info(inner)
    except FileNotFoundError:
        info = {"mtime": "gone"}
    except Exception:  # it may have changed or not: like nothing that was read before or will be
        info = {"mtime": uuid.uuid4().hex}
    stamp = next(
        (info[key] for key in ("ETag", "etag", "mtime", "LastModified", "created") if key in info),
        "",
    )
    told = json.dumps(part.told) if part.told else ""
    return hashlib.sha256(f"{part.label} {part.size} {stamp}{told}".encode()).hexdigest()[:16]


def split(part: Part, rows_a_part: int) -> list[Part]:
    """A Parquet file with many row groups as several parts; other files as they are."""
    if part.format != "parquet":
        return [part]
    try:
        with opened(part.path) as file:
            metadata = pq.ParquetFile(file).metadata
    except (OSError, EOFError, pa.ArrowException):
        return [part]  # reading it says what is wrong
    pieces: list[Part] = []
    groups: list[int] = []
    first = count = 0
    for group in range(metadata.num_row_groups):
        groups.append(group)
        count += metadata.row_group(group).num_rows
        if count >= rows_a_part or group == metadata.num_row_groups - 1:
            pieces.append(replace(part, row_groups=tuple(groups), first_row=first, rows=count))
            first, count, groups = first + count, 0, []
    return pieces or [part]


def read(part: Part, files: AnyFiles, derived: frozenset[str] = frozenset()) -> Iterator[Block]:
    """The records of a part, block by block, in the file's order and numbering.

    Every block has every column that the mapping reads, less `derived`, which an adapter makes:
    what the file lacks is what its path says (text), else null. A file that lacks a column which
    no event can do without, or that is gone, is one fault.
    """
    from raysys.datasets import json_lines, labelled_formats, text

    try:
        if part.format == "parquet":
            yield from _read_parquet(part, files, derived)
        elif part.format == "csv":
            yield from text.read_csv(part, files, derived)
        elif part.format == "jsonl":
            yield from json_lines.read_jsonl(part, files, derived)
        else:
            yield from labelled_formats.read(part, files, derived)
    except FileNotFoundError:
        lost = "" if part.rows is None else f"; {part.rows:,} rows of it are lost"
        told = f"it was there when the run began{lost}"
        yield nothing_but(Fault(0, "missing_file", told, passing=True))


def nothing_but(fault: Fault) -> Block:
    """A block without rows that tells a fault."""
    return Block(pl.DataFrame(), _NO_NUMBERS, [fault])


def lacks_needed(fitted: Fit, found: Sequence[str]) -> Fault | None:
    """The fault of a file without a column that every row needs, if it lacks one."""
    if not fitted.missing:
        return None
    shown = ", ".join(found[:10])[:200] + (", …" if len(found) > 10 else "")
    lost = ", ".join(map(repr, fitted.missing))
    return Fault(0, "missing_columns", f"no column {lost}; the file has: {shown}")


def filled(rows: pl.DataFrame, fitted: Fit) -> pl.DataFrame:
    """Rows with the columns that their file lacks: what its path says, else null."""
    if not fitted.fill:
        return rows
    return rows.with_columns(
        pl.lit(value, dtype=pl.String).alias(name) for name, value in fitted.fill.items()
    )


def _read_parquet(part: Part, files: AnyFiles, derived: frozenset[str]) -> Iterator[Block]:
    row = part.first_row
    try:
        with opened(part.path) as stored:
            file = pq.ParquetFile(stored)
            if file.metadata.num_rows == 0:
                yield nothing_but(Fault(0, "empty_file", "no rows"))
                return
            names = file.schema_arrow.names
            fitted = fit(files, names, derived, dict(part.told))
            fault = lacks_needed(fitted, names)
            if fault:
                if not part.first_row:
                    yield nothing_but(fault)
                return
            batches = file.iter_batches(
                batch_size=ROWS,
                row_groups=None if part.row_groups is None else list(part.row_groups),
                columns=None if fitted.read is None else list(fitted.read) or names[:1],
            )
            for batch in batches:
                numbers = pl.int_range(row + 1, row + batch.num_rows + 1, eager=True)
                lacking = () if row else fitted.lacking
                frame = to_polars(batch)
                if isinstance(files, RecordFiles):
                    frame = conform(frame, files.record)
                yield Block(filled(frame, fitted), numbers, lacking=lacking)
                row += batch.num_rows
    except FileNotFoundError:
        raise
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError, EOFError) as error:
        # what was read stays; the rest of the file counts as one record that is lost
        message = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        empty = part.size == 0
        reason = "empty_file" if empty else "unreadable_file" if row == 0 else "truncated_file"
        passing = isinstance(error, OSError) and of_storage(error)
        yield nothing_but(Fault(row + 1 if row else 0, reason, message, passing))


def _listed(system: Any, inner: str, files: AnyFiles) -> dict[str, int]:
    """The data files that a path, folder or glob means, sorted, with their bytes."""
    from raysys.datasets import layouts

    known = {*_ENDINGS, *(layouts.ENDINGS if isinstance(files, TableFiles) else ())}
    if any(mark in inner for mark in "*?["):
        found = system.glob(inner, detail=True)
    elif system.isdir(inner):
        listed = system.find(inner, detail=True)
        found = {name: info for name, info in listed.items() if _ending(name) in known}
        if isinstance(files, TableFiles):  # the texts of annotations are read with them
            found = {
                name: info
                for name, info in found.items()
                if not name.endswith(".txt") or f"{name[:-4]}.ann" not in found
            }
    else:
        found = {inner: system.info(inner)} if system.isfile(inner) else {}
    return {
        name: int(info.get("size") or 0)
        for name, info in sorted(found.items())
        if info["type"] != "directory" and PurePosixPath(name).name[0] not in "._"
    }


def _told_by_path(name: str) -> tuple[tuple[str, str | None], ...]:
    """What folders say: `KEY=value/` as hive writes it, and `2024/01/31/` as `date`."""
    told: dict[str, str | None] = {}
    dated = _DATED.search(name)
    if dated:
        told["date"] = "-".join(dated.groups())
    for folder in PurePosixPath(name).parts[:-1]:
        key, equals, value = folder.partition("=")
        if equals and key:
            told[unquote(key)] = None if value == _HIVE_NULL else unquote(value)
    return tuple(told.items())


def _ending(name: str) -> str:
    path = PurePosixPath(name)
    return (PurePosixPath(path.stem) if path.suffix.lower() in _PACKED else path).suffix.lower()


def _told_format(name: str, url: str, files: AnyFiles) -> TableFormat:
    """The format that a file's ending tells; of files of texts its content, too.

    Raises:
        UserError: nothing tells it, or it is none that is read.
    """
    from raysys.datasets import layouts

    ending = _ending(name)
    form = _ENDINGS.get(ending)
    allowed = "csv, jsonl or parquet"
    if isinstance(files, TableFiles):
        form = layouts.told_format(url, ending, form, files)
        allowed = ", ".join(get_args(TableFormat))
    if form is None:
        raise UserError(
            f"cannot tell the format from the ending {ending or '(none)'!r}",
            where=name,
            mend=f"set format: {allowed} in the mapping",
        )
    return form
