"""Slices of the report period: kinds of requests, or kinds of items within all requests.

A slice of requests (how well the shop knows the user) keeps some requests whole. A slice of items
(department, price band) keeps every list as it was served, and counts only items of that kind as
relevant: their NDCG@10 says how well somebody is served who came for just those. What retrieval
missed is counted by kind too. Slices share the judgements' rows, so a scorer's scores fit them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.catalogue import Catalogue
from raysys.ensemble.ranking import Judgements
from raysys.features.examples import Examples

ORDERS = (0, 1, 10, 50, 100)
"""Users by how many orders they had placed before the request: lower ends of the bands."""


@dataclass(frozen=True)
class Slice:
    """One slice.

    Attributes:
        group: what is sliced by.
        name: which slice.
        judgements: of all requests; those outside have nothing relevant, hence no value.
    """

    group: str
    name: str
    judgements: Judgements

    @property
    def requests(self) -> int:
        """Requests that have a value here."""
        return int(self.judgements.judged.sum())


@dataclass(frozen=True)
class Missed:
    """Relevant items that retrieval did not return.

    Attributes:
        owner: int64[m], the request (0 … r-1) each belongs to.
        item: int32[m].
        price: float64[m], NaN where unknown.
    """

    owner: npt.NDArray[np.int64]
    item: npt.NDArray[np.int32]
    price: npt.NDArray[np.float64]


def read_missed(examples: Examples, price: str | None) -> Missed:
    """What retrieval missed in a view of the examples.

    Args:
        examples: a view; requests are numbered in its order.
        price: the feature that tells an item's price, None if there is none.
    """
    ordinals = examples.requests()["request"].to_numpy()
    columns = ["request", "item", "label", "retrieved", *([price] if price else [])]
    owners, items, prices = [], [], []
    for path in examples.files("examples"):
        table = pq.read_table(path, columns=columns, partitioning=None)
        wanted = pc.and_(pc.invert(table["retrieved"]), pc.greater(table["label"], 0))
        wanted = pc.and_(wanted, pc.is_in(table["request"], value_set=pa.array(ordinals)))
        table = table.filter(wanted)
        owners.append(np.searchsorted(ordinals, table["request"].to_numpy()))
        items.append(table["item"].to_numpy())
        known = table[price].to_numpy() if price else np.full(table.num_rows, np.nan)
        prices.append(known.astype(np.float64))
    return Missed(np.concatenate(owners), np.concatenate(items), np.concatenate(prices))


def by_newness(judgements: Judgements, n_orders: npt.NDArray[np.int32]) -> list[Slice]:
    """Slices of requests by the user's orders before it, see `ORDERS`; empty ones are left out."""
    slices = []
    for low, high in pairwise([*ORDERS, np.iinfo(np.int32).max]):
        inside = (n_orders >= low) & (n_orders < high)
        if high == low + 1:
            name = f"new: {low} orders" if low == 0 else f"{low} orders"
        else:
            name = f"{low} orders and more" if low == ORDERS[-1] else f"{low}–{high - 1} orders"
        rows = np.repeat(inside, np.diff(judgements.offsets))
        part = judgements.only(rows, np.where(inside, judgements.n_relevant, 0).astype(np.int32))
        slices.append(Slice("orders of the user before", name, part))
    return [part for part in slices if part.requests]


def by_department(
    judgements: Judgements, missed: Missed, catalogue: Catalogue, most: int = 8
) -> list[Slice]:
    """Slices of items by department: the `most` with most purchases, then all the others."""
    codes, labels = catalogue.codes("department")
    kind, missed_kind = codes[judgements.item], codes[missed.item]
    bought = np.concatenate([kind[judgements.relevant], missed_kind])
    counts = np.bincount(bought[bought >= 0], minlength=len(labels))
    largest = [int(code) for code in np.argsort(-counts, kind="stable")[:most] if counts[code]]
    place = np.full(len(labels) + 1, len(largest))  # the last is for code -1, unknown
    place[largest] = np.arange(len(largest))
    names = [*(labels[code] for code in largest), "all others"]
    return _by_kind(
        "department of the item", names, judgements, missed, place[kind], place[missed_kind]
    )


def by_price(
    judgements: Judgements, missed: Missed, price: npt.NDArray[np.float64], bands: int = 4
) -> list[Slice]:
    """Slices of items by price: bands with about as many purchases each; unknown prices apart.

    Args:
        judgements: of all rows.
        missed: what retrieval missed.
        price: float64[n] of every row, NaN where unknown.
        bands: how many.
    """
    bought = np.concatenate([price[judgements.relevant], missed.price])
    bought = bought[np.isfinite(bought)]
    if not len(bought):
        return []
    edges = np.unique(np.quantile(bought, np.linspace(0, 1, bands + 1)[1:-1]).round(2))
    names = [
        f"under {edges[0]:.2f}",
        *(f"{low:.2f} to {high:.2f}" for low, high in pairwise(edges)),
        f"{edges[-1]:.2f} and more",
        "price unknown",
    ]

    def band(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        place = np.searchsorted(edges, values, side="right")
        return np.where(np.isfinite(values), place, len(edges) + 1)

    return _by_kind("price of the item", names, judgements, missed, band(price), band(missed.price))


def _by_kind(
    group: str,
    names: Sequence[str],
    judgements: Judgements,
    missed: Missed,
    kind: npt.NDArray[np.int64],
    missed_kind: npt.NDArray[np.int64],
) -> list[Slice]:
    """One slice a kind of item, given the kind of every row and of every missed item."""
    slices = []
    r = judgements.n_requests
    for code, name in enumerate(names):
        rows = kind == code
        found = judgements.owner[rows[judgements.relevant]]
        count = np.bincount(found, minlength=r)
        count += np.bincount(missed.owner[missed_kind == code], minlength=r)
        slices.append(Slice(group, name, judgements.only(rows, count.astype(np.int32))))
    return [part for part in slices if part.requests]
