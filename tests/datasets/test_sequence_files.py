"""Public formats of sessions and sequences: one tiny file each, and what is refused."""

from __future__ import annotations

import gzip
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysys.datasets.sequence_files import (
    read_sequence_file,
    read_session_file,
    read_test_file,
    without_prefixes,
)
from raysys.datasets.sequence_lists import Lists, last_days
from raysys.datasets.sequence_names import Columns
from raysys.datasets.sequence_rows import MISSING
from raysys.datasets.sequences import Case
from raysys.errors import UserError

ADAY = 1396861869  # 2014-04-07 09:11:09 UTC


def written(folder: Path, text: str, name: str = "file") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# Session 2 ends before session 1; within session 1 the lines are not in the order of time.
EXPECTED = [["214", "215"], ["301", "302", "301"]]
EVENTS = [(1, "302", 40), (2, "214", 0), (1, "301", 30), (2, "215", 10), (1, "301", 50)]


def rows(form: str, head: str = "", moment: Callable[[int], object] = lambda t: ADAY + t) -> str:
    return head + "".join(form.format(s=s, i=i, t=moment(t)) + "\n" for s, i, t in EVENTS)


def iso(t: int) -> str:
    return str(np.datetime64(ADAY * 1000 + t * 1000, "ms")) + "Z"


def day(t: int) -> str:
    return "2016-05-09"


SESSION_TEXTS = {
    "yoochoose": rows("{s},{t},{i},0", "session_id,timestamp,item_id,category\n", iso),
    "yoochoose without header": rows("{s},{t},{i},0", "", iso),
    "gru4rec": rows("{s}\t{i}\t{t}.277", "SessionId\tItemId\tTime\n"),
    "gru4rec without header": rows("{s}\t{i}\t{t}"),
    "recbole": rows(
        "{s}\t{i}\t{t}", "session_id:token\titem_id:token\ttimestamp:float\n", lambda t: ADAY + t
    ),
    "retailrocket": rows(
        "{t},{s},view,{i},",
        "timestamp,visitorid,event,itemid,transactionid\n",
        lambda t: 1000 * (ADAY + t),
    ),
    "rees46": rows(
        "{t},view,{i},7,a.b,c,9.5,77,{s}",
        "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n",
        lambda t: iso(t)[:19].replace("T", " ") + " UTC",
    ),
    "trivago": rows(
        "u,{s},{t},1,clickout item,{i},DE",
        "user_id,session_id,timestamp,step,action_type,reference,platform\n",
    )
    + f"u,1,{ADAY},1,search for poi,Old Town,DE\n",
    "json lines": "".join(
        json.dumps({"session_id": s, "item_id": i, "time": ADAY + t}) + "\n" for s, i, t in EVENTS
    ),
    "json document of events": json.dumps(
        [{"session_id": s, "item_id": i, "time": ADAY + t} for s, i, t in EVENTS], indent=1
    ),
    "taobao": rows("{s},{i},99,pv,{t}"),
    "quoted": rows('"{s}";"{i}";"{t}"', '"session";"item";"time"\n'),
    "windows line ends": rows("{s},{i},{t}\r", "session_id,item_id,timestamp\r\n"),
    "only an order": rows("{s},{i},{t}", "session_id,item_id,timestamp\n", lambda t: t),
}


@pytest.mark.parametrize("name", SESSION_TEXTS)
def test_sessions_of_events(tmp_path: Path, name: str) -> None:
    found = read_session_file(written(tmp_path, SESSION_TEXTS[name]))
    assert found.to_lists() == EXPECTED
    assert found.read_as
    assert (found.ends is None) == (name == "only an order")
    if found.ends is not None:
        assert (found.ends // 1000).tolist() == [ADAY + 10, ADAY + 50]


def test_diginetica_counts_its_time_from_the_beginning_of_the_session(tmp_path: Path) -> None:
    text = rows("{s};NA;{i};{t};2016-05-09", "sessionId;userId;itemId;timeframe;eventdate\n",
                lambda t: 1000 * t)  # fmt: skip
    found = read_session_file(written(tmp_path, text))
    assert found.to_lists() == EXPECTED
    assert found.ends is not None and np.diff(found.ends).tolist() == [40_000]


def test_otto_has_events_within_sessions(tmp_path: Path) -> None:
    lines = []
    for session in (1, 2):
        told = [e for e in EVENTS if e[0] == session]
        events = [{"aid": int(i), "ts": 1000 * (ADAY + t), "type": "clicks"} for _, i, t in told]
        lines.append(json.dumps({"session": session, "events": events}))
    found = read_session_file(written(tmp_path, "\n".join(lines)))
    assert found.to_lists() == EXPECTED and found.ends is not None


@pytest.mark.parametrize("kind", ["numbers", "texts", "gaps", "moments", "nested"])
def test_parquet(tmp_path: Path, kind: str) -> None:
    frame = pl.DataFrame(EVENTS, schema=["session_id", "item_id", "ts"], orient="row")
    frame = frame.with_columns(pl.col("ts") + ADAY)
    if kind != "texts":
        frame = frame.with_columns(pl.col("item_id").cast(pl.Int64))
    if kind == "gaps":  # as pandas writes a column that had gaps
        frame = frame.with_columns(pl.col("item_id").cast(pl.Float64))
    if kind == "moments":
        frame = frame.with_columns(pl.from_epoch("ts"))
    if kind == "nested":
        frame = frame.group_by("session_id").agg(pl.struct(aid="item_id", ts="ts").alias("events"))
    path = tmp_path / "file"
    frame.write_parquet(path)
    assert read_session_file(path).to_lists() == EXPECTED


@pytest.mark.parametrize(
    "text",
    ["1 2 3\n4 5\n", "1,2,3\n4,5\n", "1\t2\t3\r\n4\t5", "[1, 2, 3]\n[4, 5]\n",
     "[[1, 2, 3],\n [4, 5]]", '{"a": [1, 2, 3], "b": [4, 5]}', '{\n"a": [1, 2, 3],\n"b": [4, 5]\n}',
     '{"session_id": 9, "items": [1, 2, 3]}\n{"session_id": 8, "items": ["4", "5"]}',
     "session_id:token\titem_id_list:token_seq\n7\t1 2 3\n8\t4 5\n",
     'session_id,items\n7,"[1, 2, 3]"\n8,"[4, 5]"\n',
     "session_id:token\titem_id_list:token_seq\titem_id:token\n1\t1 2\t3\n2\t1\t2\n3\t4\t5\n"],
)  # fmt: skip
def test_sessions_of_lists(tmp_path: Path, text: str) -> None:
    found = read_session_file(written(tmp_path, text))
    assert found.to_lists() == [["1", "2", "3"], ["4", "5"]]
    assert found.ends is None


def test_parquet_of_lists(tmp_path: Path) -> None:
    path = tmp_path / "file"
    pl.DataFrame({"session_id": [7, 8], "item_list": [[1, 2, 3], [4, 5]]}).write_parquet(path)
    assert read_session_file(path).to_lists() == [["1", "2", "3"], ["4", "5"]]


def test_a_users_events_are_cut_by_pauses(tmp_path: Path) -> None:
    text = "visitorid,itemid,timestamp\n"
    for minute, item in ((0, "a"), (30, "b"), (61, "c")):
        text += f"u,{item},{ADAY + 60 * minute}\n"
    found = read_session_file(written(tmp_path, text))
    assert found.to_lists() == [["a", "b"], ["c"]]
    assert "30 minutes" in found.read_as
    both = "user_id,session_id,itemid,timestamp\n" + "".join(
        f"u,{s},{i},{ADAY + t}\n" for s, i, t in EVENTS
    )
    path = written(tmp_path, both)
    assert read_session_file(path).to_lists() == EXPECTED
    cut = read_session_file(path, Columns(user="user_id"))
    assert cut.to_lists() == [["214", "215", "301", "302", "301"]]


def test_cases_of_a_test_file(tmp_path: Path) -> None:
    cases = [Case(["1", "2"], "3"), Case(["1"], "2")]
    own = '{"session": [1, 2], "label": 3}\n{"session": [1], "label": 2}\n'
    assert read_test_file(written(tmp_path, own))[0] == cases
    recbole = "item_id_list:token_seq\titem_id:token\n1 2\t3\n1\t2\n"
    assert read_test_file(written(tmp_path, recbole))[0] == cases
    found, read_as = read_test_file(written(tmp_path, "1 2 3\n"))
    assert isinstance(found, Lists) and found.to_lists() == [["1", "2", "3"]] and read_as
    with pytest.raises(UserError, match="a label, which the first line has not") as caught:
        read_test_file(written(tmp_path, '{"session": [1]}\n{"session": [1], "label": 2}\n'))
    assert caught.value.where.endswith("file:2")


def test_only_whole_lists_are_learned_from() -> None:
    lists = [["a", "b", "c"], ["a", "b"], ["b"], ["b", "d"], ["b", "d", "e"], ["a", "b"]]
    assert without_prefixes(lists) == [["a", "b", "c"], ["b", "d", "e"], ["a", "b"]]


RATED = "{s}{d}{i}{d}4.5{d}{t}"
SEQUENCE_TEXTS = {
    "amazon ratings": rows(RATED.replace("{d}", ",")),
    "taobao": rows("{s},{i},99,pv,{t}"),
    "movielens 1m": rows("{s}::{i}::5::{t}"),
    "movielens 100k": rows("{s}\t{i}\t5\t{t}"),
    "spaces": rows("{s}  {i} 4.5 {t}"),
    "ratings.csv": rows("{s},{i},4.0,{t}", "userId,movieId,rating,timestamp\n"),
    "recbole": rows(
        "{s}\t{i}\t3\t{t}",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n",
    ),
    "recbole list": "user_id:token\titem_id_list:token_seq\n1\t301 302 301\n2\t214 215\n",
    "amazon 5-core": "".join(
        json.dumps({"reviewerID": str(s), "asin": i, "overall": 5.0, "unixReviewTime": ADAY + t,
                    "reviewText": "good", "helpful": [0, 1]}) + "\n"
        for s, i, t in EVENTS
    ),
    "amazon 2023": "".join(
        json.dumps({"user_id": str(s), "parent_asin": i, "asin": "B00", "images": [],
                    "timestamp": 1000 * (ADAY + t)}) + "\n"
        for s, i, t in EVENTS
    ),
    "yelp": "".join(
        json.dumps({"user_id": str(s), "business_id": i, "date": iso(t)[:19].replace("T", " ")})
        + "\n"
        for s, i, t in EVENTS
    ),
    "steam": "".join(
        f"{{u'username': u'{s}', u'product_id': u'{i}', u'text': u\"don't\", "
        f"u'date': u'2017-12-{10 + t // 10}'}}\n"
        for s, i, t in EVENTS
    ),
    "json lines of lists": '{"user": 1, "items": [301, 302, 301]}\n'
    '{"user": 2, "items": [214, 215]}\n',
    "json object": '{"1": [301, 302, 301], "2": [214, 215]}',
    "plain": "1 301 302 301\n2 214 215\n",
    "plain, an event a line": "1 301\n2 214\n1 302\n2 215\n1 301\n",
    "user,item": "1,301\n2,214\n1,302\n2,215\n1,301\n",
}  # fmt: skip


@pytest.mark.parametrize("name", SEQUENCE_TEXTS)
def test_sequences(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, SEQUENCE_TEXTS[name])
    found = read_sequence_file(path)
    assert found.to_lists() == [["301", "302", "301"], ["214", "215"]]
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_sequence_file(packed).to_lists() == found.to_lists()


def test_amazons_newer_ratings_have_the_item_first(tmp_path: Path) -> None:
    text = f"B00000001X,A1AAAAAAAAAAA,5.0,{ADAY}\nB00000002X,A1AAAAAAAAAAA,3.0,{ADAY + 9}\n"
    found = read_sequence_file(written(tmp_path, text))
    assert found.to_lists() == [["B00000001X", "B00000002X"]]


@pytest.mark.parametrize("moment", [lambda t: ADAY + t, iso])
def test_a_time_is_known_by_its_values_where_its_name_is_not(
    tmp_path: Path, moment: Callable[[int], object]
) -> None:
    table = rows("{s},{i},5,{t}", "user,item,stars,when\n", moment)
    lines = "".join(
        json.dumps({"user": s, "item": i, "when": moment(t)}) + "\n" for s, i, t in EVENTS
    )
    for text in (table, lines):
        found = read_sequence_file(written(tmp_path, text))
        assert found.to_lists() == [["301", "302", "301"], ["214", "215"]]
        assert "by when" in found.read_as


@pytest.mark.parametrize("text", ["u a|1 b|2\nv a|1 b|3\n", "u a,1 b\nv a,1 c\n", "u a::b\n",
                                  "user a, 1\nvisitor b, 2\n", "a,b c,3\nd,e f,4\n"])  # fmt: skip
def test_a_user_and_items_stay_that_whatever_marks_are_in_their_names(
    tmp_path: Path, text: str
) -> None:
    found = read_sequence_file(written(tmp_path, text))
    assert found.to_lists() == [line.split()[1:] for line in text.splitlines()]


def test_columns_that_are_named_may_be_of_the_training_file_alone(tmp_path: Path) -> None:
    path = written(tmp_path, '{"session": [1, 2], "label": 3}\n')
    assert read_test_file(path, Columns(session="who", item="what"))[0] == [Case(["1", "2"], "3")]


def test_equal_times_stay_as_they_stand(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\n" + "".join(f"u,{i},{ADAY}\n" for i in "dacb")
    assert read_sequence_file(written(tmp_path, text)).to_lists() == [["d", "a", "c", "b"]]


@pytest.mark.parametrize(
    ("changed", "is_events"),
    [("", True), (f"1 7 5 {ADAY}", True), ("1 7 5", False), (f"1 7 99 {ADAY}", False),
     ("1 7 5 3", False)],
)  # fmt: skip
def test_four_columns_are_events_only_if_every_line_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changed: str, is_events: bool
) -> None:
    text = "".join(f"{u} {u + 5} 4.5 {ADAY + u}\n" for u in range(600)) + changed + "\n"
    path = written(tmp_path, text)
    found = read_sequence_file(path)
    assert found.read_as.startswith("an event a row" if is_events else "lines of a user and items")
    assert len(found) == 600
    assert found.to_lists()[2] == (["7"] if is_events else ["7", "4.5", str(ADAY + 2)])
    assert ("--format events" in caplog.text) == (not is_events)
    lists = read_sequence_file(path, forced="lists")
    assert lists.to_lists()[2] == ["7", "4.5", str(ADAY + 2)]


def test_the_last_line_may_be_cut(tmp_path: Path) -> None:
    for form in ("{u} {i} 4.5 {t}\n", "{u},{i},4.5,{t}\n", "{u}::{i}::4::{t}\n"):
        text = "".join(form.format(u=u, i=u + 5, t=ADAY + u) for u in range(20))
        found = read_sequence_file(written(tmp_path, text[:-13]))
        assert len(found) == 19 and found.counts == {"lines_left_out": 1}


def test_many_lines_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    lines = [f"{u},{u + 5},{ADAY}" for u in range(100)]
    lines[30] = lines[70] = "broken"
    path = written(tmp_path, "user_id,item_id,timestamp\n" + "\n".join(lines))
    with pytest.raises(UserError, match="2 of 100 rows cannot be read, the first: 'broken'") as e:
        read_sequence_file(path)
    assert e.value.where.endswith("file:32")
    lines[30], lines[70] = f"1,2,{ADAY}", "1,2,noon"
    path = written(tmp_path, "user_id,item_id,timestamp\n" + "\n".join(lines))
    assert read_sequence_file(path).counts == {"lines_left_out": 1}


def test_rows_without_item_or_owner_are_counted(tmp_path: Path) -> None:
    text = rows("{s},{i},{t}", "session_id,item_id,timestamp\n") + f"1,,{ADAY}\n,7,{ADAY}\n"
    found = read_session_file(written(tmp_path, text))
    assert found.to_lists() == EXPECTED
    assert found.counts == {"rows_without_item": 1, "rows_without_owner": 1}


def test_columns_are_named_where_the_guess_fails(tmp_path: Path) -> None:
    text = rows("{s},{i},{t},x", "who,what,when,why\n")
    path = written(tmp_path, text)
    with pytest.raises(UserError, match="the columns are: who, what, when, why") as caught:
        read_session_file(path)
    assert "--session-col" in caught.value.mend
    asked = Columns(session="who", item="what", time="when")
    assert read_session_file(path, asked).to_lists() == EXPECTED
    with pytest.raises(UserError, match="no column 'wen'; the columns are: who"):
        read_session_file(path, Columns(session="who", item="what", time="wen"))
    bare = rows("x,y,{s},{i},{t}")
    path = written(tmp_path, bare)
    with pytest.raises(UserError, match="the columns are: 1, 2, 3, 4, 5"):
        read_session_file(path)
    asked = Columns(session="3", item="4", time="5")
    assert read_session_file(path, asked).to_lists() == EXPECTED
    lines = json.dumps({"a": {"b": 1}, "c": 2}) + "\n" + json.dumps({"a": {"b": 1}, "c": 2})
    with pytest.raises(UserError, match="the columns are: a, c"):
        read_session_file(written(tmp_path, lines))


def test_users_without_a_time_are_no_sessions(tmp_path: Path) -> None:
    path = written(tmp_path, "user_id,item_id\nu,a\nu,b\n")
    with pytest.raises(UserError, match="cut into sessions by pauses") as caught:
        read_session_file(path)
    assert "--time-col" in caught.value.mend


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_are_not_read(tmp_path: Path, protocol: int) -> None:
    for content in (([[1, 2], [1]], [3, 2]), [[1, 2], [3]], {"a": [1]}):
        path = tmp_path / "train.txt"
        path.write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(UserError, match="pickles are not read") as caught:
            read_test_file(path)
        assert "json.dumps" in caught.value.mend


def test_the_way_out_of_a_pickle_works(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = tmp_path / "test it.txt"
    path.write_bytes(pickle.dumps(([[1, 2], [1]], [3, 2])))
    with pytest.raises(UserError) as caught:
        read_test_file(path)
    line = caught.value.mend.split("labels: ")[1].split(" > ")[0]
    line = line.replace("python ", f"{sys.executable} ", 1)
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
    path.write_text(done.stdout)
    assert read_test_file(path)[0] == [Case(["1", "2"], "3"), Case(["1"], "2")]


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"PK\x03\x04rest", "is damaged"), ("1,2\n".encode("utf-16"), "no text in UTF-8"),
     (b"\n\n", "holds nothing"), (b"PAR1rest", "cannot be read as Parquet"),
     (gzip.compress(b"session_id,item_id\n1,2\n" * 2000)[:-20], "ends in the middle")],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError, match=what):
        read_session_file(path)


@pytest.mark.parametrize(
    "names", [["ratings.csv"], ["ml/", "ml/ratings.csv", "__MACOSX/._ratings.csv"]]
)
def test_the_only_file_of_an_archive_is_read(tmp_path: Path, names: list[str]) -> None:
    content = "userId,movieId,rating,timestamp\n" + "".join(
        f"{user},{item},4.0,{1_500_000_000 + 100 * user + item}\n"
        for user in range(30)
        for item in range(3)
    )
    with zipfile.ZipFile(tmp_path / "file", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content if not name.endswith("/") else "")
    assert read_sequence_file(tmp_path / "file").to_lists() == [["0", "1", "2"]] * 30


def test_an_archive_of_several_files_is_refused_by_their_names(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "file", "w") as archive:
        archive.writestr("ratings.csv", "x")
        archive.writestr("movies.csv", "x")
    with pytest.raises(UserError, match=r"archive of 2 files \(ratings.csv, movies.csv\)") as told:
        read_sequence_file(tmp_path / "file")
    assert told.value.mend.startswith("unpack it")


def test_the_last_days_are_the_test() -> None:
    lists = Lists.of([["a"], ["b", "c"], ["c", "a"], ["b"]])
    ends = np.array([0, 86_400_000, 86_400_001, 2 * 86_400_000])
    train, test = last_days(lists, ends, 1)
    assert train.to_lists() == [["a"]]
    assert test.to_lists() == [["b", "c"], ["c", "a"], ["b"]]
    assert test.names == ["b", "c", "a"]


def test_of_dates_the_last_one_is_the_last_day() -> None:
    lists = Lists.of([["a"], ["b", "c"], ["c", "a"], ["b"]])
    train, test = last_days(lists, np.array([0, 1, 2, 2]) * 86_400_000, 1)
    assert (train.to_lists(), test.to_lists()) == ([["a"], ["b", "c"]], [["c", "a"], ["b"]])


def test_a_clock_in_the_future_does_not_choose_the_test(caplog: pytest.LogCaptureFixture) -> None:
    lists = Lists.of([["a"], ["b", "c"], ["c", "a"], ["b"]])
    ends = np.array([0, 3 * 86_400_000, 4 * 86_400_000 - 1, 4_102_444_800_000])
    with caplog.at_level("WARNING", "raysys"):
        train, test = last_days(lists, ends, 1)
    assert (train.to_lists(), test.to_lists()) == ([["a"]], [["b", "c"], ["c", "a"]])
    assert "1 sessions end in the future" in caplog.text


RECBOLE = "user_id:token\titem_id_list:token_seq\titem_id:token\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0\t1\t2\n0\t1 2\t3\n1\t8 9\t8\n0\t1 2 3\t4\n", [["1", "2", "3", "4"], ["8", "9", "8"]]),
        ("0\t1 2 3\t4\n0\t1 2\t3\n0\t1\t2\n", [["1", "2", "3", "4"]]),
        ("0\t1\t2\n0\t1 2\t3\n0\t2 3\t4\n0\t3 4\t5\n", [["1", "2", "3", "4", "5"]]),
    ],
)
def test_rows_of_prefixes_are_one_sequence_of_a_user(
    tmp_path: Path, text: str, expected: list[list[str]]
) -> None:
    assert read_sequence_file(written(tmp_path, RECBOLE + text)).to_lists() == expected


@pytest.mark.parametrize("wrong", ["0", "-1", "n/a"])
def test_one_wrong_time_does_not_change_what_a_file_is(tmp_path: Path, wrong: str) -> None:
    good = [f"u{n % 9}\tp{n % 31}\t{n % 5 + 1}\t{ADAY + n}" for n in range(300)]
    lines = [*good[:7], f"u1\tp3\t4\t{wrong}", *good[7:]]
    for mark in (",", "\t") if wrong != "n/a" else (",",):
        path = written(tmp_path, "\n".join(lines).replace("\t", mark))
        assert "an event a row" in read_sequence_file(path).read_as


def test_many_wrong_times_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"u{n % 9}\tp{n % 31}\t{ADAY + n if n % 10 else 0}" for n in range(100)]
    with caplog.at_level("WARNING", "raysys"):
        read_sequence_file(written(tmp_path, "\n".join(lines)))
    assert "column 3 holds times, but also values that are none" in caplog.text


@pytest.mark.parametrize("missing", ["nan", "NULL", "", " "])
def test_a_missing_item_is_none(tmp_path: Path, missing: str) -> None:
    text = rows("{s},{i},{t}", "session_id,item_id,timestamp\n") + f"1,{missing},{ADAY}\n"
    found = read_session_file(written(tmp_path, text))
    assert found.to_lists() == EXPECTED
    assert found.counts == {"rows_without_item": 1}


def test_a_missing_item_of_parquet_is_none(tmp_path: Path) -> None:
    path = tmp_path / "file"
    pl.DataFrame({"session_id": [1, 1, 1], "item_id": [3.0, float("nan"), 4.0]}).write_parquet(path)
    found = read_session_file(path)
    assert (found.to_lists(), found.counts) == ([["3", "4"]], {"rows_without_item": 1})
    pl.DataFrame({"user_id": [1], "items": [[3.0, float("nan"), None, 4.0]]}).write_parquet(path)
    found = read_sequence_file(path)
    assert (found.to_lists(), found.counts) == ([["3", "4"]], {"rows_without_item": 2})


def test_numbers_as_pandas_writes_them_are_the_same_items(tmp_path: Path) -> None:
    text = "session_id,item_id,timestamp\n" + rows("{s}.0, {i}.0,{t}")
    assert read_session_file(written(tmp_path, text)).to_lists() == EXPECTED


def test_ids_that_are_not_utf8_stay_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file"
    path.write_bytes("user_id,item_id,timestamp\n1,é,5\n1,è,6\n".encode("latin-1"))
    with caplog.at_level("WARNING", "raysys"):
        assert read_sequence_file(path).to_lists() == [["é", "è"]]
    assert "read as Latin-1" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        "{n}\t2010-10-19T23:55:27Z\t30.2359{n}\t-97.7951{n}\t2284{n}",
        "user{n}\t2009-05-04T23:08:57Z\tf1b1cf71\tDeep Dish\tab{n}\tSome Song",
        "{n}\tv{n}\tc{n}\tGym\t40.7338{n}\t-73.9987{n}\t-240\tTue Apr 03 18:00:09 +0000 2012",
    ],
)
def test_moments_and_coordinates_are_no_items(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, "".join(line.format(n=n) + "\n" for n in range(10, 20)))
    with pytest.raises(UserError, match="cannot tell") as caught:
        read_sequence_file(path)
    assert "--user-col" in caught.value.mend


def test_a_named_column_of_check_ins_is_read(tmp_path: Path) -> None:
    line = "1\t2010-10-1{n}T23:55:27Z\t30.2359{n}\t-97.7951{n}\t2284{n}\n"
    path = written(tmp_path, "".join(line.format(n=n) for n in range(3, 0, -1)))
    found = read_sequence_file(path, Columns(user="1", item="5", time="2"))
    assert found.to_lists() == [["22841", "22842", "22843"]]


def test_three_columns_with_a_date_are_events(tmp_path: Path) -> None:
    path = written(tmp_path, "u1\ta\t2012-01-03\nu1\tb\t2012-01-02\nu2\tc\t2012-01-02\n")
    assert read_sequence_file(path).to_lists() == [["b", "a"], ["c"]]


def test_words_above_numbers_are_a_header(tmp_path: Path) -> None:
    body = "2\t51\t13883\n2\t52\t11690\n3\t51\t11351\n"
    found = read_sequence_file(written(tmp_path, "userID\tartistID\tweight\n" + body))
    assert found.to_lists() == [["51", "52"], ["51"]]
    with pytest.raises(UserError, match="the columns are: who, what, weight"):
        read_sequence_file(written(tmp_path, "who\twhat\tweight\n" + body))


@pytest.mark.parametrize("write", [repr, json.dumps])
def test_items_may_be_objects(tmp_path: Path, write: Callable[[object], str]) -> None:
    user = {"user_id": "7", "items": [{"item_id": "10", "hours": 2}, {"item_id": "20", "hours": 6}]}
    path = written(tmp_path, write(user) + "\n" + write({**user, "user_id": "8"}) + "\n")
    for asked in (Columns(), Columns(item="item_id")):
        assert read_sequence_file(path, asked).to_lists() == [["10", "20"]] * 2
    other = {"user_id": "7", "bought": user["items"]}
    path = written(tmp_path, write(other) + "\n" + write(other) + "\n")
    found = read_sequence_file(path, Columns(item="item_id"))
    assert found.to_lists() == [["10", "20"] * 2]


@pytest.mark.parametrize(
    "times",
    [
        ["2014/04/13", "2014/04/12"],
        ["11/13/2000", "11/1/2000"],
        ["12/13/2010 8:26", "12/1/2010 10:02"],
        ["05 13, 2014", "05 2, 2014"],
    ],
)
def test_dates_with_slashes_and_of_amazon_are_times(tmp_path: Path, times: list[str]) -> None:
    text = "user_id;item_id;when\n" + "".join(f"1;{n};{time}\n" for n, time in enumerate(times))
    assert read_sequence_file(written(tmp_path, text)).to_lists() == [["1", "0"]]


def test_a_date_whose_day_may_be_the_month_is_no_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "user_id;item_id;when\n1;a;11/1/2000\n1;b;10/2/2000\n"
    with caplog.at_level("WARNING", "raysys"):
        assert read_sequence_file(written(tmp_path, text)).to_lists() == [["a", "b"]]
    assert "has no time that is read" in caplog.text
    with pytest.raises(UserError, match="holds no time") as caught:
        read_sequence_file(tmp_path / "file", Columns(time="when"))
    assert "4/13/2014" in caught.value.mend


@pytest.mark.parametrize("name", ["event_ts", "recorded"])
def test_a_time_of_parquet_may_be_a_number(tmp_path: Path, name: str) -> None:
    frame = pl.DataFrame({"user_id": [1, 1], "item_id": [3, 4], name: [ADAY + 5, ADAY]})
    frame.write_parquet(tmp_path / "file")
    assert read_sequence_file(tmp_path / "file").to_lists() == [["4", "3"]]


def test_a_quotation_mark_that_is_not_closed_swallows_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = "user_id,item_id,title,timestamp\n"
    lines = [f'1,p{n},"a, b",{ADAY + n}' for n in range(20)]
    lines[3] = f'1,p3,"Hello,{ADAY + 3}'
    lines[9] = f'1,"p9,Hello,{ADAY + 9}'
    with caplog.at_level("WARNING", "raysys"):
        found = read_sequence_file(written(tmp_path, head + "\n".join(lines)))
    names = [f"p{n}" if n != 9 else '"p9' for n in range(20)]
    assert (found.to_lists(), found.counts) == ([names], {})
    assert "2 quotation marks that nothing closes are read as characters" in caplog.text
    lines = [f'1,p{n},"a\nb",{ADAY + n}' for n in range(20)]
    found = read_sequence_file(written(tmp_path, head + "\n".join(lines)))
    assert found.to_lists() == [[f"p{n}" for n in range(20)]]


def test_a_time_beside_a_list_is_overlooked(tmp_path: Path) -> None:
    text = RECBOLE.strip() + "\ttimestamp:float\n0\t1\t2\t5\n0\t1 2\t3\t6\n"
    for read in (read_sequence_file, read_session_file):
        assert read(written(tmp_path, text)).to_lists() == [["1", "2", "3"]]


def test_lines_that_an_open_quote_swallows_are_counted(tmp_path: Path) -> None:
    lines = [f"1,p{n},a,{ADAY + n}" for n in range(40)]
    lines[30] = f'1,p30,"Hello, you,{ADAY + 30}'
    text = "user_id,item_id,title,timestamp\n" + "\n".join(lines)
    with pytest.raises(UserError, match="10 of 40 rows cannot be read"):
        read_sequence_file(written(tmp_path, text))


ITEM = st.text(st.characters(min_codepoint=48, max_codepoint=122), min_size=1, max_size=3).filter(
    lambda text: text not in MISSING
)
SESSIONS = st.lists(st.lists(ITEM, min_size=1, max_size=5), min_size=1, max_size=6)


@pytest.mark.long
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sessions=SESSIONS, shuffled=st.randoms(use_true_random=False))
def test_events_and_lists_of_the_same_are_the_same(
    tmp_path: Path, sessions: list[list[str]], shuffled: object
) -> None:
    events = []
    for number, session in enumerate(sessions):
        for at, item in enumerate(session):
            # sessions overlap, and end one after the other
            time = ADAY + 100 * number - 7 * (len(session) - 1 - at)
            events.append({"session_id": f"s{number}", "item_id": item, "timestamp": time})
    shuffled.shuffle(events)  # type: ignore[attr-defined]
    path = tmp_path / "events"
    path.write_text("\n".join(json.dumps(event) for event in events), encoding="utf-8")
    lists = tmp_path / "lists"
    lists.write_text("\n".join(json.dumps(session) for session in sessions), encoding="utf-8")
    one, other = read_session_file(path), read_session_file(lists)
    assert one.to_lists() == other.to_lists() == sessions
    assert one.items.tolist() == other.items.tolist() and list(one.names) == list(other.names)
    pl.DataFrame(events).write_csv(path)
    assert read_session_file(path).to_lists() == sessions
    pl.DataFrame(events).write_parquet(path)
    assert read_session_file(path).to_lists() == sessions
