"""Items that the state proposes: a user's own, what sells, and what sells in their categories."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import Field

from raysys.config import Settings
from raysys.features.kernels import DAY_MS
from raysys.features.plan import FeaturePlan
from raysys.features.state import States
from raysys.retrieval.allowed import Allowed
from raysys.retrieval.popular import Popular

Int32 = npt.NDArray[np.int32]


class CandidateSettings(Settings):
    """How many items each source may propose for a request; 0 turns a source off."""

    owned: int = Field(100, ge=0, le=2000)
    covisitation: int = Field(60, ge=0, le=2000)
    category: int = Field(40, ge=0, le=2000)
    popular: int = Field(40, ge=0, le=2000)
    seeds: int = Field(20, ge=1, le=200)  # last items of the user that co-visitation starts from
    popular_half_life_days: float = 28


class Proposing:
    """What the tables know of who buys what, as lists of items.

    Args:
        plan: whose tables they are.
        state: of the plan.
        category: int32[n_items], code of each item's category, -1 where unknown.
        half_life_days: the decayed count by which items sell: the table's nearest to it.
    """

    def __init__(
        self, plan: FeaturePlan, state: States, category: Int32, half_life_days: float
    ) -> None:
        self._tables = state.tables
        self._category = category
        self._plan, self._half_life_days = plan, half_life_days
        self._popular: Popular | None = None
        self._day = -1

    def popularity(self, timestamp: int) -> npt.NDArray[np.float64]:
        """How much of every item was sold, decayed, at a moment: float64[n_items]."""
        table, spec = self._tables["item"], self._plan.tables["item"]
        wanted = [abs(days - self._half_life_days) for days in spec.half_lives_days]
        records = np.arange(len(table))
        counts = table.read(records, timestamp).counts[int(np.argmin(wanted))]
        popularity = np.zeros(len(self._category))
        popularity[table.keys[: len(table)]] = counts
        return popularity

    def popular(self, timestamp: int) -> Popular:
        """What sells, taken once a day: the order between events hardly moves."""
        day = int(timestamp // DAY_MS)
        if self._popular is None or day != self._day:
            self.take(Popular(self.popularity(timestamp), self._category), day)
        assert self._popular is not None
        return self._popular

    def take(self, popular: Popular, day: int) -> None:
        """Offer what sells as another state saw it, on the given day (moment ÷ one day)."""
        self._popular, self._day = popular, day

    def forget(self) -> None:
        """The state is another one: what sells is to be read from it afresh."""
        self._popular = None

    def owned(self, user: int, timestamp: int, limit: int, allowed: Allowed | None = None) -> Int32:
        """The user's own items by their longest-lived decayed count, then the newest."""
        table = self._tables["user_item"]
        records = table.members(user, timestamp)
        if allowed is not None:
            records = records[allowed.items[table.second(records)]]
        counts = table.read(records, timestamp).counts
        order = np.lexsort((records, -table.times[records, 2], -counts[-1]))[:limit]
        return table.second(records[order]).astype(np.int32)

    def categories(self, user: int, about: Int32, timestamp: int, top: int = 8) -> Int32:
        """Categories to look into: the user's favourites, else those of the items in view."""
        if "user_category" in self._tables:
            table = self._tables["user_category"]
            records = table.members(user, timestamp)
            if len(records):
                counts = table.read(records, timestamp).counts[-1]
                return table.second(records[np.lexsort((records, -counts))[:top]]).astype(np.int32)
        codes, first = np.unique(self._category[about], return_index=True)
        ordered: Int32 = codes[np.argsort(first)][:top]
        return ordered
