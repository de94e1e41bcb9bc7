"""What a replica imports and compiles before it answers, done once for many: see `crash`.

A process that is forked from one which has imported this starts in a fraction of a second. No
library may have started threads by then, so nothing here reads a file or uses polars.
"""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path

import numpy as np

from raysys.eventlog.ids import SharedIds
from raysys.features.table import Table

for _name in (
    "pyarrow.dataset", "pandas", "bm25s", "uvicorn", "redis", "raysys.serving.app",
    "raysys.learners.baselines", "raysys.learners.validation", "raysys.retrieval.search",
):  # fmt: skip
    try:
        import_module(_name)
    except ImportError:
        if _name != "redis":
            raise


def _compile() -> None:
    table = Table(np.array([7.0, 28.0]), fan=10)
    one = np.ones(1)
    table.apply(np.array([5]), np.array([5]), one, one)
    table.read(table.find(np.array([5])), 6)
    table.members(0, 6)
    table.compact()
    Table.from_arrays(table.arrays())
    with tempfile.TemporaryDirectory() as folder:
        ids = SharedIds(Path(folder), 1)
        ids.known([bytes(16)])
        ids.add([bytes(16)], np.array([1]))
        ids.close()


_compile()
