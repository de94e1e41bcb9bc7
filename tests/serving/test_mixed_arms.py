"""Experiments that mix arms within users, over HTTP: interleaved lists, and bandits."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from typer.testing import CliRunner

from raysys.cli import app as cli
from raysys.errors import UserError
from raysys.experiments.allocation import even
from raysys.serving.allocations import Allocations
from raysys.serving.api import RecommendRequest
from raysys.serving.app import http_app
from raysys.serving.asking import Context
from raysys.serving.rollout import UserConfig
from raysys.serving.service import Service
from raysys.serving.tracing import Tracing, TracingArgs
from raysys.storage import Workspace
from tests.serving.test_arms import USERS
from tests.serving.test_experiments import HALVES, Lab, by_bundle, by_policy, experiment

CLICKS: dict[str, Any] = {"name": "clicks", "events": ["click"], "value": "any"}


class Mixed(Lab):
    """A shop whose experiments are judged by single lists."""

    def says(self, *experiments: dict[str, Any]) -> None:
        content = {"metrics": [CLICKS], "experiments": list(experiments)}
        self.file.write_text(yaml.safe_dump(content))

    def click(self, answer: dict[str, Any], item_id: str, user: str) -> None:
        event = {"event_type": "click", "user_id": user, "item_id": item_id}
        body = {"events": [{**event, "request_id": answer["request_id"]}]}
        assert self.client.post("/v1/events", json=body).status_code == 200


def trial(**more: Any) -> dict[str, Any]:
    found = experiment(**{"primary": "clicks", **more})
    if "bandit" in more:
        del found["minimum_effect"]
    return found


def other_order(share: float = 0.5) -> list[dict[str, Any]]:
    """The control, and an arm whose lists are of other items."""
    arms = by_policy(diversity={"relevance": 0.2, "by": ["category"]})
    return [{**arm, "share": share} for arm in arms]


@pytest.fixture
def lab(bundle: Path, tmp_path: Path) -> Iterator[Mixed]:
    made = Mixed(tmp_path, bundle, events={}, shown_lists={}, experiments={"segment_s": 0.05})
    yield made
    made.arms.close()


def test_a_list_is_drafted_from_both_arms_and_says_who_brought_what(lab: Mixed) -> None:
    lab.runs(trial(arms=by_bundle(), interleave=True))
    drafted = lab.ask("u1")
    assert drafted["experiments"] == {"trial": "interleaved"}
    alone = [lab.forced("u1", trial=arm) for arm in ("control", "treatment")]
    assert [each["experiments"]["trial"] for each in alone] == ["control", "treatment"]
    lists = [[item["item_id"] for item in each["items"]] for each in alone]
    items = [item["item_id"] for item in drafted["items"]]
    assert len(items) == 5 and [item["position"] for item in drafted["items"]] == [1, 2, 3, 4, 5]
    rows = lab.exposures().filter(~pl.col("forced"))
    row = rows.row(0, named=True)
    assert len(rows) == 1 and row["arm"] == "interleaved" and row["propensity"] == 1.0
    assert row["request_id"] == drafted["request_id"] and row["item_ids"] == items
    for item, team in zip(items, row["teams"], strict=True):
        assert item in lists[team]
    assert abs(2 * sum(row["teams"]) - 5) == 1  # teams of two and three
    # what nobody ranked so is no shown list
    shown = lab.root / "shown_lists"
    kept = [pl.read_parquet(p) for p in shown.glob("date=*/[0-9]*.parquet")]
    assert drafted["request_id"] not in pl.concat(kept)["request_id"].to_list()


def test_arms_that_rank_otherwise_are_both_in_the_list(lab: Mixed) -> None:
    lab.runs(trial(arms=other_order(), interleave=True))
    lists = [
        [item["item_id"] for item in lab.forced("u2", trial=arm)["items"]]
        for arm in ("control", "treatment")
    ]
    assert lists[0] != lists[1]
    drafted = [item["item_id"] for item in lab.ask("u2")["items"]]
    assert set(drafted) <= set(lists[0]) | set(lists[1])
    assert {lists[0][0], lists[1][0]} <= set(drafted)  # each team's best
    answer = lab.arms.answer(
        RecommendRequest(user_id="u2", k=4), Context(time.perf_counter(), shown=False)
    )
    assert len(answer.items) == 4 and answer.experiments == {"trial": "interleaved"}


def test_only_as_many_as_are_in_get_drafted_lists(lab: Mixed) -> None:
    lab.runs(trial(arms=other_order(0.2), interleave=True))
    arms = {lab.arm(user) for user in USERS}
    assert arms == {"interleaved", None}


def test_an_arm_that_fails_costs_no_answer_and_counts_for_nobody(
    lab: Mixed, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.runs(trial(arms=by_bundle(), interleave=True))
    content, second = Service.content, lab.second

    def broken(self: Service, *rest: Any) -> Any:
        if self.bundle.id == second:
            raise RuntimeError("no memory")
        return content(self, *rest)

    monkeypatch.setattr(Service, "content", broken)
    answer = lab.ask("u1")
    assert answer["bundle"] == lab.first and len(answer["items"]) == 5
    row = lab.exposures().row(0, named=True)
    assert row["request_id"] == answer["request_id"]
    assert row["arm"] == "interleaved" and row["teams"] is None


def test_given_items_are_not_drafted(lab: Mixed) -> None:
    lab.says(trial(arms=other_order(), interleave=True, surfaces=["home", "rank"]))
    lab.arms.reconfigure(UserConfig(experiments=(str(lab.file),)))
    assert "is not drafted from two" in lab.arms.experiments.trouble["files"]


@pytest.mark.parametrize(
    "policy",
    [{"at_most": {"category": 2}}, {"pinned": [{"item_id": "i00001", "position": 3}]}],
)
def test_what_a_draft_would_break_is_refused(lab: Mixed, policy: dict[str, Any]) -> None:
    lab.says(trial(arms=by_policy(**policy), interleave=True))
    lab.arms.reconfigure(UserConfig(experiments=(str(lab.file),)))
    (name,) = policy
    assert f"does not keep `{name}`" in lab.arms.experiments.trouble["files"]


def test_both_arms_have_half_of_the_time(lab: Mixed, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.runs(trial(arms=by_bundle(), interleave=True))
    content, given = Service.content, []

    def watched(self: Service, asked: Any, context: Context) -> Any:
        given.append((context.deadline_ms, context.counted, context.shown))
        return content(self, asked, context)

    monkeypatch.setattr(Service, "content", watched)
    headers = {"X-Deadline-Ms": "8000"}
    body = {"user_id": "u1", "k": 5}
    answer = lab.client.post("/v1/recommend", json=body, headers=headers).json()
    assert answer["experiments"] == {"trial": "interleaved"}
    (first, *_), (second, *_) = given
    assert first == second and 3000 < first <= 4000
    assert [each[1:] for each in given] == [(True, False), (False, False)]


def test_a_drafted_list_has_a_trace_of_both_rankings(lab: Mixed) -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(TracingArgs(otlp="http://127.0.0.1:1/v1/traces"), exporter)
    app = http_app(lab.arms, lab.arms, tracing=tracing)  # type: ignore[arg-type]
    lab.runs(trial(arms=by_bundle(), interleave=True))
    try:
        answer = TestClient(app).post("/v1/recommend", json={"user_id": "u1", "k": 5}).json()
        tracing.flush()
    finally:
        tracing.close()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    whole = spans["POST /v1/recommend"]
    assert whole.attributes is not None
    assert whole.attributes["raysys.request_id"] == answer["request_id"]
    assert whole.attributes["raysys.degraded"] is False
    assert {"candidates", "policy", "second ranking"} < set(spans)
    second = spans["second ranking"]
    assert second.end_time is not None and whole.end_time is not None
    assert whole.start_time < second.start_time <= second.end_time <= whole.end_time  # type: ignore[operator]


def test_a_list_of_what_was_left_counts_for_nobody(
    lab: Mixed, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.runs(trial(arms=by_bundle(), interleave=True))
    content, second = Service.content, lab.second

    def late(self: Service, asked: Any, context: Context) -> Any:
        told = content(self, asked, context)
        if self.bundle.id == second:
            told |= {"degraded": True, "reasons": {"two_tower": "deadline"}}
        return told

    monkeypatch.setattr(Service, "content", late)
    answer = lab.ask("u1")
    assert answer["degraded"] and answer["left_out"] == ["two_tower"]
    row = lab.exposures().row(0, named=True)
    assert row["arm"] == "interleaved" and row["teams"] is None


def test_a_draw_that_fails_costs_the_experiment_and_no_answer(
    lab: Mixed, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.runs(trial(arms=HALVES, bandit="thompson"))

    def broken(*_: Any) -> Any:
        raise ValueError("weights of nobody")

    monkeypatch.setattr("raysys.experiments.allocation.Allocation.draw", broken)
    answer = lab.ask("u1")
    assert len(answer["items"]) == 5 and not answer.get("experiments")


@pytest.mark.long
def test_an_interleaved_experiment_from_clicks_to_a_verdict(lab: Mixed, tmp_path: Path) -> None:
    """People click what the second arm brings, and the command says so."""
    lab.runs(trial(arms=other_order(), interleave=True))
    for n in range(60):
        user = f"s{n}"
        answer = lab.ask(user)
        alone = {item["item_id"] for item in lab.forced(user, trial="control")["items"]}
        news = [i["item_id"] for i in answer["items"] if i["item_id"] not in alone]
        lab.click(answer, (news or [answer["items"][0]["item_id"]])[0], user)
    lab.arms.experiments.close()
    file, root = str(lab.file), str(tmp_path)
    done = CliRunner().invoke(cli, ["experiment", "analyse", file, "--workspace", root])
    assert done.exit_code == 0, done.output
    assert "treatment is preferred: it leads by" in done.output.replace("\n", " ")
    folder = Workspace(tmp_path).root / "experiments" / "trial"
    told = json.loads((folder / "report.json").read_text())
    assert told["lists"]["lists"] == 60 and told["preference"]["low"] > 0
    refused = CliRunner().invoke(cli, ["experiment", "plan", file, "--mean", "0.1"])
    assert refused.exit_code == 2


def test_a_bandit_draws_by_its_weights_and_says_them(lab: Mixed) -> None:
    lab.runs(trial(arms=HALVES, bandit={"kind": "thompson", "update_minutes": 60}))
    place = lab.root / "registry" / "serving" / "bandits" / "trial.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "step": 3, "made": int(time.time() * 1000), "context": [], "otherwise": [0.1, 0.9],
        "by_context": [], "lists": [50, 70], "rewards": [1, 30],
    }  # fmt: skip
    place.write_text(json.dumps(state))
    lab.arms.look()
    arms = [lab.arm(user) for user in USERS] * 2
    assert arms[:30] == arms[30:]
    assert 20 <= arms[:30].count("treatment") < 30 and "control" in arms
    (told,) = lab.client.get("/v1/admin/experiments").json()["experiments"]
    assert told["weights"] == {"control": 0.1, "treatment": 0.9}
    assert told["lists"] == {"control": 50, "treatment": 70} and told["rewarded"]["control"] == 1
    rows = lab.exposures()
    by_arm = dict(rows.select("arm", "propensity").unique().iter_rows())
    assert by_arm == {"control": 0.1, "treatment": 0.9}


@pytest.mark.long
def test_a_bandit_learns_from_what_is_clicked(lab: Mixed, tmp_path: Path) -> None:
    often = {"kind": "thompson", "update_minutes": 0.001, "settle_minutes": 0}
    lab.runs(trial(arms=HALVES, bandit=often))
    arms = [arm["name"] for arm in HALVES]

    def weights() -> dict[str, Any]:
        lab.arms.look()
        (told,) = lab.client.get("/v1/admin/experiments").json()["experiments"]
        return dict(told)

    assert weights()["weights"] == {"control": 0.5, "treatment": 0.5}
    for n in range(60):
        answer = lab.ask(f"s{n}")
        if answer["experiments"]["trial"] == "treatment":
            lab.click(answer, answer["items"][0]["item_id"], f"s{n}")
    deadline = time.monotonic() + 30
    while sum((told := weights())["lists"].values()) < 60 or told["weights"]["treatment"] < 0.9:
        assert time.monotonic() < deadline, told
    assert told["rewarded"]["control"] == 0 and told["weights"]["control"] >= 0.05
    again = [lab.arm(f"s{n}") for n in range(60)]
    assert again.count("treatment") > 45
    lab.arms.experiments.close()
    root = str(tmp_path)
    done = CliRunner().invoke(cli, ["experiment", "analyse", str(lab.file), "--workspace", root])
    assert done.exit_code == 0, done.output
    assert "treatment earns most" in done.output
    values = json.loads((tmp_path / "experiments" / "trial" / "report.json").read_text())["values"]
    assert [each["arm"] for each in values] == arms
    assert values[0]["value"] < 0.1 and values[1]["value"] > 0.3


def test_a_damaged_file_of_weights_is_made_anew(lab: Mixed) -> None:
    lab.runs(trial(arms=HALVES, bandit={"update_minutes": 60}))
    place = lab.root / "registry" / "serving" / "bandits" / "trial.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    for text in ("", "{", "[]", '{"step": 1}', json.dumps({"step": 1, "made": 0, "context": [],
                 "otherwise": [1.0], "by_context": [], "lists": [1], "rewards": [0]})):  # fmt: skip
        place.write_text(text)
        lab.arms.look()
        served = lab.arms.experiments.served
        assert served is not None
        found = served.settings.find("trial")
        assert found is not None and served.allocations["trial"] == even(found)


def test_replicas_weigh_one_at_a_time(lab: Mixed) -> None:
    lab.runs(trial(arms=HALVES, bandit={"update_minutes": 60, "settle_minutes": 0}))
    answers = [lab.ask(user) for user in USERS]
    lab.click(answers[0], answers[0]["items"][0]["item_id"], USERS[0])
    deadline = time.monotonic() + 30
    while not any((lab.root / "exposures").glob("date=*/[0-9]*.parquet")):
        assert time.monotonic() < deadline
    served, events = lab.arms.experiments.served, lab.arms.champion.events
    assert served is not None and events is not None
    ((found, metric),) = served.bandits
    replicas = [Allocations(lab.root / "registry", lab.root / "exposures") for _ in range(2)]
    now = lab.arms.champion.ranker.now()
    # the one that runs may have been first; whoever it was, nobody does it again
    done = [each.weigh(found, metric, events, now) for each in replicas]
    assert sum(done) <= 1
    weighed = [each.look([(found, metric)], None, now)[found.name] for each in replicas]
    assert weighed[0] == weighed[1] and weighed[0].step == 1


def test_weights_stay_where_their_file_cannot_be_asked(
    lab: Mixed, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment_ = trial(arms=HALVES, bandit={"update_minutes": 60, "settle_minutes": 0})
    lab.runs(experiment_)
    served, events = lab.arms.experiments.served, lab.arms.champion.events
    assert served is not None and events is not None
    ((found, metric),) = served.bandits
    place = lab.root / "registry" / "serving" / "bandits" / "trial.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "step": 57, "made": 0, "context": [], "otherwise": [0.1, 0.9],
        "by_context": [], "lists": [50, 70], "rewards": [1, 30],
    }  # fmt: skip
    place.write_text(json.dumps(state))
    mine = Allocations(lab.root / "registry", lab.root / "exposures")
    now = lab.arms.champion.ranker.now()
    before = mine.look([(found, metric)], None, now)
    stat = Path.stat

    def gone(self: Path, **more: Any) -> Any:
        if self == place:
            raise OSError(116, "stale file handle")
        return stat(self, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", gone)
        assert mine.look([(found, metric)], None, now) == before
        assert not mine.weigh(found, metric, events, now)
    lab.ask("u1")
    deadline = time.monotonic() + 30
    while not any((lab.root / "exposures").glob("date=*/[0-9]*.parquet")):
        assert time.monotonic() < deadline
    place.unlink()  # lost: made again, and never with the draw of a step that was
    assert mine.weigh(found, metric, events, now)
    assert json.loads(place.read_text())["step"] == 58


def test_without_events_it_says_that_nothing_comes_of_the_lists(
    bundle: Path, tmp_path: Path
) -> None:
    lab = Mixed(tmp_path, bundle, pages={"console": True})
    try:
        lab.says(trial(arms=HALVES, bandit="thompson"))
        lab.arms.reconfigure(UserConfig(experiments=(str(lab.file),)))
        assert "no events are taken" in lab.arms.experiments.trouble["trial"]
        assert lab.arm("u1") in ("control", "treatment")
        place = lab.root / "registry" / "serving" / "bandits" / "trial.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "step": 3, "made": int(time.time() * 1000), "context": [], "otherwise": [0.13, 0.87],
            "by_context": [], "lists": [50, 70], "rewards": [1, 30],
        }  # fmt: skip
        place.write_text(json.dumps(state))
        lab.arms.look()
        fresh = TestClient(http_app(lab.arms, lab.arms))  # type: ignore[arg-type]
        page = fresh.get("/console/experiments").text
        assert "13.00 %" in page and "87.00 %" in page  # as the bandit gives them now
    finally:
        lab.arms.close()


def test_weights_go_on_where_the_log_cannot_be_read(
    lab: Mixed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lab.runs(trial(arms=HALVES, bandit={"update_minutes": 0.0001, "settle_minutes": 0}))

    def refused(*_: Any) -> bool:
        raise UserError("exposures are no Parquet")

    lab.arms.experiments._allocations.close()
    monkeypatch.setattr(Allocations, "weigh", refused)
    weighing = lab.arms.experiments._allocations
    for _ in range(3):
        weighing._tried.clear()
        lab.arms.look()
        weighing.close()
    assert caplog.text.count("the arms of trial cannot be weighed now") == 1
    fresh = TestClient(http_app(lab.arms, lab.arms))  # type: ignore[arg-type]
    assert fresh.post("/v1/recommend", json={"user_id": "u1"}).status_code == 200
    assert np.isclose(sum(lab.arms.experiments.served.allocations["trial"].otherwise), 1)
