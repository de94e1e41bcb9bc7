"""What was read once is not read again, and what changed is: the outcome is that of a new start."""

import os
import shutil

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.datasets import chunks, times
from raysys.datasets.mapping import EventFiles
from raysys.datasets.source import Source
from raysys.errors import UserError
from raysys.ingest import pipeline, reading, settling
from raysys.ingest.columns import read_arrow
from raysys.ingest.impressions import ImpressionSettings
from raysys.ingest.rule_settings import RuleSettings
from raysys.ingest.sessions import SessionSettings
from raysys.ingest.spread import InProcess
from raysys.ingest.store import Store
from tests.ingest.shop import HEADER, START, mapping

DAY = 86_400


class Shop:
    """A folder of log files that is taken in again and again."""

    def __init__(self, folder):
        self.folder = folder
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.store = Store(folder / "pieces")
        self.runs = 0
        self.impressions = ImpressionSettings()
        self.rules = RuleSettings()
        self.sessions = SessionSettings()

    def log(self, name, lines):
        path = self.logs / name
        path.write_text("\n".join([HEADER, *lines]))
        self.runs += 1
        os.utime(path, ns=(self.runs * 10**9, self.runs * 10**9))  # clocks may stand still here

    def take(self, store=None, spread=None):
        self.runs += 1
        out = self.folder / f"out{self.runs}"
        out.mkdir()
        source = Source("A shop", (mapping(self.logs),))
        outcome = pipeline.ingest(
            source,
            pipeline.inspect(source),
            pipeline.Treatment(
                rules=self.rules, sessions=self.sessions, impressions=self.impressions
            ),
            out,
            spread or InProcess(),
            store or self.store,
        )
        return outcome, out

    def scratch(self):
        """The same without anything from before."""
        return self.take(Store(self.folder / f"fresh{self.runs}"))


def events_of(out):
    return pl.read_parquet(out / "events/**/*.parquet", hive_partitioning=False)


def same(one, other):
    """Whether two outcomes hold the same, file by file."""
    (first, left), (second, right) = one, other
    files = sorted(p.relative_to(left) for p in left.rglob("*.parquet"))
    assert files == sorted(p.relative_to(right) for p in right.rglob("*.parquet"))
    for file in files:
        assert pl.read_parquet(left / file, hive_partitioning=False).equals(
            pl.read_parquet(right / file, hive_partitioning=False)
        ), file
    assert first.log == second.log
    assert {n: t.to_dict() for n, t in first.tallies.items()} == {
        n: t.to_dict() for n, t in second.tallies.items()
    }


def lines(day, n=5, user="u"):
    return [
        f"{user}{day}-{i},{user}{i % 2},i{i},view,{START + day * DAY + 60 * i},1,1,"
        for i in range(n)
    ]


@pytest.mark.long
def test_a_second_run_reads_only_new_files_and_settles_only_their_days(tmp_path, monkeypatch):
    monkeypatch.setattr(settling, "_UNIT_ROWS", 5)  # a unit a day
    shop = Shop(tmp_path)
    for day in range(20):
        shop.log(f"{day:02}.csv", lines(day))
    first, _ = shop.take()
    assert first.reused == {"pieces": 0, "days": 0}
    shop.log("20.csv", lines(20))
    second, out = shop.take()
    assert second.reused == {"pieces": 20, "days": 20}
    assert events_of(out).height == 105
    same((second, out), shop.scratch())


@pytest.mark.long
def test_a_changed_file_is_taken_again_and_its_old_rows_are_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(settling, "_UNIT_ROWS", 5)
    shop = Shop(tmp_path)
    for day in range(20):
        shop.log(f"{day:02}.csv", lines(day))
    shop.take()
    shop.log("03.csv", [*lines(3, 4), f"b,,i1,view,{START},1,1,"])
    changed, out = shop.take()
    assert changed.reused["pieces"] == 19
    assert changed.reused["days"] == 20 - 1 - settling.LOOK_BACK_DAYS
    assert events_of(out).height == 99
    assert changed.tallies["events"].reasons == {"missing_value": 1}
    same((changed, out), shop.scratch())
    (shop.logs / "03.csv").unlink()
    gone, out = shop.take()
    assert events_of(out).height == 95
    same((gone, out), shop.scratch())
    assert len(list((tmp_path / "pieces/pieces").iterdir())) == 19  # nothing stale is kept


@pytest.mark.long
def test_late_events_go_to_their_own_days(tmp_path, monkeypatch):
    monkeypatch.setattr(settling, "_UNIT_ROWS", 5)
    shop = Shop(tmp_path)
    for day in range(12):
        shop.log(f"{day:02}.csv", lines(day))
    shop.take()
    shop.log("12.csv", [*lines(12), *lines(2)[:2], f"late,u0,i1,view,{START + 2 * DAY + 90},1,1,"])
    late = shop.take()
    assert late[0].tallies["events"].reasons == {"duplicate": 2}
    same(late, shop.scratch())


@pytest.mark.parametrize("rows", [5, 60, 10_000])
def test_inferred_impressions_do_not_depend_on_how_days_are_cut(tmp_path, monkeypatch, rows):
    shop = Shop(tmp_path)
    shop.impressions = ImpressionSettings(when="missing", per_event=4)
    for day in range(4):
        shop.log(f"{day:02}.csv", [*lines(day, 20), *lines(day, 20, f"v{day}")])
    whole = shop.scratch()
    monkeypatch.setattr(settling, "_UNIT_ROWS", rows)
    monkeypatch.setattr(reading, "_BATCH_ROWS", 2)
    cut, out = shop.take()
    events = events_of(out)
    shown = events.filter("inferred")
    assert cut.tallies["events"].added == {"inferred_impression": shown.height}
    assert shown.height > 160
    assert shown["sampling_probability"].is_between(0, 1, closed="right").all()
    by_id = [frame.sort("event_id") for frame in (events, events_of(whole[1]))]
    assert by_id[0].equals(by_id[1])
    assert cut.log == whole[0].log


def test_a_folder_that_was_renamed_is_read_again_where_it_tells_the_date(tmp_path):
    folder = tmp_path / "logs/date=2024-01-31"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text("user,item,what\nu1,i1,view\n")
    columns = {"user_id": "user", "item_id": "item", "event_type": "what", "timestamp": "$date"}
    store = Store(tmp_path / "pieces")
    for date in ("2024-01-31", "2024-02-01"):
        folder = folder.rename(folder.with_name(f"date={date}"))
        files = EventFiles(paths=str(tmp_path / "logs"), columns=columns)
        source = Source("A shop", (files,))
        out = tmp_path / f"out-{date}"
        out.mkdir()
        inputs = pipeline.inspect(source)
        pipeline.ingest(source, inputs, pipeline.Treatment(), out, InProcess(), store)
        assert [path.name for path in (out / "events").iterdir()] == [f"date={date}"]


def test_another_version_of_polars_reads_everything_again(tmp_path, monkeypatch):
    shop = Shop(tmp_path)
    shop.log("a.csv", lines(0))
    shop.take()
    assert shop.take()[0].reused == {"pieces": 1, "days": 1}
    monkeypatch.setattr(pl, "__version__", "0.0")
    assert shop.take()[0].reused == {"pieces": 0, "days": 0}


def test_what_lay_in_the_future_comes_in_when_its_moment_has_passed(tmp_path, monkeypatch):
    monkeypatch.setattr(settling, "_UNIT_ROWS", 5)  # a unit a day
    now = [START + DAY]
    monkeypatch.setattr(times.time, "time", lambda: now[0])
    shop = Shop(tmp_path)
    shop.log("a.csv", [*lines(0), *lines(3, 2), *lines(5, 2)])
    for day, aside, reused in ((1, 4, 0), (2.5, 2, 0), (3, 2, 1), (9, 0, 0), (10, 0, 1)):
        now[0] = START + day * DAY
        taken = shop.take()
        assert taken[0].tallies["events"].quarantined == aside
        assert taken[0].reused["pieces"] == reused
        same(taken, shop.scratch())


class Fatal:
    """Ends the run when so many pieces of work are done."""

    cpus = 1

    def __init__(self, after):
        self.left = after

    def each(self, n, work, name="pieces"):
        for number in range(n):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield work(number)


@pytest.mark.long
@pytest.mark.parametrize("after", [0, 3, 12, 13, 20, 24])
def test_a_run_that_was_cut_off_goes_on_where_it_was(tmp_path, monkeypatch, after):
    monkeypatch.setattr(settling, "_UNIT_ROWS", 5)
    monkeypatch.setattr(pipeline, "TASK_BYTES", 1)
    shop = Shop(tmp_path)
    for day in range(12):
        shop.log(f"{day:02}.csv", lines(day))
    with pytest.raises(KeyboardInterrupt):
        shop.take(spread=Fatal(after))
    (shop.store.root / "pieces/.x.tmp").mkdir(parents=True)  # what a killed worker leaves
    went_on = shop.take()
    assert went_on[0].reused["pieces"] == min(12, after)
    assert went_on[0].reused["days"] == max(0, after - 12)
    assert not (shop.store.root / "pieces/.x.tmp").exists()
    same(went_on, shop.scratch())


def test_a_failure_leaves_no_half_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 400)  # the fault is in a later block than the first
    shop = Shop(tmp_path)
    shop.log("a.csv", lines(0))
    wrong = [f"e{i},u,i1,view,{START * 1000},1,1," for i in range(60)]
    shop.log("b.csv", [*lines(1, 60), *wrong])
    with pytest.raises(UserError, match=r"time is not in seconds|set time\.unit to milliseconds"):
        shop.take()
    assert [p.name for p in (shop.store.root / "pieces").iterdir() if p.name[0] == "."] == []


def test_what_was_read_before_a_failure_is_not_read_again(tmp_path):
    shop = Shop(tmp_path)
    shop.log("a.csv", lines(0, 60))  # the larger one comes first
    shop.log("b.csv", [f"e{i},u,i1,view,{START * 1000},1,1," for i in range(9)])
    with pytest.raises(UserError, match=r"time is not in seconds|set time\.unit to milliseconds"):
        shop.take()
    (kept,) = (shop.store.root / "pieces").iterdir()
    assert read_arrow(kept / reading.EVENTS).height == 60


def test_a_gap_of_more_than_a_day_is_looked_back_over(tmp_path, monkeypatch):
    monkeypatch.setattr(settling, "_UNIT_ROWS", 1)  # a unit a day
    shop = Shop(tmp_path)
    shop.sessions = SessionSettings(gap_minutes=50 * 60)
    hours = {"u0": [0, 49, 98, 149], "u1": [0, 60, 100]}
    shop.log(
        "a.csv",
        [f"{u}-{h},{u},i1,view,{START + 3600 * h},1,1," for u, all_ in hours.items() for h in all_],
    )
    outcome, out = shop.take()
    sessions = dict(events_of(out).select("event_id", "session_id").iter_rows())
    begins = {
        "u0-0": 0,
        "u0-49": 0,
        "u0-98": 0,
        "u0-149": 149,
        "u1-0": 0,
        "u1-60": 60,
        "u1-100": 60,
    }
    assert sessions == {
        event: f"{event[:2]}@{(START + 3600 * hour) * 1000}" for event, hour in begins.items()
    }
    assert outcome.log.sessions == 4


day_files = st.dictionaries(
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3 * DAY), st.integers(0, 3)), max_size=12),
    min_size=1,
    max_size=4,
)


@pytest.mark.long
@settings(max_examples=12, deadline=None)
@given(st.lists(day_files, min_size=2, max_size=3), st.sampled_from([1, 4, 1000]))
def test_any_sequence_of_files_gives_what_a_new_start_gives(tmp_path_factory, history, rows):
    folder = tmp_path_factory.mktemp("shop")
    shop = Shop(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settling, "_UNIT_ROWS", rows)
        shop.log("base.csv", lines(0))
        for files in history:
            for number, events in files.items():
                shop.log(
                    f"{number}.csv",
                    [f"{number}-{u}-{t}-{i},u{u},i{i},view,{START + t},1,1," for u, t, i in events],
                )
            incremental = shop.take()
            same(incremental, shop.scratch())
    shutil.rmtree(folder)


@pytest.mark.long
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5 * DAY // 600)), min_size=1, max_size=80),
    st.sampled_from([1, 7, 10_000]),
    st.sampled_from([30, 1500, 4000]),  # minutes: many days may lie between two events
)
def test_sessions_over_midnight_are_what_a_loop_says(tmp_path_factory, moments, rows, gap):
    shop = Shop(tmp_path_factory.mktemp("shop"))
    shop.sessions = SessionSettings(gap_minutes=gap)
    shop.log(
        "a.csv",
        [f"e{n},u{u},i1,view,{START + 600 * t},1,1," for n, (u, t) in enumerate(moments)],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settling, "_UNIT_ROWS", rows)
        outcome, out = shop.take()
    found = dict(events_of(out).select("event_id", "session_id").iter_rows())
    expected = {}
    last: dict[int, int] = {}
    begin: dict[int, int] = {}
    for n, (user, t) in sorted(enumerate(moments), key=lambda one: one[1][1]):
        if user not in last or (t - last[user]) * 600 > 60 * gap:
            begin[user] = t
        last[user] = t
        expected[f"e{n}"] = f"u{user}@{(START + 600 * begin[user]) * 1000}"
    assert found == expected
    assert outcome.log.sessions == len(set(expected.values()))
