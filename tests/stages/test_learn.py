"""`raysys learn`: warm starts, a gate that nothing leaks into, and rounds that survive a kill."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from raysys.config import PRESETS, load_settings
from raysys.ensemble.folds import base_score
from raysys.errors import UserError
from raysys.eventlog.entries import NewEntry
from raysys.eventlog.local import LocalLog
from raysys.eventlog.settings import LogSettings
from raysys.features.examples import Examples
from raysys.features.incoming import Incoming
from raysys.features.labels import LabelSettings
from raysys.features.live import LiveFeatures
from raysys.learners.baselines import ColumnModel
from raysys.learners.lightgbm_ranker import LightGBMRanker
from raysys.monitoring.reference import Reference
from raysys.monitoring.tally import Tally
from raysys.monitoring.windows import Stretch, Windows, now_ms
from raysys.registry import Registry
from raysys.registry.listing import judge_known
from raysys.serving.rollout import CanaryArgs, Rollout
from raysys.stages import learn, learn_follow, learn_round
from raysys.stages.features_settings import FeaturesSettings
from raysys.stages.learn_events import Window, build_requests, count_orders, numbered, read_since
from raysys.stages.learn_follow import Due, drift_of, follow, read_figure
from raysys.stages.learn_log import LearnedLog
from raysys.stages.learn_publish import promote
from raysys.stages.learn_replay import Neighbourhoods, relive
from raysys.stages.learn_settings import DriftFile, WindowSettings
from raysys.stages.learn_shown import build_shown
from raysys.storage import Workspace, read_manifest
from tests.features.logs import write_events
from tests.serving.shop import DAY, START
from tests.stages import learning

CUT = START + learning.TRAINED_DAYS * DAY


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return learning.shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def learned(made: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """After one round."""
    workspace = copied(made, tmp_path_factory.mktemp("learned") / "w")
    learn.run(learning.settings(), workspace)
    return workspace


@pytest.fixture
def shop(made: Workspace, tmp_path: Path) -> Workspace:
    return copied(made, tmp_path / "w")


def copied(workspace: Workspace, root: Path) -> Workspace:
    shutil.copytree(workspace.root, root)
    return Workspace(root)


LITTLE = {"covisitation": False, "learners": {}, "ensemble": None}
"""Steps of a round that nothing but the state goes on in."""


def champion(workspace: Workspace) -> str:
    return Registry(workspace.registry).resolve("champion")


def last_report(workspace: Workspace) -> dict[str, Any]:
    folder = learn.folder_of(learning.settings(), workspace)
    return json.loads((folder / "report.json").read_text())


@pytest.mark.long
def test_a_round_publishes_a_challenger_and_leaves_the_champion(
    learned: Workspace, made: Workspace
) -> None:
    registry = Registry(learned.registry)
    manifest = read_manifest(learn.folder_of(learning.settings(), learned))
    assert manifest.figures["outcome"] == "published"
    challenger = registry.resolve("challenger")
    assert challenger == manifest.figures["challenger"] != champion(learned) == champion(made)
    told = last_report(learned)
    assert told["events"] == len(learning.later(learning.rows_of_the_shop()))
    assert all(told["requests"][part] >= 10 for part in ("tune", "blend", "gate"))
    steps = [effect["step"] for effect in told["gate"]["effects"]]
    assert steps[:2] == ["state", "covisitation"]
    assert {*steps[2:], *told["unchanged"]} == {"lightgbm_ranker", "ensemble"}
    page = (learn.folder_of(learning.settings(), learned) / "report.html").read_text()
    assert page.count("<svg") == 1 and challenger in page
    scores = learn.folder_of(learning.settings(), learned) / "base_scores" / "fold=1.parquet"
    assert set(learning.CHOSEN) < set(pl.read_parquet_schema(scores))
    (line,) = learn.journal(learned)
    assert line["difference"] == told["gate"]["difference"]["ndcg@10"]
    assert not (learned.learn / ".work").exists()


def test_effects_add_up_to_the_difference(learned: Workspace) -> None:
    gate = last_report(learned)["gate"]
    since_live = gate["effects"][1:]  # the champion follows the log, too
    total = sum(effect["difference"]["value"] for effect in since_live)
    assert total == pytest.approx(gate["difference"]["ndcg@10"]["value"])


def test_the_challenger_serves_from_where_the_log_ends(learned: Workspace) -> None:
    """Its state is that of a replica which followed the log, to the last bit."""
    registry = Registry(learned.registry)
    bundle = registry.load("challenger")
    rows = learning.rows_of_the_shop()
    fresh = [
        {k: v for k, v in row.items() if v is not None} for row in rows if row["timestamp"] >= CUT
    ]
    replica = LiveFeatures.load(registry.path("champion") / "features")
    Incoming(replica).apply(fresh)
    assert bundle.features.as_of == replica.as_of == rows[-1]["timestamp"]
    replica.covisitation = bundle.features.covisitation
    for user in range(0, 24, 5):
        number = replica.user_number(f"u{user}")
        assert bundle.features.user_number(f"u{user}") == number
        items = replica.candidates(number, replica.as_of + 1).items
        here, there = (
            live.batch(number, items, replica.as_of + 1) for live in (bundle.features, replica)
        )
        assert np.array_equal(here.features, there.features, equal_nan=True)
        assert np.array_equal(here.history[0], there.history[0])
    assert bundle.manifest.data == {
        "bundle": champion(learned), "ingest": read_manifest(learned.ingest).fingerprint,
    }  # fmt: skip


def test_promote_knows_what_the_gate_measured(learned: Workspace) -> None:
    registry = Registry(learned.registry)
    challenger = registry.verify("challenger")
    judged = judge_known(registry, challenger, champion(learned))
    gate = challenger.figures["gate"]
    assert (judged.how, judged.challenger) == ("paired", gate["challenger"])
    assert judged.champion == gate["champion"]


def test_nothing_new_makes_no_round(learned: Workspace) -> None:
    before = read_manifest(learn.folder_of(learning.settings(), learned)).created
    assert learn.run(learning.settings(), learned).created == before
    assert len(learn.journal(learned)) == 1


def test_the_parts_know_nothing_of_what_comes_after_them(made: Workspace) -> None:
    """Requests lie whole in their parts; what is known of them does not change with the future."""
    frame = read_since(made.ingest / "events", CUT - 1)
    live = LiveFeatures.load(Registry(made.registry).path("champion") / "features")
    told = WindowSettings(gate_days=10, fit_days=15, gap_minutes=60, tune_requests=9)
    window = Window.cut(told, live.as_of, int(frame["time"].max()), tuned=True)
    group_by, labels = ["order_id", "session_id"], LabelSettings()

    def of(part: pl.DataFrame) -> pl.DataFrame:
        found = build_requests(part, numbered(part, live, group_by), window, labels, told, group_by)
        assert found.relevant["label"].min() > 0
        return found.frame

    requests = of(frame)
    bounds = np.array(window.bounds)
    fold, time = requests["fold"].to_numpy(), requests["time"].to_numpy()
    assert sorted(set(fold)) == [0, 1, 2] and (fold == 0).sum() == 9  # drawn
    assert (time >= bounds[fold]).all() and (time + 3_600_000 < bounds[fold + 1]).all()
    # a basket that goes on across a bound belongs to nobody
    first = requests.filter(fold=1).row(-1, named=True)
    more = frame.filter(pl.col("order_id") == first["request_id"]).with_columns(
        time=pl.lit(window.starts[2] + 1)
    )
    longer = pl.concat([frame, more]).sort("time", maintain_order=True)
    assert first["request_id"] not in of(longer)["request_id"].to_list()
    without = of(frame.filter(pl.col("time") < window.starts[2]))
    columns = ["request_id", "user", "time", "fold", "n_relevant"]
    assert without.select(columns).equals(requests.filter(fold=pl.lit(0)).select(columns).vstack(
        requests.filter(fold=pl.lit(1)).select(columns)))  # fmt: skip


def test_features_of_the_fit_are_the_same_whatever_the_gate_held(shop: Workspace) -> None:
    """Steps up to the gate's first moment, with the gate's events shuffled among the items."""
    settings = learning.settings()
    learn_up_to(shop, settings, "relived")
    work = shop.learn / ".work"
    first = Examples(work / "relived" / "after", (0, 1)).batch()
    facts = json.loads((work / "relived" / "step.json").read_text())
    events = pl.read_parquet(work / "events" / "events.parquet")
    gate = facts["bounds"][2]
    items = events["item_id"].to_list()
    late = [at for at, time in enumerate(events["time"].to_list()) if time >= gate]
    for at, other in zip(late, reversed(late), strict=True):
        items[at] = events["item_id"][other]
    changed = events.with_columns(item_id=pl.Series(items))
    assert not changed.equals(events)
    changed.write_parquet(work / "events" / "events.parquet")
    shutil.rmtree(work / "relived")
    learn_up_to(shop, settings, "relived")
    again = Examples(work / "relived" / "after", (0, 1)).batch()
    assert np.array_equal(first.features, again.features, equal_nan=True)
    assert np.array_equal(first.item, again.item)


class Cut(BaseException):
    """As Ctrl-C: no handler of ours catches it."""


def interrupted(*_: Any, **__: Any) -> None:
    raise Cut


def learn_up_to(workspace: Workspace, settings: Any, step: str) -> None:
    """A round that is cut off after a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn_round.Round, "step", cutting(step))
        with pytest.raises(Cut):
            learn.run(settings, workspace)


def cutting(name: str) -> Callable[..., Any]:
    """`Round.step`, which is cut off when that step is done."""
    step = learn_round.Round.step

    def stopping(self: learn_round.Round, asked: str, do: Any) -> Any:
        told = step(self, asked, do)
        if asked == name:
            raise Cut
        return told

    return stopping


@pytest.mark.long
def test_a_round_that_was_cut_off_goes_on(
    shop: Workspace, learned: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each step, within one, after all; none is done twice, and the outcome is the same."""
    settings, done = learning.settings(), Counter[str]()
    steps = ["events", "relived", "learner-lightgbm_ranker", "blend", "gate"]
    whole = learn_round.Round.step

    def counting(self: learn_round.Round, asked: str, do: Any) -> Any:
        def counted(out: Path) -> Any:
            done[asked] += 1
            return do(out)

        return whole(self, asked, counted)

    monkeypatch.setattr(learn_round.Round, "step", counting)
    before = Registry(shop.registry).pointers()
    for step in steps:
        if step.startswith("learner"):
            with monkeypatch.context() as patch:
                patch.setattr(LightGBMRanker, "resume", interrupted)
                with pytest.raises(Cut):
                    learn.run(settings, shop)
            assert {path.name for path in (shop.learn / ".work").iterdir()} == {
                "plan.json", "events", "relived",
            }  # fmt: skip
        learn_up_to(shop, settings, step)
        assert Registry(shop.registry).pointers() == before
        assert learn.journal(shop) == [] and learn.unfinished(shop)
    (shop.ingest / "events").rename(shop.root / "gone")  # what the round needs it has already
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn, "_note", interrupted)  # the report is in its place, the journal lacks
        with pytest.raises(Cut):
            learn.run(settings, shop)
    manifest = learn.run(settings, shop)
    assert done == Counter([*steps, "learner-lightgbm_ranker", "published", "report"])
    assert [line["round"] for line in learn.journal(shop)] == [1]
    assert len(list((shop.learn / "rounds").iterdir())) == 1
    assert manifest.figures["challenger"] == learn.journal(learned)[0]["challenger"]
    assert not learn.unfinished(shop)


@pytest.mark.slow
def test_killed_while_it_publishes(shop: Workspace) -> None:
    """SIGKILL between the bundle and its name: the next try names the same bundle."""
    program = f"""
import os, signal
from pathlib import Path
from raysys.registry import Registry
from raysys.stages import learn
from raysys.storage import Workspace
from tests.stages import learning
Registry.point = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
learn.run(learning.settings(), Workspace(Path({str(shop.root)!r})))
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-2000:]
    registry = Registry(shop.registry)
    (fresh,) = set(registry.list()) - {champion(shop)}
    assert "challenger" not in registry.pointers() and learn.journal(shop) == []
    learn.run(learning.settings(), shop)
    assert registry.pointers() == {"champion": champion(shop), "challenger": fresh}
    assert len(registry.list()) == 2
    learn.run(learning.settings(), shop)
    assert len(learn.journal(shop)) == 1


@pytest.mark.long
def test_logged_examples_are_what_was_shown(made: Workspace, tmp_path: Path) -> None:
    """With labels that stop at the end of their part."""
    rows = learning.with_impressions(learning.rows_of_the_shop())
    write_events(tmp_path / "events", [row for row in rows if row["timestamp"] >= CUT])
    champion = Registry(made.registry).path("champion") / "features"
    live, frozen = LiveFeatures.load(champion), LiveFeatures.load(champion)
    told = {**read_manifest(made.features).settings, "examples": {"from": "log"}}
    features = FeaturesSettings.model_validate(told)
    settings = WindowSettings(gate_days=10, fit_days=20, gap_minutes=0, tune_requests=9)
    frame = read_since(tmp_path / "events", live.as_of)
    events = numbered(frame, live, features.group_by)
    # a basket whose answer came just before the gate was bought in it: the blend knows of nothing
    bounds = sorted({row["timestamp"] for row in rows if row["event_type"] == "purchase"})
    gate = next(time for time in bounds if time > rows[-1]["timestamp"] - 10 * DAY)
    window = Window(live.as_of, (CUT, CUT + 12 * DAY, gate), rows[-1]["timestamp"] + 1)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    requests = build_shown(frame, events, window, live, features, settings, scratch)
    assert requests.frame["fold"].unique().sort().to_list() == [0, 1, 2]
    assert requests.found[0] > (requests.frame["fold"] == 0).sum() == 9  # drawn
    late = f"r{next(row['order_id'] for row in rows if row['timestamp'] == gate)}"
    assert late not in requests.frame["request_id"].to_list()
    near = Neighbourhoods(live.covisitation, (live.covisitation,) * 3)
    relive(live, events, requests, near, tmp_path / "out", frozen=frozen, history=24)
    for side in ("after", "before", "frozen"):
        examples = Examples(tmp_path / "out" / side, (2,))
        batch = examples.batch()
        assert batch.label is not None and batch.n_requests >= 10
        for at, name in enumerate(examples.requests()["request_id"].to_pylist()):
            mine = slice(batch.offsets[at], batch.offsets[at + 1])
            own = [row for row in rows if row.get("request_id") == name]
            shown = [row["item_id"] for row in own if row["event_type"] == "impression"]
            assert sorted(live.catalogue.ids[batch.item[mine]].tolist()) == sorted(shown)
            bought = {row["item_id"] for row in own if row["event_type"] == "purchase"}
            wanted = batch.item[mine][batch.label[mine] > 0]
            assert set(live.catalogue.ids[wanted].tolist()) == bought


def test_a_worse_one_is_refused(shop: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner that went astray: the gate sees it, and nothing is published."""
    monkeypatch.setattr(
        LightGBMRanker, "resume", lambda *_: _Astray("user_item_purchases_112d", 0.0)
    )
    monkeypatch.setattr(learn_round, "load_model", lambda *_: _Astray("user_item_purchases_112d"))
    before = Registry(shop.registry).pointers()
    manifest = learn.run(
        learning.settings(steps={"learners": {"lightgbm_ranker": {"steps": 4}}, "ensemble": None}),
        shop,
    )
    assert manifest.figures["outcome"] == "refused" and "is worse" in manifest.figures["reason"]
    assert Registry(shop.registry).pointers() == before
    assert len(Registry(shop.registry).list()) == 1
    assert learn.journal(shop)[0]["outcome"] == "refused"


class _Astray(ColumnModel):
    """Ranks what was never bought first, by far."""

    def __init__(self, column: str, missing: float = 0.0) -> None:
        super().__init__(column, missing)

    def score(self, batch: Any) -> np.ndarray:
        return -1000 * super().score(batch)


def test_a_gate_may_ask_for_more(shop: Workspace) -> None:
    """With nothing but the state warmed up, the two are the same when both follow the log."""
    manifest = learn.run(
        learning.settings(steps=LITTLE, gate={"resamples": 100, "need": "better"}), shop
    )
    assert manifest.figures["outcome"] == "refused"
    assert "not surely better" in manifest.figures["reason"]
    assert manifest.figures["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_champion_changes_only_when_told_to(shop: Workspace) -> None:
    """And not if another one has become it meanwhile."""
    settings = learning.settings(
        publish={"promote": "when_better"},
        gate={"resamples": 100, "against": "frozen"},
        steps=LITTLE,
    )
    registry = Registry(shop.registry)
    old = champion(shop)
    learn_up_to(shop, settings, "gate")
    figures = shop.learn / ".work" / "gate" / "step.json"
    told = json.loads(figures.read_text())
    told["difference"]["ndcg@10"] = {"value": 0.1, "low": 0.05, "high": 0.15}
    figures.write_text(json.dumps(told))
    learn_up_to(shop, settings, "report")  # cut off when it was promoted already
    assert learn.run(settings, shop).figures["promoted"] == "it is the champion now"
    assert champion(shop) == registry.resolve("challenger") != old
    assert registry.history("champion") == (old,)
    assert len(learn.journal(shop)) == 1
    before, after = registry.load(old), registry.load("champion")
    batch = Examples(shop.features, (1,)).batch()
    for name, model in after.learners.items():  # none of them was named
        said = base_score(name, before.learners[name], batch)
        assert np.array_equal(base_score(name, model, batch), said)
    made: Any = SimpleNamespace(settings=settings, plan=SimpleNamespace(champion=old))
    assert "another bundle than when" in promote(made, registry, old, told)
    told["difference"]["ndcg@10"]["low"] = -0.01
    assert "not surely better" in promote(made, registry, old, told)
    assert registry.history("champion") == (old,)


def test_a_rollback_while_a_round_ends_is_not_undone(tmp_path: Path, monkeypatch) -> None:
    registry = Registry(tmp_path)
    began, back, new = (
        registry.publish(lambda folder, text=text: (folder / "a.json").write_text(text) and None)
        for text in "123"
    )
    registry.point("champion", back)
    monkeypatch.setattr(registry, "pointers", lambda: {"champion": began})  # a moment ago
    settings = learning.settings(publish={"promote": "when_better"})
    made: Any = SimpleNamespace(settings=settings, plan=SimpleNamespace(champion=began))
    figure = {"ndcg@10": {"value": 0.2, "low": 0.1, "high": 0.3}}
    told = {"metric": "ndcg@10", "difference": figure, "challenger": figure, "champion": figure}
    said = promote(made, registry, new, told)
    assert said == f"the champion stays: 'champion' means another bundle by now: {back}"
    assert registry.resolve("champion") == back


def test_a_canary_is_asked_for_unless_one_runs(shop: Workspace) -> None:
    settings = learning.settings(publish={"promote": "canary"}, steps=LITTLE)
    manifest = learn.run(settings, shop)
    registry = Registry(shop.registry)
    rollout = Rollout(registry.root)
    assert rollout.read().canary.bundle == manifest.figures["challenger"]
    assert manifest.figures["promoted"] == "a canary for 5% of the users"
    first = manifest.figures["challenger"]
    again: Any = SimpleNamespace(settings=settings)
    assert promote(again, registry, "another", {}) == f"no canary: {first} is being tried"
    assert rollout.read().canary.bundle == first
    rollout.halt(first, "slow")  # a guard has ended it, so the next may be tried
    assert promote(again, registry, "another", {}).startswith("a canary for")
    assert rollout.read().canary.bundle == "another"
    rollout.ask(CanaryArgs(bundle=first, share=0.5))
    registry.point("champion", first)  # it was promoted
    assert promote(again, registry, "another", {}).startswith("a canary for")
    rollout.ask(None)
    rollout.halt("another", "slow")
    assert "a guard has ended" in promote(again, registry, "another", {})


def test_too_few_requests_judge_nothing(shop: Workspace) -> None:
    window = {**learning.WINDOW, "min_requests": 5000}
    manifest = learn.run(learning.settings(window=window), shop)
    assert manifest.figures["outcome"] == "too_few" and "5,000" in manifest.figures["reason"]
    learning.write_log(shop, [r for r in learning.rows_of_the_shop() if r["timestamp"] < CUT])
    manifest = learn.run(learning.settings(), shop)
    assert manifest.figures["outcome"] == "too_few"
    assert "challenger" not in Registry(shop.registry).pointers()


def test_orders_are_counted_as_co_visitation_counted_them(made: Workspace) -> None:
    bundle = Registry(made.registry).load("champion")
    as_of = bundle.features.as_of
    catalogue = bundle.features.catalogue
    count = count_orders(made.ingest / "events", catalogue, ["order_id", "session_id"], as_of)
    rows = [row for row in learning.rows_of_the_shop() if row["timestamp"] <= as_of]
    pairs = {(row["order_id"], row["item_id"]) for row in rows}
    expected = Counter(item for _, item in pairs)
    assert {i: int(n) for i, n in zip(catalogue.ids, count, strict=True) if n} == expected


def test_sessions_of_one_name_belong_to_their_users(made: Workspace, tmp_path: Path) -> None:
    """Counted and numbered apart, as the features stage does."""
    live = LiveFeatures.load(Registry(made.registry).path("champion") / "features")
    item = str(live.catalogue.ids[0])
    row = {"event_type": "purchase", "item_id": item, "timestamp": 5 * DAY}
    names = [("u0", "1", None), ("u1", "1", None), ("u1", "x", "1"), ("1", None, None)]
    rows = [
        {**row, "event_id": f"e{at}", "user_id": user, "session_id": session, "order_id": order}
        for at, (user, session, order) in enumerate(names)
    ]
    write_events(tmp_path / "events", rows)
    group_by = ["order_id", "session_id"]
    count = count_orders(tmp_path / "events", live.catalogue, group_by, 5 * DAY)
    assert count[0] == count.sum() == 4
    events = numbered(read_since(tmp_path / "events", 0), live, group_by)
    assert len(set(events.order.tolist())) == 4


def test_follow_begins_rounds_as_they_are_due(
    shop: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock, by what is new in the log, by drift; a cut-off round comes first."""
    events = LocalLog(shop.eventlog, LogSettings(segment_mb=1))
    drift = tmp_path / "drift.json"
    told = {"kind": "file", "file": str(drift), "figure": "scores.psi", "above": 0.2}
    settings = learning.settings(
        follow={"every_minutes": 60, "new_events": 3, "drift": told, "rest_minutes": 10}
    )
    now = [1_000_000.0]
    log = LearnedLog(settings, shop)
    log._named = LogSettings(segment_mb=1), shop.eventlog
    due = Due(settings, shop, log, clock=lambda: now[0])
    assert due.reason() == "it is the first"
    due.begun()
    assert due.reason() is None
    view = {"event_type": "view", "user_id": "u1", "item_id": "i00001", "timestamp": 5}
    events.append([NewEntry(f"n{n}", 5, "event", {**view, "event_id": f"n{n}"}) for n in range(4)])
    assert due.reason() == "4 events are new"
    due.begun()
    drift.write_text('{"scores": {"psi": 0.5')
    assert due.reason() is None
    drift.write_text('{"scores": {"psi": 0.5}}')
    assert due.reason() is None  # a new round changes no past
    now[0] += 11 * 60
    assert due.reason() == "scores.psi is 0.5, above 0.2"
    due.begun()
    now[0] += 3600
    assert due.reason() == "60 minutes have passed"
    due.begun()
    due.failed()
    monkeypatch.setattr(learn, "unfinished", lambda _: True)
    assert due.reason() is None  # not at once
    now[0] += 300
    assert due.reason() == "the last one failed"
    due.begun()
    assert due.reason() is None
    assert Due(settings, shop, log, clock=lambda: now[0]).reason() == "one was cut off"
    log.close()
    events.close()


def test_follow_remembers_the_last_round(learned: Workspace) -> None:
    settings = learning.settings(follow={"every_minutes": 60})
    log, began = LearnedLog(settings, learned), time.time()
    assert Due(settings, learned, log).reason() is None
    due = Due(settings, learned, log, clock=lambda: began + 3601)
    assert due.reason() == "60 minutes have passed"


def test_follow_goes_on(shop: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later round that fails does not end it; the first one does."""
    came: list[str] = []
    monkeypatch.setattr(
        Due, "reason", lambda self: "it is due" if self._began is None or came else None
    )
    settings = learning.settings(steps=LITTLE)
    told = (settings, shop, lambda manifest: came.append(manifest.figures["outcome"]))
    follow(*told, rounds=2, pause=lambda _: None)
    assert came == ["published"]  # the second had nothing new
    (line,) = learn.journal(shop)
    assert line["trigger"] == "it is due"
    monkeypatch.setattr(learn_follow.learn, "run", _fails)
    with pytest.raises(UserError, match="no champion"):
        follow(learning.settings(), shop, rounds=1)


def _fails(*_: Any, **__: Any) -> None:
    raise UserError("no champion")


def test_figures_that_are_not_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    told = DriftFile(file=str(path), figure="a.b", above=1)
    assert read_figure(told) is None
    for content in ("[]", '{"a": 1}', '{"a": {"b": "x"}}', "nothing"):
        path.write_text(content)
        assert read_figure(told) is None
    path.write_text('{"a": {"b": 2}}')
    assert read_figure(told) == 2.0


def test_what_replicas_counted_is_drift(
    learned: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Counts of what was served, of the very bins of the challenger's reference."""
    told = {"kind": "served", "windows": str(tmp_path), "thresholds": {"least_requests": 1}}
    follow = {"every_minutes": None, "drift": told, "rest_minutes": 0}
    settings = learning.settings(champion="challenger", publish={"name": "next"}, follow=follow)
    bundle = Registry(learned.registry).path("challenger")
    reference = Reference.load(bundle)
    assert reference is not None and reference.requests == last_report(learned)["gate"]["requests"]
    assert drift_of(settings, learned) is None  # nobody counted yet
    windows, now = Windows(tmp_path, bundle.name, reference), now_ms()

    def served(counts: np.ndarray) -> None:
        tally = Tally.empty(reference.grid.size)
        for user in range(500):
            tally = tally.add(counts, 60, f"u{user}")
        windows.write(Stretch(now - 1000, now, "r1", tally))

    served(np.concatenate([each.counts for each in reference.variables]))
    assert drift_of(settings, learned) is None
    served(np.concatenate([list(each.counts)[::-1] for each in reference.variables]))
    said = drift_of(settings, learned)
    assert said is not None and said.startswith("the shop has drifted: ")
    log = LearnedLog(settings, learned)
    assert Due(settings, learned, log).reason() == said
    older = learning.settings(follow=follow)  # a champion of before references
    due = Due(older, learned, log)
    assert due.reason() is None and due.reason() is None
    assert sum("cannot be told" in record.getMessage() for record in caplog.records) == 1


def test_one_at_a_time(shop: Workspace) -> None:
    with learn._alone(shop), pytest.raises(UserError, match="another `raysys learn`"):
        learn.run(learning.settings(), shop)


@pytest.mark.long
def test_what_cannot_work_is_said(shop: Workspace) -> None:
    with pytest.raises(UserError, match="no learner 'xgboost_ranker'"):
        learn.run(learning.settings(steps={"learners": {"xgboost_ranker": {"steps": 3}}}), shop)
    with pytest.raises(UserError, match="popular cannot go on"):
        learn.run(learning.settings(steps={"learners": {"popular": {"steps": 3}}}), shop)
    whole = shop.ingest.rename(shop.root / "whole")
    learning.write_log(shop, [r for r in learning.rows_of_the_shop() if r["timestamp"] >= CUT])
    with pytest.raises(UserError, match="of the pairs were not counted"):
        learn.run(learning.settings(), shop)
    shutil.rmtree(shop.ingest)
    whole.rename(shop.ingest)
    with pytest.raises(UserError, match="no bundle"):
        learn.run(learning.settings(champion="nobody"), shop)
    told = json.loads((shop.features / "manifest.json").read_text())
    told["settings"]["plan"]["features"].pop()
    (shop.features / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="reads other features"):
        learn.run(learning.settings(), shop)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"publish": {"name": "champion"}}, "would replace it unjudged"),
        ({"gate": {"against": "frozen"}, "steps": {"state": False}}, "frozen champion"),
        ({"follow": {"every_minutes": None}}, "no round ever begins"),
        ({"publish": {"promote": "always"}}, "publish.promote"),
        ({"window": {"blend_share": 1.0}}, "window.blend_share"),
        ({"windows": {}}, "did you mean 'window'"),
    ],
)
def test_settings_that_cannot_work_are_named(content: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        learning.settings(**content)


def test_the_preset_loads() -> None:
    preset = load_settings(learn.LearnSettings, PRESETS / "complete_journey" / "learn.yaml")
    assert preset.publish.promote == "never" and preset.gate.need == "not_worse"
