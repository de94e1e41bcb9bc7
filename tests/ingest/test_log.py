"""What a clean log becomes: dates, order, sessions, items told by events, pieces and buckets."""

import datetime as dt
import json
import os
import random
import re

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys import schema
from raysys.config import find_config, load_settings
from raysys.datasets.mapping import ItemFiles
from raysys.errors import UserError
from raysys.ingest import pipeline, reading, settling
from raysys.ingest.figures import LogFigures, measure
from raysys.ingest.impressions import ImpressionSettings
from raysys.ingest.quality import write_report
from raysys.ingest.rules import ROW, SOURCE, Limits
from raysys.ingest.sessions import SessionSettings, find_sessions
from raysys.stages.ingest import IngestSettings, _source
from tests.ingest.shop import DATA, HEADER, START, good_rows, mapping, take


def test_dates_schema_and_order(tmp_path):
    lines = [f"e{i},u{i % 5},i{i},view,{START + 7200 * i},1,1," for i in range(50)]
    random.Random(0).shuffle(lines)
    (tmp_path / "log.csv").write_text("\n".join([HEADER, *lines]))
    taken = take(tmp_path, mapping(tmp_path / "log.csv"))
    files = sorted((taken.folder / "events").rglob("*.parquet"))
    assert [f.parent.name for f in files][:2] == ["date=2017-11-26", "date=2017-11-27"]
    for file in files:
        table = pq.read_table(file, partitioning=None)
        assert table.schema.equals(schema.EVENTS)
        moments = table["timestamp"].to_pylist()
        assert moments == sorted(moments)
        assert {m.date() for m in moments} == {dt.date.fromisoformat(file.parent.name[5:])}


def _events(moments, session=None):
    n = len(moments)
    return pl.DataFrame(
        {
            **{name: pl.Series([None] * n, dtype=pl.String) for name in ("order_id", "currency")},
            "user_id": [f"u{i % 2}" for i in range(n)],
            "timestamp": moments,
            "session_id": pl.Series(session or [None] * n, dtype=pl.String),
            SOURCE: ["log"] * n,
            ROW: list(range(n)),
        }
    )


def _sessions(events, **settings):
    ordered = events.sort("timestamp", maintain_order=True)
    return find_sessions(ordered, (), SessionSettings(**settings), 0).sort(ROW)


def test_a_session_ends_after_the_gap():
    minute = 60_000
    events = _events([0, 0, 29 * minute, 31 * minute, 59 * minute, 200 * minute])
    found = _sessions(events, gap_minutes=30)
    assert found["session_id"].to_list() == [
        "u0@0", "u1@0", "u0@0", f"u1@{31 * minute}", "u0@0", f"u1@{200 * minute}",
    ]  # fmt: skip


def test_own_sessions_stand_unless_told_otherwise():
    events = _events([0, 0, 1, 1], ["a", "b", None, "b"])
    kept = _sessions(events)
    assert kept["session_id"].to_list() == ["a", "b", "u0@1", "b"]
    made = _sessions(events, keep_own_ids=False)
    assert made["session_id"].to_list() == ["u0@0", "u1@0", "u0@0", "u1@0"]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 10_000_000), min_size=1, max_size=40), st.floats(0.1, 60))
def test_sessions_are_what_a_loop_over_sorted_events_says(moments, gap):
    found = _sessions(_events(moments), gap_minutes=gap)
    for user in ("u0", "u1"):
        mine = found.filter(pl.col("user_id") == user).sort("timestamp", ROW)
        begin = last = None
        for moment, session in mine.select("timestamp", "session_id").iter_rows():
            if last is None or moment - last > round(gap * 60_000):
                begin = moment
            assert session == f"{user}@{begin}"
            last = moment


def test_pieces_and_buckets_do_not_change_the_outcome(tmp_path, monkeypatch):
    lines = good_rows(2000)
    random.Random(1).shuffle(lines)
    (tmp_path / "log.csv").write_text("\n".join([HEADER, *lines]))
    (tmp_path / "a").mkdir()
    one = take(tmp_path / "a", mapping(tmp_path / "log.csv"))
    for i in range(4):
        (tmp_path / f"part{i}.csv").write_text("\n".join([HEADER, *lines[500 * i : 500 * i + 500]]))
    monkeypatch.setattr(pipeline, "TASK_BYTES", 1)
    monkeypatch.setattr(pipeline, "CUT_ROWS", 100)
    monkeypatch.setattr(settling, "_UNIT_ROWS", 300)
    monkeypatch.setattr(reading, "_BATCH_ROWS", 16)
    monkeypatch.setattr(reading, "_FLUSH_ROWS", 300)
    (tmp_path / "b").mkdir()
    many = take(tmp_path / "b", mapping(tmp_path / "part*.csv"))
    assert len(many.outcome.sources) == 4
    assert one.events.sort("event_id").equals(many.events.sort("event_id"))
    assert one.items.equals(many.items)
    assert one.outcome.log == many.outcome.log


def test_items_told_by_events_the_earliest_word_counts(tmp_path):
    columns = {"user_id": "u", "item_id": "i", "event_type": "w", "timestamp": "t", "price": "p"}
    lines = [
        f"u1,i1,view,{START + 60},5,Late",
        f"u1,i1,view,{START},4,Early",
        f"u1,i2,stare,{START},4,Never",
        f"u2,i3,view,{START},,",
    ]
    (tmp_path / "log.csv").write_text("\n".join(["u,i,w,t,p,c", *lines]))
    files = mapping(
        tmp_path / "log.csv", columns=columns, items={"category": "c"},
        constants={"currency": "EUR"},
    )  # fmt: skip
    items = take(tmp_path, files).items.select("item_id", "category", "price", "currency")
    assert items.rows() == [("i1", "Early", 4.0, "EUR"), ("i3", None, None, "EUR")]


def test_files_of_one_name_under_several_mappings_give_events_of_their_own(tmp_path):
    columns = {"user_id": "u", "item_id": "i", "timestamp": "t"}

    def files(folder, kind):
        return mapping(tmp_path / folder, columns=columns, constants={"event_type": kind})

    for folder, user in (("views", "u1"), ("clicks", "u2")):
        (tmp_path / folder).mkdir()
        for name in ("2024-01.csv", f"{folder}.csv"):
            lines = [f"{user},i{n},{START + n + len(name)}" for n in range(3)]
            (tmp_path / folder / name).write_text("\n".join(["u,i,t", *lines]))
    views, clicks = files("views", "view"), files("clicks", "click")
    alone = take(_folder(tmp_path / "alone"), views)
    taken = take(
        _folder(tmp_path / "both"), views, clicks, files("clicks/clicks.csv", "impression"),
        impressions=ImpressionSettings(when="always", per_event=2),
    )  # fmt: skip
    assert [label for label, _ in taken.outcome.sources] == [
        "2024-01.csv", "views.csv", "clicks/2024-01.csv", "clicks.csv", "clicks/clicks.csv",
    ]  # fmt: skip
    assert taken.events["event_id"].n_unique() == taken.events.height
    seen = taken.events.filter(pl.col("event_type") == "view")
    assert set(seen["event_id"]) == set(alone.events["event_id"])  # as if nothing were beside it
    asked = taken.events.filter("inferred").group_by("request_id")
    assert asked.agg(pl.col("user_id").n_unique())["user_id"].max() == 1


def test_a_file_that_two_mappings_read_gives_each_its_own_events(tmp_path):
    (tmp_path / "log.csv").write_text(f"u,seen,bought,t\nu1,i1,i2,{START}\nu2,i1,,{START}\n")

    def files(column, kind):
        columns = {"user_id": "u", "item_id": column, "timestamp": "t"}
        return mapping(tmp_path / "log.csv", columns=columns, constants={"event_type": kind})

    taken = take(tmp_path, files("seen", "view"), files("bought", "purchase"))
    assert [label for label, _ in taken.outcome.sources] == ["log.csv", "log.csv (2)"]
    assert taken.events["event_id"].n_unique() == taken.events.height == 3


def _folder(path):
    path.mkdir()
    return path


def test_a_currency_that_the_log_has_for_its_items_stands(tmp_path):
    columns = {"user_id": "u", "item_id": "i", "event_type": "w", "timestamp": "t"}
    (tmp_path / "log.csv").write_text(f"u,i,w,t,p,c\nu1,i1,view,{START},5,CHF\n")
    files = mapping(tmp_path / "log.csv", columns=columns, items={"price": "p", "currency": "c"})
    items = take(tmp_path, files).items.select("item_id", "price", "currency")
    assert items.rows() == [("i1", 5.0, "CHF")]


@pytest.mark.parametrize("rows", [1, 10_000])
def test_price_and_currency_of_an_item_are_of_the_same_event(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(settling, "_UNIT_ROWS", rows)  # a unit a day, or one of all
    columns = {"user_id": "u", "item_id": "i", "event_type": "w", "timestamp": "t", "price": "p",
               "currency": "c"}  # fmt: skip
    day = 86_400
    lines = [
        f"u1,i1,view,{START},5,",
        f"u1,i1,view,{START + day},6,USD",
        f"u1,i2,view,{START},,USD",
        f"u1,i2,view,{START + day},7,EUR",
    ]
    (tmp_path / "log.csv").write_text("\n".join(["u,i,w,t,p,c", *lines]))
    items = take(tmp_path, mapping(tmp_path / "log.csv", columns=columns)).items
    found = items.select("item_id", "price", "currency").rows()
    assert found == [("i1", 5.0, None), ("i2", 7.0, "EUR")]


def test_an_event_that_only_names_its_item_does_not_leave_it_undescribed(tmp_path):
    """As where impressions come before views, in one file and over several."""
    columns = {"user_id": "u", "item_id": "i", "event_type": "w", "timestamp": "t"}

    def line(second, item, **told):
        what = "view" if told else "impression"
        return json.dumps({"u": "u1", "i": item, "w": what, "t": START + second, **told})

    lines = [
        line(0, "i1"),
        line(60, "i1", title="Mug", category="Kitchen"),
        line(90, "i1", title="Cup", category="Kitchen"),
        line(0, "i2"),
        line(5, "i3", title="Jug"),
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl").write_text(f"{line(200, 'i2', category='Kitchen')}\n{line(1, 'i3')}")
    files = mapping(
        tmp_path / "*.jsonl", columns=columns, items={"title": "title", "category": "category"},
        constants={"currency": "EUR"},
    )  # fmt: skip
    items = take(tmp_path, files).items.select("item_id", "title", "category")
    assert items.rows() == [("i1", "Mug", "Kitchen"), ("i2", None, "Kitchen"), ("i3", "Jug", None)]


def test_figures_add_up_over_buckets(tmp_path):
    (tmp_path / "log.csv").write_text("\n".join([HEADER, *good_rows(100)]))
    events = take(tmp_path, mapping(tmp_path / "log.csv")).events.with_columns(
        pl.col("timestamp").dt.epoch("ms")
    )
    whole = measure(events)
    summed = LogFigures()
    for user in ("u0", "u1", "u2", "u3"):
        piece = measure(events.filter(pl.col("user_id") == user))
        summed.add(LogFigures.from_dict(json.loads(json.dumps(piece.to_dict()))))
    assert summed == whole
    assert whole.users == 4
    assert sum(whole.prices.values()) == 100


def test_the_report_shows_counts_and_reasons(tmp_path):
    rows = [*good_rows(), f"b,u,i1,view,{START},-1,1,", f"c,<b>u</b>,i1,stare,{START},1,1,"]
    (tmp_path / "log.csv").write_text("\n".join([HEADER, *rows]))
    taken = take(tmp_path, mapping(tmp_path / "log.csv"))
    write_report(taken.outcome, "A shop", Limits(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "negative price" in page
    assert "The price is below zero." in page
    assert "unknown event type" in page
    assert "<b>u</b>" not in page
    assert page.count("<svg") >= 3


def test_users_are_shown_by_how_many_events_they_have(tmp_path):
    busy = [1] * 2 + [3] * 4 + [8] + [70] * 3  # events of each user
    lines = [
        f"e{user}-{number},u{user},i1,view,{START + 7200 * number},1,1,"
        for user, events in enumerate(busy)
        for number in range(events)
    ]
    (tmp_path / "log.csv").write_text("\n".join([HEADER, *lines]))
    taken = take(tmp_path, mapping(tmp_path / "log.csv"))
    assert taken.outcome.log.user_events == {1: 2, 2: 4, 8: 1, 64: 3}
    write_report(taken.outcome, "A shop", Limits(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    plot = page[: page.index("users with")].rpartition("<svg")[2]
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", plot)
    spans = [name for name in labels if "–" in name]
    assert spans == ["2–3", "4–7", "8–15", "16–31", "32–63", "64–"]


def test_names_of_categories_are_shown_as_they_are_a_bar_each(tmp_path):
    """Neither dollars nor a common beginning may matter."""
    common = "Everything for the kitchen and the dining room: "
    names = ["$5 to $10", "cut by 5$ and {no} $\\frac", common + "pots", common + "pans"]
    rows = "\n".join(f"i{n},{name}" for n, name in enumerate(names))
    (tmp_path / "items.csv").write_text(f"id,kind\n{rows}\n")
    bought = f"b,u1,i1,purchase,{START},9.5,1,"
    (tmp_path / "log.csv").write_text("\n".join([HEADER, *good_rows(24), bought]))
    catalogue = ItemFiles(
        paths=str(tmp_path / "items.csv"), columns={"item_id": "id", "category": "kind"}
    )
    files = mapping(tmp_path / "log.csv", constants={"currency": "$$"})
    taken = take(tmp_path, files, items=(catalogue,))
    write_report(taken.outcome, "A shop", Limits(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert all(f">{name}</text>" in page for name in names[:2])
    assert page.count(f">{common[:39]}…</text>") == 2
    assert ">price of one unit, $$ (logarithmic)</text>" in page


@pytest.mark.long
@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("taobao", {"rows": 96_169, "types": {"view", "cart", "favorite", "purchase"}}),
        ("rees46", {"rows": 17_435, "types": {"view", "cart", "purchase"}}),
    ],
)
def test_presets_read_the_public_logs(tmp_path, monkeypatch, preset, expected):
    if not (DATA / "events").is_dir():
        pytest.skip(f"no public logs: set RAYSYS_DATA (looked in {DATA})")
    monkeypatch.setenv("RAYSYS_DATA", str(DATA))
    settings = load_settings(IngestSettings, find_config(preset, "ingest"))
    source = _source(settings)
    taken = take(tmp_path, *source.events)
    assert taken.tally.rows_in == expected["rows"]
    assert set(taken.outcome.log.types) == expected["types"]
    assert taken.tally.quarantined < 0.01 * expected["rows"]
    write_report(taken.outcome, source.title, Limits(), tmp_path / "report.html")
    if os.environ.get("RAYSYS_KEEP_REPORTS"):
        (tmp_path / "report.html").rename(f"{os.environ['RAYSYS_KEEP_REPORTS']}/{preset}.html")


def test_a_preset_without_its_variable_says_which(monkeypatch):
    monkeypatch.delenv("RAYSYS_DATA", raising=False)
    settings = load_settings(IngestSettings, find_config("taobao", "ingest"))
    with pytest.raises(UserError, match="RAYSYS_DATA is not set"):
        pipeline.inspect(_source(settings))
