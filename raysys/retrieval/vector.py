"""Finds vectors near a query's: every one is compared while they are few, HNSW beyond that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file
from usearch.index import Index

from raysys.retrieval.fuse import Hits, best

EXACT_UP_TO = 50_000
"""Vectors up to which comparing all (8 ms at 384 dimensions, one core) beats a graph's misses."""

_WALK_AT_MOST = 20
"""A graph of which more than one in so many is asked for is slower than comparing."""

_TOGETHER = 1024  # queries that are looked for at a time, at most
_SCORES = 50_000_000  # of these queries with all vectors, held at once: 200 MB


class VectorIndex:
    """Nearest neighbours by inner product of unit vectors, over distinct vectors.

    Args:
        vectors: float32[m, d], unit rows, each once.
        row_of_item: int32[n_items], the vector that each item has.
        graph: HNSW over the rows (Malkov & Yashunin 2018); None: compare all.
        exact_up_to: compare all where no more rows than these may be found.
    """

    def __init__(
        self,
        vectors: npt.NDArray[np.float32],
        row_of_item: npt.NDArray[np.int32],
        graph: Index | None = None,
        *,
        exact_up_to: int = EXACT_UP_TO,
    ) -> None:
        self.vectors = vectors
        self.row_of_item = row_of_item
        self._graph = graph
        self._exact_up_to = exact_up_to

    @classmethod
    def build(
        cls,
        item_vectors: npt.NDArray[np.float32],
        *,
        exact_up_to: int = EXACT_UP_TO,
        threads: int = 0,
    ) -> VectorIndex:
        """Index float32[n_items, d] unit rows; equal rows are kept once.

        Args:
            item_vectors: unit rows.
            exact_up_to: compare all where there are no more; a graph beyond.
            threads: that make the graph; 0: as many as there are cores, and then the graph is
                another each time, for who comes first is chance. One makes the same of the same.
        """
        item_vectors = np.ascontiguousarray(item_vectors, dtype=np.float32)
        vectors, row_of_item = _distinct(item_vectors)
        graph = None
        if len(vectors) > exact_up_to:
            graph = Index(ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=32)
            graph.add(np.arange(len(vectors), dtype=np.uint64), vectors, threads=threads)
            graph.expansion_search = 256  # recall over speed: it stays far below a millisecond
        return cls(vectors, row_of_item, graph, exact_up_to=exact_up_to)

    def find(
        self,
        query: npt.NDArray[np.float32],
        limit: int,
        allowed: npt.NDArray[np.bool_] | None = None,
    ) -> Hits:
        """Rows of the vectors nearest to float32[d], with their inner products.

        Args:
            query: float32[d].
            limit: most rows.
            allowed: bool[m], the only rows that may be found; None: all. The graph cannot skip the
                others, so as many more are asked of it, and all compared where they are few.

        Raises:
            ValueError: the query has another number of dimensions.
        """
        if query.shape != self.vectors.shape[1:]:
            raise ValueError(f"query of shape {query.shape}, vectors of {self.vectors.shape[1:]}")
        if not len(self.vectors):
            return Hits.none()
        if self._graph is None:
            scores = self.vectors @ query
            rows = np.arange(len(scores), dtype=np.int32)
            if allowed is not None:
                rows, scores = rows[allowed], scores[allowed]
            return best(rows, scores, limit)
        if allowed is not None:
            return self._find_allowed(query, limit, allowed)
        return self._walk(query, min(limit, len(self.vectors)))

    def _walk(self, query: npt.NDArray[np.float32], limit: int) -> Hits:
        """What the graph finds."""
        assert self._graph is not None
        matches = self._graph.search(query, limit)
        rows = matches.keys.astype(np.int32)
        return best(rows, self.vectors[rows] @ query, limit)

    def _find_allowed(
        self, query: npt.NDArray[np.float32], limit: int, allowed: npt.NDArray[np.bool_]
    ) -> Hits:
        possible = np.flatnonzero(allowed).astype(np.int32)
        limit = min(limit, len(possible))
        wanted = int(1.5 * limit * len(self.vectors) / max(1, len(possible))) + 16
        while len(possible) > self._exact_up_to and wanted < len(self.vectors) // _WALK_AT_MOST:
            found = self._walk(query, wanted)
            kept = allowed[found.rows]
            if int(kept.sum()) >= limit:
                return Hits(found.rows[kept][:limit], found.scores[kept][:limit])
            wanted *= 4  # what is allowed lies far from the query
        parts = [
            self.vectors[possible[at : at + _TOGETHER * 16]] @ query
            for at in range(0, len(possible), _TOGETHER * 16)
        ]
        scores = np.concatenate([*parts, np.empty(0, np.float32)])
        return best(possible, scores, limit)

    def find_many(
        self, queries: npt.NDArray[np.float32], limit: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Rows of the vectors nearest to each of float32[q, d], best first; see `find`.

        Returns:
            int32[q, limit], -1 beyond the last, and inner products float32[q, limit], 0 there.

        Raises:
            ValueError: the queries have another number of dimensions.
        """
        if queries.ndim != 2 or queries.shape[1:] != self.vectors.shape[1:]:
            raise ValueError(f"queries of shape {queries.shape}, vectors of {self.vectors.shape}")
        rows = np.full((len(queries), limit), -1, dtype=np.int32)
        scores = np.zeros((len(queries), limit), dtype=np.float32)
        kept = min(limit, len(self.vectors))
        if not kept:
            return rows, scores
        together = max(1, min(_TOGETHER, _SCORES // len(self.vectors)))
        for at in range(0, len(queries), together):
            some = slice(at, at + together)
            if self._graph is None:
                score, near = _largest(queries[some] @ self.vectors.T, kept)
            else:
                matches = self._graph.search(queries[some], kept)
                near = np.asarray(matches.keys, dtype=np.int64).reshape(-1, kept)
                score = 1 - np.asarray(matches.distances, np.float32).reshape(-1, kept)
            order = np.lexsort((near, -score), axis=1)  # of equals the first rows
            rows[some, :kept] = np.take_along_axis(near, order, axis=1)
            scores[some, :kept] = np.take_along_axis(score, order, axis=1)
        return rows, scores

    def save(self, folder: Path) -> None:
        """Write into an existing folder: safetensors, and the graph if there is one."""
        tensors = {"vectors": self.vectors, "row_of_item": self.row_of_item}
        save_file(tensors, folder / "vectors.safetensors")
        if self._graph is not None:
            self._graph.save(str(folder / "vectors.usearch"))

    @classmethod
    def load(cls, folder: Path) -> VectorIndex:
        """Read what `save` wrote."""
        tensors = load_file(folder / "vectors.safetensors")
        graph = None
        if (folder / "vectors.usearch").is_file():
            graph = Index.restore(str(folder / "vectors.usearch"))
            graph.expansion_search = 256
        return cls(tensors["vectors"], tensors["row_of_item"], graph)


def _largest(
    scores: npt.NDArray[np.float32], kept: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The `kept` largest of each row and where they stand; in a third of `np.argpartition`'s time.

    Finding them takes longer than the product that gave the scores.
    """
    import torch

    value, place = torch.topk(torch.from_numpy(scores), kept, dim=1)
    return value.numpy(), place.numpy()


def _distinct(
    vectors: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Distinct rows in the order of their first appearance, and the row that each one became."""
    seen: dict[bytes, int] = {}
    rows = np.fromiter(
        (seen.setdefault(row.tobytes(), len(seen)) for row in vectors), np.int32, len(vectors)
    )
    first = np.unique(rows, return_index=True)[1]
    return np.ascontiguousarray(vectors[first]), rows
