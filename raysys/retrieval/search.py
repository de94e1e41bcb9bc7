"""Finds items for a query: by words and by meaning, the two fused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from raysys.retrieval.fuse import Hits, best, fuse
from raysys.retrieval.lexical import LexicalIndex
from raysys.retrieval.vector import VectorIndex

_TEXTS_A_SEARCH = 400
_ITEMS_A_TEXT = 60
"""Of many items with one text only these (by prior) are found: the rest would crowd others out."""


class QueryEncoder(Protocol):
    """Places queries and items in one vector space; learners that are text encoders do."""

    item_vectors: npt.NDArray[np.float32]

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of free texts: float32[len(texts), d], unit rows."""


@dataclass(frozen=True)
class Found:
    """Items found for a query, best first.

    Attributes:
        items: int32[n].
        relevance: float32[n], 1 for the best, falling; comparable within one search only.
        by_words: bool[n], found by their words.
        by_meaning: bool[n], found by their vectors.
    """

    items: npt.NDArray[np.int32]
    relevance: npt.NDArray[np.float32]
    by_words: npt.NDArray[np.bool_]
    by_meaning: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.items)


class Search:
    """The `search/` folder of a bundle, in memory; safe to use from several threads.

    Args:
        lexical: words of the items.
        vectors: their vectors, or None: words only.
        encoder: turns a query into a vector of the same space; needed where there are vectors.
    """

    def __init__(
        self,
        lexical: LexicalIndex,
        vectors: VectorIndex | None = None,
        encoder: QueryEncoder | None = None,
    ) -> None:
        self.lexical = lexical
        self.vectors = vectors if encoder is not None else None
        self.encoder = encoder if vectors is not None else None
        self._prior: npt.NDArray[np.float32] | None = None
        self._spread()

    @classmethod
    def build(cls, texts: Sequence[str], encoder: QueryEncoder | None = None) -> Search:
        """Index the texts of all items, in item order."""
        vectors = VectorIndex.build(encoder.item_vectors) if encoder is not None else None
        return cls(LexicalIndex.build(texts), vectors, encoder)

    def set_prior(self, prior: npt.NDArray[np.float32]) -> None:
        """How much each item is wanted by all, float32[n_items]: orders items of equal text."""
        self._prior = np.nan_to_num(prior, nan=0.0)
        self._spread()

    def _spread(self) -> None:
        """Prepare the lists of items that have a row's text, most wanted first."""
        self._by_text = _Members(self.lexical.row_of_item, self._prior)
        self._by_vector = (
            _Members(self.vectors.row_of_item, self._prior) if self.vectors is not None else None
        )

    def find(self, query: str, limit: int, allowed: npt.NDArray[np.bool_] | None = None) -> Found:
        """Up to `limit` items for a query; none if it has no known word and there is no encoder.

        Args:
            query: free text.
            limit: most items.
            allowed: bool[n_items], the only items that may be found; None: all.
        """
        texts = self.lexical.find(query, _TEXTS_A_SEARCH)
        words = self._by_text.items(texts)
        meaning = _NOTHING
        if self.vectors is not None and self.encoder is not None and self._by_vector is not None:
            near = self.vectors.find(self.encoder.encode([query])[0], _TEXTS_A_SEARCH)
            meaning = self._by_vector.items(near)
        if allowed is not None:
            words, meaning = (
                (items[allowed[items]], ranks[allowed[items]]) for items, ranks in (words, meaning)
            )
        fused = fuse([words, meaning])
        if self._prior is not None:  # equal relevance is the rule among items of one text
            order = np.lexsort((fused.rows, -self._prior[fused.rows], -fused.scores))[:limit]
            top = Hits(fused.rows[order], fused.scores[order])
        else:
            top = best(fused.rows, fused.scores, limit)
        return Found(
            items=top.rows,
            relevance=top.scores / top.scores[0] if len(top) else top.scores,
            by_words=np.isin(top.rows, words[0]),
            by_meaning=np.isin(top.rows, meaning[0]),
        )

    def relevance(self, query: str, items: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """How well given items fit a query, fused as in `find`: float32[n], 1 best, 0 not."""
        places = np.arange(len(items), dtype=np.int32)
        rankings = []
        scores = self.lexical.scores(query)
        if scores is not None:
            own = scores[self.lexical.row_of_item[items]]
            matching = own > 0
            hits = best(places[matching], own[matching], len(items))
            rankings.append((hits.rows, hits.ranks))
        if self.vectors is not None and self.encoder is not None:
            vectors = self.vectors.vectors[self.vectors.row_of_item[items]]
            hits = best(places, vectors @ self.encoder.encode([query])[0], len(items))
            rankings.append((hits.rows, hits.ranks))
        fused = fuse(rankings)
        relevance = np.zeros(len(items), np.float32)
        if len(fused):
            relevance[fused.rows] = fused.scores / fused.scores[0]
        return relevance

    def save(self, folder: Path) -> None:
        """Write into an existing folder, in safe formats."""
        self.lexical.save(folder)
        if self.vectors is not None:
            self.vectors.save(folder)

    @classmethod
    def load(cls, folder: Path, encoder: QueryEncoder | None) -> Search:
        """Read what `save` wrote; the encoder comes from the bundle's learners."""
        has_vectors = encoder is not None and (folder / "vectors.safetensors").is_file()
        vectors = VectorIndex.load(folder) if has_vectors else None
        return cls(LexicalIndex.load(folder), vectors, encoder)


class _Members:
    """The items of each row, most wanted first, at most a few dozen a row."""

    def __init__(
        self, row_of_item: npt.NDArray[np.int32], prior: npt.NDArray[np.float32] | None
    ) -> None:
        wanted = np.zeros(len(row_of_item), np.float32) if prior is None else prior
        numbers = np.arange(len(row_of_item))
        self._members = np.lexsort((numbers, -wanted, row_of_item)).astype(np.int32)
        counts = np.bincount(row_of_item) if len(row_of_item) else np.zeros(0, np.int64)
        self._starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        self._counts = np.minimum(counts, _ITEMS_A_TEXT)

    def items(self, hits: Hits) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Items of the rows found, and the rank of the row that each one has."""
        if not len(hits):
            return _NOTHING
        counts = self._counts[hits.rows]
        ends = np.cumsum(counts)
        within = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
        places = np.repeat(self._starts[hits.rows], counts) + within
        return self._members[places], np.repeat(hits.ranks, counts)


_NOTHING = (np.empty(0, np.int32), np.empty(0, np.int32))
