"""Features of a surface as they stand at a moment: state, candidates, columns.

The replay over history and the serving replica hold one of these each and call the same methods,
so that a model meets in production exactly what it was trained on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.catalogue import Catalogue
from raysys.config import dump_yaml, load_settings
from raysys.features.batch import Batch
from raysys.features.changing import Changing
from raysys.features.evidence import evidence_of
from raysys.features.kernels import DAY_MS
from raysys.features.keys import KeySpace
from raysys.features.log import EventColumns, normalised_text
from raysys.features.needs import read_states
from raysys.features.of_items import OfItems
from raysys.features.of_users import OfUsers
from raysys.features.plan import FeaturePlan
from raysys.features.promotions import Promotions
from raysys.features.proposing import CandidateSettings, Proposing
from raysys.features.read import Moment, read_features
from raysys.features.resources import Resources, check_resources
from raysys.features.sessions import Sessions
from raysys.features.state import Feed, States
from raysys.features.table import Table
from raysys.features.user_attributes import UserAttributes, attributes_read
from raysys.features.vocabulary import Vocabulary
from raysys.retrieval.allowed import Allowed
from raysys.retrieval.covisitation import CoVisitation
from raysys.retrieval.merge import Candidates, merge
from raysys.retrieval.popular import Popular

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
P = ParamSpec("P")
T = TypeVar("T")


def _alone(
    method: Callable[Concatenate[LiveFeatures, P], T],
) -> Callable[Concatenate[LiveFeatures, P], T]:
    """A method during which no other thread changes the state or reads half a change."""

    @wraps(method)
    def locked(self: LiveFeatures, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.lock:
            return method(self, *args, **kwargs)

    return locked


class LiveFeatures:
    """State of all tables, and what is read from it for a request.

    Args:
        plan: the features.
        catalogue: numbers the items.
        users: user_id by user number.
        stores: store_id by store number.
        settings: sizes of the candidate sources.
        queries: normalised text by query number.
        resources: vectors and position bias, where the plan names any (`load_resources`).
        vocabularies: labels by column of the catalogue, and of static features that have a
            vocabulary of their own; None: taken from the catalogue.
        attributes: what the shop tells of users; None: nothing.

    Attributes:
        state: all state by key; `tables` are its tables.
        of_items: what the catalogue and the resources say of items, once and for all.
        codes, labels: see `OfItems`.
        read_states: names of the states that features read.
        lock: held while events are counted and while anything is read, as a replica does both.

    Raises:
        UserError: resources that are missing or do not fit; keys beyond an int64.
    """

    def __init__(
        self,
        plan: FeaturePlan,
        catalogue: Catalogue,
        users: Sequence[str],
        stores: Sequence[str] = (),
        settings: CandidateSettings | None = None,
        *,
        queries: Sequence[str] = (),
        resources: Resources | None = None,
        vocabularies: Mapping[str, Vocabulary] | None = None,
        attributes: UserAttributes | None = None,
    ) -> None:
        self.plan = plan
        self.names = plan.names
        self.catalogue = catalogue
        self.users = list(users)
        self.stores = list(stores)
        self.queries = list(queries)
        self.settings = settings or CandidateSettings()
        self.covisitation = CoVisitation(
            np.full((len(catalogue), 1), -1, np.int32), np.zeros((len(catalogue), 1), np.float32)
        )
        self.promotions = Promotions.empty()
        self.sessions = Sessions()
        self.as_of = 0
        self.resources = check_resources(
            plan, resources or Resources(), len(catalogue), len(self.queries)
        )
        self.of_items = OfItems(plan, catalogue, self.resources, vocabularies)
        self.codes, self.labels = self.of_items.codes, self.of_items.labels
        sizes = {"user": len(self.users), "item": len(catalogue)}
        sizes |= {"store": len(self.stores), "query": len(self.queries)}
        self.state = States(plan, KeySpace(self.codes, sizes), self.resources.examination)
        self.read_states = read_states(plan)
        self.lock = threading.RLock()
        self.attributes = attributes or UserAttributes(attributes_read(plan), len(self.users))
        self._by_user = OfUsers(len(self.users))
        self._most_users = self.state.most_users()
        self._user_numbers = {user_id: number for number, user_id in enumerate(self.users)}
        self._store_numbers = {store_id: number for number, store_id in enumerate(self.stores)}
        self._query_numbers = {query: number for number, query in enumerate(self.queries)}
        self._proposing = Proposing(
            plan, self.state, self.codes["category"], self.settings.popular_half_life_days
        )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the lock: tasks of a cluster get a state each, and a lock each."""
        return {name: value for name, value in self.__dict__.items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.lock = threading.RLock()

    @property
    def tables(self) -> dict[str, Table]:
        """The plan's tables by name."""
        return self.state.tables

    @property
    def n_users(self) -> int:
        """Users that have a number."""
        return len(self.users)

    def user_number(self, user_id: str) -> int:
        """The number of a user, -1 when unknown."""
        return self._user_numbers.get(user_id, -1)

    @_alone
    def open_user(self, user_id: str) -> int:
        """The number of a user, the next one for a new user; -1 where keys have no room for more.

        What is learnt by number of a user (none of ours is) knows nothing of such a one.
        """
        number = self.user_number(user_id)
        if number < 0 and len(self.users) < self._most_users:
            number = len(self.users)
            self._by_user.grow(number + 1)  # before anybody can ask by the number
            self.attributes.grow(number + 1)
            self.users.append(user_id)
            self._user_numbers[user_id] = number
        return number

    def met(self, user: int) -> bool:
        """Whether the log has an event of a user; of others the shop may tell something."""
        return self._by_user.met(user)

    @_alone
    def attributes_of(self, user_id: str | None) -> bytes:
        """What the shop tells of somebody, see `UserAttributes.of`."""
        return self.attributes.of(-1 if user_id is None else self.user_number(user_id))

    def store_number(self, store_id: str | None) -> int:
        """The number of a store, -1 when unknown or None."""
        return -1 if store_id is None else self._store_numbers.get(store_id, -1)

    def query_number(self, query: str | None) -> int:
        """The number of a query as the user typed it, -1 when unknown or None."""
        if query is None or not self.queries:
            return -1
        return self.number_of_query(normalised_text(query))

    def number_of_query(self, text: str | None) -> int:
        """The number of a query by its normalised text, -1 when unknown or None."""
        return -1 if text is None else self._query_numbers.get(text, -1)

    @_alone
    def apply(self, events: EventColumns) -> None:
        """Count events: columns of history or a single live one.

        They should come in time order; what becomes of a late one is said by each kind of state.
        The state counts every event it is given: telling duplicates is the event log's business.
        Where state ages out, what is dead is taken away at the first event of each UTC day.
        """
        for part in self._days(events) if self.state.ages else [events]:
            if not len(part):
                continue
            self.state.apply(part)
            self.note(part)

    def note(self, events: EventColumns) -> None:
        """What is kept of events beside the state by key: last stores, sessions, the newest moment.

        For who fills the state by other means than `apply`.
        """
        if len(events):
            self._by_user.note(events)
            self.sessions.seen(events.session)
            self.as_of = max(self.as_of, int(events.time.max()))

    @_alone
    def compact(self) -> int:
        """Take away what has aged out; how many records went. Nothing else changes."""
        return self.state.compact()

    def _days(self, events: EventColumns) -> Iterator[EventColumns]:
        """The events cut where a new UTC day begins, the state compacted at each cut."""
        if not len(events):
            return
        newest = np.maximum.accumulate(np.maximum(events.time, self.as_of))
        day = newest // int(DAY_MS)
        cuts = np.flatnonzero(np.diff(day, prepend=self.as_of // int(DAY_MS)))
        for start, stop in pairwise([0, *(int(cut) for cut in cuts), len(events)]):
            if start in cuts:
                self.compact()
            yield events.slice(start, stop)

    def feed(self, name: str, events: EventColumns) -> Feed:
        """What one state takes of some events, in their order."""
        return self.state.feed(name, events)

    def last_store(self, user: int) -> int:
        """The store that a user was in last, -1 when unknown."""
        return int(self._by_user.store[user]) if 0 <= user < self.n_users else -1

    def current_session(self, user: int, timestamp: int, gap_ms: int) -> int:
        """Number of the session that a user is in, -1 when the last event is longer ago."""
        seen, session = self.last_session(user)
        return -1 if timestamp - seen > gap_ms else session

    @_alone
    def last_session(self, user: int) -> tuple[int, int]:
        """Moment of a user's newest event (UTC ms), and number of its session, -1 for none."""
        if not 0 <= user < self.n_users:
            return 0, -1
        return int(self._by_user.seen[user]), int(self._by_user.session[user])

    @_alone
    def history(self, user: int, n: int) -> Int32:
        """The user's last distinct items, newest first: int32[≤ n]."""
        table = self.tables["user_item"]
        records = table.members(user, self.as_of)
        newest = np.lexsort((-records, -table.times[records, 2]))[:n]
        return table.second(records[newest]).astype(np.int32)

    @_alone
    def orders(self, user: int) -> int:
        """How many orders (moments of counting) the user has made."""
        table = self.tables["user"]
        records = table.find(np.array([user], dtype=np.int64))
        return int(table.read(records, self.as_of).moments[0])

    @_alone
    def candidates(
        self,
        user: int,
        timestamp: int,
        limit: int = 10_000,
        seeds: Int32 | None = None,
        allowed: Allowed | None = None,
        more: Mapping[str, Int32] | None = None,
    ) -> Candidates:
        """Items worth scoring for a user at a moment, from all sources.

        Args:
            user: number, -1 for an unknown one.
            timestamp: UTC ms.
            limit: most candidates.
            seeds: items the moment is about (a basket, a product page); they are not proposed,
                and co-visitation starts from them instead of the user's history.
            allowed: the only items that may be proposed: each source looks on for as many as its
                size says; None: all.
            more: what sources beyond the state propose, by name, best first, within `allowed`.
        """
        sizes = self.settings
        popular = self._proposing.popular(timestamp)
        owned = self._proposing.owned(user, timestamp, sizes.owned, allowed)
        about = self.history(user, sizes.seeds) if seeds is None else seeds
        proposals = {
            "owned": owned,
            "covisitation": self.covisitation.near(about, sizes.covisitation, allowed)[0],
            "category": popular.in_categories(
                self._proposing.categories(user, about, timestamp), sizes.category, allowed
            ),
            "popular": popular.top(sizes.popular, allowed),
            **(more or {}),
        }
        if seeds is not None:
            proposals = {k: v[~np.isin(v, seeds)] for k, v in proposals.items()}
        return merge(proposals, limit)

    @_alone
    def batch(
        self,
        user: int,
        items: Int32,
        timestamp: int,
        store_id: str | None = None,
        week: int | None = None,
        *,
        history: int = 30,
        session: int = -1,
        query: int = -1,
        query_vectors: Mapping[str, Float32] | None = None,
        positions: Int32 | None = None,
    ) -> Batch:
        """Feature columns of candidates, as they stand at `timestamp`; one request.

        Args:
            user: number, -1 for an unknown one.
            items: int32[n].
            timestamp: UTC ms; no event at or after it may have been applied.
            store_id: None for the user's last store.
            week: the shop's promotion week; None for the newest one known.
            history: items of the user to give along, for learners that read them.
            session: number (`sessions`), -1 for an unknown one.
            query: number (`query_number`), -1 for none or an unknown one.
            query_vectors: float32[d] of the query by the vectors' name; where there is none, it is
                the one that the plan's vectors hold.
            positions: int32[n], from 1, at which the items were shown, 0 where they were not; None
                when serving: nothing has been shown yet.
        """
        store = self.store_number(store_id)
        store = self.last_store(user) if store < 0 else store
        week = self.promotions.last_week if week is None else week
        seen = self.history(user, history)
        moment = Moment(
            *(user, items, timestamp, store, week, seen, session, query),
            query_vectors=query_vectors or {},
            positions=positions,
        )
        return Batch(
            names=self.names,
            features=read_features(self, moment),
            item=items,
            offsets=np.array([0, len(items)], dtype=np.int64),
            history=[seen],
            user=np.array([user], dtype=np.int32),
            queries=[self.queries[query]] if 0 <= query < len(self.queries) else None,
        )

    @_alone
    def profile(self, user: int, timestamp: int, top: int = 5) -> dict[str, Any]:
        """What the log says of a user: orders, recency and favourites with their evidence."""
        return evidence_of(self.plan, self.state, self.labels, user, timestamp, top)

    def popular_at(self, timestamp: int) -> Popular:
        """What sells, as counted so far, at a moment."""
        return Popular(self.popularity_at(timestamp), self.codes["category"])

    def popularity_at(self, timestamp: int) -> npt.NDArray[np.float64]:
        """How much of every item was sold, decayed, at a moment: float64[n_items]."""
        return self._proposing.popularity(timestamp)

    def take_popular(self, popular: Popular, day: int) -> None:
        """Offer what sells as another state saw it, on the given day (moment ÷ one day)."""
        self._proposing.take(popular, day)

    @_alone
    def changing(self) -> Changing:
        """A copy of what events have changed, to be written while others are counted."""
        users = {"user_id": pa.array(self.users, pa.string()), **self._by_user.columns()}
        return Changing(
            self.state.arrays(),
            pa.table(users),
            self.sessions.frame(),
            self.sessions.count,
            self.as_of,
        )

    @_alone
    def restore(self, folder: Path) -> None:
        """Go on from what `changing` gave and `Changing.write` wrote, of a state of this bundle.

        All or nothing: where a file is missing or damaged, the state stays as it was.
        """
        users = pq.read_table(folder / "users.parquet")
        facts = json.loads((folder / "state.json").read_text())
        sessions = Sessions(self.sessions.keep)
        sessions.name(pl.read_parquet(folder / "sessions.parquet"))
        sessions.count = facts["sessions"]
        by_user = OfUsers(len(users))
        by_user.take(users)
        self.state.load(folder)
        self.users = users["user_id"].to_pylist()
        self._user_numbers = {user_id: number for number, user_id in enumerate(self.users)}
        self._by_user, self.sessions, self.as_of = by_user, sessions, facts["as_of"]
        self.attributes.grow(len(self.users))
        self._proposing.forget()

    def go_on_from(self, other: LiveFeatures, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over all that events have changed of a state that is used no more.

        Args:
            other: what it keeps of users and sessions, and how far it has come.
            states: its states by kind and name, under the keys of this one.
        """
        self.state.take(states)
        self._by_user, self.sessions, self.as_of = other._by_user, other.sessions, other.as_of
        self._proposing.forget()

    @_alone
    def save(self, folder: Path) -> None:
        """Write into an existing folder: YAML, JSON, Parquet and safetensors."""
        self.changing().write(folder, stores=self.stores)
        (folder / "resources").mkdir()
        self.resources.save(folder / "resources")
        for name, model in (("plan", self.plan), ("candidates", self.settings)):
            content = model.model_dump(mode="json")
            (folder / f"{name}.yaml").write_text(dump_yaml(content))
        self.catalogue.save(folder / "catalogue.parquet")
        queries = pa.table({"query": pa.array(self.queries, pa.string())})
        pq.write_table(queries, folder / "queries.parquet", compression="zstd")
        labels = {name: list(words.labels) for name, words in self.of_items.vocabularies.items()}
        (folder / "vocabularies.json").write_text(json.dumps(labels) + "\n")
        self.attributes.save(folder, len(self.users))
        self.covisitation.save(folder / "covisitation.safetensors")
        self.promotions.save(folder / "promotions.safetensors")

    @classmethod
    def load(cls, folder: Path) -> LiveFeatures:
        """Read what `save` wrote; it reads and counts on as if it had never stopped."""
        users = pq.read_table(folder / "users.parquet")
        facts = json.loads((folder / "state.json").read_text())
        labels = json.loads((folder / "vocabularies.json").read_text())
        plan = load_settings(FeaturePlan, folder / "plan.yaml")
        live = cls(
            plan,
            Catalogue.load(folder / "catalogue.parquet"),
            users["user_id"].to_pylist(),
            facts["stores"],
            load_settings(CandidateSettings, folder / "candidates.yaml"),
            queries=pq.read_table(folder / "queries.parquet")["query"].to_pylist(),
            resources=Resources.load(folder / "resources"),
            vocabularies={name: Vocabulary(tuple(words)) for name, words in labels.items()},
            attributes=UserAttributes.load(folder, plan, len(users)),
        )
        live.restore(folder)
        live.covisitation = CoVisitation.load(folder / "covisitation.safetensors")
        live.promotions = Promotions.load(folder / "promotions.safetensors")
        return live
