"""Copies of a text task's training rows: one table for all learners, so that they stay comparable.

Of a pair of query and item the query is changed, alike in all its pairs, so that a copied list is
as whole as the list that it copies. Nothing that is judged gets copies, and no copy says what an
original says: of what is judged it would be the answer, of train it might contradict it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from raysys.errors import UserError
from raysys.learners.text_protocol import TextLearner
from raysys.stages.text_settings import TextSettings
from raysys.text.augment import augment_table
from raysys.text.augment.table import AUGMENTED, WEIGHT


def require_copies_fit(settings: TextSettings, learners: Mapping[str, TextLearner[Any]]) -> None:
    """Refuse augmentation beside a learner that would be misled by copies.

    Raises:
        UserError: naming it.
    """
    if not settings.augmentation:
        return
    for name, learner in learners.items():
        if not learner.takes_copies:
            raise UserError(
                f"{name} judges its members on parts of train, where copies of the rest would be",
                where="augmentation",
                mend=f"leave {name} out, or fit it under another name without augmentation",
            )


def with_copies(settings: TextSettings, tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """The splits; train with copies behind their originals, if the settings want some.

    Args:
        settings: of the task.
        tables: by split, `LABELLED_TEXTS` or `LABELLED_PAIRS`.

    Returns:
        The same tables. With augmentation train has the further columns `augmented` (the method;
        null for originals) and `weight` (float32); rows of which nothing is known have no copies
        and come last.

    Raises:
        UserError: a thesaurus or a translation model that is not there.
    """
    if not settings.augmentation:
        return dict(tables)
    pairs = settings.task == "relevance"
    column = "query" if pairs else "text"
    train = tables["train"]
    said = pl.concat([pl.Series(table[column]) for table in tables.values()])
    known = pa.array([True] * len(train)) if pairs else _told(train, settings.task)
    copied = augment_table(
        train.filter(known),
        column,
        settings.augmentation,
        row_id=None if pairs else "text_id",
        unlike=said,
    )
    rest = train.filter(pc.invert(known))
    if len(rest):
        rest = rest.append_column(WEIGHT, pa.array([1.0] * len(rest), pa.float32()))
        rest = rest.append_column(AUGMENTED, pa.nulls(len(rest), pa.string()))
        copied = pa.concat_tables([copied, rest.cast(copied.schema)])
    return {**tables, "train": copied}


def copies_of(train: pa.Table) -> pa.Table | None:
    """The copies alone; None: nobody asked for any."""
    if AUGMENTED not in train.column_names:
        return None
    return train.filter(pc.is_valid(train[AUGMENTED]))


def _told(train: pa.Table, task: str) -> pa.Array:
    """Whether a label, or a rating that the task reads, is known of each row."""
    labelled = pc.is_valid(train["label"])
    return pc.or_(labelled, pc.is_valid(train["rating"])) if task == "sentiment" else labelled
