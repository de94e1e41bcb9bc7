"""Categories as codes that stay as they were when the features were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Vocabulary:
    """Labels whose codes are frozen.

    Attributes:
        labels: str[k]; a label's code is its place.
    """

    labels: tuple[str, ...]

    @classmethod
    def fit(cls, values: pa.ChunkedArray | Sequence[str | None], min_count: int = 1) -> Vocabulary:
        """The sorted labels that come at least `min_count` times."""
        column = values if isinstance(values, pa.ChunkedArray) else pa.array(values, pa.string())
        counted = pc.value_counts(column.drop_null())
        often = pc.greater_equal(counted.field("counts"), min_count)
        labels = counted.field("values").filter(often)
        return cls(tuple(labels.take(pc.sort_indices(labels)).to_pylist()))

    def encode(
        self, values: pa.ChunkedArray | Sequence[str | None], unseen: int = -1
    ) -> tuple[Int32, npt.NDArray[np.bool_]]:
        """Codes of values, and where they are missing.

        Args:
            values: str[n].
            unseen: the code of labels that the vocabulary does not have.

        Returns:
            int32[n], -1 where missing; bool[n], True where missing.
        """
        column = values if isinstance(values, pa.ChunkedArray) else pa.array(values, pa.string())
        found = pc.index_in(column, value_set=pa.array(self.labels, pa.string()))
        codes = pc.fill_null(found, unseen).to_numpy(zero_copy_only=False).astype(np.int32)
        missing = column.is_null().to_numpy(zero_copy_only=False)
        codes[missing] = -1
        return codes, missing
