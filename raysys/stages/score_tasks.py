"""What the workers of a scoring run do: read files piece by piece, judge the texts."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from raysys.datasets import files
from raysys.datasets.files import Part
from raysys.datasets.labelled import QUARANTINE, blocks, joined
from raysys.datasets.labelled_values import unsayable
from raysys.datasets.mapping import TableFiles
from raysys.learners.text_protocol import SpanModel
from raysys.registry import TextBundle
from raysys.storage import digest

WORK = ".work"
"""Folder in the output for what is not complete yet."""


@dataclass(frozen=True)
class Job:
    """What every worker needs to know.

    Attributes:
        parts: the files to read, or pieces of large ones.
        table: which of their columns are text and query; all are kept.
        text: columns of the text.
        join: between them.
        piece: rows that a model is given at once.
        bundle: the bundle's folder.
        output: where predictions go.
        labels: of entities, that are asked for; none: all.
    """

    parts: tuple[Part, ...]
    table: TableFiles
    text: tuple[str, ...]
    join: str
    piece: int
    bundle: Path
    output: Path
    labels: tuple[str, ...] = ()


class Reading:
    """Reads parts; yields one row a piece."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """One row a piece of the files with these numbers."""
        for number in batch["number"].to_pylist():
            for at, (rows, aside, last) in enumerate(_looking_ahead(self._pieces(number))):
                yield pa.table(
                    {
                        "number": [number],
                        "piece": [at],
                        "last": [last],
                        "rows": pa.array([packed(rows)], pa.large_binary()),
                        "aside": pa.array([packed(aside)], pa.large_binary()),
                    }
                )

    def _pieces(self, number: int) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        job = self.job
        part = job.parts[number]
        for rows, lost in blocks(job.table, part):
            if not rows.height:
                yield rows, lost
                continue
            text = rows.select(joined(rows, job.text, job.join).alias("_text"))["_text"]
            bad = pl.select(unsayable(pl.lit(text))).to_series()
            reasons = pl.Series("empty_text", ["empty_text"]).new_from_index(0, rows.height)
            if "query" in job.table.columns:
                query = rows[job.table.columns["query"]].cast(pl.String)
                without = pl.select(unsayable(pl.lit(query))).to_series() & ~bad
                reasons = reasons.zip_with(~without, pl.Series(["empty_query"]))
                bad = bad | without
            rows = rows.with_columns(text.alias("_text"), pl.lit(part.label).alias("_file"))
            aside = rows.filter(bad).select(
                reasons.filter(bad).alias("reason"),
                pl.col("_file").alias("source"),
                pl.col("_row").alias("row"),
                pl.lit("").alias("raw"),
            )
            lost = pl.concat([lost, aside])
            rows = rows.filter(~bad)
            for start in range(0, max(1, rows.height), job.piece):
                yield rows.slice(start, job.piece), lost if not start else lost.clear()


class Scoring:
    """Holds the model; writes what it says of each piece."""

    job: Job

    def __init__(self) -> None:
        self.bundle = TextBundle.load(self.job.bundle)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """What was written for each piece."""
        return pa.Table.from_pylist([self._score(piece) for piece in batch.to_pylist()])

    def _score(self, piece: dict[str, Any]) -> dict[str, Any]:
        job = self.job
        part = job.parts[piece["number"]]
        name = f"{stem_of(part)}-{piece['piece']:05d}.parquet"
        rows, aside = unpacked(piece["rows"]), unpacked(piece["aside"])
        work, written = job.output / WORK, []
        if rows.height:
            self._predicted(rows).write_parquet(work / name)
            written.append(f"predictions/{name}")
        if aside.height:
            aside.write_parquet(work / f"aside-{name}")
            written.append(f"quarantine/aside-{name}")
        return {
            "number": piece["number"],
            "piece": piece["piece"],
            "last": piece["last"],
            "rows": rows.height,
            "n_aside": aside.height,
            "aside": json.dumps(dict(Counter(aside["reason"].to_list()))),
            "files": json.dumps(written),
        }

    def _predicted(self, rows: pl.DataFrame) -> pl.DataFrame:
        columns = {"text": rows["_text"].to_arrow().cast(pa.string())}
        if self.bundle.task == "relevance":
            query = rows[self.job.table.columns["query"]].cast(pl.String)
            columns["query"] = query.to_arrow().cast(pa.string())
        model, table = self.bundle.model, pa.table(columns)
        if self.job.labels and isinstance(model, SpanModel):
            said = pl.from_arrow(model.predict(table, self.job.labels))
        else:
            said = pl.from_arrow(model.predict(table))
        assert isinstance(said, pl.DataFrame)
        said = said.rename({name: f"predicted_{name}" for name in said.columns})
        # columns of earlier predictions give way
        return pl.concat([rows.drop("_text", *said.columns, strict=False), said], how="horizontal")


def _looking_ahead(
    pieces: Iterator[tuple[pl.DataFrame, pl.DataFrame]],
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame, bool]]:
    """Each piece, and whether it is the last; at least one, as a file may say nothing."""
    empty = pl.DataFrame(schema=QUARANTINE)
    held = next(pieces, (pl.DataFrame(), empty))
    for piece in pieces:
        yield *held, False
        held = piece
    yield *held, True


def packed(rows: pl.DataFrame) -> bytes:
    """As bytes that Ray carries uncopied."""
    buffer = io.BytesIO()
    rows.write_ipc(buffer)
    return buffer.getvalue()


def unpacked(content: bytes) -> pl.DataFrame:
    """What `packed` packed."""
    return pl.read_ipc(io.BytesIO(content))


def key_of(part: Part) -> str:
    """Names a part among those of all runs into one folder.

    By its whole path: the label is below the folder that the files of one run share.
    """
    return f"part-{digest([part.path, part.first_row])}"


def stem_of(part: Part) -> str:
    """Begins the names of a part's files: readable, and its own."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(part.label).name.split(".")[0])[:40]
    return f"{readable}-{key_of(part)[5:13]}"


def fingerprint_of(part: Part) -> str:
    """Of a file as it is now: another one is scored anew."""
    return digest([files.fingerprint(part), part.row_groups])
