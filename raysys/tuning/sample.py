"""A few requests of each fold as a features folder of their own, so that trials read little."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.features.examples import Examples
from raysys.storage import replacing


def sample_requests(examples: Examples, count: int, root: Path) -> Examples:
    """Every k-th request of a view, about `count` in all, written below `root`.

    Evenly spaced in time, so that folds keep their order and their share. Written once a search:
    otherwise each trial would read all examples to use a part.

    Args:
        examples: the view to sample; its `part` and `shard` do not matter here.
        count: how many requests to keep; the view itself comes back when it has no more.
        root: a features folder to make (`examples/`, `requests/`); taken as it is if it is there.
    """
    if root.is_dir():
        return replace(examples, root=root)
    total = sum(pq.read_metadata(path).num_rows for path in examples.files("requests"))
    if total <= count:
        return examples
    with replacing(root) as fresh:
        for fold in examples.folds:
            view = examples.with_folds(fold)
            requests = view.requests()
            keep = max(1, round(requests.num_rows * count / total))
            rows = np.linspace(0, requests.num_rows - 1, keep).round().astype(np.int64)
            requests = requests.take(pa.array(np.unique(rows)))
            wanted = requests["request"].combine_chunks()
            tables = []
            for path in view.files("examples"):
                table = pq.read_table(path, partitioning=None)
                tables.append(table.filter(pc.is_in(table["request"], value_set=wanted)))
            for kind, table in (("requests", requests), ("examples", pa.concat_tables(tables))):
                folder = fresh / kind / f"fold={fold}"
                folder.mkdir(parents=True)
                pq.write_table(table, folder / "part-0.parquet", compression="zstd")
    return replace(examples, root=root)
