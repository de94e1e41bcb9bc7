"""Judged pairs of the synthetic shop: a query names a kind and a category, grades say how well an
item fits: 3 both, 2 the category, 1 neither."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa

from raysys import schema
from tests.synthetic import BRANDS, CATEGORIES


def judged_pairs(n_queries: int = 40, per_query: int = 8, seed: int = 0) -> pa.Table:
    """`schema.LABELLED_PAIRS`; the last fifth of the queries is validation."""
    rng = np.random.default_rng(seed)
    known = [
        (kind, category) for category, (_, kinds) in CATEGORIES.items() for kind in kinds.split()
    ]
    rng.shuffle(known)
    rows = []
    for number, (kind, category) in enumerate(itertools.islice(known, n_queries)):
        for _ in range(per_query):
            grade = int(rng.integers(1, 4))
            others = [k for k in CATEGORIES[category][1].split() if k != kind]
            if grade == 3:
                said = (kind, category)
            elif grade == 2:
                said = (str(rng.choice(others)), category)
            else:
                far = [pair for pair in known if pair[1] != category and pair[0] != kind]
                said = far[int(rng.integers(len(far)))]
            rows.append(
                {
                    "query": f"{kind} {category}",
                    "item_id": f"i{len(rows)}",
                    "text": f"{rng.choice(BRANDS)} {said[0]} {said[1]}",
                    "grade": float(grade),
                    "weight": 1.0,
                    "split": "train" if number < 0.8 * n_queries else "validation",
                }
            )
    return pa.Table.from_pylist(rows, schema=schema.LABELLED_PAIRS)
