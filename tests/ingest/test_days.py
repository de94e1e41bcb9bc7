"""Rules of days: duplicates, retries, bots, refunds; and a loop that says what they must find."""

import random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys import schema
from raysys.config import parse_settings
from raysys.datasets.mapping import polars_type
from raysys.ingest.bots import find_bots
from raysys.ingest.columns import by_day
from raysys.ingest.day_rules import judge_days
from raysys.ingest.duplicates import find_duplicates, find_near_duplicates
from raysys.ingest.rule_settings import Bots, NearDuplicate, RuleSettings
from raysys.ingest.rules import OWN_ID, QUARANTINE_SCHEMA, ROW, SOURCE
from raysys.ingest.tally import Tally

DAY = 19_000 * 86_400_000
HOUR = 3_600_000
COLUMNS = {f.name: polars_type(f.type) for f in schema.LOGGED_EVENTS}
NOTHING = RuleSettings.model_validate(
    {"bots": {"action": "off"}, "near_duplicate": {"action": "off"}}
)


def rules(**content):
    return parse_settings(RuleSettings, content, where="ingest.yaml")


def events(*rows, own=False):
    """Events of a day: each row's (user, item, type, milliseconds of the day), or a dict."""
    found = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            row = dict(zip(("user_id", "item_id", "event_type", "timestamp"), row, strict=True))
        row = {"event_id": f"e{number}", "event_type": "view", "item_id": "i", **row}
        row["timestamp"] = DAY + row["timestamp"]
        found.append({SOURCE: "log", ROW: number + 1, OWN_ID: own, **row})
    kinds = {**COLUMNS, SOURCE: pl.String, ROW: pl.Int64, OWN_ID: pl.Boolean}
    return pl.DataFrame(found, schema=kinds)


def judge(frame, chosen=None, catalogue_size=None):
    clean, rejected, tally = judge_days(frame, chosen, catalogue_size)
    assert tally.rows_in == frame.height == clean.height + rejected.height
    assert tally.rows_out == clean.height
    assert tally.quarantined == rejected.height
    assert clean.columns == frame.columns
    assert clean[ROW].to_list() == [r for r in frame[ROW] if r in set(clean[ROW])]
    assert dict(rejected.schema) == QUARANTINE_SCHEMA
    return clean, rejected, tally


def test_an_empty_day():
    assert judge(events())[0].height == 0


def test_the_same_event_again_goes_whatever_the_order_of_rows():
    frame = events(*[("u", "i", "view", 5)] * 3, ("u", "i", "view", 6), ("w", "i", "view", 5))
    for order in ([0, 1, 2, 3, 4], [4, 2, 3, 1, 0]):
        clean, rejected, _ = judge(frame[order], NOTHING)
        assert sorted(clean[ROW]) == [1, 4, 5]
        assert set(rejected["reason"]) == {"duplicate"}
    kept = rules(duplicate={"action": "keep"}, near_duplicate={"action": "off"})
    assert judge(frame, kept)[2].kept == {"duplicate": 2}


def test_equal_lines_of_one_record_stand_and_the_record_again_does_not():
    line = {"user_id": "u", "event_type": "purchase", "timestamp": 5, "order_id": "o"}
    other = {**line, "item_id": "j"}
    frame = events(line, other, line, line, other, line, line).with_columns(
        pl.Series(ROW, [1, 1, 1, 2, 2, 2, 2])
    )
    for order in (list(range(7)), [6, 2, 4, 0, 1, 5, 3]):
        again = find_duplicates(frame[order])
        kept = frame[order].filter(~again).sort(ROW, maintain_order=True)
        assert kept.select("item_id", ROW).sort(ROW, "item_id").rows() == [
            ("i", 1), ("i", 1), ("j", 1), ("i", 2),
        ]  # fmt: skip
    named = frame.with_columns(pl.lit("a").alias("event_id"), pl.lit(True).alias(OWN_ID))
    assert find_duplicates(named).to_list() == [False, *[True] * 6]


def test_events_that_the_log_names_are_the_same_by_name_only():
    named = events(
        {"user_id": "u", "event_id": "a", "timestamp": 1},
        {"user_id": "u", "event_id": "a", "timestamp": 2},
        {"user_id": "u", "event_id": "b", "timestamp": 1},
        {"user_id": "w", "event_id": "a", "timestamp": 1},  # names are of a user
        own=True,
    )
    assert judge(named, NOTHING)[1]["row"].to_list() == [2]


_few = st.sampled_from(["a", "b"])


@settings(deadline=None, max_examples=80)
@given(
    st.lists(
        st.tuples(
            _few, st.one_of(st.none(), _few), st.sampled_from(["view", "click", "purchase"]),
            st.integers(0, 4000), st.booleans(), st.integers(0, 3), _few,
        ),
        max_size=30,
    )
)  # fmt: skip
def test_duplicates_are_what_a_loop_finds(rows):
    frame = events(*(row[:4] for row in rows)).with_columns(
        pl.Series(OWN_ID, [row[4] for row in rows], dtype=pl.Boolean),
        pl.Series("event_id", [str(row[5]) for row in rows], dtype=pl.String),
        pl.Series("query", [row[6] for row in rows], dtype=pl.String),
    )
    seen: set = set()
    for row, again in zip(frame.iter_rows(named=True), find_duplicates(frame), strict=True):
        every = tuple(row[name] for name in COLUMNS if name != "event_id")
        key = (row["user_id"], row["event_id"]) if row[OWN_ID] else every
        assert again == (key in seen)
        seen.add(key)
    window = {"view": 1000, "click": 0}
    last: dict = {}
    near = find_near_duplicates(frame, NearDuplicate(seconds={"view": 1, "click": 0}))
    for row in frame.with_columns(near=near).sort("timestamp", ROW).iter_rows(named=True):
        key = (row["user_id"], row["item_id"], row["event_type"])
        before = last.get(key)
        asked = row["event_type"] in window and row["item_id"] is not None
        close = before is not None and row["timestamp"] - before <= window.get(key[2], 0)
        assert row["near"] == (asked and close)
        last[key] = row["timestamp"]


def test_near_duplicates_by_type():
    burst = [("u", "i", "click", t) for t in (0, 700, 1400, 9000)]
    frame = events(*burst, ("u", "j", "click", 700), *[("u", "i", "purchase", t) for t in (0, 1)])
    assert judge(frame)[2].kept == {"near_duplicate": 2}
    chosen = rules(near_duplicate={"action": "quarantine", "seconds": {"purchase": 1}})
    assert judge(frame, chosen)[1]["row"].to_list() == [7]


def humans(n=40):
    """Some people with a handful of events each."""
    draw = random.Random(0)
    return [
        (f"h{i}", f"i{draw.randrange(50)}", draw.choice(["view", "click", "purchase"]),
         9 * HOUR + draw.randrange(HOUR))
        for i in range(n) for _ in range(12)
    ]  # fmt: skip


def _irregular(n, span, seed=1):
    draw = random.Random(seed)
    return sorted(draw.sample(range(span), n))


BOTS = {
    "bot_rate": [("b", "i", "view", t) for t in _irregular(130, 59_000)],
    "bot_fan_out": [("b", f"i{t}", "view", t) for t in _irregular(2100, 3 * HOUR)],
    "bot_night_and_day": [("b", "i", "view", t) for t in _irregular(600, 24 * HOUR)],
    "bot_no_purchase": [("b", f"i{t % 9}", "view", t) for t in _irregular(5001, 8 * HOUR)],
    "bot_regular": [("b", "i", "view", 30_000 * n) for n in range(150)],
}


@pytest.mark.long
@pytest.mark.parametrize("signal", BOTS)
def test_every_signal_takes_the_bots_whole_day_and_nobody_else(signal):
    people = humans()
    extra = ("b", "i", "impression", 5)
    frame = events(*people, *BOTS[signal], extra)
    chosen = rules(bots={"action": "quarantine"}, near_duplicate={"action": "off"})
    clean, rejected, tally = judge(frame, chosen)
    bots = rejected.filter(pl.col("reason") == signal)
    assert bots.height == len(BOTS[signal]) + 1
    assert set(clean["user_id"]) == {row[0] for row in people}
    assert tally.users == {signal: 1}
    (evidence,) = tally.examples[signal]
    assert f'"acts":{len(BOTS[signal])}' in evidence["raw"]
    kept = judge(frame, rules(near_duplicate={"action": "off"}))
    assert kept[2].kept == {signal: len(BOTS[signal]) + 1}
    threshold = {
        "bot_rate": "events_per_minute", "bot_fan_out": "items_per_day",
        "bot_night_and_day": "active_hours", "bot_no_purchase": "events_without_purchase",
        "bot_regular": "regularity",
    }[signal]  # fmt: skip
    assert find_bots(frame, Bots(**{threshold: None})).height == 0


def test_pages_and_baskets_make_no_bot():
    page = [("p", f"i{n}", "impression", 1000) for n in range(3000)]
    basket = [("s", f"i{n}", "purchase", 2000) for n in range(3000)]
    assert find_bots(events(*page, *basket), Bots()).height == 0
    buyer = [*BOTS["bot_no_purchase"], ("b", "i", "purchase", 5)]
    assert find_bots(events(*buyer), Bots()).height == 0


def test_a_share_of_the_catalogue():
    frame = events(*[("b", f"i{t}", "view", t) for t in _irregular(300, 3 * HOUR)])
    assert find_bots(frame, Bots(), 600)["signal"].to_list() == ["bot_fan_out"]
    assert find_bots(frame, Bots(), 601).height == 0
    assert find_bots(frame, Bots()).height == 0
    assert find_bots(frame, Bots(at_least_events=301), 10).height == 0


def test_groups_of_users_are_judged_as_the_whole_day_is():
    lots = [row for name, rows in BOTS.items() for row in [(name, *r[1:]) for r in rows]]
    frame = events(*humans(), *lots).sample(fraction=1, shuffle=True, seed=3)
    chosen = rules(bots={"action": "quarantine"}, near_duplicate={"action": "quarantine"})
    clean, rejected, tally = judge(frame, chosen)
    rows, reasons, summed = [], {}, Tally()
    for number in range(3):
        mine = frame.filter(pl.col("user_id").hash(5) % 3 == number)
        part, out, counted = judge(mine, chosen)
        rows += part[ROW].to_list()
        reasons |= dict(out.select("row", "reason").rows())
        summed.add(Tally.from_dict(counted.to_dict()))
    assert sorted(rows) == sorted(clean[ROW])
    assert reasons == dict(rejected.select("row", "reason").rows())
    assert (summed.reasons, summed.users) == (tally.reasons, tally.users)


def bought(at, quantity=1.0, **more):
    return {
        "user_id": "u", "event_type": "purchase", "timestamp": at, "quantity": quantity, **more
    }  # fmt: skip


def back(at, quantity=None, **more):
    return bought(at, quantity, **{"event_type": "refund", **more})


@pytest.mark.parametrize(
    ("rows", "gone", "left"),
    [
        ([bought(1), back(2)], [1], {}),
        ([bought(1), back(2, -1.0, event_type="purchase")], [1], {}),
        ([bought(1, 3.0), back(2, 2.0)], [], {1: 1.0}),
        ([bought(1), bought(2), back(3, 1.0)], [1], {2: 1.0}),
        ([bought(1), bought(2), back(3)], [1, 2], {}),
        ([bought(3), back(2)], [], {1: 1.0}),
        ([bought(1), back(2, user_id="w")], [], {1: 1.0}),
        ([bought(1), back(2, item_id="j")], [], {1: 1.0}),
        ([bought(1, order_id="o"), bought(1, order_id="p"), back(2, order_id="p")], [2], {1: 1.0}),
        ([bought(1, order_id="o"), back(2, user_id="clerk", order_id="o")], [1], {}),
        ([bought(1, order_id="o"), back(2, order_id="gone")], [], {1: 1.0}),
        ([bought(1, None), back(2, 1.0)], [1], {}),
        ([bought(1, 5.0), back(2, 1.0), back(3, 2.0)], [], {1: 2.0}),
    ],
)
def test_a_refund_takes_its_purchase_back(rows, gone, left):
    frame = events(*rows)
    before = frame.clone()
    clean, rejected, tally = judge(frame, rules(refund={"action": "mend"}))
    assert frame.equals(before)
    reasons = dict(rejected.select("row", "reason").rows())
    assert [row for row, reason in reasons.items() if reason == "refunded_purchase"] == gone
    assert dict(clean.select(ROW, "quantity").rows()) == left
    refunds = [row for row in rows if row["event_type"] == "refund" or (row["quantity"] or 1) < 0]
    assert tally.reasons["refund"] == len(refunds)
    assert tally.mended["partly_refunded"] == sum(
        left.get(at) not in (None, row["quantity"]) for at, row in enumerate(rows, start=1)
    )


def test_refunds_that_are_not_mended_leave_purchases_alone():
    clean, rejected, _ = judge(events(bought(1), back(2)))
    assert clean.height == 1
    assert rejected["reason"].to_list() == ["refund"]


def test_a_later_look_at_counted_rows():
    tally = Tally(rows_in=10, rows_out=9)
    tally.reasons["missing_value"] = 1
    _, _, later = judge(events(*[("u", "i", "view", 5)] * 9), NOTHING)
    tally.add_later(later)
    assert (tally.rows_in, tally.rows_out, tally.quarantined) == (10, 1, 9)


@pytest.mark.long
@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            _few, _few, st.sampled_from(["view", "click", "purchase", "refund"]),
            st.integers(0, 3), st.integers(0, 4000), st.booleans(), st.integers(0, 3),
        ),
        max_size=40,
    )
)  # fmt: skip
def test_days_judged_together_come_to_what_each_comes_to_alone(rows):
    frame = events(*((*row[:3], row[3] * 24 * HOUR + row[4]) for row in rows)).with_columns(
        pl.Series(OWN_ID, [row[5] for row in rows], dtype=pl.Boolean),
        pl.Series("event_id", [str(row[6]) for row in rows], dtype=pl.String),
    )
    frame = frame.sort("timestamp", maintain_order=True)
    chosen = rules(
        bots={"action": "keep", "at_least_events": 2, "events_per_minute": 3},
        near_duplicate={"seconds": {"view": 1, "click": 0}},
        refund={"action": "mend"},
    )
    clean, rejected, tally = judge(frame, chosen)
    alone = [judge(day, chosen) for day in by_day(frame)] or [judge(frame, chosen)]
    assert clean.equals(pl.concat(part[0] for part in alone))
    assert rejected.equals(pl.concat(part[1] for part in alone))
    total = Tally()
    for part in alone:
        total.add(part[2])
    assert tally.to_dict() == total.to_dict()
