"""Two bundles in one replica: who answers whom, what is counted, and how it changes."""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.registry import Registry
from raysys.serving.api import RecommendRequest
from raysys.serving.app import http_app, settle
from raysys.serving.args import ServeArgs
from raysys.serving.arms import Arms
from raysys.serving.asking import Context
from raysys.serving.pages import Recorder
from raysys.serving.rollout import CanaryArgs, Rollout, RolloutState, UserConfig, effective
from raysys.serving.service import Service
from raysys.serving.tracing import Trace

USERS = [f"u{n}" for n in range(30)]


class Shop:
    """A registry with two bundles of one shop, and a replica without Ray before it."""

    def __init__(self, root: Path, champion: Path, **args: Any) -> None:
        self.registry = Registry(root)
        self.first, self.second = (
            self.registry.publish(
                lambda folder: copy(champion, folder),
                name_hint=name,
                learners=json.loads((champion / "manifest.json").read_text())["learners"],
                figures={"ndcg10": {"full": {"value": value, "low": 0.2, "high": 0.3}}},
            )
            for name, value in (("first", 0.25), ("second", 0.26))
        )
        self.registry.point("champion", self.first)
        self.registry.point("challenger", self.second)
        self.made: list[Service] = []
        content = {
            "registry": str(root),
            "clock": "log_end",
            "pinned": self.first,
            **args,
        }
        self.arms = Arms(ServeArgs.model_validate(content), self.make, watch=False)
        self.arms.warm_up()
        app = http_app(cast("Service", self.arms), self.arms)
        self.client = TestClient(app, raise_server_exceptions=False)

    def make(self, args: ServeArgs) -> Service:
        self.made.append(Service(args))
        return self.made[-1]

    def tries(self, **canary: Any) -> None:
        content = {"canary": {"bundle": "challenger", **canary}}
        self.arms.reconfigure(parse_settings(UserConfig, content, where="user_config"))

    def ask(self, user: str, **more: Any) -> dict[str, Any]:
        response = self.client.post("/v1/recommend", json={"user_id": user, "k": 5, **more})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def arms_of(self) -> dict[str, str]:
        return {user: self.ask(user)["arm"] for user in USERS}

    def admin(self, call: str, status: int = 200, **body: Any) -> Any:
        response = self.client.post(f"/v1/admin/{call}", json=body)
        assert response.status_code == status, response.text
        return response.json()


def copy(champion: Path, folder: Path) -> None:
    shutil.copytree(champion, folder, dirs_exist_ok=True)
    (folder / "manifest.json").unlink()
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.fixture
def shop(bundle: Path, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path / "registry", bundle)
    yield made
    made.arms.close()


@pytest.mark.long
def test_a_share_of_users_gets_the_challenger_and_keeps_it(shop: Shop) -> None:
    assert set(shop.arms_of().values()) == {"champion"}
    shop.tries(share=0.4)
    canary = CanaryArgs(bundle="x", share=0.4)
    arms = shop.arms_of()
    assert arms == shop.arms_of() == {user: canary.arm_of(user) for user in USERS}
    assert set(arms.values()) == {"champion", "challenger"}
    for user, arm in arms.items():
        assert shop.ask(user)["bundle"] == {"champion": shop.first}.get(arm, shop.second)
    shop.tries(share=0.9)  # more users, and those of before
    wider = shop.arms_of()
    assert all(wider[user] == "challenger" for user in USERS if arms[user] == "challenger")
    assert len(shop.made) == 2  # another share loads nothing anew
    for call, body in (
        ("search", {"query": "milk"}),
        ("rank", {"item_ids": ["i00001", "i00002"]}),
    ):
        response = shop.client.post(f"/v1/{call}", json={"user_id": "u0", **body})
        assert response.json()["arm"] == wider["u0"]
    assert shop.client.post("/v1/search", json={"query": "milk"}).json()["arm"] == "champion"
    shop.arms.reconfigure(UserConfig())
    assert set(shop.arms_of().values()) == {"champion"}


@given(share=st.floats(0.01, 1), salt=st.text(min_size=1, max_size=16), more=st.floats(0, 1))
def test_the_hash_keeps_to_the_share(share: float, salt: str, more: float) -> None:
    canary = CanaryArgs(bundle="x", share=share, salt=salt)
    wider = canary.model_copy(update={"share": min(1.0, share + more)})
    users = [str(n) for n in range(400)]
    chosen = [user for user in users if canary.arm_of(user) == "challenger"]
    spread = (share * (1 - share) / len(users)) ** 0.5
    assert abs(len(chosen) / len(users) - share) <= 6 * spread + 1e-9
    assert all(wider.arm_of(user) == "challenger" for user in chosen)
    assert canary.arm_of(None) == canary.arm_of("") == "champion"


@pytest.mark.long
def test_a_challenger_that_fails_is_ended_and_nobody_notices(shop: Shop) -> None:
    shop.tries(share=0.5, guard={"min_answers": 20, "window": 50})
    challenger = shop.made[1]

    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    challenger.content = broken  # type: ignore[method-assign]
    arms = [shop.ask(USERS[n % 30])["arm"] for n in range(120)]  # all are answered
    assert set(arms) == {"champion"}
    status = shop.client.get("/v1/admin/canary").json()
    assert status["canary"] is None and shop.arms.challenger is None
    shop.arms.look()
    (halt,) = shop.arms.rollout.read().halted
    assert halt.bundle == shop.second and halt.why.startswith("error rate")

    shop.tries(share=0.5)  # the same canary does not come back by itself
    assert shop.arms.challenger is None
    replica = Arms(shop.arms.args, shop.make, watch=False)  # nor in a replica that starts later
    replica.reconfigure(UserConfig(canary=CanaryArgs(bundle=shop.second, share=0.5)))
    assert replica.challenger is None
    replica.close()
    told = shop.admin("canary", canary={"bundle": "challenger", "share": 0.5})  # but if asked to
    assert told["canary"]["bundle"] == shop.second and told["halted"] == []


def test_a_mistake_of_the_caller_is_nobody_s_error(shop: Shop) -> None:
    shop.tries(share=0.99, guard={"min_answers": 20, "window": 50})
    for _ in range(60):
        body = {"user_id": "u1", "place": "item", "item_ids": ["no such"]}
        assert shop.client.post("/v1/recommend", json=body).status_code == 404
    assert shop.arms.challenger is not None
    assert shop.arms.status()["arms"]["challenger"]["error_rate"] == 0


def test_outcomes_count_for_the_arm_of_their_user(shop: Shop) -> None:
    shop.tries(share=0.5, outcomes={"click": 1.0, "purchase": 3.0})
    arms = shop.arms_of()
    for user in USERS:
        shop.arms.outcome(user, "click")
        shop.arms.outcome(user, "view")  # does not count
    shop.arms.outcome("u0", "purchase")
    told = shop.arms.status()["arms"]
    for arm in ("champion", "challenger"):
        users = [user for user in USERS if arms[user] == arm]
        assert told[arm]["answers"] == len(users)
        assert told[arm]["outcomes"] == len(users) + 3 * (arms["u0"] == arm)


def test_whoever_is_in_no_arm_is_not_counted(shop: Shop) -> None:
    """Callers without user and session get the champion, and would make another group of it."""
    shop.tries(share=0.5, outcomes={"click": 1.0})
    for call, body in (
        ("search", {"query": "milk"}),
        ("similar", {"item_id": "i00001"}),
        ("rank", {"item_ids": ["i00001", "i00002"], "query": "milk"}),
    ):
        response = shop.client.post(f"/v1/{call}", json=body)
        assert response.status_code == 200 and response.json()["arm"] == "champion"
    shop.arms.outcome(None, "click")
    told = shop.arms.status()["arms"]
    assert [(each["answers"], each["outcomes"]) for each in told.values()] == [(0, 0), (0, 0)]
    response = shop.client.post("/v1/search", json={"query": "milk", "session_id": "s1"})
    told = shop.arms.status()["arms"]
    assert told[response.json()["arm"]]["answers"] == 1
    assert sum(each["answers"] for each in told.values()) == 1

    shop.tries(shadow=True)  # both answer whoever asks
    shop.client.post("/v1/search", json={"query": "milk"})
    tried = shop.arms._tried
    assert tried is not None and tried.shadow is not None
    tried.shadow._pool.shutdown(wait=True)
    assert [each["answers"] for each in shop.arms.status()["arms"].values()] == [1, 1]


@pytest.mark.parametrize("canary", [{"share": 0.5}, {"shadow": True}])
def test_a_new_champion_begins_the_comparison_anew(shop: Shop, canary: dict[str, Any]) -> None:
    third = shop.registry.publish(lambda folder: copy(shop.registry.path(shop.first), folder))
    shop.arms.args = shop.arms.args.model_copy(update={"follow": True})
    shop.tries(**canary)
    before = shop.arms._tried
    assert before is not None
    shop.arms_of()
    if before.shadow is not None:
        before.shadow._pool.shutdown(wait=True)
    assert before.guard.arms["champion"].answers and before.guard.arms["challenger"].answers
    made = len(shop.made)
    shop.registry.point("champion", third)
    shop.arms.look()
    tried = shop.arms._tried
    assert tried is not None and tried.lease is before.lease and len(shop.made) == made + 1
    told = shop.arms.status()
    assert [each["answers"] for each in told["arms"].values()] == [0, 0]
    assert told["shadow"] is None or told["shadow"]["compared"] == 0
    shop.arms.look()  # nothing is new
    assert shop.arms._tried is tried
    shop.ask("u1")


@pytest.mark.long
def test_events_reach_both_arms_and_count_for_the_guard(bundle: Path, tmp_path: Path) -> None:
    """Each arm's state follows the one log; a purchase counts for the arm of its user."""
    shop = Shop(tmp_path / "registry", bundle, events={})
    try:
        shop.tries(share=0.5)
        arms = shop.arms_of()
        user = next(user for user in USERS if arms[user] == "challenger")
        as_of = [service.bundle.features.as_of for service in shop.made]
        event = {"event_type": "purchase", "user_id": user, "item_id": "i00003"}
        sent = {"events": [{**event, "event_id": "e1"}]}
        for status in ("accepted", "duplicate"):  # sent twice, counted once
            response = shop.client.post("/v1/events", json=sent)
            assert response.status_code == 200, response.text
            assert response.json()["events"][0]["status"] == status
        told = shop.arms.status()["arms"]
        assert told["challenger"]["outcomes"] == 1 and told["champion"]["outcomes"] == 0
        # what a visitor of the storefront does counts as what the shop itself sends
        recorder = Recorder(shop.made[0], shop.arms)
        assert asyncio.run(recorder([{**event, "event_id": "e2"}]))
        assert shop.arms.status()["arms"]["challenger"]["outcomes"] == 2
        assert sum(shop.made[0].metrics.read()["raysys_events"].values()) == 3
        for service, before in zip(shop.made, as_of, strict=True):
            assert service.events is not None and service.events.follower is not None
            service.events.follower.catch_up()
            assert service.bundle.features.as_of > before
    finally:
        shop.arms.close()


def test_a_shadow_answers_nobody_and_is_compared(shop: Shop) -> None:
    shop.tries(shadow=True)
    answers = [shop.ask(user) for user in USERS]
    assert {answer["arm"] for answer in answers} == {"champion"}
    tried = shop.arms._tried
    assert tried is not None and tried.shadow is not None
    shop.arms.reconfigure(UserConfig())  # ends it, when it is through
    tried.shadow._pool.shutdown(wait=True)
    told = tried.shadow.told()
    assert told["compared"] + told["left_out"] == len(USERS) and told["failed"] == 0
    assert told["overlap"] == told["same_first"] == 1.0  # the two say the same
    lines = [json.loads(line) for line in tried.shadow.path.read_text().splitlines()]
    by_request = {answer["request_id"]: answer for answer in answers}
    assert len(lines) == told["compared"] > 0
    for line in lines:
        shown = by_request[line["request_id"]]
        ours = [[item["item_id"], item["score"]] for item in shown["items"]]
        assert line["champion"]["items"] == ours and line["champion"]["bundle"] == shop.first
        assert line["challenger"]["bundle"] == shop.second and line["challenger"]["items"] == ours
    assert shop.ask("u1")["arm"] == "champion"


def test_a_shadow_leaves_the_champion_s_trace_alone(shop: Shop) -> None:
    """It is on its way to whoever collects traces when the challenger begins."""
    shop.tries(shadow=True)
    tried, began = shop.arms._tried, time.perf_counter()
    assert tried is not None and tried.shadow is not None
    trace = Trace("/v1/recommend", began)
    shop.arms.answer(RecommendRequest(user_id="u1", k=3), Context(began, trace=trace))
    stages = list(trace.stages)
    tried.shadow._pool.shutdown(wait=True)
    assert tried.shadow.compared == 1 and trace.stages == stages
    assert trace.attributes["raysys.bundle"] == shop.first


def test_a_broken_shadow_costs_no_answer(shop: Shop) -> None:
    shop.tries(shadow=True)

    def broken(*_: Any) -> Any:
        raise RuntimeError("no")

    shop.made[1].content = broken  # type: ignore[method-assign]
    assert all(shop.ask(user)["items"] for user in USERS[:5])
    tried = shop.arms._tried
    assert tried is not None and tried.shadow is not None
    tried.shadow._pool.shutdown(wait=True)
    assert tried.shadow.failed == 5
    assert shop.arms.status()["arms"]["challenger"]["error_rate"] == 1.0


@pytest.mark.long
def test_changes_drop_no_request(shop: Shop) -> None:
    """Canaries come and go, and the champion changes, under load."""
    shop.arms.args = shop.arms.args.model_copy(update={"follow": True})
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(shop.ask, USERS[n % 30]) for n in range(240)]
        for share in (0.5, 0.2, 0.99):
            shop.tries(share=share)
        shop.registry.point("champion", shop.second)
        shop.arms.look()
        shop.registry.rollback("champion")
        shop.arms.look()
        answers = [future.result() for future in asked]
    assert {answer["bundle"] for answer in answers} <= {shop.first, shop.second}
    assert all(len(answer["items"]) == 5 for answer in answers)
    assert shop.ask("u1")["bundle"] in (shop.first, shop.second)


def test_serve_hands_a_replica_its_user_config(shop: Shop) -> None:
    """The class that Serve makes replicas of, without the wrapper that wants a cluster."""
    from raysys.serving.replica import Replica

    args = shop.arms.args.model_dump(mode="json")
    wrapped = Replica.func_or_class  # type: ignore[attr-defined]
    assert asyncio.iscoroutinefunction(wrapped.reconfigure)  # Serve awaits it, answers go on
    made = wrapped.__mro__[1](args)
    try:
        for config, tried in (
            ({"canary": {"bundle": "challenger", "share": 0.5}}, shop.second),
            ({"canary": None}, None),
            ({"canary": {"bundle": "challenger", "shadow": True}}, shop.second),
            ({"experiments": "no such file.yaml"}, None),  # said, and no reason to end a replica
            (None, None),
        ):
            asyncio.run(made.reconfigure(config))
            challenger = made.service.challenger
            assert (challenger and challenger.bundle.id) == tried
            made.check_health()
        with pytest.raises(UserError, match="did you mean 'canary'"):
            asyncio.run(made.reconfigure({"canari": None}))
    finally:
        made.service.close()


def test_promotion_and_rollback_over_http(shop: Shop) -> None:
    shop.arms.args = shop.arms.args.model_copy(update={"follow": True})
    listed = shop.client.get("/v1/admin/bundles").json()
    assert listed["pointers"] == {"champion": shop.first, "challenger": shop.second}
    assert {row["bundle"] for row in listed["bundles"]} == {shop.first, shop.second}
    told = shop.admin("promote", bundle="challenger")
    assert (told["before"], told["bundle"], told["live"]) == (shop.first, shop.second, True)
    assert shop.ask("u1")["bundle"] == shop.second and shop.ask("u1")["arm"] == "champion"
    assert shop.client.get("/readyz").json()["bundle"] == shop.second
    assert shop.admin("rollback")["bundle"] == shop.first
    assert shop.ask("u1")["bundle"] == shop.first
    journal = shop.client.get("/v1/admin/bundles").json()["journal"]
    assert "rolled back by a caller of this machine" in journal[-1]["cause"]

    worse = shop.registry.publish(
        lambda folder: (folder / "a.json").write_text("{}") and None,
        figures={"ndcg10": {"full": 0.1}},
    )
    problem = shop.admin("promote", 409, bundle=worse)
    assert problem["errors"][0]["path"] == "body.bundle" and "lower end" in problem["detail"]
    assert shop.registry.resolve("champion") == shop.first
    assert shop.admin("promote", bundle=worse, force=True)["bundle"] == worse
    # it cannot be loaded: what answers goes on
    assert shop.ask("u1")["bundle"] == shop.first
    assert shop.admin("rollback")["bundle"] == shop.first


def test_counts_are_those_of_all_services_here(shop: Shop) -> None:
    """They are told since the replica started: a promotion takes none away."""

    def answers() -> int:
        return sum(shop.arms.counts().get("raysys_answers", {}).values())

    shop.arms.args = shop.arms.args.model_copy(update={"follow": True})
    shop.tries(share=0.5)
    shop.arms_of()
    assert answers() == len(USERS)
    assert sum(shop.made[0].metrics.read()["raysys_answers"].values()) < len(USERS)
    shop.registry.point("champion", shop.second)
    shop.arms.look()
    for made in shop.made[:2]:  # the old champion, and the challenger that is the champion now
        for thread in [each for each in threading.enumerate() if each.name == "close"]:
            thread.join(20)
        assert made.metrics.ended and not made.metrics._gauges
    shop.arms_of()
    assert answers() == 2 * len(USERS)
    shop.tries(bundle=shop.first, shadow=True)  # seen by nobody: it does not count
    tried = shop.arms._tried
    assert tried is not None and tried.shadow is not None
    shop.ask("u1")
    tried.shadow._pool.shutdown(wait=True)
    assert tried.shadow.compared == 1 and answers() == 2 * len(USERS) + 1


def test_gauges_of_two_services_are_told_apart(bundle: Path, tmp_path: Path) -> None:
    made = Shop(tmp_path / "registry", bundle, events={}, follow=True)
    try:
        made.tries(share=0.5)

        def told(name: str) -> dict[tuple[str, str], list[float]]:
            found: dict[tuple[str, str], list[float]] = {}
            for service in made.made:
                for (gauge, tags), value in service.metrics.gauges().items():
                    if gauge == name:
                        key = dict(tags)["arm"], dict(tags)["bundle"]
                        found.setdefault(key, []).append(value)
            return found

        for name in ("raysys_event_lag_seconds", "raysys_state_age_seconds", "raysys_bundle"):
            both = [("champion", made.first), ("challenger", made.second)]
            assert sorted(told(name)) == sorted(both) and all(map(len, told(name).values()))
        old = made.made[0]
        old.lose_name()
        gone = {key[0]: value for key, value in old.metrics.gauges().items()}
        assert gone["raysys_state_age_seconds"] == gone["raysys_bundle"] == 0.0
        assert not old.metrics.gauges()  # once: another service may have the name again
    finally:
        made.arms.close()


def test_a_replica_that_follows_begins_with_the_champion_of_now(
    bundle: Path, tmp_path: Path
) -> None:
    made = Shop(tmp_path / "registry", bundle, follow=True)
    made.registry.point("champion", made.second)
    shutil.rmtree(made.registry.bundles / made.first)  # nobody needs it
    asked: list[str | None] = []

    def make(args: ServeArgs) -> Service:
        asked.append(args.pinned)
        return made.make(args)

    args = made.arms.args.model_copy(update={"pinned": made.first})
    replica = Arms(args, make, watch=False)
    replica.warm_up()
    assert asked == [made.second] and replica.champion.bundle.id == made.second
    assert settle(args).pinned == made.second
    replica.close()
    made.arms.close()


@pytest.mark.parametrize("how", ["loaded", "warmed"])
def test_a_champion_that_is_broken_keeps_no_replica_from_starting(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    made = Shop(tmp_path / "registry", bundle, follow=True)
    warm_up, asked = Service.warm_up, list[str | None]()

    def broken(service: Service) -> None:
        if service.bundle.id == made.second:
            raise RuntimeError("no memory left")
        warm_up(service)

    def make(args: ServeArgs) -> Service:
        asked.append(args.pinned)
        return made.make(args)

    made.registry.point("champion", made.second)
    if how == "loaded":
        (made.registry.path(made.second) / "ensemble.json").write_text("{}")
    else:
        monkeypatch.setattr(Service, "warm_up", broken)
    args = made.arms.args.model_copy(update={"pinned": made.first})
    replica = Arms(args, make, watch=False)
    replica.warm_up()
    assert replica.champion.bundle.id == made.first and replica.readiness().bundle == made.first
    assert asked == [made.second, made.first]  # it is left alone for a while
    replica.close()
    shutil.rmtree(made.registry.bundles / made.first)
    with pytest.raises((UserError, RuntimeError)):  # nor is there another one
        Arms(args, make, watch=False).warm_up()
    made.arms.close()


@pytest.mark.parametrize("where", ["admin_routes", "operator"])
def test_a_rollback_while_a_bundle_is_judged_is_not_undone(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    module = importlib.import_module(f"raysys.serving.{where}")
    judge = module.judge_known
    made = Shop(tmp_path / "registry", bundle, pages={"console": True})
    made.registry.point("champion", made.second)

    def slowly(*told: Any) -> Any:
        judged = judge(*told)
        made.registry.rollback("champion")
        return judged

    monkeypatch.setattr(module, "judge_known", slowly)
    third = made.registry.publish(lambda folder: copy(bundle, folder), name_hint="third")
    if where == "operator":
        form = {"action": "promote", "bundle": third, "force": "1"}
        assert "another bundle by now" in made.client.post("/console/champion", data=form).text
    else:
        problem = made.admin("promote", 409, bundle=third, force=True)
        assert problem["type"].endswith("name-moved")
    assert made.registry.resolve("champion") == made.first
    made.arms.close()


def test_a_champion_that_is_gone_is_replaced_over_http(shop: Shop) -> None:
    shutil.rmtree(shop.registry.bundles / shop.first)
    problem = shop.admin("promote", 409, bundle="challenger")
    assert "the champion cannot be read" in problem["detail"]
    assert shop.admin("promote", bundle="challenger", force=True)["bundle"] == shop.second


@pytest.mark.parametrize(
    "name",
    ["../champion", "a/b", "..", "", ".hidden", "a..b", "x" * 101, "a\n", "é", "/etc/passwd", 5],
)
def test_paths_in_names_are_named(shop: Shop, name: object) -> None:
    for call, body, path in (
        ("promote", {"bundle": name}, "body.bundle"),
        ("promote", {"bundle": "challenger", "name": name}, "body.name"),
        ("rollback", {"name": name}, "body.name"),
    ):
        assert path in [error["path"] for error in shop.admin(call, 422, **body)["errors"]]
    body = {"canary": {"bundle": name, "share": 0.1}}
    problem = shop.client.post("/v1/admin/canary", json=body)
    assert problem.status_code in (404, 422)
    assert problem.json()["errors"][0]["path"] == "body.canary.bundle"
    assert str(shop.registry.root) not in problem.text


def test_what_is_not_there_is_named(shop: Shop) -> None:
    for call, body in (
        ("promote", {"bundle": "nothing"}),
        ("rollback", {"name": "champion"}),
        ("rollback", {"name": "nothing"}),
        ("canary", {"canary": {"bundle": "nothing", "share": 0.1}}),
    ):
        problem = shop.admin(call, 404, **body)
        assert problem["type"].endswith("no-such-bundle")
        assert str(shop.registry.root) not in json.dumps(problem)
    for canary in (
        {"bundle": "challenger"},
        {"bundle": "challenger", "share": 0.1, "shadow": True},
    ):
        shop.admin("canary", 422, canary=canary)
    shop.admin("canary", 422, canary={"bundle": "challenger", "share": 1.1})
    problem = shop.admin("canary", 422, canary={"bundle": "challenger", "share": 1.0})
    (error,) = problem["errors"]
    assert error["path"] == "body.canary.share" and "promote" in error["message"]
    shop.admin("canary", 422, canary={"bundle": "challenger", "share": 0.1, "shar": 1})


def test_two_things_may_say_what_is_tried() -> None:
    config = UserConfig(canary=CanaryArgs(bundle="a", share=0.1))
    other = CanaryArgs(bundle="b", share=0.1)
    halted = ({"bundle": "A", "at": "", "why": ""},)

    def tried(**state: Any) -> str | None:
        found = effective(RolloutState.model_validate(state), config, str.upper)
        return found and found.bundle

    assert tried() == "A" and tried(says=True) is None
    assert tried(says=True, canary=other) == "B" and tried(canary=other) == "A"
    assert tried(halted=halted) is None and tried(halted=halted, says=True, canary=other) == "B"


def trying(share: float) -> dict[str, Any]:
    return {"canary": {"bundle": "challenger", "share": share}}


def test_an_admin_may_leave_it_to_user_config_again(shop: Shop) -> None:
    shop.arms.reconfigure(parse_settings(UserConfig, trying(0.3), where="x"))
    told = shop.client.get("/v1/admin/canary").json()
    assert told["asked_by"] == "user_config" and told["asked"]["share"] == 0.3
    told = shop.client.post("/v1/admin/canary", json={"canary": None}).json()
    assert told["asked_by"] == "admin" and told["asked"] is None
    shop.arms.reconfigure(parse_settings(UserConfig, trying(0.5), where="x"))  # deployed later
    assert shop.client.get("/v1/admin/canary").json()["asked"] is None
    told = shop.client.delete("/v1/admin/canary").json()
    assert told["asked_by"] == "user_config" and told["asked"]["share"] == 0.5
    shop.arms.rollout.halt(shop.second, "it failed")
    shop.client.delete("/v1/admin/canary")
    assert [halt.bundle for halt in shop.arms.rollout.read().halted] == [shop.second]


def test_a_damaged_rollout_changes_nothing(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.tries(share=0.99)
    for content in ("{", "[]", '{"canary": {"bundle": "x"}}'):
        shop.arms.rollout.path.parent.mkdir(exist_ok=True)
        shop.arms.rollout.path.write_text(content)
        for _ in range(3):
            shop.arms.look()
        assert shop.arms.challenger is not None and shop.ask("u1")["arm"] == "challenger"
    assert caplog.text.count("stays as it is") == 3  # each said once
    shop.arms.look(strict=True)  # a replica that starts has to live with it as well
    assert shop.arms.challenger is not None
    Rollout(shop.registry.root).clear()
    shop.arms.look(strict=True)
    with pytest.raises(UserError, match="no bundle 'nothing'"):
        shop.arms.reconfigure(UserConfig(canary=CanaryArgs(bundle="nothing", share=0.1)))
    assert shop.ask("u1")["items"]


def test_a_champion_that_cannot_be_loaded_keeps_no_canary(shop: Shop) -> None:
    shop.tries(share=0.99)
    assert shop.arms.challenger is not None
    shop.arms.args = shop.arms.args.model_copy(update={"follow": True})
    (shop.registry.root / "champion.json").unlink()
    shop.arms._config = UserConfig()
    shop.arms.look()
    assert shop.arms.challenger is None and shop.ask("u1")["arm"] == "champion"


def test_a_bundle_that_cannot_be_loaded_leaves_no_thread(shop: Shop) -> None:
    (shop.registry.path("challenger") / "ensemble.json").write_text("{}")
    args = shop.arms.args.model_copy(update={"bundle": "challenger", "pinned": shop.second})
    before = set(threading.enumerate())
    with pytest.raises(UserError, match=r"ensemble\.json"):
        Service(args, on_ray=True)
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive(), thread.name


def test_a_bundle_that_cannot_be_warmed_is_closed_and_left_alone_for_a_while(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[Service] = []
    close = Service.close

    def broken(service: Service) -> None:
        raise UserError("no memory left")

    def counted(service: Service) -> None:
        closed.append(service)
        close(service)

    monkeypatch.setattr(Service, "warm_up", broken)
    monkeypatch.setattr(Service, "close", counted)
    shop.arms._config = UserConfig(canary=CanaryArgs(bundle="challenger", share=0.5))
    before = len(shop.made)
    for _ in range(3):
        shop.arms.look()
    assert len(shop.made) == before + 1 and closed == shop.made[before:]
    assert caplog.text.count("cannot be loaded: no memory left") == 1
    monkeypatch.undo()
    shop.arms.reconfigure(shop.arms._config)  # whoever asks for it need not wait
    assert shop.arms.challenger is not None
