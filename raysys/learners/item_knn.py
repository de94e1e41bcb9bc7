"""Items that follow items: co-visitation with decay by distance, by age and by place in the prefix.

Item-based nearest neighbours (Sarwar et al., WWW 2001) in the sequential form that is hard to beat
(Ludewig and Jannach, "Evaluation of session-based recommendation algorithms", UMUAI 2018): a pair
counts less the further apart it is, the older its sequence, and when it comes backwards.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field
from safetensors.numpy import load_file, save_file

from raysys.config import Settings
from raysys.learners.sequence_popularity import ageing, popularity
from raysys.learners.sequence_protocol import (
    Float32,
    Float64,
    Int64,
    SequenceContext,
    SequenceLearner,
    SequenceModel,
    Sequences,
    damp_seen,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

META = "item_knn.json"
FILE = "item_knn.safetensors"
TIE = 1e-7  # of what is popular: decides where nothing else does


class ItemKNNSettings(Settings):
    """How pairs are counted and what of the prefix asks.

    Attributes:
        window: pairs further apart do not count.
        distance_decay: a pair d apart counts d ** -distance_decay.
        backward: what a pair counts from the later item to the earlier.
        popularity_power: counts are divided by the popularity of the item proposed to this power:
            0 proposes what is frequent, 1 what is particular.
        source_power: the same for the item that asks.
        half_life: see `ageing`; 0: all sequences count alike.
        prefix_decay: each step back in the prefix counts so much less.
        last: so many items of the prefix ask.
        neighbours: kept of each item.
        seen: share of its score that an item keeps which the prefix already holds: 0 where nobody
            takes a thing twice.
    """

    window: int = Field(10, ge=1)
    distance_decay: float = Field(1.0, ge=0)
    backward: float = Field(0.5, ge=0, le=1)
    popularity_power: float = Field(0.4, ge=0, le=1)
    source_power: float = Field(0.5, ge=0, le=1)
    half_life: float = Field(0.25, ge=0)
    prefix_decay: float = Field(0.7, gt=0, le=1)
    last: int = Field(20, ge=1)
    neighbours: int = Field(500, ge=1)
    seen: float = Field(1.0, ge=0, le=1)


def pair_counts(
    sequences: Sequences, n_items: int, weight: Float64, *, window: int, distance_decay: float
) -> csr_matrix:
    """What follows what: float64[n_items, n_items], row: the earlier item, column: the later.

    Args:
        sequences: to count.
        n_items: rows and columns.
        weight: float64[s], of each sequence.
        window: pairs further apart do not count.
        distance_decay: a pair d apart counts d ** -distance_decay.
    """
    from scipy.sparse import coo_matrix, csr_matrix

    owner = sequences.owner
    total = csr_matrix((n_items, n_items), dtype=np.float64)
    longest = int(sequences.sizes.max(initial=0))
    for apart in range(1, min(window, longest - 1) + 1):
        same = np.flatnonzero(owner[apart:] == owner[:-apart])
        earlier, later = sequences.items[same], sequences.items[same + apart]
        counts = weight[owner[same]] * float(apart) ** -distance_decay
        total = total + coo_matrix((counts, (earlier, later)), (n_items, n_items)).tocsr()
    return total


def asking(prefixes: Sequences, n_items: int, *, last: int, decay: float) -> csr_matrix:
    """The prefixes as rows over items: decay ** age of the latest time an item came up."""
    from scipy.sparse import csr_matrix

    ended = np.repeat(prefixes.offsets[1:], prefixes.sizes)
    age = ended - 1 - np.arange(len(prefixes.items))
    near = np.flatnonzero(age < last)
    owner = prefixes.owner[near]
    order = np.lexsort((age[near], prefixes.items[near], owner))
    near, owner = near[order], owner[order]
    item = prefixes.items[near]
    first = np.ones(len(near), dtype=bool)  # of an item that comes up twice, the latest
    first[1:] = (owner[1:] != owner[:-1]) | (item[1:] != item[:-1])
    near, owner, item = near[first], owner[first], item[first]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(prefixes)))])
    values = decay ** age[near].astype(np.float64)
    return csr_matrix((values.astype(np.float32), item, indptr), (len(prefixes), n_items))


class ItemKNNModel(SequenceModel):
    """A sparse matrix of what follows what.

    Args:
        follows: float32[n_items, n_items], row: the item that asks.
        popular: float32[n_items], the last resort.
        settings: as fitted.
    """

    def __init__(self, follows: csr_matrix, popular: Float32, settings: ItemKNNSettings) -> None:
        self.follows = follows
        self.popular = popular
        self.settings = settings
        self.n_items = len(popular)

    def score(self, prefixes: Sequences) -> Float32:
        """See `SequenceModel.score`."""
        last, decay = self.settings.last, self.settings.prefix_decay
        rows = asking(prefixes, self.n_items, last=last, decay=decay)
        dense: Float32 = (rows @ self.follows).toarray()
        dense += TIE * self.popular
        damp_seen(dense, prefixes, self.settings.seen)
        return dense

    def save(self, folder: Path) -> None:
        """See `SequenceModel.save`."""
        parts = {
            "values": self.follows.data,
            "columns": self.follows.indices,
            "offsets": self.follows.indptr,
            "popular": self.popular,
        }
        save_file(parts, folder / FILE)
        (folder / META).write_text(self.settings.model_dump_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ItemKNNModel:
        """See `SequenceModel.load`."""
        from scipy.sparse import csr_matrix

        parts = load_file(folder / FILE)
        n = len(parts["popular"])
        follows = csr_matrix((parts["values"], parts["columns"], parts["offsets"]), (n, n))
        settings = ItemKNNSettings(**json.loads((folder / META).read_text(encoding="utf-8")))
        return cls(follows, parts["popular"], settings)


class ItemKNN(SequenceLearner[ItemKNNSettings]):
    """Counts pairs, normalises, keeps the strongest of each item."""

    name: ClassVar[str] = "item_knn"
    family = "baseline"
    settings_model = ItemKNNSettings
    model_class = ItemKNNModel

    def fit(self, train: Sequences, context: SequenceContext) -> ItemKNNModel:
        """See `SequenceLearner.fit`."""
        from scipy.sparse import diags

        told, n = self.settings, context.n_items
        weight = ageing(train, told.half_life)
        forward = pair_counts(
            train, n, weight, window=told.window, distance_decay=told.distance_decay
        )
        total = forward + told.backward * forward.T
        count = np.bincount(train.items, np.repeat(weight, train.sizes), n) + 1.0
        total = diags(count**-told.source_power) @ total @ diags(count**-told.popularity_power)
        follows = strongest(total.tocsr().astype(np.float32), told.neighbours)
        return ItemKNNModel(follows, popularity(train, n), told)


def strongest(matrix: csr_matrix, k: int) -> csr_matrix:
    """The k largest values of each row, columns in order; of equals the lower columns."""
    from scipy.sparse import csr_matrix

    matrix.sort_indices()
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order: Int64 = np.lexsort((matrix.indices, -matrix.data, row))
    place = np.arange(len(row)) - np.repeat(matrix.indptr[:-1], np.diff(matrix.indptr))
    kept = np.sort(order[place < k])
    sizes = np.minimum(np.diff(matrix.indptr), k)
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    return csr_matrix((matrix.data[kept], matrix.indices[kept], indptr), matrix.shape)
