"""The texts of a shop, each once: what its items, its users' queries and its reviews say.

Everything streams from file to file. Only a 64-bit hash of each text stays in memory: it tells
repeated texts apart, and decides once for all which texts are held out.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from raysys.config import Settings
from raysys.datasets import files
from raysys.datasets.labelled_values import as_prose
from raysys.datasets.mapping import AnyTable, TableFiles
from raysys.errors import UserError

Part = Literal["train", "held_out"]
ItemColumn = Literal[
    "title", "description", "department", "category", "subcategory", "brand", "manufacturer", "size"
]
UInt64 = npt.NDArray[np.uint64]

BATCH = 16_384
"""Texts that are in memory at a time."""

SCHEMA = pa.schema(
    [
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("held_out", pa.bool_(), nullable=False),
    ]
)


class TextFiles(AnyTable):
    """Files with texts beside the log: reviews, questions, articles.

    Attributes:
        text: column of the text, or several, joined.
        join: between texts of several columns; empty ones are left out.
        name: what reports call them.
    """

    text: Annotated[tuple[str, ...], Field(min_length=1)]
    join: str = " "
    name: str = "files"

    @field_validator("text", mode="before")
    @classmethod
    def _a_list(cls, text: object) -> object:
        return (text,) if isinstance(text, str) else text

    def table(self) -> TableFiles:
        """As the readers take it."""
        where = self.model_dump(exclude={"text", "join", "name"})
        columns = {f"text{at}": name for at, name in enumerate(self.text)}
        return TableFiles(**where, columns=columns, bare=True)


class CorpusSettings(Settings):
    """Where texts come from.

    Attributes:
        items: columns of the catalogue, joined into one text an item; empty: none are read.
        queries: read the queries of the log.
        files: further texts.
        held_out: share of the texts that nothing is trained on; perplexity is measured on them.
        min_characters: shorter texts are left out.
        max_characters: what is read of each text.
    """

    items: tuple[ItemColumn, ...] = ("title", "category", "brand", "description")
    queries: bool = True
    files: tuple[TextFiles, ...] = ()
    held_out: float = Field(0.02, gt=0, lt=1)
    min_characters: int = Field(2, ge=1)
    max_characters: int = Field(10_000, ge=1)


@dataclass(frozen=True)
class Corpus:
    """Distinct texts on disk.

    Attributes:
        folder: of Parquet files in `SCHEMA`.
        counts: texts by source, and `train`, `held_out`, `repeated`, `too_short`, `unreadable`.
        characters: of all distinct texts.
    """

    folder: Path
    counts: dict[str, int] = field(default_factory=dict)
    characters: int = 0

    @classmethod
    def open(cls, folder: Path) -> Corpus | None:
        """What `write_corpus` wrote; None: it has not, or was cut off."""
        if not (folder / "corpus.json").is_file():
            return None
        return cls(folder, **json.loads((folder / "corpus.json").read_text(encoding="utf-8")))

    def batches(self, part: Part) -> Iterator[list[str]]:
        """The texts of a part, some thousands at a time, in the order in which they were found."""
        for path in sorted(self.folder.glob("part-*.parquet")):
            for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=["text", "held_out"]):
                table = pa.Table.from_batches([batch])
                wanted = table["held_out"].to_numpy() == (part == "held_out")
                texts: list[str] = table["text"].filter(pa.array(wanted)).to_pylist()
                yield texts


def write_corpus(
    settings: CorpusSettings,
    folder: Path,
    *,
    ingest: Path | None = None,
    until: dt.datetime | None = None,
    where: str = "corpus",
) -> Corpus:
    """Gather the texts of a shop.

    Args:
        settings: which.
        folder: new or empty.
        ingest: what `raysys ingest` wrote; None: only files are read.
        until: events from then on are not read; None: all are.
        where: for errors.

    Raises:
        UserError: a file or column that is not there, or not a single text to train on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seen: UInt64 = np.empty(0, np.uint64)
    counts: Counter[str] = Counter()
    characters = 0
    writer = pq.ParquetWriter(folder / "part-00000.parquet", SCHEMA, compression="zstd")
    with writer:
        for source, texts in _batches(_sources(settings, ingest, until, counts), BATCH):
            lines = [" ".join(text[: settings.max_characters].split()) for text in texts]
            long = [line for line in lines if len(line) >= settings.min_characters]
            counts["too_short"] += len(lines) - len(long)
            hashes, first = np.unique(text_hashes(long), return_index=True)
            new = first[~np.isin(hashes, seen, assume_unique=True)]
            kept = [long[at] for at in sorted(new.tolist())]
            seen = np.union1d(seen, hashes)
            held = is_held_out(text_hashes(kept), settings.held_out)
            counts["repeated"] += len(long) - len(kept)
            counts[source] += len(kept)
            counts["held_out"] += int(held.sum())
            counts["train"] += int((~held).sum())
            characters += sum(map(len, kept))
            writer.write_table(
                pa.table([kept, [source] * len(kept), held], schema=SCHEMA), row_group_size=BATCH
            )
    if not counts["train"]:
        raise UserError(
            "not a single text to train on",
            where=where,
            mend="name columns of items that hold texts, switch `queries` on, or add `files`",
        )
    content = {"counts": dict(counts), "characters": characters}
    (folder / "corpus.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return Corpus(folder, dict(counts), characters)


def text_hashes(texts: Sequence[str]) -> UInt64:
    """64 bits of each text, case apart: uint64[n], the same on every machine and in every run."""
    digests = (hashlib.blake2b(t.casefold().encode("utf-8", "replace"), digest_size=8).digest()
               for t in texts)  # fmt: skip
    return np.frombuffer(b"".join(digests), np.uint64)


def is_held_out(hashes: UInt64, share: float) -> npt.NDArray[np.bool_]:
    """Which texts are never trained on: bool[n]; what is held out for less is so for more."""
    return hashes < np.uint64(int(share * 2**64))


def log_end(ingest: Path, held_back_days: float) -> dt.datetime | None:
    """The moment so many days before the last event; None: there is no event."""
    last = scan_events(ingest).select(pl.col("timestamp").max()).collect().item()
    return None if last is None else last - dt.timedelta(days=held_back_days)


def scan_events(ingest: Path, until: dt.datetime | None = None) -> pl.LazyFrame:
    """The log before a moment, lazily."""
    log = pl.scan_parquet(str(ingest / "events" / "**/*.parquet"), hive_partitioning=False)
    return log if until is None else log.filter(pl.col("timestamp") < until)


def item_lines(table: pa.Table, columns: Sequence[str]) -> list[str]:
    """Each item as one line, without repeating what an earlier column says; "" where none says."""
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    return [_joined(row) for row in rows]


def _joined(parts: Iterable[str | None]) -> str:
    line: list[str] = []
    for part in parts:
        text = " ".join((part or "").split())
        if text and not any(text.casefold() in earlier.casefold() for earlier in line):
            line.append(text)
    return ", ".join(line)


def _sources(
    settings: CorpusSettings,
    ingest: Path | None,
    until: dt.datetime | None,
    counts: Counter[str],
) -> Iterator[tuple[str, list[str]]]:
    """Texts as they are found, with the name of their source."""
    if ingest is not None and settings.items and (ingest / "items.parquet").is_file():
        file = pq.ParquetFile(ingest / "items.parquet")
        for batch in file.iter_batches(BATCH, columns=list(settings.items)):
            yield "items", item_lines(pa.Table.from_batches([batch]), settings.items)
    if ingest is not None and settings.queries:
        asked = scan_events(ingest, until).filter(pl.col("query").is_not_null())
        found = asked.select(pl.col("query").unique().sort()).collect(engine="streaming")
        yield "queries", found["query"].to_list()
    for each in settings.files:
        table = each.table()
        for part in files.find(table):
            for block in files.read(part, table):
                counts["unreadable"] += len(block.faults)
                if block.rows.height:
                    yield each.name, _texts_of(block.rows, each)


def _texts_of(rows: pl.DataFrame, named: TextFiles) -> list[str]:
    said = rows.select(
        as_prose(rows, name, named.join).alias(str(at)) for at, name in enumerate(named.text)
    )
    columns: list[list[Any]] = [column.to_list() for column in said]
    return [named.join.join(t for t in row if t) for row in zip(*columns, strict=True)]


def _batches(found: Iterable[tuple[str, list[str]]], size: int) -> Iterator[tuple[str, list[str]]]:
    """The same in lists of at most `size`."""
    for source, texts in found:
        for start in range(0, len(texts), size):
            yield source, texts[start : start + size]
