"""OA-Mine and AE-110k as labelled texts, in folds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.result import ROOT
from raysys import schema
from raysys.text.spans import attributes_to_spans

DATA = Path(os.environ.get("RAYSYS_DATA") or ROOT.parent / "shared" / "data")
SETS = {"oa_mine": "oa_mine_train.jsonl", "ae_110k": "ae_110k_train.jsonl"}


Pairs = set[tuple[str, str]]


@dataclass(frozen=True)
class Titles:
    """A data set.

    Attributes:
        table: titles with their spans, as `schema.LABELLED_TEXTS`.
        pairs: of each title its (value, attribute).
        asked: of each title the attributes that were annotated, if only as absent (n/a). Of others
            nothing is known: a title may well say them.
        missed: values that their title does not say.
    """

    table: pa.Table
    pairs: list[Pairs]
    asked: list[set[str]]
    missed: int


def read(name: str) -> Titles:
    """One of `SETS`."""
    rows, pairs, asked, missed = [], [], [], 0
    path = DATA / "entities" / SETS[name]
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        one = json.loads(line)
        attributes = {key: list(values) for key, values in one["target_scores"].items()}
        located = attributes_to_spans(one["input"], attributes)
        missed += len(located.missed)
        rows.append(
            {
                "text_id": str(number),
                "text": one["input"],
                "label": one["category"],
                "rating": None,
                "spans": [vars(span) for span in located.spans],
                "group": one["input"],
                "split": "train",
            }
        )
        pairs.append({(v, k) for k, values in attributes.items() for v in values if v != "n/a"})
        asked.append(set(attributes))
    table = pa.Table.from_pylist(rows, schema=schema.LABELLED_TEXTS)
    return Titles(table, pairs, asked, missed)


def folds(
    table: pa.Table, n: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Row numbers to fit on, to choose thresholds by, to judge; equal titles stay together."""
    _, group = np.unique(np.array(table["group"].to_pylist(), dtype=object), return_inverse=True)
    rng = np.random.default_rng(seed)
    place = rng.permutation(group.max() + 1)[group]
    for fold in range(n):
        held = place % n == fold
        valid = ~held & (place // n % 8 == fold % 8)
        yield np.flatnonzero(~held & ~valid), np.flatnonzero(valid), np.flatnonzero(held)
