"""Public texts with labels as `schema.LABELLED_TEXTS`, and how they are divided.

No text and no group of texts is in two splits; labels are in each as they are in all.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from raysys import schema

SHARES = (0.8, 0.1, 0.1)
SPLITS = ("train", "validation", "test")
MOST: list[int] = []
"""Texts of a data set, at most about; none: all. For scripts that are tried out."""


def data_folder() -> Path:
    """Where public data lies."""
    data = os.environ.get("RAYSYS_DATA")
    if not data:
        raise SystemExit("set RAYSYS_DATA to the folder with products/ and reviews/")
    return Path(data)


def clothing(label: str) -> pl.DataFrame:
    """Reviews with their titles: label `mood` (of the rating) or `recommended`; and the rating."""
    rows = pl.read_csv(data_folder() / "reviews" / "womens_clothing.csv.gz", infer_schema_length=0)
    rating = pl.col("Rating").cast(pl.Float32)
    mood = pl.when(rating <= 2).then(pl.lit("negative")).when(rating >= 4).then(pl.lit("positive"))
    told = {"mood": mood.otherwise(pl.lit("neutral")), "recommended": pl.col("Recommended IND")}
    text = pl.concat_str(pl.col("Title"), pl.col("Review Text"), separator=". ", ignore_nulls=True)
    return _unique(rows.select(text=text, label=told[label], rating=rating))


def chinese() -> pl.DataFrame:
    """Chinese reviews of ten kinds of products, negative or positive."""
    rows = pl.read_csv(data_folder() / "reviews" / "chinese_shopping.csv.gz", infer_schema_length=0)
    label = pl.when(pl.col("label") == "1").then(pl.lit("positive")).otherwise(pl.lit("negative"))
    return _unique(rows.select(text=pl.col("review").str.strip_chars("\ufeff \t\r\n"), label=label))


def pricerunner(*, grouped: bool = True) -> pl.DataFrame:
    """Titles of offers by category; offers of one product are a group, unless told otherwise."""
    rows = pl.read_csv(data_folder() / "products" / "pricerunner.csv.gz", infer_schema_length=0)
    found = rows.select(text="product_title", label="category_label", group="cluster_id")
    return _unique(found if grouped else found.drop("group"))


def divided(rows: pl.DataFrame, seed: int) -> dict[str, pa.Table]:
    """Training, validation and test texts: shares of each label, by whole groups.

    A label's groups are shuffled and filled into one split after the other.
    """
    rng = np.random.default_rng(seed)
    place = np.empty(rows.height, dtype=np.int64)
    labels, groups = rows["label"].to_numpy(), rows["group"].to_numpy()
    for label in sorted(set(labels)):
        mine = np.flatnonzero(labels == label)
        names, member = np.unique(groups[mine], return_inverse=True)
        order = rng.permutation(len(names))
        sizes = np.bincount(member)[order]
        share = (np.cumsum(sizes) - sizes / 2) / len(mine)
        split = np.empty(len(names), dtype=np.int64)
        split[order] = np.searchsorted(np.cumsum(SHARES[:-1]), share, side="right")
        place[mine] = split[member]
    table = rows.with_columns(split=pl.Series(SPLITS).gather(place)).to_arrow()
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema.LABELLED_TEXTS
    ]
    whole = pa.table(columns, schema=schema.LABELLED_TEXTS)
    return {name: whole.filter(pa.array(place == at)) for at, name in enumerate(SPLITS)}


def _unique(rows: pl.DataFrame) -> pl.DataFrame:
    """Texts that are there, each once: the first; ids and, where none are given, groups."""
    found = rows.filter(pl.col("text").str.strip_chars() != "")
    found = found.unique("text", keep="first", maintain_order=True)
    if MOST:
        found = found.gather_every(max(1, found.height // MOST[-1]))
    found = found.with_row_index("row").with_columns(text_id=pl.col("row").cast(pl.String))
    if "group" not in found.columns:
        found = found.with_columns(group="text_id")
    return found.drop("row")
