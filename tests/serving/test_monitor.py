"""Watching a deployment: what replicas count, tell as gauges, and leave on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from raysys.cli import app as cli
from raysys.monitoring.drift import served_drift
from raysys.monitoring.reference import ENSEMBLE, Reference
from raysys.monitoring.tally import Tally
from raysys.monitoring.windows import Stretch, Windows, now_ms
from raysys.registry import Registry
from raysys.serving.api import RecommendRequest, SearchRequest
from raysys.serving.app import http_app
from raysys.serving.args import PagesArgs, ServeArgs
from raysys.serving.arms import Arms
from raysys.serving.asking import Context
from raysys.serving.drift import counted
from raysys.serving.events_args import EventsArgs
from raysys.serving.metrics import GAUGES, Metrics
from raysys.serving.service import Service
from tests.serving.test_experiments import Lab, by_bundle, experiment
from tests.serving.watched import USERS, publish_watched


class Gauges(Metrics):
    """Keeps the gauges, to be read as a reporter reads them."""

    def told(self) -> dict[str, Any]:
        return {
            (name, *(value for key, value in tags if key != "arm")): read()
            for (name, tags), read in self._gauges
        }


def ask(service: Service, n: int, **more: Any) -> list[Any]:
    return [
        service.answer(
            RecommendRequest(user_id=f"u{number % USERS}", k=5, **more),
            Context(time.perf_counter()),
        )
        for number in range(n)
    ]


def pages_of(service: Service) -> TestClient:
    """Its console; without keys it is the machine's own."""
    args = service.args.model_copy(update={"pages": PagesArgs(console=True)})
    service.args = args
    return TestClient(http_app(service, Arms(args, lambda _: service, watch=False)))


def eventually(true: Callable[[], Any]) -> Any:
    until = time.monotonic() + 20
    while not (found := true()):
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, _hashed_words: None) -> Registry:
    return publish_watched(tmp_path_factory.mktemp("watched"))


def serve(registry: Registry, folder: Path, **more: Any) -> Service:
    content = {
        "registry": str(registry.root),
        "clock": "log_end",
        "monitor": {
            "folder": str(folder / "monitor"), "share": 1, "refresh_s": 0.05, "feedback_s": 0.5,
            "thresholds": {"least_requests": 20},
        },
        "shown_lists": {"folder": str(folder / "shown_lists"), "segment_s": 0.1},
        "events": EventsArgs(path=str(folder / "eventlog"), segment_mb=1).model_dump(),
        **more,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raysys.serving.service.Metrics", Gauges)
        service = Service(ServeArgs.model_validate(content))
    service.warm_up()
    return service


@pytest.mark.long
def test_replicas_count_together_and_tell_the_same(watched: Registry, tmp_path: Path) -> None:
    replicas = [serve(watched, tmp_path) for _ in range(2)]
    for replica in replicas:
        ask(replica, 50)
        # lists of another surface, and about items, come about otherwise
        replica.answer(SearchRequest(query="cheese", user_id="u1"), Context(time.perf_counter()))
        ask(replica, 1, place="item", item_ids=["i00003"])
        ask(replica, 3, explain=True)  # to look at, by an operator
    for replica in replicas:
        drift = replica.drift
        assert drift is not None
        eventually(lambda d=drift: d.figures is not None and d.figures.window.tally.requests == 100)
    one, other = (replica.drift.figures for replica in replicas)  # type: ignore[union-attr]
    assert one is not None and other is not None
    assert one.moved == other.moved and one.window.replicas == 2
    assert one.people == pytest.approx(USERS, abs=1.5)
    assert not one.drifted and one.max_psi < 0.1, one.sentence
    assert {each.kind for each in one.moved} == {"feature", "score"}
    told = replicas[0].metrics.told()  # type: ignore[attr-defined]
    assert {name for name, *_ in told} <= GAUGES.keys()
    assert told["raysys_drift",] == 0 and told["raysys_drift_window_answers",] == 100
    assert told["raysys_drift_psi_max", "feature"] < 0.1
    named = [key for key in told if key[0] == "raysys_drift_psi"]
    assert ("raysys_drift_psi", "score", ENSEMBLE) in named
    assert sum(replicas[0].metrics.read()["raysys_drift_answers"].values()) == 50
    bundle = watched.path("champion")
    for replica in replicas:
        replica.close()
    brief = json.loads((tmp_path / "monitor" / "drift.json").read_text())
    assert brief["drift"] == 0.0 and brief["scores"]["psi"] == one.psi_of("score")
    left = served_drift(bundle, tmp_path / "monitor")
    assert left is not None and left.moved == one.moved  # and so can others read it
    files = list((tmp_path / "monitor").rglob("*.parquet"))
    assert files and all(b"u1" not in path.read_bytes()[:4] for path in files)


def test_a_broken_feed_shows_and_an_old_bundle_is_served(
    watched: Registry, registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = serve(watched, tmp_path)
    at = service.bundle.features.names.index("price")
    batch = service.bundle.features.batch

    def without_prices(*args: Any, **more: Any) -> Any:
        found = batch(*args, **more)
        found.features[:, at] = np.nan
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.bundle.features, "batch", without_prices)
        ask(service, 40)
    drift = service.drift
    assert drift is not None
    figures = eventually(lambda: (f := drift.figures) and f.enough and f)
    assert figures.drifted and "price is missing in 100% of the rows" in figures.sentence
    assert figures.moved[0].name == "price" and figures.moved[0].missing == (0.0, 1.0)
    told = service.metrics.told()  # type: ignore[attr-defined]
    assert told["raysys_drift",] == 1 and told["raysys_drift_missing_rise_max",] == 1
    missing = {key[1]: share for key, share in told.items() if key[0] == "raysys_drift_missing"}
    assert missing.keys() == {each.name for each in figures.of("feature")}
    assert missing["price"] == 1 and min(missing.values()) == 0
    assert all(missing[each.name] == each.missing[1] for each in figures.of("feature"))
    page = pages_of(service).get("/console/drift").text
    assert "price is missing in 100% of the rows" in page and 'class="over"' in page
    assert "Shares by bin of price, training beside served" in page
    service.close()

    old = serve(registry, tmp_path / "old")
    assert old.drift is None and "train again" in caplog.text
    assert ask(old, 1)[0].items
    for path in ("drift", "feedback"):
        page = pages_of(old).get(f"/console/{path}")
        assert page.status_code == 200
    assert "train again" in pages_of(old).get("/console/drift").text
    old.close()


def test_what_is_drawn_is_bounded_and_counted_as_a_whole(watched: Registry, tmp_path: Path) -> None:
    service = Service(ServeArgs(registry=str(watched.root), clock="log_end"))
    reference = reference_of(watched)
    given, _ = service.asking(RecommendRequest(user_id="u1"), Context(float("inf")))
    ranking = service.ranker.scored(given)
    assert ranking.batch is not None
    counts, rows = counted(ranking, reference, np.random.default_rng(0), 7)
    assert rows == 7 and counts.sum() == 7 * len(reference.variables)
    every, rows = counted(ranking, reference, np.random.default_rng(0), 10**6)
    starts = reference.grid.starts
    for at, variable in enumerate(reference.variables):
        if variable.kind == "feature":
            column = ranking.batch.column(variable.name)
            direct = np.bincount(variable.cut.place(column), minlength=variable.cut.bins)
            assert (every[starts[at] : starts[at + 1]] == direct).all(), variable.name
    # a learner that was left out says nothing, and costs the others nothing
    gone = next(iter(ranking.base))
    del ranking.base[gone]
    fewer, _ = counted(ranking, reference, np.random.default_rng(0), 10**6)
    at = reference.which("score", [gone])[gone]
    assert fewer[starts[at] : starts[at + 1]].sum() == 0
    assert fewer.sum() == every.sum() - rows
    service.close()


def test_what_came_of_the_lists_is_told_by_one_replica_for_all(
    watched: Registry, tmp_path: Path
) -> None:
    replicas = [serve(watched, tmp_path) for _ in range(2)]
    answers = ask(replicas[0], 30)
    replicas[1].answer(SearchRequest(query="zzzz", user_id="u1"), Context(time.perf_counter()))
    service = replicas[0]
    assert service.events is not None
    at = service.bundle.features.as_of + 1
    sent = [
        {
            "event_id": f"{answer.request_id}-{kind}-{place}", "event_type": kind,
            "user_id": f"u{number % USERS}", "item_id": answer.items[place].item_id,
            "timestamp": at, "request_id": answer.request_id, "position": place + 1,
        }
        for number, answer in enumerate(answers)
        for kind, places in (("impression", range(5)), ("click", [0] if number % 2 else []))
        for place in places
    ]  # fmt: skip
    service.events.take(sent)
    path = tmp_path / "monitor" / "feedback.json"
    told = [
        eventually(
            lambda f=replica.feedback: (now := f.latest) and now.lists == 31 and now.events and now
        )
        for replica in replicas
    ]
    found = {each.surface: each for each in told[0].surfaces}
    facts = found["recommend"]
    assert facts.lists == 30 and facts.slots == 150 and facts.seen == 150
    assert facts.rates["click"].done == 15 and facts.rates["click"].value == pytest.approx(0.1)
    assert facts.people == USERS and 0 < facts.coverage <= 1
    first = told[0].positions[0]
    assert (first.surface, first.position, first.clicks.done) == ("recommend", 1, 15)
    assert told[0].to_dict()["surfaces"] == told[1].to_dict()["surfaces"]
    gauges = replicas[1].metrics.told()  # type: ignore[attr-defined]
    assert gauges["raysys_outcome_rate", "click", "recommend"] == pytest.approx(0.1)
    assert gauges["raysys_feedback_age_seconds",] < 60
    page = pages_of(service).get("/console/feedback").text
    assert "30 lists" not in page and "31 lists" in page and "10.0% [" in page
    assert "zzzz" in page and "Clicks of what recommend showed, by position: 1: 50.0%" in page
    for replica in replicas:
        replica.close()
    content = path.read_text()
    assert json.loads(content)["read"] == 31
    assert not any(f'"u {user}"' in content or f'"u{user}"' in content for user in range(USERS))


@pytest.mark.long
def test_the_report_tells_what_the_deployment_wrote(watched: Registry, tmp_path: Path) -> None:
    service = serve(watched, tmp_path)
    answers = ask(service, 60)
    assert service.events is not None
    click = {
        "event_id": "e", "event_type": "click", "user_id": "u0",
        "request_id": answers[0].request_id, "item_id": answers[0].items[0].item_id,
        "timestamp": service.bundle.features.as_of + 1,
    }  # fmt: skip
    service.events.take([click])
    service.close()
    words = [
        *("monitor", "report", "--bundle", watched.resolve("champion")),
        *("--windows", str(tmp_path / "monitor"), "--shown-lists", str(tmp_path / "shown_lists")),
        *("--output", str(tmp_path / "report"), "--workspace", str(tmp_path)),
    ]
    (tmp_path / "registry").symlink_to(watched.root)
    done = CliRunner().invoke(cli, [*words, "--json", "--fail-on-drift"])
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "report" / "monitor.json").read_text())
    assert told["drifted"] is False and told["drift"]["requests"] == 60
    assert told["feedback"]["events"] == 1
    assert told["feedback"]["surfaces"][0]["rates"]["click"]["done"] == 1
    page = (tmp_path / "report" / "report.html").read_text()
    assert "No drift in 60 answers" not in page  # fewer than are needed by default
    assert "Too few answers to tell" in page and page.count("<svg") >= 3
    assert "80.0% of the requests had a relevant candidate" in page

    moved = Windows(tmp_path / "monitor", watched.resolve("champion"), reference_of(watched))
    starts = reference_of(watched).grid.starts
    counts = np.zeros(starts[-1], np.int64)
    counts[starts[1:] - 2] = 5000  # all in the last bin of what is not missing
    people = np.full(2048, 255, np.uint8)
    now = now_ms()
    moved.write(Stretch(now - 1000, now, "r9", Tally(counts, 5000, 5000, people)))
    done = CliRunner().invoke(cli, [*words, "--fail-on-drift"])
    assert done.exit_code == 3, done.output
    assert "What is served has drifted" in done.output.replace("\n", " ")

    nothing = CliRunner().invoke(cli, ["monitor", "report", "--workspace", str(tmp_path / "none")])
    assert nothing.exit_code not in (0, 3) and "Traceback" not in nothing.output


def reference_of(registry: Registry) -> Reference:
    found = Reference.load(registry.path("champion"))
    assert found is not None
    return found


@pytest.mark.long
def test_a_champion_that_an_experiment_keeps_is_one_no_more(
    watched: Registry, tmp_path: Path
) -> None:
    folder = tmp_path / "monitor"
    monitor = {
        "folder": str(folder), "share": 1, "refresh_s": 0.05, "feedback_s": 0.05,
        "thresholds": {"least_requests": 1},
    }  # fmt: skip
    shown: dict[str, Any] = {"folder": str(tmp_path / "shown")}
    lab = Lab(tmp_path, watched.path("champion"), follow=True, monitor=monitor, shown_lists=shown)
    try:
        lab.runs(experiment(arms=by_bundle()))
        old = lab.arms.champion
        users = [user for user in (f"u{n}" for n in range(USERS)) if lab.drawn(user) == "control"]
        assert {lab.ask(user)["arm"] for user in users} == {"champion"}
        first, drift = lab.first, old.drift
        assert drift is not None
        eventually(lambda: drift.figures is not None and (folder / "drift.json").exists())
        eventually((folder / "feedback.json").exists)
        lab.registry.point("champion", lab.second)
        lab.arms.look()
        assert lab.arms.champion is not old
        # it answers its arm still, by the arm's name, and leaves drift.json to the champion
        answers = [lab.ask(user) for user in users]
        assert {(each["bundle"], each["arm"]) for each in answers} == {(first, "control")}
        assert lab.arms.champion.drift is not None
        lab.arms.champion.drift.close()
        assert lab.arms.champion.feedback is not None
        lab.arms.champion.feedback.close()
        for told_by_one in ("drift.json", "feedback.json"):
            (folder / told_by_one).unlink(missing_ok=True)
        looked = drift.looked_at
        eventually(lambda: drift.looked_at > looked + 100)
        assert not (folder / "drift.json").exists() and not (folder / "feedback.json").exists()
        assert not [key for key in old.metrics.gauges() if key[0].startswith("raysys_feedback")]
        told = {(name, dict(tags)["arm"]): value for (name, tags), value in gauges_of(old)}
        assert told["raysys_drift_window_answers", "control"] > 0
        assert told["raysys_bundle", "control"] == 1
        drifts = [arm for name, arm in told if name.startswith("raysys_drift")]
        assert set(drifts) == {"control"}
    finally:
        lab.arms.close()


def gauges_of(service: Service) -> list[Any]:
    return [each for each in service.metrics.gauges().items() if "arm" in dict(each[0][1])]


def test_a_full_disk_costs_the_counts_and_no_answer(
    watched: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Windows, "write", full)
    service = serve(watched, tmp_path, shown_lists=None)
    assert service.feedback is None  # nobody records what was shown
    assert all(answer.items for answer in ask(service, 25))
    drift = service.drift
    assert drift is not None
    eventually(lambda: drift.figures is not None and drift.figures.window.tally.requests == 25)
    service.close()
