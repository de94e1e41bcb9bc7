"""What is known of each item beside the state by key: events do not change it, the shop may."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from raysys.catalogue import Catalogue
from raysys.features.keys import CODES
from raysys.features.plan import Component, FeaturePlan, Static
from raysys.features.resources import Matrix, Resources
from raysys.features.vocabulary import Vocabulary

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


class OfItems:
    """Columns over items.

    Args:
        plan: whose static features and components are read.
        catalogue: numbers the items.
        resources: with the vectors that the plan names.
        vocabularies: labels by column of the catalogue, and of static features that have a
            vocabulary of their own; None: taken from the catalogue.

    Attributes:
        vocabularies: as given, or taken.
        codes: int32[n_items] by column of the catalogue, -1 where missing.
        labels: what the codes mean.
        price: float32[n_items], NaN where unknown.
        version: of the prices, the same wherever they are the same; "": they are the catalogue's.
    """

    def __init__(
        self,
        plan: FeaturePlan,
        catalogue: Catalogue,
        resources: Resources,
        vocabularies: Mapping[str, Vocabulary] | None = None,
    ) -> None:
        self.vocabularies = dict(vocabularies or _vocabularies(plan, catalogue))
        self.codes = {name: _codes(catalogue, name, self.vocabularies[name]) for name in CODES}
        self.labels = {name: list(self.vocabularies[name].labels) for name in CODES}
        self.price = catalogue.values("price").astype(np.float32)
        self._listed: dict[int, np.float32] = {}  # what the catalogue says of what was repriced
        self._mark = 0
        self._statics = {name: _numbers(codes) for name, codes in self.codes.items()}
        self._statics["price"] = self.price
        self._own = {
            feature.name: self._own_static(feature, catalogue)
            for feature in plan.features
            if isinstance(feature, Static) and _of_feature(feature) in self.vocabularies
        }
        self._components = {
            feature.name: _component(resources.vectors[feature.vectors].items, feature)
            for feature in plan.features
            if isinstance(feature, Component)
        }

    @property
    def version(self) -> str:
        """See above."""
        return f"{self._mark:x}" if self._mark else ""

    def reprice(self, items: Int32, prices: Float32) -> None:
        """Other prices from now on, in filters and features; for who holds the state's lock.

        Args:
            items: int32[n], each once.
            prices: float32[n], NaN where unknown.
        """
        mark = self._mark
        for item, price in zip(items.tolist(), prices, strict=True):
            listed = self._listed.setdefault(item, self.price[item])
            # each item has its part in the mark, whatever the order in which they were told
            mark ^= _mark_of(item, self.price[item], listed) ^ _mark_of(item, price, listed)
        self.price[items] = prices
        self._mark = mark

    def static(self, feature: Static) -> Float32:
        """A static feature of every item: float32[n_items]."""
        own = self._own.get(feature.name)
        return self._statics[feature.column] if own is None else own

    def component(self, feature: Component) -> Float32:
        """One component of every item's vector: float32[n_items], NaN where it has none."""
        return self._components[feature.name]

    def _own_static(self, feature: Static, catalogue: Catalogue) -> Float32:
        """A static feature that has a vocabulary of its own."""
        vocabulary = self.vocabularies[_of_feature(feature)]
        unseen = len(vocabulary.labels) if feature.unseen == "own" else -1
        return _numbers(vocabulary.encode(catalogue.table[feature.column], unseen)[0])


def _mark_of(item: int, price: np.float32, listed: np.float32) -> int:
    """64 bits that stand for an item's price; none where it is the catalogue's."""
    if price.tobytes() == listed.tobytes():
        return 0
    told = item.to_bytes(8, "little") + price.tobytes()
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest())


def _numbers(codes: Int32) -> Float32:
    """Codes as numbers: float32[n], NaN where there is none."""
    return np.where(codes < 0, np.nan, codes).astype(np.float32)


def _component(items: Matrix, feature: Component) -> Float32:
    """A column of a matrix, NaN in rows of zeros."""
    column = items[:, feature.component].astype(np.float32)
    return np.where((items != 0).any(axis=1), column, np.float32(np.nan))


def _vocabularies(plan: FeaturePlan, catalogue: Catalogue) -> dict[str, Vocabulary]:
    """Labels of the catalogue as it is: by column, and by static feature that leaves some out."""
    found = {name: Vocabulary(tuple(catalogue.codes(name)[1])) for name in CODES}
    for feature in plan.features:
        if isinstance(feature, Static) and (feature.min_count > 1 or feature.unseen == "own"):
            column = catalogue.table[feature.column]
            found[_of_feature(feature)] = Vocabulary.fit(column, feature.min_count)
    return found


def _codes(catalogue: Catalogue, column: str, vocabulary: Vocabulary) -> Int32:
    """Codes of all items in a vocabulary: those that the catalogue has made, if it is its own."""
    codes, labels = catalogue.codes(column)
    if vocabulary.labels == tuple(labels):
        return codes
    return vocabulary.encode(catalogue.table[column])[0]


def _of_feature(feature: Static) -> str:
    """What the vocabulary of one feature goes by; no column of the catalogue is called so."""
    return f"feature {feature.name}"
