"""Judgements of a file as pairs that `cross_encoder_ranker` learns from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from raysys.catalogue import Catalogue
from raysys.errors import UserError
from raysys.text.items import ItemTexts


def judged_pairs(
    path: str, texts: ItemTexts, catalogue: Catalogue
) -> tuple[pa.Table, pa.Table | None]:
    """Judgements of a file: those to learn from, and those to judge by where it has a `split`.

    Raises:
        UserError: no such file, not of these formats, columns are missing, or a grade or weight
            is no number.
    """
    where = "cross_encoder_ranker.judgements"
    place = Path(path)
    if not place.is_file():
        raise UserError(f"no such file: {path!r}", where=where)
    if place.suffix not in (".parquet", ".csv"):
        raise UserError(f"not a Parquet or CSV file: {path!r}", where=where)
    try:
        frame = (
            pl.read_parquet(place)
            if place.suffix == ".parquet"
            else pl.read_csv(place, infer_schema=False)  # what looks like numbers may be queries
        )
    except pl.exceptions.PolarsError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot be read: {reason}", where=f"{where}: {path}") from None
    frame = _typed(frame, f"{where}: {path}")
    if "text" not in frame.columns and "item_id" in frame.columns:
        numbers = catalogue.numbers(pa.array(frame["item_id"], pa.string()))
        frame = frame.filter(pl.Series(numbers >= 0))
        codes = texts.codes[numbers[numbers >= 0]]
        frame = frame.with_columns(text=pl.Series([texts.distinct[code] for code in codes]))
    for name in ("query", "text", "grade"):
        if name not in frame.columns:
            raise UserError(
                f"judgements have no column {name!r}",
                where=f"{where}: {path}",
                mend="give query, text (or item_id) and grade",
            )
    frame = frame.filter(pl.col("grade").is_finite())
    columns = [n for n in ("query", "text", "grade", "weight") if n in frame.columns]
    if "split" not in frame.columns:
        return frame.select(columns).to_arrow(), None
    parts = [
        frame.filter(split=name).select(columns).to_arrow() for name in ("train", "validation")
    ]
    return parts[0], parts[1]


def _typed(frame: pl.DataFrame, where: str) -> pl.DataFrame:
    """Texts as texts, grade and weight as numbers.

    Raises:
        UserError: one is no number; names the first.
    """
    texts = [n for n in ("query", "text", "item_id", "split") if n in frame.columns]
    numbers = [n for n in ("grade", "weight") if n in frame.columns]
    found = frame.with_columns(
        pl.col(texts).cast(pl.String), pl.col(numbers).cast(pl.Float32, strict=False)
    )
    for name in numbers:
        bad = np.flatnonzero((found[name].is_null() & frame[name].is_not_null()).to_numpy())
        if len(bad):
            raise UserError(
                f"a {name} is no number: {frame[name][int(bad[0])]!r} in row {bad[0] + 1:,}",
                where=where,
                mend="write it as 2 or 2.5, or leave it empty: such a row is not learned from"
                if name == "grade"
                else "write it as 2 or 2.5",
            )
    return found
