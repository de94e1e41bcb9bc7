from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys import schema
from raysys.config import parse_settings
from raysys.datasets.mapping import EventFiles, polars_type
from raysys.errors import UserError
from raysys.ingest import settling
from raysys.ingest.columns import to_arrow
from raysys.ingest.impressions import ImpressionSettings, ImpressionShares, infer_impressions
from raysys.ingest.inclusion import Pools, draw, draw_evenly, mix, mix_each, uniform
from raysys.ingest.sessions import SessionSettings
from tests.ingest.shop import take

DAY = 86_400_000
DATE = 18_000 * DAY
LOGGED = {**{f.name: polars_type(f.type) for f in schema.LOGGED_EVENTS}, "timestamp": pl.Int64}


def log(rows: list[dict]) -> pl.DataFrame:
    """Events in the vocabulary; what a row does not say is null."""
    frame = pl.DataFrame(
        [{"event_id": f"e{at}", "event_type": "click", "session_id": row["user_id"], **row}
         for at, row in enumerate(rows)],
        schema_overrides={name: LOGGED[name] for row in rows for name in row},
    )  # fmt: skip
    return frame.select(
        (pl.col(name) if name in frame.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in LOGGED.items()
    )


def day_before() -> pl.DataFrame:
    """Item p0 was touched 64 times, p1 32 times …; lamps were looked for as well."""
    rows = [
        {"user_id": "x", "item_id": f"p{i}", "timestamp": DATE - 1 - n}
        for i, times in enumerate((64, 32, 16, 8, 8, 4, 4, 2, 2, 1))
        for n in range(times)
    ]
    rows += [
        {"user_id": "y", "item_id": f"lamp{i}", "query": "Lamp ", "timestamp": DATE - 5}
        for i in (0, 0, 0, 1, 1, 2, 3)
    ]
    return log(rows)


def sessions(n: int, query: str | None = "lamp") -> pl.DataFrame:
    """n users who look at a, b, p1, lamp1, then click on c; then at what must not matter."""
    items = ["a", "b", "p1", "lamp1"]
    return log(
        [
            {
                "user_id": f"u{user}",
                "event_id": f"u{user}-{at}",
                "item_id": item,
                "event_type": kind,
                "query": query,
                "timestamp": DATE + 1000 * at,
            }
            for user in range(n)
            for at, (item, kind) in enumerate([*((i, "view") for i in items), ("c", "click")])
        ]
    )


CLICKS = ImpressionSettings(when="always", events=("click",), per_event=8, seed=3)


@pytest.mark.long
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_items_are_named_as_often_as_their_probability_says(alpha):
    n = 20_000
    how = CLICKS.model_copy(update={"alpha": alpha})
    found = infer_impressions(sessions(n), day_before(), how)
    seen = found.group_by("item_id").agg(
        pl.len().alias("count"),
        pl.col("sampling_probability").min().alias("low"),
        pl.col("sampling_probability").max().alias("high"),
    )
    assert (seen["high"] - seen["low"]).max() < 1e-12  # every click has the same sources
    share = seen["count"].to_numpy() / n
    p = seen["high"].to_numpy()
    spread = np.sqrt(p * (1 - p) / n)
    assert (np.abs(share - p) <= 4.5 * spread + 1e-9).all()
    assert set(seen.filter(pl.col("high") == 1)["item_id"]) >= {"c"}
    drawn = seen.filter(pl.col("high") < 0.999)
    assert drawn.height > 8
    # more than one source may name it, and the probability knows of both
    of = dict(zip(seen["item_id"], p, strict=True))
    assert of["p1"] > of["a"] == of["b"] == pytest.approx(3 / 4)  # 3 of the session's 4 items
    assert of["lamp1"] > of["a"]


def test_weights_by_inverse_probability_count_what_could_be_drawn():
    n = 20_000
    found = infer_impressions(sessions(n), day_before(), CLICKS)
    weight = (1 / found["sampling_probability"]).sum() / n
    assert weight == pytest.approx(1 + 2 + 10 + 4, rel=0.03)  # c; a, b; all p; all lamps


def test_what_an_impression_says():
    events, before = sessions(1), day_before()
    found = infer_impressions(events, before, CLICKS)
    assert found.columns == schema.EVENTS.names
    assert to_arrow(found, schema.EVENTS).schema.equals(schema.EVENTS)
    click = events.filter(event_type="click").row(0, named=True)
    for row in found.iter_rows(named=True):
        for name in ("user_id", "session_id", "timestamp", "query", "store_id", "week"):
            assert row[name] == click[name]
        assert row["event_type"] == "impression" and row["inferred"] is True
        assert row["position"] is None and row["order_id"] is None
        assert 0 < row["sampling_probability"] <= 1
        assert row["request_id"] == "inferred-u0-4"
    assert found["item_id"].is_unique().all() and found["event_id"].is_unique().all()
    own = found.filter(item_id="c")
    assert own["sampling_probability"].to_list() == [1.0]
    assert 4 <= found.height <= 9


def test_never_is_the_default():
    found = infer_impressions(sessions(3), day_before(), ImpressionSettings())
    assert found.is_empty() and found.columns == schema.EVENTS.names


def test_missing_leaves_alone_what_the_log_has_shown():
    shown = {"user_id": "u1", "item_id": "c", "event_type": "impression", "event_id": "i1"}
    how = CLICKS.model_copy(update={"when": "missing"})
    for moment, users in ((DATE + 4000, {"u0"}), (DATE + 4001, {"u0", "u1"})):
        events = pl.concat([sessions(2), log([{**shown, "timestamp": moment}])])
        found = infer_impressions(events, day_before(), how)
        assert set(found["user_id"]) == users


def test_a_category_stands_in_for_the_query():
    before = day_before()
    categories = pl.DataFrame(
        {"item_id": ["c", "p7", "p8", "p9", "p0"], "category": ["k", "k", "k", "k", "other"]}
    )
    how = CLICKS.model_copy(update={"shares": CLICKS.shares.model_copy(update={"popular": 0.0})})
    found = infer_impressions(sessions(200, query=None), before, how, categories)
    named = set(found["item_id"])
    assert named == {"a", "b", "p1", "lamp1", "c", "p7", "p8", "p9"}
    without = infer_impressions(sessions(200, query=None), before, how)
    assert set(without["item_id"]) == {"a", "b", "p1", "lamp1", "c"}


def test_the_first_day_has_the_session_only():
    found = infer_impressions(sessions(500), day_before().clear(), CLICKS)
    assert set(found["item_id"]) == {"a", "b", "p1", "lamp1", "c"}


def test_sessions_reach_back_over_midnight():
    late = log(
        [{"user_id": "u0", "item_id": "yesterday", "timestamp": DATE - 10, "event_id": "late"}]
    )
    alone = ImpressionShares(session=1, context=0, popular=0)
    many = CLICKS.model_copy(update={"per_event": 60, "shares": alone})
    before = pl.concat([day_before(), late])
    found = infer_impressions(sessions(1), before, many, ongoing=late)
    assert "yesterday" in found["item_id"].to_list()
    found = infer_impressions(sessions(1), before, many)
    assert "yesterday" not in found["item_id"].to_list()


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("rows", [1, 10_000])
def test_what_was_shown_before_midnight_was_shown(tmp_path, monkeypatch, own, rows):
    monkeypatch.setattr(settling, "_UNIT_ROWS", rows)  # a unit a day, or one for both
    midnight = "2024-01-31T00:00:00"
    (tmp_path / "log.csv").write_text(
        "id,session,user,item,what,time\n"
        "1,s,u0,a,impression,2024-01-30T23:10:00\n"  # another session, unless the log says
        "2,s,u0,c,impression,2024-01-30T23:58:00\n"
        "3,s,u1,d,impression,2024-01-30T23:58:00\n"
        f"4,s,u0,c,click,{midnight}\n"
        f"5,s,u0,d,click,{midnight}\n"
        f"6,s,u0,a,click,{midnight}\n"
    )
    columns = {"event_id": "id", "user_id": "user", "item_id": "item", "event_type": "what",
               "timestamp": "time", "session_id": "session"}  # fmt: skip
    alone = ImpressionShares(session=1, context=0, popular=0)
    taken = take(
        tmp_path,
        EventFiles(paths=(str(tmp_path / "log.csv"),), columns=columns),
        sessions=SessionSettings(keep_own_ids=own),
        impressions=ImpressionSettings(when="missing", shares=alone, per_event=60),
    )
    shown = taken.events.filter("inferred").sort("event_id")["event_id"].to_list()
    assert shown == (["5~a", "5~c", "5~d"] if own else ["5~c", "5~d", "6~a", "6~c"])


@pytest.mark.parametrize("when", ["always", "missing"])
def test_sessions_that_two_users_call_alike_are_two(when):
    def session(user: str, kinds: list[tuple[str, str]], start: int) -> pl.DataFrame:
        return log([
            {"user_id": user, "session_id": "1", "event_id": f"{user}-{start + at}", "item_id": i,
             "event_type": kind, "timestamp": start + 1000 * at}
            for at, (kind, i) in enumerate(kinds)
        ])  # fmt: skip

    alone = ImpressionShares(session=1, context=0, popular=0)
    how = CLICKS.model_copy(update={"when": when, "per_event": 60, "shares": alone})
    late = [session(user, [("view", f"late-{user}")], DATE - 5000) for user in ("u0", "u1")]
    before = pl.concat([day_before(), *late])
    one = session("u0", [("impression", "c"), ("view", "a"), ("view", "b")], DATE)
    two = session("u1", [("view", "x"), ("view", "y"), ("click", "c")], DATE + 500)
    both, ongoing = pl.concat([one, two]), pl.concat(late)
    found = infer_impressions(both, before, how, ongoing=ongoing)
    assert found.equals(infer_impressions(two, before, how, ongoing=late[1]))
    assert set(found["item_id"]) == {"c", "x", "y", "late-u1"}


def test_events_of_the_date_are_no_day_before():
    with pytest.raises(ValueError, match="before"):
        infer_impressions(sessions(1), sessions(1), CLICKS)


random_rows = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(0, 6), st.integers(0, 30), st.booleans(), st.booleans()
    ),
    min_size=1,
    max_size=30,
)


def random_log(rows) -> pl.DataFrame:
    return log(
        [
            {
                "user_id": f"u{user}",
                "item_id": f"p{item}",
                "timestamp": DATE + moment * 1000,
                "event_type": "click" if clicked else "view",
                "query": "lamp" if asked else None,
            }
            for user, item, moment, clicked, asked in rows
        ]
    )


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(random_rows, st.integers(0, 30), st.randoms(use_true_random=False))
def test_neither_order_nor_chunks_nor_the_future_matter(rows, cut, rng):
    how = ImpressionSettings(when="always", per_event=5, lookback=3)
    events, before = random_log(rows), day_before()
    whole = infer_impressions(events, before, how)
    order = list(range(events.height))
    rng.shuffle(order)
    assert infer_impressions(events[order], before.reverse(), how).equals(whole)
    buckets = [
        infer_impressions(events.filter(pl.col("user_id").is_in(users)), before, how)
        for users in (["u0", "u2"], ["u1"], ["u3"])
    ]
    by = ["timestamp", "event_id"]
    assert pl.concat(buckets).sort(by).equals(whole.sort(by))
    assert whole["timestamp"].is_sorted()
    until = DATE + cut * 1000
    early = infer_impressions(events.filter(pl.col("timestamp") <= until), before, how)
    assert early.equals(whole.filter(pl.col("timestamp") <= until))


def test_another_seed_draws_others():
    one = infer_impressions(sessions(50), day_before(), CLICKS)
    two = infer_impressions(sessions(50), day_before(), CLICKS.model_copy(update={"seed": 4}))
    assert not one["event_id"].equals(two["event_id"])


def test_a_robot_that_clicks_one_item_all_day_costs_no_more_than_others():
    rows = [
        {"user_id": "bot", "item_id": "c", "timestamp": DATE + at, "event_id": f"b{at}"}
        for at in range(50_000)
    ]
    found = infer_impressions(log(rows), day_before(), CLICKS)  # quadratic: minutes
    assert found.filter(item_id="c").height == 50_000


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=30),
    st.integers(0, 12),
    st.integers(0, 2**64 - 1),
)
def test_draws_are_distinct_and_small_pools_are_drawn_whole(weights, size, key):
    weight = np.array(weights)
    n = len(weight)
    # a pool on either side, so that bounds are held
    pool = np.repeat([0, 2, 3], [2, n, 3])
    every = np.concatenate([[1, 1], weight, [1, 1, 1]])
    item = np.concatenate([[0, 1], np.arange(n), [0, 1, 2]])
    pools = Pools.of(pool, item, every, 4, size)
    assert pools.starts.tolist() == [0, 2, 2, 2 + n, 5 + n]
    low, high = pools.starts[2], pools.starts[3]
    p = pools.probability[low:high]
    out = np.empty(max(size, 1), np.int64)
    count = draw(np.uint64(key), pools.ends, low, high, size, out)
    drawn = set(out[:count].tolist())
    assert len(drawn) == count <= size and drawn <= set(range(low, high))
    if n <= size:
        assert count == n and (p == 1).all()
    else:
        expected = 1 - (1 - weight / weight.sum()) ** size
        np.testing.assert_allclose(p, expected, rtol=1e-6, atol=1e-12)
    assert draw(np.uint64(key), pools.ends, 2, 2, size, out) == 0


def test_even_draws_are_even():
    names = np.arange(100, 110, dtype=np.uint64)
    times = np.zeros(10)
    out = np.empty(4, np.int64)
    for key in range(5000):
        count = draw_evenly(np.uint64(key), np.arange(10), names, 10, 4, out)
        assert count == 4 == len(set(out))
        times[out] += 1
    assert np.abs(times / 5000 - 0.4).max() < 0.03


def test_many_hashes_are_the_single_ones():
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 2**64, (2, 100), dtype=np.uint64, endpoint=False)
    assert mix_each(a, b).tolist() == [int(mix(x, y)) for x, y in zip(a, b, strict=True)]


def test_hashes_are_uniform():
    u = np.array([uniform(np.uint64(mix(np.uint64(7), np.uint64(at)))) for at in range(20_000)])
    assert u.min() >= 0 and u.max() < 1
    assert np.abs(np.histogram(u, 20, (0, 1))[0] / 1000 - 1).max() < 0.15


@pytest.mark.parametrize(
    ("shares", "sizes"),
    [
        ({"session": 1, "context": 1, "popular": 1}, (4, 3, 3)),
        ({"session": 0, "context": 0, "popular": 1}, (0, 0, 10)),
        ({}, (3, 3, 4)),
    ],
)
def test_shares_become_whole_items(shares, sizes):
    how = parse_settings(ImpressionSettings, {"per_event": 10, "shares": shares}, where="x")
    assert how.sizes == sizes


def test_impossible_settings_are_refused():
    for bad in ({"when": "sometimes"}, {"per_event": 0}, {"shares": dict.fromkeys(
        ("session", "context", "popular"), 0)}):  # fmt: skip
        with pytest.raises(UserError):
            parse_settings(ImpressionSettings, bad, where="ingest.yaml")
