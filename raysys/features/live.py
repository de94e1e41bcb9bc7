"""Features of a surface as they stand at a moment: state, candidates, columns.

The replay over history and the serving replica hold one of these each and call the same methods,
so that a model meets in production exactly what it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import Field
from safetensors.numpy import load_file, save_file

from raysys.catalogue import Catalogue
from raysys.config import Settings, load_settings
from raysys.features.batch import Batch
from raysys.features.log import EventColumns
from raysys.features.plan import FeaturePlan
from raysys.features.promotions import Promotions
from raysys.features.read import Moment, read_features
from raysys.features.table import DAY_MS, Table
from raysys.retrieval.covisitation import CoVisitation
from raysys.retrieval.merge import Candidates, merge
from raysys.retrieval.popular import Popular
from raysys.schema import EVENT_TYPES

Int32 = npt.NDArray[np.int32]

CODES = ("department", "category", "subcategory", "brand", "manufacturer")


class CandidateSettings(Settings):
    """How many items each source may propose for a request; 0 turns a source off."""

    owned: int = Field(100, ge=0, le=2000)
    covisitation: int = Field(60, ge=0, le=2000)
    category: int = Field(40, ge=0, le=2000)
    popular: int = Field(40, ge=0, le=2000)
    seeds: int = Field(20, ge=1, le=200)  # last items of the user that co-visitation starts from
    popular_half_life_days: float = 28


class LiveFeatures:
    """State of all tables, and what is read from it for a request.

    Args:
        plan: the features.
        catalogue: numbers the items.
        users: user_id by user number.
        stores: store_id by store number.
        settings: sizes of the candidate sources.
    """

    def __init__(
        self,
        plan: FeaturePlan,
        catalogue: Catalogue,
        users: Sequence[str],
        stores: Sequence[str] = (),
        settings: CandidateSettings | None = None,
    ) -> None:
        self.plan = plan
        self.names = plan.names
        self.catalogue = catalogue
        self.users = list(users)
        self.stores = list(stores)
        self.settings = settings or CandidateSettings()
        self.covisitation = CoVisitation(
            np.full((len(catalogue), 1), -1, np.int32), np.zeros((len(catalogue), 1), np.float32)
        )
        self.promotions = Promotions.empty()
        self.as_of = 0
        self.codes = {name: catalogue.codes(name)[0] for name in CODES}
        self.labels = {name: catalogue.codes(name)[1] for name in CODES}
        self.statics = {
            **{name: codes.astype(np.float32) for name, codes in self.codes.items()},
            "price": catalogue.values("price").astype(np.float32),
        }
        for name, codes in self.codes.items():
            self.statics[name][codes < 0] = np.nan
        fans = {name: max(1, len(labels)) for name, labels in self.labels.items()}
        self._fans = {**fans, "item": max(1, len(catalogue)), "store": max(1, len(self.stores))}
        self.tables = {
            name: Table(
                np.array(spec.half_lives_days),
                self._fans[spec.keys[1]] if len(spec.keys) == 2 else 1,
            )
            for name, spec in plan.tables.items()
        }
        self._counted = {
            name: np.isin(EVENT_TYPES, spec.events) for name, spec in plan.tables.items()
        }
        self._last_store = np.full(len(self.users), -1, dtype=np.int32)
        self._user_numbers = {user_id: number for number, user_id in enumerate(self.users)}
        self._store_numbers = {store_id: number for number, store_id in enumerate(self.stores)}
        self._popular: Popular | None = None
        self._popular_day = -1

    @property
    def n_users(self) -> int:
        """Users that have a number."""
        return len(self.users)

    def user_number(self, user_id: str) -> int:
        """The number of a user, -1 when unknown."""
        return self._user_numbers.get(user_id, -1)

    def store_number(self, store_id: str | None) -> int:
        """The number of a store, -1 when unknown or None."""
        return -1 if store_id is None else self._store_numbers.get(store_id, -1)

    def apply(self, events: EventColumns) -> None:
        """Count events, in time order: columns of history or a single live one."""
        if not len(events):
            return
        with np.errstate(invalid="ignore"):
            spend = events.quantity * events.price
        weights = {
            "one": np.ones(len(events)),
            "quantity": np.nan_to_num(events.quantity, nan=1.0),
            "spend": np.nan_to_num(spend, nan=0.0),
        }
        values = {"price": events.price, "quantity": events.quantity}
        for name, spec in self.plan.tables.items():
            keys = self._keys(spec.keys, events.user, events.item, events.store)
            keys = np.where(self._counted[name][events.kind], keys, -1)
            self.tables[name].apply(keys, events.time, weights[spec.weight], values[spec.value])
        known = events.store >= 0
        self._last_store[events.user[known]] = events.store[known]
        self.as_of = max(self.as_of, int(events.time[-1]))

    def history(self, user: int, n: int) -> Int32:
        """The user's last distinct items, newest first: int32[≤ n]."""
        table = self.tables["user_item"]
        records = table.members(user)
        newest = np.lexsort((-records, -table.times[records, 2]))[:n]
        return table.second(records[newest]).astype(np.int32)

    def orders(self, user: int) -> int:
        """How many orders (moments of counting) the user has made."""
        record = self.tables["user"].find(np.array([user], dtype=np.int64))[0]
        return int(self.tables["user"].times[record, 0]) if record >= 0 else 0

    def candidates(
        self, user: int, timestamp: int, limit: int = 10_000, seeds: Int32 | None = None
    ) -> Candidates:
        """Items worth scoring for a user at a moment, from all sources.

        Args:
            user: number, -1 for an unknown one.
            timestamp: UTC ms.
            limit: most candidates.
            seeds: items the moment is about (a basket, a product page); they are not proposed,
                and co-visitation starts from them instead of the user's history.
        """
        sizes = self.settings
        popular = self._popular_at(timestamp)
        owned = self._owned(user, timestamp, sizes.owned)
        about = self.history(user, sizes.seeds) if seeds is None else seeds
        proposals = {
            "owned": owned,
            "covisitation": self.covisitation.near(about, sizes.covisitation)[0],
            "category": popular.in_categories(
                self._favourites(user, about, timestamp), sizes.category
            ),
            "popular": popular.top(sizes.popular),
        }
        if seeds is not None:
            proposals = {k: v[~np.isin(v, seeds)] for k, v in proposals.items()}
        return merge(proposals, limit)

    def batch(
        self,
        user: int,
        items: Int32,
        timestamp: int,
        store_id: str | None = None,
        week: int | None = None,
        *,
        history: int = 30,
    ) -> Batch:
        """Feature columns of candidates, as they stand at `timestamp`; one request.

        Args:
            user: number, -1 for an unknown one.
            items: int32[n].
            timestamp: UTC ms; no event at or after it may have been applied.
            store_id: None for the user's last store.
            week: the shop's promotion week; None for the newest one known.
            history: items of the user to give along, for learners that read them.
        """
        store = self.store_number(store_id)
        if store < 0 and 0 <= user < len(self._last_store):
            store = int(self._last_store[user])
        week = self.promotions.last_week if week is None else week
        seen = self.history(user, history)
        moment = Moment(user, items, timestamp, store, week, seen)
        return Batch(
            names=self.names,
            features=read_features(self, moment),
            item=items,
            offsets=np.array([0, len(items)], dtype=np.int64),
            history=[seen],
            user=np.array([user], dtype=np.int32),
        )

    def profile(self, user: int, timestamp: int, top: int = 5) -> dict[str, Any]:
        """What the log says of a user: orders, recency and favourites with their evidence."""
        number = np.array([user], dtype=np.int64)
        stats = self.tables["user"].read(self.tables["user"].find(number), timestamp)
        favourites = {}
        for name, spec in self.plan.tables.items():
            if len(spec.keys) == 2 and spec.keys[1] in self.labels:
                favourites[spec.keys[1]] = self._evidence(name, user, timestamp, top)
        recency, interval = float(stats.recency[0]), float(stats.interval[0])
        return {
            "n_orders": int(stats.moments[0]),
            "recency_days": None if np.isnan(recency) else round(recency, 2),
            "order_interval_days": None if np.isnan(interval) else round(interval, 2),
            "last_seen": None if np.isnan(recency) else int(timestamp - recency * DAY_MS),
            "favourites": favourites,
        }

    def keys_of(self, columns: Sequence[str], moment: Moment) -> npt.NDArray[np.int64]:
        """Table keys of a moment's candidates: int64[n]; -1 where a part is unknown."""
        size = len(moment.items)
        user = np.full(size, moment.user, dtype=np.int32)
        store = np.full(size, moment.store, dtype=np.int32)
        return self._keys(columns, user, moment.items, store)

    def _keys(
        self, columns: Sequence[str], user: Int32, item: Int32, store: Int32
    ) -> npt.NDArray[np.int64]:
        parts = []
        for column in columns:
            if column in self.codes:
                part = np.where(item >= 0, self.codes[column][item], -1)
            else:
                part = {"user": user, "item": item, "store": store}[column]
            parts.append(part.astype(np.int64))
        if len(parts) == 1:
            return parts[0]
        keys = parts[0] * self._fans[columns[1]] + parts[1]
        return np.where((parts[0] >= 0) & (parts[1] >= 0), keys, -1)

    def _popular_at(self, timestamp: int) -> Popular:
        """Popularity of the day, taken once a day: order between events hardly moves."""
        day = int(timestamp // DAY_MS)
        if self._popular is None or day != self._popular_day:
            table, spec = self.tables["item"], self.plan.tables["item"]
            wanted = [abs(d - self.settings.popular_half_life_days) for d in spec.half_lives_days]
            records = np.arange(len(table))
            counts = table.read(records, timestamp).counts[int(np.argmin(wanted))]
            popularity = np.zeros(len(self.catalogue))
            popularity[table.keys[: len(table)]] = counts
            self._popular = Popular(popularity, self.codes["category"])
            self._popular_day = day
        return self._popular

    def _owned(self, user: int, timestamp: int, limit: int) -> Int32:
        """The user's own items by their longest-lived decayed count, then the newest."""
        table = self.tables["user_item"]
        records = table.members(user)
        counts = table.read(records, timestamp).counts
        order = np.lexsort((records, -table.times[records, 2], -counts[-1]))[:limit]
        return table.second(records[order]).astype(np.int32)

    def _favourites(self, user: int, about: Int32, timestamp: int, top: int = 8) -> Int32:
        """Categories to look into: the user's own, else those of the items in view."""
        if "user_category" in self.tables:
            table = self.tables["user_category"]
            records = table.members(user)
            if len(records):
                counts = table.read(records, timestamp).counts[-1]
                return table.second(records[np.lexsort((records, -counts))[:top]]).astype(np.int32)
        codes, first = np.unique(self.codes["category"][about], return_index=True)
        ordered: Int32 = codes[np.argsort(first)][:top]
        return ordered

    def _evidence(self, name: str, user: int, timestamp: int, top: int) -> list[dict[str, Any]]:
        table, labels = self.tables[name], self.labels[self.plan.tables[name].keys[1]]
        records = table.members(user)
        stats = table.read(records, timestamp)
        total = float(stats.counts[-1].sum())
        best = np.lexsort((records, -stats.counts[-1]))[:top]
        codes = table.second(records)
        return [
            {
                "name": labels[int(codes[i])],
                "affinity": round(float(stats.counts[-1][i]) / total, 4) if total else 0.0,
                "orders": int(stats.moments[i]),
                "last_days_ago": round(float(stats.recency[i]), 2),
            }
            for i in best
        ]

    def save(self, folder: Path) -> None:
        """Write into an existing folder: YAML, JSON, Parquet and safetensors."""
        (folder / "tables").mkdir()
        for name, table in self.tables.items():
            save_file(table.arrays(), folder / "tables" / f"{name}.safetensors")
        for name, model in (("plan", self.plan), ("candidates", self.settings)):
            content = model.model_dump(mode="json")
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        self.catalogue.save(folder / "catalogue.parquet")
        users = {"user_id": self.users, "last_store": self._last_store}
        pq.write_table(pa.table(users), folder / "users.parquet", compression="zstd")
        facts = {"as_of": self.as_of, "stores": self.stores}
        (folder / "state.json").write_text(json.dumps(facts) + "\n")
        self.covisitation.save(folder / "covisitation.safetensors")
        self.promotions.save(folder / "promotions.safetensors")

    @classmethod
    def load(cls, folder: Path) -> LiveFeatures:
        """Read what `save` wrote; it reads and counts on as if it had never stopped."""
        users = pq.read_table(folder / "users.parquet")
        facts = json.loads((folder / "state.json").read_text())
        live = cls(
            load_settings(FeaturePlan, folder / "plan.yaml"),
            Catalogue.load(folder / "catalogue.parquet"),
            users["user_id"].to_pylist(),
            facts["stores"],
            load_settings(CandidateSettings, folder / "candidates.yaml"),
        )
        for name in live.tables:
            live.tables[name] = Table.from_arrays(
                load_file(folder / "tables" / f"{name}.safetensors")
            )
        live.as_of = facts["as_of"]
        live._last_store = users["last_store"].to_numpy().copy()
        live.covisitation = CoVisitation.load(folder / "covisitation.safetensors")
        live.promotions = Promotions.load(folder / "promotions.safetensors")
        return live
