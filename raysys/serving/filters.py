"""What a request may be answered with: its filters, the stock, the policy and the user's past."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.errors import UserError
from raysys.features.live import LiveFeatures
from raysys.retrieval.allowed import Allowed
from raysys.serving.policy import Policy
from raysys.serving.stock import Stock

Mask = npt.NDArray[np.bool_]
FilterKey = tuple[tuple[str, Any], ...]
"""Filters as a request gave them, sorted, lists as tuples: equal ones have one key."""

_KEPT = 64
"""Sets of items that are remembered: shops filter by the same few things all day."""


def key_of(filters: Mapping[str, Any] | None) -> FilterKey:
    """Filters (column -> values, min_price, max_price, in_stock; None: not given) as a key."""
    given = {name: value for name, value in (filters or {}).items() if value is not None}
    return tuple(
        sorted(
            (name, tuple(sorted(set(value))) if isinstance(value, list) else value)
            for name, value in given.items()
        )
    )


class Permissions:
    """The items that may be shown; safe to use from several threads.

    Args:
        features: columns and prices of the items, and what users did.
        policies: by surface.
        stock: None: all is in stock.

    Raises:
        UserError: a policy leaves out what was bought, and the bundle does not know what that is.
    """

    def __init__(
        self, features: LiveFeatures, policies: Mapping[str, Policy], stock: Stock | None
    ) -> None:
        self._features, self._policies, self._stock = features, policies, stock
        self._bought = features.plan.bought("user", "item")
        for surface, policy in policies.items():
            if self._bought is None and policy.excludes_bought is not None:
                raise _no_purchases(surface, policy.excludes_bought)
        self._codes = {
            name: {label: code for code, label in enumerate(labels)}
            for name, labels in features.labels.items()
        }
        self._known: OrderedDict[tuple[str, FilterKey, str], Allowed | None] = OrderedDict()
        self._lock = threading.Lock()

    def with_policies(self, policies: Mapping[str, Policy]) -> Permissions:
        """The same under other policies.

        Raises:
            UserError: see above.
        """
        return Permissions(self._features, policies, self._stock)

    @property
    def version(self) -> str:
        """Changes whenever the same request may be answered with other items."""
        stock = "" if self._stock is None else self._stock.there()[1]
        return f"{stock} {self._features.of_items.version}".strip()

    def allowed(self, surface: str, filters: FilterKey, user: int, now: int) -> Allowed | None:
        """What a list may hold; None: everything.

        Args:
            surface: whose policy counts.
            filters: see `key_of`.
            user: number, -1 for an unknown one.
            now: UTC ms.
        """
        allowed = self._of_everybody(surface, filters)
        policy = self._policies[surface]
        since = policy.bought_since(now)
        if since is None or user < 0 or self._bought is None:
            return allowed
        with self._features.lock:
            table = self._features.tables[self._bought]
            records = table.members(user)
            bought = table.second(records[table.times[records, 2] >= since])
        if not len(bought):
            return allowed
        everything = allowed or Allowed(np.ones(len(self._features.catalogue), dtype=bool))
        return everything.without(bought)

    def _of_everybody(self, surface: str, filters: FilterKey) -> Allowed | None:
        """The same without what depends on the user; remembered."""
        there, version = (None, "") if self._stock is None else self._stock.there()
        key = (surface, filters, f"{version} {self._features.of_items.version}")
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        mask = self._filter(dict(filters), there)
        never = self._policies[surface].never
        if never.any():
            mask = ~never if mask is None else mask & ~never
        if there is not None and self._stock is not None and self._stock.args.hide:
            mask = there if mask is None else mask & there
        allowed = None if mask is None else Allowed(mask)
        with self._lock:
            self._known[key] = allowed
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return allowed

    def _filter(self, filters: dict[str, Any], there: Mask | None) -> Mask | None:
        """bool[n_items], or None where the filters say nothing."""
        if not filters:
            return None
        mask = np.ones(len(self._features.catalogue), dtype=bool)
        low, high = filters.pop("min_price", 0.0), filters.pop("max_price", np.inf)
        if filters.pop("in_stock", False) and there is not None:
            mask &= there
        for name, wanted in filters.items():
            codes = [self._codes[name][value] for value in wanted if value in self._codes[name]]
            mask &= np.isin(self._features.codes[name], codes)
        if low > 0 or high < np.inf:
            price = self._features.of_items.price
            mask &= (price >= low) & (price <= high)  # NaN is in no range
        return mask


def _no_purchases(surface: str, setting: str) -> UserError:
    return UserError(
        f"{setting}: this bundle does not tell what a user bought from what they looked at: its "
        "plan has no table by user and item that counts purchases alone",
        where=f"args.{surface}.policy",
        mend=f"leave {setting} out; or give the plan of the features a table such as "
        "`user_item_bought: {keys: [user, item], events: [purchase]}`, then run features and train",
    )
