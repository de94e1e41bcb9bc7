"""The stage over small logs: columns say what a live state would have said, however work is cut."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from safetensors.numpy import load_file, save_file

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.features.examples import Examples
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.features.numbering import number_log
from raysys.features.proposing import CandidateSettings
from raysys.features.sizes import state_size
from raysys.features.work import Work
from raysys.ingest.spread import InProcess
from raysys.retrieval.covisitation import CoVisitation
from raysys.stages.audit import examine
from raysys.stages.audit_requests import AuditOptions
from raysys.stages.features import run
from raysys.stages.features_settings import CoVisitationSettings, FeaturesSettings
from raysys.stages.features_start import planned_features
from raysys.storage import read_manifest
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
        **{"labels": {"gains": {"click": 1, "purchase": 3}, "windows_hours": {"purchase": 24}}},
        **{"history": 6, "parts": 3},
        **{"covisitation": {"min_count": 1, "refit_days": 4}, "plan": PLAN.model_dump(mode="json")},
    }
    return FeaturesSettings.model_validate({**content, **more})


LOGGED = {"examples": {"from": "log", "events": ["impression"], "keep_empty": True}}
WANTED = {
    "examples": {
        **{"from": "log", "events": ["click", "purchase"]},
        "negatives": {"per_positive": 4, "window": 20, "ranks": [2, 6]},
    }
}
WAYS = pytest.mark.parametrize("more", [LOGGED, WANTED, {}], ids=["log", "wanted", "retrieval"])


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
            session, query, positions = -1, -1, None
            if made.examples.from_ == "retrieval":
                order = events.order == int(row["request_id"].removeprefix("o"))
                session = int(events.session[order & (events.item >= 0)][0])
            if made.examples.from_ == "log":
                kinds = np.isin(every.EVENT_TYPES, made.examples.events)
                first = np.flatnonzero(shown & kinds[events.kind] & (events.item >= 0))
                session, query = (int(c[first[0]]) for c in (events.session, events.query))
                shown_in = {int(events.item[row]): row for row in first[::-1]}
                rows = [shown_in.get(int(item), -1) for item in batch.item[mine]]
                positions = np.where(np.array(rows) < 0, 0, events.position[rows])
            expected = state.batch(
                *(user, batch.item[mine], time, row["store_id"], None),
                history=6,
                session=session,
                query=query,
                positions=positions,
            )
            np.testing.assert_array_equal(batch.features[mine], expected.features)
            np.testing.assert_array_equal(batch.history[at], expected.history[0])
            assert row["n_orders"] == state.orders(user)
            if made.examples.from_ in ("retrieval", "log"):
                assert row["session"] == (session if session >= 0 else None)
            checked += 1
    return checked


@pytest.mark.long
@WAYS
def test_examples_are_what_a_live_state_says_at_their_moment(tmp_path, more) -> None:
    events = log()
    made = settings(**more)
    manifest = run(made, workspace(tmp_path, as_rows(events)), spread=InProcess())
    assert check(events, tmp_path / "features", made) == manifest.counts["requests"] > 100


def examples(folder) -> list[tuple[pl.DataFrame, pl.DataFrame]]:
    """Requests and examples of every fold, in order."""
    return [
        tuple(
            pl.concat([pl.read_parquet(path, hive_partitioning=False) for path in files])
            for files in (view.files("requests"), view.files("examples"))
        )
        for view in (Examples(folder, (fold,)) for fold in range(4))
    ]


@pytest.mark.long
@WAYS
def test_the_outcome_does_not_depend_on_how_the_work_is_cut(tmp_path, monkeypatch, more) -> None:
    rows = as_rows(log(1, 500))
    outcomes = []
    for name, parts, size in (("one", 1, 10_000), ("many", 4, 60)):
        for place in ("numbering.GROUP_ROWS", "numbered.SLICE_ROWS"):
            monkeypatch.setattr(f"raysys.features.{place}", size)
        for place in ("BLOCK_REQUESTS", "BLOCK_EVENTS"):
            monkeypatch.setattr(f"raysys.stages.features.{place}", size // 4)
        run(settings(parts=parts, **more), workspace(tmp_path / name, rows), spread=InProcess())
        outcomes.append(examples(tmp_path / name / "features"))
    for one, many in zip(*outcomes, strict=True):
        for ours, theirs in zip(one, many, strict=True):
            assert_frame_equal(ours, theirs)
    sizes = [
        read_manifest(tmp_path / name / "features").figures["state"] for name in ("one", "many")
    ]
    assert sizes[0] == sizes[1]
    assert set(sizes[0]["tables"]) == set(PLAN.states)
    assert sizes[0]["entities"]["user"]["known"] == N_USERS + 1  # and one registered
    states = [LiveFeatures.load(tmp_path / name / "features" / "state") for name in ("one", "many")]
    whole = every.live()
    whole.apply(log(1, 500))
    whole.covisitation = states[0].covisitation
    for state in states:
        assert state_size(state)["records"] == sizes[0]["records"]
        assert state.as_of == whole.as_of
        every.same(state, whole, whole.as_of + DAY)


def test_hundreds_of_refits_see_nothing_of_what_came_later(tmp_path) -> None:
    events = log(1, 500)
    made = workspace(tmp_path, as_rows(events))
    end = int(events.time[-1]) + 1
    moments = tuple(range(end - 20 * DAY, end, HOUR))
    assert len(moments) > 300
    work = Work(tmp_path / "work", PLAN, CandidateSettings(), moments)
    catalogue = work.write_catalogue(made.ingest / "items.parquet")
    number_log(made.ingest / "events", catalogue, ["order_id"], work.root / "log", InProcess())
    work.write_baskets()
    for epoch in (0, 100, 300):
        work.fit_neighbourhood(epoch, CoVisitationSettings(min_count=1))
        known = events.time < moments[epoch]
        expected = CoVisitation.fit(events.order[known], events.item[known], N_ITEMS, min_count=1)
        np.testing.assert_array_equal(work.neighbourhood(epoch).scores, expected.scores)


def test_the_state_knows_each_users_last_session_without_a_name(tmp_path) -> None:
    """In which events without a session go on when serving."""
    rows = as_rows(log(1, 300))
    for at, row in enumerate(rows):
        if at % 2:
            row["session_id"] = f"{row['user_id']}@{row['timestamp'] // DAY * DAY}"
    shop = workspace(tmp_path, rows)
    run(settings(**LOGGED), shop, spread=InProcess())
    state = LiveFeatures.load(shop.features / "state")
    newest = {row["user_id"]: row for row in rows[1::2]}
    assert newest
    for user, row in newest.items():
        number = state.user_number(user)
        session = state.sessions.number(number, row["session_id"])
        assert state.sessions.last_made(number) == (row["timestamp"], session)


@pytest.mark.long
def test_who_is_registered_alone_is_known_by_attributes(tmp_path) -> None:
    shop = workspace(tmp_path, as_rows(log(1, 300)))
    run(settings(**LOGGED), shop, spread=InProcess())
    state = LiveFeatures.load(shop.features / "state")
    number = state.user_number("registered")
    assert number == N_USERS and not state.met(number) and state.met(0)
    batch = state.batch(number, np.array([0], np.int32), state.as_of + 1)
    told = dict(zip(state.names, batch.features[0].tolist(), strict=True))
    assert (told["tier"], told["often"], told["age"]) == (1, 1, 7.5)
    assert told["bought"] == 0 and len(batch.history[0]) == 0


@pytest.mark.long
def test_an_attribute_that_nobody_has_ends_the_stage(tmp_path) -> None:
    shop = workspace(tmp_path, as_rows(log(1, 300)))
    (shop.ingest / "users.parquet").unlink()
    with pytest.raises(UserError, match="no user has the attribute 'tier'"):
        run(settings(**LOGGED), shop, spread=InProcess())


class KilledError(Exception):
    pass


class Interrupted(InProcess):
    """Does so many pieces, then is killed; counts what it did."""

    def __init__(self, pieces: int) -> None:
        self.left = pieces

    def each(self, n, work, name="pieces"):
        def do(number):
            if self.left == 0:
                raise KilledError
            self.left -= 1
            return work(number)

        yield from super().each(n, do)


@pytest.mark.long
@pytest.mark.parametrize("pieces", [1, 4, 12, 22])
def test_a_killed_stage_goes_on_where_it_was(tmp_path, pieces) -> None:
    made = settings(**LOGGED)
    rows = as_rows(log(2, 300))
    run(made, workspace(tmp_path / "whole", rows), spread=InProcess())
    torn = workspace(tmp_path / "torn", rows)
    other = torn.root / ".features.work" / "other"
    other.mkdir(parents=True)
    with pytest.raises(KilledError):
        run(made, torn, spread=Interrupted(pieces))
    assert not other.exists()
    (left,) = (torn.root / ".features.work").iterdir()
    before = {path: path.stat().st_mtime_ns for path in left.rglob("*") if path.is_file()}
    with pytest.raises(KilledError):
        run(made, torn, spread=Interrupted(pieces))  # again, and what was done is as it was
    kept = [path for path, time in before.items() if path.stat().st_mtime_ns == time]
    assert kept == list(before)
    run(made, torn, spread=InProcess())
    assert not (torn.root / ".features.work").exists()
    for one, two in zip(
        *(examples(tmp_path / name / "features") for name in ("whole", "torn")), strict=True
    ):
        assert_frame_equal(one[1], two[1])


class Wider(InProcess):
    """As on a machine with more CPUs."""

    cpus = 3


@pytest.mark.long
@pytest.mark.parametrize("pieces", [12, 22])
def test_a_killed_stage_goes_on_with_other_cpus(tmp_path, pieces) -> None:
    made = settings(parts=None, **LOGGED)
    rows = as_rows(log(2, 300))
    run(made, workspace(tmp_path / "whole", rows), spread=InProcess())
    torn = workspace(tmp_path / "torn", rows)
    with pytest.raises(KilledError):
        run(made, torn, spread=Interrupted(pieces))
    run(made, torn, spread=Wider())
    for one, two in zip(
        *(examples(tmp_path / name / "features") for name in ("whole", "torn")), strict=True
    ):
        for ours, theirs in zip(one, two, strict=True):
            assert_frame_equal(ours, theirs)


@pytest.mark.long
@pytest.mark.parametrize("more", [LOGGED, {}], ids=["log", "retrieval"])
def test_a_request_of_an_unknown_week_reads_the_newest_known_before_it(tmp_path, more) -> None:
    """In week w the item w is on display; two events of three say their week, serving says none."""
    rows = as_rows(log())
    for at, row in enumerate(rows):
        row["week"] = 3 + row["timestamp"] // (7 * DAY) if at % 3 else None
    shop = workspace(tmp_path, rows)
    promoted = [(w, s, w) for w in range(3, 3 + DAYS // 7 + 1) for s in ("s0", "s1")]
    promotions = {"week": [], "store_id": [], "item_id": [], "display": [], "mailer": []}
    for number, store, item in promoted:
        told = (number, store, f"i{item % N_ITEMS:03d}", "1", None)
        for column, value in zip(promotions.values(), told, strict=True):
            column.append(value)
    schema = {"week": pl.Int32, "mailer": pl.String}
    pl.DataFrame(promotions, schema_overrides=schema).write_parquet(
        shop.ingest / "promotions.parquet"
    )
    made = settings(**more)
    run(made, shop, spread=InProcess())
    known = {row["timestamp"]: row["week"] for row in rows if row["week"] is not None}
    checked = 0
    for requests, found in examples(shop.features):
        asked = requests.filter(pl.col("week").is_null()).select("request", "timestamp")
        for row in found.join(asked, on="request").iter_rows(named=True):
            moment = int(row["timestamp"].timestamp() * 1000)
            newest = max((w for time, w in known.items() if time < moment), default=None)
            if np.isfinite(row["on_display"]):
                assert row["on_display"] == (row["item"] == newest % N_ITEMS)
                checked += 1
    assert checked > 30
    outcome = examine(made, shop, AuditOptions(requests=4)).audit
    assert outcome.compared and "on_display" not in outcome.differences


@pytest.mark.long
@pytest.mark.parametrize("file", ["title.safetensors", "curve.json"])
def test_another_file_of_the_plan_makes_other_examples(tmp_path, file) -> None:
    shop = workspace(tmp_path, as_rows(log(2, 300)))
    (tmp_path / "curve.json").write_text("[1.0, 0.5]")
    plan = {**PLAN.model_dump(mode="json"), "examination": "curve.json"}
    made = settings(plan=plan, **LOGGED)
    first = run(made, shop, spread=InProcess())
    before = examples(shop.features)
    assert run(made, shop, spread=InProcess()).created == first.created
    if file.endswith(".json"):
        (tmp_path / file).write_text("[1.0, 0.1]")
    else:
        arrays = load_file(tmp_path / file)
        save_file({name: array[::-1].copy() for name, array in arrays.items()}, tmp_path / file)
    second = run(made, shop, spread=InProcess())
    assert second.fingerprint != first.fingerprint
    assert planned_features(made, shop).inputs == second.inputs  # by which the audit compares
    after = examples(shop.features)
    assert any(not one[1].equals(two[1]) for one, two in zip(before, after, strict=True))


@pytest.mark.long
def test_a_share_of_requests_stays_when_the_log_grows(tmp_path) -> None:
    events = log(3, 600)
    made = settings(examples={"from": "log", "events": ["click"], "share": 0.4, "keep_empty": True})
    everything = made.model_copy(update={"examples": made.examples.model_copy(update={"share": 1})})
    drawn = {}
    for name, how in (("some", made), ("all", everything)):
        run(how, workspace(tmp_path / name, as_rows(events)), spread=InProcess())
        found = pl.concat([r for r, _ in examples(tmp_path / name / "features")])
        drawn[name] = set(found["request_id"])
    assert drawn["some"] < drawn["all"]
    assert 0.2 < len(drawn["some"]) / len(drawn["all"]) < 0.6
    longer = np.flatnonzero(events.time > DAY)  # as if the log had begun later
    run(made, workspace(tmp_path / "late", as_rows(every.take(events, longer))), spread=InProcess())
    late = pl.concat([r for r, _ in examples(tmp_path / "late" / "features")])
    assert set(late["request_id"]) == drawn["some"]


@pytest.mark.long
def test_answers_are_requests_and_labels_are_what_came_of_their_rows(tmp_path) -> None:
    shown, clicked, bought = every.KINDS
    base = 25 * DAY
    rows = [  # user, item, kind, ms, answer, position
        (0, 1, shown, 0, "a", 1),
        (0, 2, shown, 5, "a", 2),  # scrolled to, a moment later
        (0, 1, clicked, 60_000, None, 0),
        (0, 1, bought, 120_000, None, 0),
        (0, 2, bought, 2 * HOUR, None, 0),  # too late
        (1, 1, shown, 10, "b", 1),
        (0, 3, shown, 3 * HOUR, None, 1),  # no answer: the moment is the request
        (0, 4, shown, 3 * HOUR, None, 2),
        (0, 4, clicked, 3 * HOUR + 1, None, 0),
    ]
    filler = every.take(log(4, 400), np.arange(400))
    keep = np.flatnonzero(filler.kind != shown)
    events = as_rows(every.take(filler, keep))
    for at, (user, item, kind, ms, answer, position) in enumerate(rows):
        events.append(
            {
                **{"event_id": f"r{at}", "event_type": every.EVENT_TYPES[kind]},
                **{"user_id": f"u{user}", "item_id": f"i{item:03d}", "timestamp": base + ms},
                **{"session_id": f"now{user}", "order_id": f"now{user}", "request_id": answer},
                "position": position or None,
            }
        )
    events.sort(key=lambda row: row["timestamp"])
    made = settings(
        train_folds=1,
        examples={"from": "log", "keep_empty": True},
        labels={"gains": {"click": 1, "purchase": 3}, "windows_hours": {"purchase": 1}},
    )
    run(made, workspace(tmp_path, events), spread=InProcess())
    view = Examples(tmp_path / "features", (2,))
    requests = pl.DataFrame(view.requests())
    assert requests["request_id"].to_list() == ["a", "b", f"u0@{base + 3 * HOUR}"]
    assert requests["timestamp"].dt.epoch("ms").to_list() == [base, base + 10, base + 3 * HOUR]
    assert requests["n_relevant"].to_list() == [1, 0, 1]
    batch = view.batch()
    assert batch.item.tolist() == [1, 2, 1, 3, 4]
    assert batch.label.tolist() == [3, 0, 0, 0, 1]


@pytest.mark.long
def test_impressions_without_a_final_label_are_no_examples(tmp_path) -> None:
    events = log(5, 600)
    labels = {"gains": {"click": 1, "purchase": 3}, "windows_hours": {"purchase": 48}}
    made = settings(labels=labels, **LOGGED)
    run(made, workspace(tmp_path, as_rows(events)), spread=InProcess())
    end = int(events.time[-1]) + 1
    ends = [end - (15 - 5 * fold) * DAY for fold in range(4)]
    shown = events.time[(events.kind == every.KINDS[0]) & (events.time >= end - 20 * DAY)]
    late = 0
    for fold, (requests, _) in enumerate(examples(tmp_path / "features")):
        newest = int(requests["timestamp"].dt.epoch("ms").max())
        assert newest < ends[fold] - 48 * HOUR
        late += int(((shown >= ends[fold] - 48 * HOUR) & (shown < ends[fold])).sum())
    assert late > 20  # which were there to be left out
    labels["windows_hours"]["purchase"] = 120  # as long as a fold
    with pytest.raises(UserError, match="known after 120 hours, and a fold has 120") as caught:
        run(settings(labels=labels, **LOGGED), workspace(tmp_path / "b", as_rows(events)))
    assert caught.value.where == "features: labels.windows_hours"


def test_examples_from_the_log_are_drawn_in_one_way() -> None:
    with pytest.raises(ValueError, match="drawn by their `share`"):
        settings(requests_per_fold={"train": 5}, **LOGGED)


def test_where_examples_come_from_is_checked_and_its_mistakes_named() -> None:
    content = {"plan": PLAN.model_dump(mode="json")}
    wrong = {**content, "examples": {"from": "log", "shares": 0.5}}
    with pytest.raises(UserError, match="did you mean 'share'"):
        parse_settings(FeaturesSettings, wrong, where="features.yaml")
    with pytest.raises(UserError, match="'retrieval', 'log'"):
        parse_settings(FeaturesSettings, {**content, "examples": {"from": "logs"}}, where="")
