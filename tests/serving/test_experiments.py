"""Experiments in front of users: who gets what, what is recorded, and what may change meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from fastapi.testclient import TestClient

from raysys import schema
from raysys.config import parse_settings
from raysys.eventlog.rolled import roll
from raysys.experiments import ExperimentsSettings, assign
from raysys.experiments.assignment import draw
from raysys.experiments.users import read_exposures
from raysys.serving.api import RecommendRequest
from raysys.serving.app import http_app
from raysys.serving.arms import Arms
from raysys.serving.asking import Context
from raysys.serving.experiments import AcceptedFile
from raysys.serving.exposures import ExperimentArgs, ExposureLog
from raysys.serving.keys import KeyFile, Role
from raysys.serving.metrics import Metrics
from raysys.serving.outcomes import Outcomes
from raysys.serving.replay import replay
from raysys.serving.rollout import UserConfig
from raysys.stages.experiment import AnalyseOptions, run_analysis
from raysys.storage import Workspace
from tests.serving import shop
from tests.serving.test_arms import USERS, Shop
from tests.serving.test_lists import plan_of_touches

METRICS: list[dict[str, Any]] = [
    {"name": "click_rate", "events": ["click"], "per": {"events": ["impression"]}},
    {"name": "orders", "events": ["purchase"], "value": "any"},
]
HALVES = [{"name": "control", "share": 0.5}, {"name": "treatment", "share": 0.5}]
HEADER = "X-Experiment-Arm"


def experiment(name: str = "trial", arms: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "surfaces": ["home"],
        "arms": arms or HALVES,
        "primary": "click_rate",
        "minimum_effect": 0.05,
        "start": "2017-01-01T00:00:00Z",
        **more,
    }


def by_bundle(control: float = 0.5, treatment: float = 0.5) -> list[dict[str, Any]]:
    return [
        {"name": "control", "share": control, "bundle": "champion"},
        {"name": "treatment", "share": treatment, "bundle": "challenger"},
    ]


def by_policy(**policy: Any) -> list[dict[str, Any]]:
    return [HALVES[0], {**HALVES[1], "policy": policy}]


class Lab(Shop):
    """A shop whose replica serves what `experiments.yaml` says."""

    def __init__(self, root: Path, champion: Path, **args: Any) -> None:
        super().__init__(root / "registry", champion, **args)
        self.root, self.file = root, root / "experiments.yaml"

    def says(self, *experiments: dict[str, Any]) -> None:
        content = {"metrics": METRICS, "experiments": list(experiments)}
        self.file.write_text(yaml.safe_dump(content))

    def runs(self, *experiments: dict[str, Any]) -> None:
        self.says(*experiments)
        self.arms.reconfigure(UserConfig(experiments=(str(self.file),)))
        assert self.arms.experiments.trouble == {}

    def arm(self, user: str, name: str = "trial", **more: Any) -> str | None:
        return self.ask(user, **more).get("experiments", {}).get(name)

    def post(self, call: str, body: dict[str, Any], **forced: str) -> dict[str, Any]:
        """The answer to a tester."""
        said = ", ".join(f"{name}={arm}" for name, arm in forced.items())
        response = self.client.post(f"/v1/{call}", json=body, headers={HEADER: said})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def forced(self, user: str, **arms: str) -> dict[str, Any]:
        return self.post("recommend", {"user_id": user, "k": 5}, **arms)

    def drawn(self, user: str, name: str = "trial") -> str | None:
        served = self.arms.experiments.served
        assert served is not None
        found = served.settings.find(name)
        assert found is not None
        arm = draw(found, user)
        return None if arm is None else arm.name

    def exposures(self) -> pl.DataFrame:
        """What was written once the replica has ended."""
        self.arms.close()
        paths = sorted((self.root / "exposures").glob("date=*/*.parquet"))
        assert all(pq.read_schema(path).remove_metadata() == schema.EXPOSURES for path in paths)
        return read_exposures(self.root / "exposures").sort("request_id").collect()


@pytest.fixture
def lab(bundle: Path, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path, bundle)
    yield made
    made.arms.close()


def test_users_keep_the_bundle_they_were_drawn_into_and_are_recorded(lab: Lab) -> None:
    assert lab.arm("u1") is None
    lab.runs(experiment(arms=by_bundle(0.4, 0.4), segments=["known", "country"]))
    answers = {user: lab.ask(user, attributes={"country": "DE"}) for user in USERS}
    arms = {user: answer.get("experiments", {}).get("trial") for user, answer in answers.items()}
    assert arms == {user: lab.drawn(user) for user in USERS} == {u: lab.arm(u) for u in USERS}
    assert set(arms.values()) == {"control", "treatment", None}
    for user, answer in answers.items():
        assert answer["bundle"] == (lab.second if arms[user] == "treatment" else lab.first)
    assert len(lab.made) == 2  # the control's bundle is the champion's own
    asked = {"query": "milk", "user_id": "u1"}
    assert "experiments" not in lab.client.post("/v1/search", json=asked).json()
    session = lab.client.post("/v1/recommend", json={"session_id": "s7"}).json()
    rows = lab.exposures()
    mine = rows.filter(pl.col("user_id").is_in(USERS))
    assert len(mine) == 2 * sum(arm is not None for arm in arms.values())
    for row in mine.unique("user_id").iter_rows(named=True):
        assert row["arm"] == arms[row["user_id"]] and not row["forced"]
        assert row["propensity"] == 0.4 and row["surface"] == "recommend"
        assert row["bundle"] == (lab.second if row["arm"] == "treatment" else lab.first)
    told = mine.filter(request_id=answers["u0"]["request_id"])["attributes"].to_list()
    assert [dict(each) if isinstance(each, dict) else each for each in told] or arms["u0"] is None
    if "experiments" in session:  # a stranger goes by the name that the event log has for them
        (row,) = rows.filter(user_id="session:s7").iter_rows(named=True)
        assert row["arm"] == session["experiments"]["trial"]


def test_a_policy_and_parameters_hold_for_their_arm_and_their_surface(lab: Lab) -> None:
    first = lab.ask("u3")["items"][0]["item_id"]
    policy = {"exclude_items": [first]}
    lab.runs(
        experiment(arms=by_policy(**policy)),
        experiment(
            "weights",
            [HALVES[0], {**HALVES[1], "parameters": {"personal_weight": 0.0, "candidates": 50}}],
            surfaces=["search"],
        ),
    )
    for arm in ("control", "treatment"):
        shown = [item["item_id"] for item in lab.forced("u3", trial=arm)["items"]]
        assert (first in shown) == (arm == "control") and len(shown) == 5
    assert len(lab.made) == 1  # no bundle is loaded for it
    body = {"query": "milk", "user_id": "u3", "k": 30}
    scores = {
        arm: [i["score"] for i in lab.post("search", body, weights=arm)["items"]]
        for arm in ("control", "treatment")
    }
    assert scores["control"] != scores["treatment"]
    assert "experiments" not in lab.ask("u3", place="item", item_ids=[first])


@pytest.mark.long
def test_the_cache_keeps_arms_apart(bundle: Path, tmp_path: Path) -> None:
    lab = Lab(tmp_path, bundle, cache={})
    try:
        first = lab.ask("u3")["items"][0]["item_id"]
        lab.runs(experiment(arms=by_policy(exclude_items=[first])))
        for arm in ("treatment", "control", "treatment", "control"):
            shown = [item["item_id"] for item in lab.forced("u3", trial=arm)["items"]]
            assert (first in shown) == (arm == "control")
        # the control decides nothing: it shares with those who are in no experiment
        assert lab.made[0].metrics.read()["raysys_cache"] == {"hit": 3, "miss": 2}
    finally:
        lab.arms.close()


def test_what_an_arm_was_shown_can_be_given_again(bundle: Path, tmp_path: Path) -> None:
    lab = Lab(tmp_path, bundle, shown_lists={"folder": str(tmp_path / "shown"), "inputs_share": 0})
    lab.runs(experiment(arms=by_policy(exploration={"share": 0.9})))
    answers = [lab.forced(user, trial="treatment") for user in USERS[:5]]
    lab.arms.close()
    chances = []
    for answer in answers:
        found = replay(tmp_path / "shown", answer["request_id"])
        assert found.differences == []
        chances += found.propensities
    assert min(chances) < 1


def test_layers_exclude_each_other_and_eligibility_is_asked(lab: Lab) -> None:
    lab.runs(
        experiment("one", by_policy(at_most={"category": 1}), layer={"name": "a", "to": 0.5}),
        experiment("two", by_policy(at_most={"category": 2}), layer={"name": "a", "from": 0.5}),
        experiment("german", surfaces=[], eligibility={"country": "DE"}),
        experiment("strangers", surfaces=["recommend"], eligibility={"known": False}),
        experiment("buyers", surfaces=["recommend"], eligibility={"orders": {"at_least": 1}}),
    )
    seen = {user: lab.ask(user).get("experiments", {}) for user in USERS}
    in_one, in_two = ({u for u, arms in seen.items() if name in arms} for name in ("one", "two"))
    assert in_one and in_two and not in_one & in_two and in_one | in_two == set(USERS)
    assert all("german" not in arms and "strangers" not in arms for arms in seen.values())
    assert all("buyers" in arms for arms in seen.values())
    assert lab.arm("u1", "german", attributes={"country": "DE"}) is not None
    assert lab.arm("nobody knows", "strangers") is not None
    # what is ours to know nobody can claim
    assert lab.arm("u1", "strangers", attributes={"known": "false"}) is None
    forced = lab.forced(min(in_two), one="control")["experiments"]
    assert forced["one"] == "control" and "two" not in forced


@pytest.fixture
def keyed(bundle: Path, tmp_path: Path) -> Iterator[tuple[Lab, dict[str, str]]]:
    roles: dict[str, tuple[Role, ...]] = {"reader": ("read",), "tester": ("read", "admin")}
    keys = KeyFile(tmp_path / "keys.json")
    secrets = {name: keys.create(name, role)[1] for name, role in roles.items()}
    lab = Lab(tmp_path, bundle, auth={"keys": str(keys.path)})
    lab.runs(experiment(), experiment("later", start="2099-01-01T00:00:00Z"))
    yield lab, secrets
    lab.arms.close()


def test_a_tester_chooses_and_is_left_out(keyed: tuple[Lab, dict[str, str]]) -> None:
    lab, secrets = keyed

    def ask(key: str, said: str, **body: Any) -> Any:
        headers = {"X-API-Key": secrets[key], HEADER: said}
        return lab.client.post("/v1/recommend", json={"user_id": "u4", **body}, headers=headers)

    refused = ask("reader", "trial=treatment")
    assert refused.status_code == 403 and "admin" in refused.json()["detail"]
    for arm in ("control", "treatment"):
        answer = ask("tester", f"trial={arm}")
        assert answer.status_code == 200 and answer.json()["experiments"] == {"trial": arm}
    for said in ("trial", "trial=none", "unknown=control", "later=control", "trial=a,trial=b"):
        answer = ask("tester", said)
        assert answer.status_code == 422, said
        assert "X-Experiment-Arm".lower() in str(answer.json()["errors"]).lower()
    looked = ask("tester", "trial=control", explain=True)
    assert looked.json()["experiments"] == {"trial": "control"}
    rows = lab.exposures()
    assert rows["forced"].to_list() == [True, True]  # who only looks was not shown it


def test_open_to_all_is_not_open_to_testers(bundle: Path, tmp_path: Path) -> None:
    lab = Lab(tmp_path, bundle, auth={"open": True})
    try:
        lab.runs(experiment())
        body, headers = {"user_id": "u1"}, {HEADER: "trial=control"}
        assert lab.client.post("/v1/recommend", json=body, headers=headers).status_code == 403
    finally:
        lab.arms.close()


@pytest.mark.long
def test_a_change_that_would_move_users_is_refused_and_what_runs_goes_on(lab: Lab) -> None:
    lab.runs(experiment(arms=by_bundle(0.2, 0.2)))
    before = {user: lab.arm(user) for user in USERS}
    lab.says(experiment(arms=by_bundle(0.1, 0.3)))
    lab.arms.look()  # as every two seconds
    told = lab.client.get("/v1/admin/experiments").json()
    assert "shares change their ratio" in told["trouble"]["files"]
    assert "raise all shares alike" in told["trouble"]["files"]
    assert {user: lab.arm(user) for user in USERS} == before
    # nor does a replica that starts now, or one that is told so by another `user_config`
    late = Arms(lab.arms.args, lab.make, watch=False)
    late.reconfigure(UserConfig(experiments=(str(lab.file),)))
    assert late.experiments.served is not None
    assert late.experiments.served.settings == lab.arms.experiments.served.settings  # type: ignore[union-attr]
    late.close()
    lab.file.write_text("experiments: [")
    lab.arms.look()
    assert "not valid YAML" in lab.arms.experiments.trouble["files"]
    assert {user: lab.arm(user) for user in USERS} == before
    made = len(lab.made)
    lab.runs(experiment(arms=by_bundle(0.4, 0.4)))  # the honest way
    after = {user: lab.arm(user) for user in USERS}
    assert all(after[user] == arm for user, arm in before.items() if arm is not None)
    assert sum(arm is not None for arm in after.values()) > sum(
        arm is not None for arm in before.values()
    )
    assert len(lab.made) == made
    lab.arms.reconfigure(UserConfig())
    assert lab.arm("u1") is None and lab.arms.experiments.served is None


def test_arms_that_nobody_could_serve_are_refused(lab: Lab) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        (experiment(arms=by_policy(explore=1)), "explore"),
        (experiment(arms=[HALVES[0], {**HALVES[1], "parameters": {"colour": "red"}}]), "colour"),
        (experiment(arms=by_policy(at_most={"category": 0})), "at_most"),
        (experiment(surfaces=["rank"], arms=by_policy(at_most={"category": 1})), "no policy"),
    ]
    for each, told in wrong:
        lab.says(each)
        lab.arms.reconfigure(UserConfig(experiments=(str(lab.file),)))
        assert told in lab.arms.experiments.trouble["files"]
        assert lab.arms.experiments.served is None
    lab.says(
        experiment("one", by_policy(at_most={"category": 1})),
        experiment("two", by_policy(at_most={"category": 2}), surfaces=["recommend"]),
    )
    lab.arms.look()
    assert "both decide policy.at_most" in lab.arms.experiments.trouble["files"]
    arms = [HALVES[0], {**HALVES[1], "bundle": "no-such"}]
    lab.says(experiment("lost", arms), experiment("sound"))
    lab.arms.look()
    assert lab.arms.experiments.trouble == {"lost": "no such bundle: no-such"}
    assert lab.arm("u1", "lost") is None and lab.arm("u1", "sound") is not None
    lab.says(experiment(surfaces=["checkout"]))  # a shop's own: nothing that we serve
    lab.file.with_name("more.yaml").write_text(lab.file.read_text())
    AcceptedFile(lab.registry.root).path.unlink()
    lab.arms.reconfigure(UserConfig(experiments=(str(lab.root / "*.yaml"),)))
    assert "is there twice" in lab.arms.experiments.trouble["files"]
    lab.arms.reconfigure(UserConfig(experiments=(str(lab.root / "m*.yaml"),)))
    assert lab.arms.experiments.trouble == {} and lab.arm("u1") is None


def test_what_cannot_be_loaded_or_recorded_is_not_served(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in the way").write_text("")
    args = {"experiments": {"exposures": str(tmp_path / "in the way" / "x")}}
    lab = Lab(tmp_path, bundle, **args)
    try:
        (lab.registry.path(lab.second) / "ensemble.json").unlink()
        lab.says(experiment(arms=by_bundle()))
        lab.arms.reconfigure(UserConfig(experiments=(str(lab.file),)))
        assert "ensemble.json" in lab.arms.experiments.trouble["trial"]
        assert lab.arm("u1") is None
        lab.says(experiment(arms=by_bundle(), end="2017-01-02T00:00:00Z"), experiment("other"))
        lab.arms.look()
        assert "cannot be written" in lab.arms.experiments.trouble["exposures"]
        assert lab.arm("u1", "other") is None
    finally:
        lab.arms.close()


def test_an_arm_that_its_bundle_cannot_do_is_not_served(tmp_path: Path) -> None:
    """It looks the same in the YAML: only the bundle knows whether it tells what was bought."""
    registry = shop.publish_shop(tmp_path / "touches", plan=plan_of_touches())[0]
    lab = Lab(tmp_path, registry.path("champion"))
    try:
        lab.says(experiment(arms=by_policy(exclude_bought=True)))
        lab.arms.reconfigure(UserConfig(experiments=(str(lab.file),)))
        told = lab.arms.experiments.trouble["trial"]
        assert "the arm treatment" in told and "counts purchases alone" in told
        assert lab.arm("u1") is None
    finally:
        lab.arms.close()


def test_a_promotion_changes_nothing_for_those_who_are_in(bundle: Path, tmp_path: Path) -> None:
    lab = Lab(tmp_path, bundle, follow=True)
    try:
        lab.runs(experiment(arms=by_bundle(0.3, 0.3)))
        before = {user: lab.ask(user)["bundle"] for user in USERS}
        lab.registry.point("champion", lab.second)
        lab.arms.look()
        for user in USERS:
            arm = lab.drawn(user)
            assert lab.ask(user)["bundle"] == (before[user] if arm else lab.second)
        # the first goes on for the experiment, but is no champion any more
        gauges = {key: each for made in lab.made for key, each in made.metrics.gauges().items()}
        champions = {
            dict(tags)["bundle"]: value
            for (name, tags), value in gauges.items()
            if name == "raysys_bundle" and ("arm", "champion") in tags
        }
        assert champions == {lab.first: 0.0, lab.second: 1.0}
        # those who start later pin the same
        late = Arms(lab.arms.args, lab.make, watch=False)
        late.reconfigure(UserConfig(experiments=(str(lab.file),)))
        served = late.experiments.served
        assert served is not None
        assert served.bundles["trial"] == {"control": lab.first, "treatment": lab.second}
        late.close()
    finally:
        lab.arms.close()


def test_an_arm_that_fails_costs_no_answer_and_is_counted(lab: Lab) -> None:
    lab.runs(experiment(arms=by_bundle()))

    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    lab.made[1].content = broken  # type: ignore[method-assign]
    user = next(user for user in USERS if lab.drawn(user) == "treatment")
    answer = lab.ask(user)
    assert answer["experiments"] == {"trial": "treatment"} and answer["bundle"] == lab.first
    missing = {"user_id": user, "place": "item", "item_ids": ["no such"]}
    assert lab.client.post("/v1/recommend", json=missing).status_code == 404
    counts = lab.arms.champion.metrics.read()["raysys_arm_answers"]
    assert counts == {"treatment,trial,failed,recommend": 1}
    (row,) = lab.exposures().iter_rows(named=True)  # intention to treat
    assert row["arm"] == "treatment" and row["bundle"] == lab.first


def test_events_count_for_the_arm_of_their_answer(bundle: Path, tmp_path: Path) -> None:
    lab = Lab(tmp_path, bundle, events={})
    try:
        lab.runs(experiment())
        answer = lab.ask("u5")
        arm = answer["experiments"]["trial"]
        other = lab.client.post("/v1/search", json={"query": "milk", "user_id": "u5"}).json()
        events = [
            {"event_id": "e1", "event_type": "impression", "request_id": answer["request_id"]},
            {"event_id": "e2", "event_type": "click", "request_id": answer["request_id"]},
            {"event_id": "e2", "event_type": "click", "request_id": answer["request_id"]},
            {"event_id": "e3", "event_type": "click", "request_id": other["request_id"]},
            {"event_id": "e4", "event_type": "click", "request_id": "0" * 32},
            {"event_id": "e5", "event_type": "purchase"},
        ]
        body = {"events": [{"user_id": "u5", "item_id": "i00003", **each} for each in events]}
        assert lab.client.post("/v1/events", json=body).status_code == 200
        counts = lab.arms.champion.metrics.read()["raysys_arm_events"]
        assert counts == {
            f"{arm},impression,trial,recommend": 1,
            f"{arm},click,trial,recommend": 1,
            "champion,click,none,search": 1,
        }
    finally:
        lab.arms.close()


def test_answers_are_forgotten_oldest_first_and_events_count_once() -> None:
    metrics = Metrics()
    outcomes = Outcomes(lambda: metrics, keep=2)
    for number in range(3):
        outcomes.answered(f"r{number}", "search", {"a": "x", "b": "y"}, 0.01, "ok")
    heard = [{"event_id": f"e{n}", "event_type": "click", "request_id": f"r{n}"} for n in range(3)]
    for _ in range(2):
        outcomes.heard(heard)
    assert metrics.read()["raysys_arm_events"] == {
        "x,click,a,search": 2,
        "y,click,b,search": 2,
    }
    assert metrics.read()["raysys_arm_answers"]["x,a,ok,search"] == 3


def test_a_disk_that_is_gone_costs_no_answer(tmp_path: Path) -> None:
    metrics = Metrics()
    log = ExposureLog(ExperimentArgs(segment_s=600), tmp_path / "exposures", lambda: metrics)
    settings = parse_settings(
        ExperimentsSettings,
        {"metrics": METRICS, "experiments": [experiment()]},
        where="tests",
    )
    drawn = assign(settings.experiments, "u1")
    (tmp_path / "exposures").rmdir()
    (tmp_path / "exposures").write_text("in the way")
    told = {"at": 1_700_000_000_000, "request_id": "r", "surface": "search", "bundle": "b"}
    log.served(drawn.values(), "u1", {}, **told)  # type: ignore[arg-type]
    log.close()
    assert metrics.read()["raysys_exposures"] == {"failed": 1}


@pytest.mark.long
def test_from_the_yaml_to_the_verdict(bundle: Path, tmp_path: Path) -> None:
    """Served, clicked, analysed by one command, and told by the console."""
    lab = Lab(tmp_path, bundle, events={}, pages={"console": True}, experiments={"segment_s": 0.05})
    try:
        lab.runs(experiment(arms=by_bundle(), secondary=["orders"], expected_users=200))
        client = TestClient(http_app(lab.arms, lab.arms))  # type: ignore[arg-type]
        page = client.get("/console/experiments")
        assert page.status_code == 200 and "nobody was shown an arm yet" in page.text
        events = []
        for n in range(160):
            user = f"s{n}"
            answer = lab.ask(user)
            common = {"user_id": user, "item_id": "i00003", "request_id": answer["request_id"]}
            seen = [{**common, "event_type": "impression"} for _ in range(4)]
            treated = answer["experiments"]["trial"] == "treatment"
            clicks = [{**common, "event_type": "click"}] * (3 if treated else n % 2)
            events += seen + clicks
        for at in range(0, len(events), 1000):
            body = {"events": events[at : at + 1000]}
            assert client.post("/v1/events", json=body).status_code == 200
        lab.arms.experiments.close()  # what waits is written
        options = AnalyseOptions()
        found = run_analysis(lab.file, Workspace(tmp_path), options)
        assert sum(found.users.values()) == 160 and found.trusted
        assert found.of("primary")[0].state == "better"
        report = tmp_path / "experiments" / "trial" / "report.html"
        assert "treatment is better" in report.read_text()
        lab.arms.look()
        fresh = TestClient(http_app(lab.arms, lab.arms))  # type: ignore[arg-type]
        deadline = time.monotonic() + 30
        while "treatment is better" not in (page := fresh.get("/console/experiments")).text:
            assert time.monotonic() < deadline, page.text
        assert ">80<" in page.text.replace(" ", "") or str(found.users["control"]) in page.text
        whole = fresh.get("/console/experiments/trial")
        assert whole.status_code == 200 and "How it was judged" in whole.text
        assert fresh.get("/console/experiments/none").status_code == 404
        # half of the log in Parquet, half not: each event counts once, ingest's own too
        taken = lab.arms.champion.events
        assert taken is not None
        roll(taken.log, taken.rolled)
        more = {"user_id": "s0", "item_id": "i00003", "event_type": "purchase"}
        assert client.post("/v1/events", json={"events": [more]}).status_code == 200
        log = tmp_path / "eventlog"
        twice = AnalyseOptions(events=[log / "rolled" / "events", log])
        again = run_analysis(lab.file, Workspace(tmp_path), twice)
        clicks = [
            found.of("primary")[0].treatment.plain_mean,
            again.of("primary")[0].treatment.plain_mean,
        ]
        assert clicks[0] == pytest.approx(clicks[1])
        assert sum(c.control.plain_mean + c.treatment.plain_mean for c in again.of("secondary")) > 0
    finally:
        lab.arms.close()


@pytest.mark.long
def test_changes_drop_no_request(lab: Lab) -> None:
    """Experiments come, grow and go under load, beside a canary."""
    lab.says(
        experiment(arms=by_bundle(0.2, 0.2)), experiment("rows", by_policy(at_most={"category": 2}))
    )
    config = {"experiments": str(lab.file), "canary": {"bundle": "challenger", "share": 0.5}}
    both = parse_settings(UserConfig, config, where="tests")
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(lab.ask, USERS[n % 30]) for n in range(160)]
        lab.arms.reconfigure(both)
        lab.says(
            experiment(arms=by_bundle(0.4, 0.4)),
            experiment("rows", by_policy(at_most={"category": 2})),
        )
        lab.arms.look()
        lab.arms.reconfigure(UserConfig())
        lab.arms.reconfigure(both)
        answers = [future.result() for future in asked]
    assert all(len(answer["items"]) == 5 for answer in answers)
    for user in USERS:  # an arm that names a bundle is none of the canary's; others are
        answer = lab.ask(user)
        told = answer["experiments"]
        assert told == {n: arm for n in ("trial", "rows") if (arm := lab.drawn(user, n))}
        if "trial" in told:
            assert answer["arm"] == ("challenger" if told["trial"] == "treatment" else "champion")
        else:
            assert both.canary is not None and answer["arm"] == both.canary.arm_of(user)


def test_a_call_in_process_says_its_arms_too(lab: Lab) -> None:
    lab.runs(experiment())
    answer = lab.arms.answer(RecommendRequest(user_id="u1"), Context(time.perf_counter()))
    assert answer.experiments == {"trial": lab.drawn("u1")}
    unseen = Context(time.perf_counter(), shown=False)  # made for its figures alone
    assert lab.arms.answer(RecommendRequest(user_id="u1"), unseen).experiments
    assert lab.exposures()["request_id"].to_list() == [answer.request_id]
