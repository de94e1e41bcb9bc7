"""Finds items for a query, or like another: by words, by meaning and by behaviour, fused."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from raysys.retrieval.allowed import Allowed
from raysys.retrieval.fuse import Hits, best, fuse, fuse_items, top
from raysys.retrieval.lexical import LexicalIndex
from raysys.retrieval.vector import VectorIndex

_TEXTS_A_SEARCH = 400
_QUERIES_KEPT = 10_000
"""Queries whose vectors are remembered: 15 MB at 384 dimensions."""
_ITEMS_A_TEXT = 60
"""Of many items with one text only these (by prior) are found: the rest would crowd others out."""


class QueryEncoder(Protocol):
    """Places queries and items in one vector space; learners that are text encoders do."""

    item_vectors: npt.NDArray[np.float32]

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of free texts: float32[len(texts), d], unit rows."""


SOURCES: Final = ("words", "meaning", "covisitation")


@dataclass(frozen=True)
class Found:
    """Items found, best first.

    Attributes:
        items: int32[n].
        relevance: float32[n], 1 for the best, falling; comparable within one search only.
        sources: uint8[n], bit i set when `SOURCES[i]` found the item.
    """

    items: npt.NDArray[np.int32]
    relevance: npt.NDArray[np.float32]
    sources: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def by_words(self) -> npt.NDArray[np.bool_]:
        """bool[n], found by their words."""
        return self.sources & 1 > 0

    @property
    def by_meaning(self) -> npt.NDArray[np.bool_]:
        """bool[n], found by their vectors."""
        return self.sources & 2 > 0


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
        self._vectors_of: OrderedDict[str, npt.NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()
        self._spread()

    @classmethod
    def build(
        cls,
        texts: Sequence[str],
        encoder: QueryEncoder | None = None,
        fields: Mapping[str, Sequence[str | None]] | None = None,
    ) -> Search:
        """Index the texts of all items, in item order; fields as `LexicalIndex.build` has them."""
        vectors = VectorIndex.build(encoder.item_vectors) if encoder is not None else None
        return cls(LexicalIndex.build(texts, fields), vectors, encoder)

    def set_prior(self, prior: npt.NDArray[np.float32]) -> None:
        """How much each item is wanted by all, float32[n_items]: orders items of equal text."""
        self._prior = np.nan_to_num(prior, nan=0.0)
        self._spread()

    def _spread(self) -> None:
        """Prepare the lists of items that have a row's text, most wanted first."""
        self._of_text = _Members(self.lexical.row_of_item, self._prior)
        self._of_vector = (
            _Members(self.vectors.row_of_item, self._prior) if self.vectors is not None else None
        )

    def find(
        self,
        query: str,
        limit: int,
        allowed: Allowed | None = None,
        *,
        meaning: bool = True,
        vector: npt.NDArray[np.float32] | None = None,
    ) -> Found:
        """Up to `limit` items for a query; none if it has no known word and there is no encoder.

        Args:
            query: free text.
            limit: most items.
            allowed: the only items that may be found; None: all.
            meaning: whether to look by the query's vector too.
            vector: float32[d] of the query; None: it is encoded here, which takes longest.
        """
        rankings = [self._by_words(query, limit, allowed), _NOTHING]
        if meaning and self.vectors is not None and self.encoder is not None:
            vector = self._vector_of(query) if vector is None else vector
            rankings[1] = self._by_vector(vector, limit, allowed)
        return self._fuse(rankings, limit)

    def similar(
        self,
        item: int,
        text: str,
        near: npt.NDArray[np.int32],
        limit: int,
        allowed: Allowed | None = None,
    ) -> Found:
        """Up to `limit` items like one: by its words, by its vector, and what goes with it.

        Args:
            item: its number; it is not found itself.
            text: its own.
            near: int32[m], items that are bought with it, best first.
            limit: most items.
            allowed: the only items that may be found, `near` as well; None: all.
        """
        rankings = [self._by_words(text, limit, allowed), _NOTHING]
        if self.vectors is not None:
            vector = self.vectors.vectors[self.vectors.row_of_item[item]]
            if vector.any():
                rankings[1] = self._by_vector(vector, limit, allowed)
        bought = near if allowed is None else allowed.keep(near)
        rankings.append((bought, np.arange(1, len(bought) + 1, dtype=np.int32)))
        others = [(items[items != item], ranks[items != item]) for items, ranks in rankings]
        return self._fuse(others, limit)

    def _vector_of(self, query: str) -> npt.NDArray[np.float32]:
        """What the encoder makes of a query, float32[d]; remembered: the same few come all day."""
        assert self.encoder is not None
        vector = self.remembered(query)
        if vector is None:
            vector = self.encoder.encode([query])[0]
            self.remember(query, vector)
        return vector

    def remembered(self, query: str) -> npt.NDArray[np.float32] | None:
        """The vector of a query that came before, float32[d]; None: it is not known."""
        with self._lock:
            if query not in self._vectors_of:
                return None
            self._vectors_of.move_to_end(query)
            return self._vectors_of[query]

    def remember(self, query: str, vector: npt.NDArray[np.float32]) -> None:
        """Keep a query's vector for the next time, wherever it was made."""
        with self._lock:
            self._vectors_of[query] = vector
            if len(self._vectors_of) > _QUERIES_KEPT:
                self._vectors_of.popitem(last=False)

    def _by_words(self, query: str, limit: int, allowed: Allowed | None) -> _Ranking:
        rows = None if allowed is None else allowed.rows(self.lexical.row_of_item)
        texts = self.lexical.find(query, max(limit, _TEXTS_A_SEARCH), rows)
        return self._of_text.items(texts, allowed)

    def _by_vector(
        self, vector: npt.NDArray[np.float32], limit: int, allowed: Allowed | None
    ) -> _Ranking:
        assert self.vectors is not None and self._of_vector is not None
        rows = None if allowed is None else allowed.rows(self.vectors.row_of_item)
        near = self.vectors.find(vector, max(limit, _TEXTS_A_SEARCH), rows)
        return self._of_vector.items(near, allowed)

    def _fuse(self, rankings: Sequence[_Ranking], limit: int) -> Found:
        fused, sources = fuse_items(rankings, len(self.lexical.row_of_item))
        order = top(fused, limit, self._prior)  # equal relevance is the rule among items of a text
        scores = fused.scores[order]
        relevance = scores / scores[0] if len(order) else scores
        return Found(fused.rows[order], relevance, sources[order])

    def relevance(
        self,
        query: str,
        items: npt.NDArray[np.int32],
        *,
        meaning: bool = True,
        vector: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]:
        """How well given items fit a query, fused as in `find`: float32[n], 1 best, 0 not."""
        places = np.arange(len(items), dtype=np.int32)
        rankings = []
        scores = self.lexical.scores(query)
        if scores is not None:
            own = scores[self.lexical.row_of_item[items]]
            matching = own > 0
            hits = best(places[matching], own[matching], len(items))
            rankings.append((hits.rows, hits.ranks))
        if meaning and self.vectors is not None and self.encoder is not None:
            vectors = self.vectors.vectors[self.vectors.row_of_item[items]]
            vector = self._vector_of(query) if vector is None else vector
            hits = best(places, vectors @ vector, len(items))
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
        self._counts = counts

    def items(self, hits: Hits, allowed: Allowed | None) -> _Ranking:
        """Items of the rows found, and the rank of the row that each one has."""
        if not len(hits):
            return _NOTHING
        counts = self._counts[hits.rows]
        if allowed is None:
            counts = np.minimum(counts, _ITEMS_A_TEXT)
        within = _within(counts)
        members = self._members[np.repeat(self._starts[hits.rows], counts) + within]
        row = np.repeat(np.arange(len(hits)), counts)
        if allowed is not None:  # of each row as many, but of those that may be shown
            kept = allowed.items[members]
            members, row = members[kept], row[kept]
            first = _within(np.bincount(row, minlength=len(hits))) < _ITEMS_A_TEXT
            members, row = members[first], row[first]
        return members, hits.ranks[row]


def _within(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0, 1, … of each of several groups side by side."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) - np.repeat(ends - counts, counts)


_Ranking = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]
"""Items and the rank of each, from 1."""

_NOTHING = (np.empty(0, np.int32), np.empty(0, np.int32))
