"""The stage over small logs: columns say what a live state would have said, however work is cut."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from raysys.features.examples import Examples
from raysys.features.log import EventColumns
from raysys.ingest.spread import InProcess
from raysys.retrieval.covisitation import CoVisitation
from raysys.stages.features import FeaturesSettings, run
from tests.features import every
from tests.features.every import DAY, HOUR, N_ITEMS, N_QUERIES, N_USERS, PLAN
from tests.features.logs import as_rows, workspace

DAYS = 30


def log(seed: int = 0, n: int = 900) -> EventColumns:
    """A month of events, many of them at shared moments; every user, store and query is in it."""
    rng = np.random.default_rng(seed)
    time = np.sort(rng.integers(0, DAYS * 8, n)) * 3 * HOUR
    draw = lambda low, high: rng.integers(low, high, n).astype(np.int32)  # noqa: E731
    user = draw(0, N_USERS)
    # sessions as the log numbers them: by first appearance, each of one user
    name = user.astype(np.int64) * 1000 + time // (5 * DAY)
    _, first, inverse = np.unique(name, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    events = EventColumns(
        user=user,
        item=draw(-1, N_ITEMS),
        kind=rng.choice(every.KINDS, n).astype(np.int8),
        time=time.astype(np.int64),
        quantity=rng.choice([1.0, 2.0, np.nan], n),
        price=rng.choice([0.5, 3.25, np.nan], n),
        store=draw(-1, 2),
        order=(user.astype(np.int64) * 10_000 + time // (4 * HOUR)),  # some cross midnight
        session=rank[inverse],
        query=draw(-1, N_QUERIES),
        position=draw(0, 4),
    )
    assert set(events.query) == set(range(-1, N_QUERIES))
    return events


def settings(**more: object) -> FeaturesSettings:
    content = {
        **{"train_days": 10, "train_folds": 2, "validation_days": 5, "report_days": 5},
        **{"labels": {"click": 1, "purchase": 3}, "history": 6, "parts": 3},
        **{"covisitation": {"min_count": 1, "refit_days": 4}, "plan": PLAN.model_dump(mode="json")},
    }
    return FeaturesSettings.model_validate({**content, **more})


LOGGED = {"examples": {"from": "log", "events": ["impression"], "keep_empty": True}}


def check(events: EventColumns, folder, made: FeaturesSettings) -> int:
    """Compare every example with a live state that met the events up to its request."""
    state = every.live()
    numbered = {f"u{number}": number for number in range(N_USERS)}
    checked = position = 0
    end = int(events.time[-1]) + 1
    moments = [end - (20 - 4 * n) * DAY for n in range(5)]
    for fold in range(4):
        view = Examples(folder, (fold,))
        batch, requests = view.batch(retrieved_only=False), pl.DataFrame(view.requests())
        for at, row in enumerate(requests.iter_rows(named=True)):
            time = int(requests["timestamp"].dt.epoch("ms")[at])
            while position < len(events) and events.time[position] < time:
                moment = events.time == events.time[position]
                state.apply(every.take(events, np.flatnonzero(moment)))
                position += int(moment.sum())
            state.as_of = time - 1
            known = events.time < max(m for m in moments if m <= time)
            state.covisitation = CoVisitation.fit(
                events.order[known], events.item[known], N_ITEMS, min_count=1
            )
            mine = slice(batch.offsets[at], batch.offsets[at + 1])
            user = numbered["u" + str(row["user"])]
            shown = (events.time == time) & (events.user == user)
            first = np.flatnonzero(shown & np.isin(events.kind, [0]) & (events.item >= 0))
            session, query = -1, -1
            if made.examples.from_ == "log":
                session, query = (int(c[first[0]]) for c in (events.session, events.query))
            expected = state.batch(
                *(user, batch.item[mine], time, row["store_id"], None),
                history=6,
                session=session,
                query=query,
            )
            np.testing.assert_array_equal(batch.features[mine], expected.features)
            np.testing.assert_array_equal(batch.history[at], expected.history[0])
            assert row["n_orders"] == state.orders(user)
            checked += 1
    return checked


@pytest.mark.parametrize("more", [LOGGED, {}], ids=["log", "retrieval"])
def test_examples_are_what_a_live_state_says_at_their_moment(tmp_path, more) -> None:
    events = log()
    made = settings(**more)
    manifest = run(made, workspace(tmp_path, as_rows(events)), spread=InProcess())
    assert check(events, tmp_path / "features", made) == manifest.counts["requests"] > 100
