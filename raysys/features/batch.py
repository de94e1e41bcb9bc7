"""Examples in memory, the same offline and when serving: rows of candidates grouped by request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Batch:
    """Candidates of r requests, n rows in all, rows of one request side by side.

    Attributes:
        names: the features, in column order.
        features: float32[n, len(names)]; NaN where a feature knows nothing.
        item: int32[n], row of the catalogue.
        offsets: int64[r + 1]; rows of request i are offsets[i] : offsets[i + 1].
        history: r arrays int32, the user's last distinct items before the request, newest first.
        user: int32[r]; -1 for a user never seen.
        label: float32[n] or None when serving.
        weight: float32[n] or None when serving.
        n_relevant: int32[r], relevant items of the request, missed by retrieval or not; or None.
        request: int32[r], ordinals in the requests table; or None when serving.
        sampling_probability: float32[n], in (0, 1], with which each row was drawn; 1 for what the
            log says or retrieval offered; or None when serving.
        encoded: float32[r, d], each history as the learner that encodes histories has encoded it
            already, elsewhere; None: it does so when it scores.
        queries: r texts, what was searched for, None where nothing was; or None: nothing is known.
    """

    names: tuple[str, ...]
    features: npt.NDArray[np.float32]
    item: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    history: Sequence[npt.NDArray[np.int32]]
    user: npt.NDArray[np.int32]
    label: npt.NDArray[np.float32] | None = None
    weight: npt.NDArray[np.float32] | None = None
    n_relevant: npt.NDArray[np.int32] | None = None
    request: npt.NDArray[np.int32] | None = None
    sampling_probability: npt.NDArray[np.float32] | None = None
    encoded: npt.NDArray[np.float32] | None = None
    queries: Sequence[str | None] | None = None

    def __len__(self) -> int:
        return len(self.item)

    @property
    def n_requests(self) -> int:
        """Number of requests."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Candidates of each request: int64[r]."""
        return np.diff(self.offsets)

    @property
    def group(self) -> npt.NDArray[np.int64]:
        """Index of the request (0 … r-1) of each row: int64[n]."""
        return np.repeat(np.arange(self.n_requests), self.sizes)

    def column(self, name: str) -> npt.NDArray[np.float32]:
        """One feature: float32[n]. Raises KeyError if the plan does not have it."""
        try:
            return self.features[:, self.names.index(name)]
        except ValueError:
            raise KeyError(f"no feature {name!r}; there are {', '.join(self.names)}") from None

    def columns(self, names: Sequence[str]) -> npt.NDArray[np.float32]:
        """Several features, float32[n, len(names)]; a view when they are all, in order."""
        if tuple(names) == self.names:
            return self.features
        return self.features[:, [self.names.index(name) for name in names]]

    def drawn(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32] | None:
        """`sampling_probability` of some rows, or None."""
        return None if self.sampling_probability is None else self.sampling_probability[rows]

    def take_requests(self, which: npt.NDArray[np.int64]) -> Batch:
        """The given requests (indices into 0 … r-1), in the given order."""
        sizes = self.sizes[which]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        rows = np.repeat(self.offsets[which] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return Batch(
            names=self.names,
            features=self.features[rows],
            item=self.item[rows],
            offsets=offsets,
            history=[self.history[i] for i in which],
            user=self.user[which],
            label=None if self.label is None else self.label[rows],
            weight=None if self.weight is None else self.weight[rows],
            n_relevant=None if self.n_relevant is None else self.n_relevant[which],
            request=None if self.request is None else self.request[which],
            sampling_probability=self.drawn(rows),
            encoded=None if self.encoded is None else self.encoded[which],
            queries=None if self.queries is None else [self.queries[i] for i in which],
        )

    def take_rows(self, rows: npt.NDArray[np.int64]) -> Batch:
        """The given candidates, those of earlier requests first; a request may end up with none."""
        sizes = np.bincount(self.group[rows], minlength=self.n_requests)
        return replace(
            self,
            features=self.features[rows],
            item=self.item[rows],
            offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            label=None if self.label is None else self.label[rows],
            weight=None if self.weight is None else self.weight[rows],
            sampling_probability=self.drawn(rows),
        )
