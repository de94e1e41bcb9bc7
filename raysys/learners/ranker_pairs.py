"""Pairs that `cross_encoder_ranker` learns from: out of behaviour, and changed copies of any."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal

import numpy as np
import polars as pl
import pyarrow as pa

from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners.cross_encoder_ranker_settings import CrossEncoderRankerSettings
from raysys.text.augment import augment_table
from raysys.text.augment.table import AUGMENTED, WEIGHT, counts
from raysys.text.histories import history_text
from raysys.text.items import ItemTexts

Reads = Literal["queries", "histories"]

_GRADES: Final = 50  # that behaviour is told apart by


def asked_for(batch: Batch, texts: ItemTexts, history: int, reads: Reads) -> list[str]:
    """What each request asks for, in words: its query, or the items last taken; or nothing."""
    queries = batch.queries or [None] * batch.n_requests
    if reads == "queries":
        return [query or "" for query in queries]
    return [
        query or history_text(held, texts, history)
        for query, held in zip(queries, batch.history, strict=True)
    ]


def wanted_pairs(
    examples: Examples,
    texts: ItemTexts,
    told: CrossEncoderRankerSettings,
    reads: Reads | None = None,
) -> tuple[pa.Table, Reads]:
    """Pairs out of behaviour: `query`, `text`, `grade` (mean label of the pair) and `weight`.

    Args:
        examples: their retrieved rows count.
        texts: of the items.
        told: see `CrossEncoderRankerSettings`.
        reads: what stands for what was asked; None: queries where there are any.

    Returns:
        the pairs, and what stood for what was asked.
    """
    batch = replace(examples, negatives=told.negatives).batch()
    if reads is None:
        reads = "histories" if batch.queries is None else "queries"
    assert batch.label is not None and batch.weight is not None
    asked = asked_for(batch, texts, told.history, reads)
    wanted = np.bincount(batch.group, batch.label, minlength=batch.n_requests) > 0
    told_of = np.flatnonzero(wanted & np.array([bool(text) for text in asked], dtype=bool))
    kept = np.zeros(batch.n_requests, dtype=bool)
    kept[told_of[-told.requests :]] = True
    rows = np.flatnonzero(kept[batch.group] & (batch.weight > 0))
    frame = pl.DataFrame(
        {
            "query": pl.Series([asked[i] for i in batch.group[rows]], dtype=pl.String),
            "code": texts.codes[batch.item[rows]],
            "label": batch.label[rows].astype(np.float64),
            "weight": batch.weight[rows].astype(np.float64),
        }
    )
    weight = pl.col("weight").sum()
    found = frame.group_by("query", "code", maintain_order=True).agg(
        grade=(pl.col("label") * pl.col("weight")).sum() / weight, weight=weight
    )
    most = max(float(batch.label.max(initial=0)), 1e-9)
    grade = (found["grade"].to_numpy() / most * _GRADES).round() * most / _GRADES
    weights = found["weight"].to_numpy()
    columns = {
        "query": found["query"].to_list(),
        "text": [texts.distinct[code] for code in found["code"]],
        "grade": grade.astype(np.float32),
        "weight": (weights / max(float(weights.mean()), 1e-9)).astype(np.float32)
        if len(weights)
        else weights.astype(np.float32),
    }
    return pa.table({**columns, "query": pa.array(columns["query"], pa.string())}), reads


def with_copies(
    pairs: pa.Table, held_out: pa.Table | None, told: CrossEncoderRankerSettings
) -> tuple[pa.Table, dict[str, int]]:
    """Pairs with the copies that the settings ask for, and how many of each method.

    Args:
        pairs: to learn from: `query`, `text`, `grade`, perhaps `weight`.
        held_out: to judge by: no copy says what one of these says; None: none are.
        told: see `CrossEncoderRankerSettings`.

    Raises:
        UserError: a thesaurus or a translation model that is not there.
    """
    if not told.augmentation or not pairs.num_rows:
        return pairs, {}
    column = told.augments
    if WEIGHT in pairs.column_names:  # what is not told weighs 1, as `Pairs` has it
        weight = pl.Series(pairs[WEIGHT]).cast(pl.Float32).fill_nan(None).fill_null(1.0)
        place = pairs.column_names.index(WEIGHT)
        pairs = pairs.set_column(place, WEIGHT, weight.to_arrow())
    said = pl.concat(
        [pl.Series(each[column], dtype=pl.String) for each in (pairs, held_out) if each is not None]
    )
    copied = augment_table(pairs, column, told.augmentation, unlike=said)
    made = counts(copied[AUGMENTED])
    return copied, {each.kind: made.get(each.kind, 0) for each in told.augmentation.methods}
