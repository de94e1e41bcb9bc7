"""What becomes an example: requests and their items, as chosen by tasks that each have some users.

The time that requests lie in is cut into blocks. A task writes, for its users, one record batch a
block; `gather` puts the batches of one block together, in time order, and numbers its requests.

    chosen/requests-P.arrow, rows-P.arrow   of one task, a record batch a block
    blocks/requests-K.arrow, rows-K.arrow   of one block, whole
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.ipc
from numba import njit

REQUEST_COLUMNS: Final[dict[str, Any]] = {
    "request_id": pl.String,
    "user": pl.Int32,
    "time": pl.Int64,
    "store": pl.Int32,
    "week": pl.Int32,
    "session": pl.Int32,
    "query": pl.Int32,
    "n_relevant": pl.Int32,
    "n_orders": pl.Int32,
    "history": pl.List(pl.Int32),
}
ROW_COLUMNS: Final[dict[str, Any]] = {
    "at": pl.Int32,  # which request of the batch
    "item": pl.Int32,
    "position": pl.Int32,  # at which it was shown, 0 where unknown
    "label": pl.Float32,
    "weight": pl.Float32,
    "retrieved": pl.Boolean,
    "sampling_probability": pl.Float32,
}


@dataclass(frozen=True)
class Block:
    """A stretch of time whose examples go into one file.

    Attributes:
        number: in time order; fold: the one it lies in.
        start, end: UTC ms; the first moment, and the first after it.
    """

    number: int
    fold: int
    start: int
    end: int


def cut_blocks(cuts: Sequence[int], folds: Sequence[int]) -> list[Block]:
    """Blocks between the cuts, none across the bounds of folds (see `fold_bounds`)."""
    inner = {cut for cut in cuts if folds[0] < cut < folds[-1]}
    bounds = sorted(inner | set(folds))
    fold = np.searchsorted(folds, bounds[:-1], side="right") - 1
    return [Block(n, int(fold[n]), *ends) for n, ends in enumerate(pairwise(bounds))]


class Chooser:
    """Writes what one task chose, block after block; there whole or not at all.

    Args:
        folder: of all tasks.
        part: number of the task.
    """

    def __init__(self, folder: Path, part: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = [folder / f"{kind}-{part:05d}.arrow" for kind in ("rows", "requests")]
        self._schemas = (ROW_COLUMNS, REQUEST_COLUMNS)
        self._writers = [
            pa.ipc.new_file(str(path.with_suffix(".tmp")), _arrow(pl.DataFrame(schema=kind)).schema)
            for path, kind in zip(self._paths, self._schemas, strict=True)
        ]

    def write(self, requests: pl.DataFrame, rows: pl.DataFrame) -> None:
        """The next block: `REQUEST_COLUMNS` and `ROW_COLUMNS`, requests in any order."""
        for frame, kind, writer in zip((rows, requests), self._schemas, self._writers, strict=True):
            ordered = frame.select(pl.col(name).cast(to) for name, to in kind.items())
            writer.write_batch(_one_batch(_arrow(ordered)))

    def close(self) -> None:
        """All blocks are written."""
        for path, writer in zip(self._paths, self._writers, strict=True):
            writer.close()
            path.with_suffix(".tmp").replace(path)


def is_chosen(folder: Path, part: int) -> bool:
    """Whether a task has written all that it chooses."""
    return (folder / f"requests-{part:05d}.arrow").exists()


def gather(folder: Path, parts: int, block: Block, out: Path) -> dict[str, Any]:
    """Put a block together: requests by moment and id, rows by request, in the order chosen.

    Returns:
        how many `requests` and `rows` it has.
    """
    done = out / f"requests-{block.number:05d}.arrow"
    if not done.exists():
        requests, rows, first = [], [], 0
        for part in range(parts):
            batch = _batch(folder / f"requests-{part:05d}.arrow", block.number)
            shift = pl.col("at") + first
            rows.append(_batch(folder / f"rows-{part:05d}.arrow", block.number).with_columns(shift))
            requests.append(batch)
            first += len(batch)
        whole = pl.concat(requests).with_row_index("at").sort("time", "request_id", "user")
        place = np.empty(len(whole), dtype=np.int32)
        place[whole["at"].to_numpy()] = np.arange(len(whole))
        together = pl.concat(rows)
        at = pl.Series(place[together["at"].to_numpy()])
        together = together.with_columns(at=at).sort("at", maintain_order=True)
        write_arrow(together, out / f"rows-{block.number:05d}.arrow")
        write_arrow(whole.drop("at"), done)
    sizes = {kind: len(read_block(out, kind, block)) for kind in ("requests", "rows")}
    return {"block": block.number, **sizes}


def read_block(folder: Path, kind: str, block: Block) -> pl.DataFrame:
    """`requests` or `rows` of one block, as `gather` wrote them."""
    return read_arrow(folder / f"{kind}-{block.number:05d}.arrow")


def map_block(
    folder: Path, kind: str, block: Block, names: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    """Columns of numbers of `read_block`, as views of the mapped file: no other is looked at."""
    with pa.memory_map(str(folder / f"{kind}-{block.number:05d}.arrow")) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    return {name: batch.column(name).to_numpy() for name in names}


def write_arrow(frame: pl.DataFrame, path: Path) -> None:
    """As one Arrow file, uncompressed; there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = _arrow(frame)
    fresh = path.with_suffix(".tmp")
    with pa.ipc.new_file(str(fresh), table.schema) as writer:
        writer.write_batch(_one_batch(table))
    fresh.replace(path)


def read_arrow(path: Path) -> pl.DataFrame:
    """What `write_arrow` wrote, mapped."""
    with pa.memory_map(str(path)) as source:
        return _frame(pa.ipc.open_file(source).read_all())


def _batch(path: Path, number: int) -> pl.DataFrame:
    with pa.memory_map(str(path)) as source:
        return _frame(pa.Table.from_batches([pa.ipc.open_file(source).get_batch(number)]))


def _arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def rows_of(numbers: npt.NDArray[np.int32], part: int, parts: int) -> npt.NDArray[np.int64]:
    """The rows of `share_of`, rising: int64[m]."""
    rows: npt.NDArray[np.int64] = _rows_of(numbers, part, parts)
    return rows


@njit(cache=True)
def _rows_of(numbers, part, parts):  # type: ignore[no-untyped-def]
    """One look at each number, and none of them is copied."""
    rows = np.empty(len(numbers), dtype=np.int64)
    count = 0
    for row in range(len(numbers)):
        rows[count] = row
        count += max(numbers[row], 0) % parts == part
    return rows[:count].copy()


def share_of(numbers: npt.NDArray[np.int32], part: int, parts: int) -> npt.NDArray[np.bool_]:
    """Which rows belong to a part, by the number of their user or query: bool[n].

    Unknown ones, below 0, belong to the first.
    """
    mine: npt.NDArray[np.bool_] = np.maximum(numbers, 0) % parts == part
    return mine
