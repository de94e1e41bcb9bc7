"""A cache that never answers from before, lets one make what many want, and does without Redis."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from shutil import which
from typing import Any

import numpy as np
import pytest

from raysys.features.log import EventColumns
from raysys.registry import Registry
from raysys.retrieval.merge import Candidates
from raysys.schema import EVENT_TYPES
from raysys.serving.api import RecommendRequest, SearchRequest
from raysys.serving.args import ServeArgs
from raysys.serving.asking import Context, Ranking
from raysys.serving.cache import Cache, CacheArgs, key_of
from raysys.serving.metrics import Metrics
from raysys.serving.service import Service
from raysys.serving.versions import Versions


def ranking(number: int = 0, **more: Any) -> Ranking:
    items = np.arange(3, dtype=np.int32) + number
    pool = Candidates(items, np.ones(3, np.uint8), ("words",))
    return Ranking(pool, 17, scores=np.ones(3, np.float32), fallback="full", **more)


def cache(**args: Any) -> tuple[Cache, Metrics]:
    metrics = Metrics()
    return Cache(CacheArgs(**args), metrics), metrics


def settled(found: Cache) -> None:
    """What was given to the refreshing thread is done."""
    found._refresher.submit(int).result()


def test_fresh_then_stale_then_made_anew() -> None:
    held, _ = cache(fresh_s=1e9, stale_s=0)
    assert held.get("a", ranking)[1] == "miss" and held.peek("a") == "hit"
    found, told = held.get("a", lambda: ranking(9))
    assert told == "hit" and found.pool.items[0] == 0
    assert held.get("b", lambda: ranking(9))[0].pool.items[0] == 9
    held, _ = cache(fresh_s=1e-9, stale_s=1e9)
    held.get("a", ranking)
    found, told = held.get("a", lambda: ranking(9))
    assert told == "stale" and found.pool.items[0] == 0  # nobody waits for the new one
    settled(held)
    assert held.get("a", ranking)[0].pool.items[0] == 9
    held, _ = cache(fresh_s=1e-9, stale_s=0)
    held.get("a", ranking)
    assert held.peek("a") == "miss" and held.get("a", lambda: ranking(9))[1] == "miss"


def test_of_many_who_want_one_one_makes_it() -> None:
    held, _ = cache()
    begun, go = threading.Event(), threading.Event()
    made = []

    def slow() -> Ranking:
        made.append(1)
        begun.set()
        go.wait(10)
        return ranking()

    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(held.get, "a", slow)
        begun.wait(10)
        others = [pool.submit(held.get, "a", slow) for _ in range(5)]
        while held._flights and not all(other.running() for other in others):
            threading.Event().wait(0.001)
        go.set()
        told = [future.result()[1] for future in (first, *others)]
    assert made == [1] and told[0] == "miss" and set(told[1:]) <= {"shared", "hit"}


def test_who_has_no_time_does_not_wait_for_who_has() -> None:
    held, _ = cache(fresh_s=1e-9, stale_s=0)
    go = threading.Event()

    def slow() -> Ranking:
        go.wait(10)
        return ranking()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(held.get, "a", slow)
        while "a" not in held._flights:
            threading.Event().wait(0.001)
        found, told = held.get("a", lambda: ranking(9), until=time.perf_counter() + 0.01)
        assert told == "miss" and found.pool.items[0] == 9 and not first.done()
        go.set()


def test_who_waits_in_vain_still_has_time_to_make_it() -> None:
    held, _ = cache(fresh_s=1e-9, stale_s=0)
    go, found = threading.Event(), []

    def slow() -> Ranking:
        go.wait(10)
        return ranking()

    def timed() -> Ranking:
        found.append(until - time.perf_counter())
        return ranking(9)

    for _ in range(8):
        held._costs.took("make", 1, 0.1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(held.get, "a", slow)
        while "a" not in held._flights:
            threading.Event().wait(0.001)
        until = time.perf_counter() + 0.2
        assert held.get("a", timed, until=until)[1] == "miss" and not first.done()
        go.set()
    assert found[0] > 0.05


def test_nobody_waits_for_what_the_refreshing_thread_has_not_begun() -> None:
    held, _ = cache(fresh_s=1e-9, stale_s=1e9)
    go = threading.Event()

    def slow() -> Ranking:
        go.wait(10)
        return ranking(5)

    for key in "ab":
        held.get(key, ranking)
    assert held.get("a", slow)[1] == held.get("b", slow)[1] == "stale"  # b queues behind a
    held._held.clear()  # too many other keys came
    try:
        found, told = held.get("b", lambda: ranking(9), until=time.perf_counter() + 5)
        assert told == "miss" and found.pool.items[0] == 9 and not go.is_set()
    finally:
        go.set()
    settled(held)
    assert held._held["b"].ranking.pool.items[0] == 9  # it was not made once more


def test_who_has_time_is_not_answered_by_who_had_none() -> None:
    held, _ = cache()
    begun, go = threading.Event(), threading.Event()

    def hasty() -> Ranking:
        begun.set()
        go.wait(10)
        return ranking(reasons={"two_tower": "deadline"})

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(held.get, "a", hasty)
        begun.wait(10)
        other = pool.submit(held.get, "a", lambda: ranking(9))
        while not other.running():
            threading.Event().wait(0.001)
        go.set()
        assert first.result()[0].reasons
        assert not other.result()[0].reasons


def test_what_nobody_waits_for_is_made_without_the_deadline_of_who_asked() -> None:
    held, _ = cache(fresh_s=1e-9, stale_s=1e9)
    held.get("a", ranking)
    told = held.get("a", lambda: ranking(5), again=lambda: ranking(9), until=0.0)[1]
    settled(held)
    assert told == "stale" and held.get("a", ranking)[0].pool.items[0] == 9


def test_a_fault_reaches_all_who_wait_and_is_not_kept() -> None:
    held, _ = cache()

    def broken() -> Ranking:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError):
        held.get("a", broken)
    assert held.get("a", ranking)[1] == "miss"


def test_what_leaves_somebody_out_is_not_kept() -> None:
    held, _ = cache()
    held.get("a", lambda: ranking(reasons={"two_tower": "deadline"}))
    assert held.get("a", ranking)[1] == "miss" and held.get("a", ranking)[1] == "hit"


def test_the_oldest_goes_first() -> None:
    held, _ = cache(entries=2)
    for key in ("a", "b", "a", "c"):
        held.get(key, ranking)
    assert [held.peek(key) for key in "abc"] == ["hit", "miss", "hit"]


def test_keys_tell_all_things_apart() -> None:
    given = [("a", 1), ("a", "1"), ("a", None), ("a", 1, ()), (("a", 1),), ("a\ud800",), ()]
    assert len({key_of(*parts) for parts in given}) == len(given)


def test_versions_never_come_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    from raysys.serving import versions as module

    monkeypatch.setattr(module, "_MOST", 2)
    versions = Versions()
    seen = {versions.of("u", "s")}
    for user, session in (("u", None), (None, "s"), ("u", "s"), ("v", None), ("w", "t"), ("u", "")):
        versions.bump(user, session)
        seen.add(versions.of("u", "s"))
    assert len(seen) == 7  # after (v, w, t) those of u and s are forgotten, with their era
    before = versions.of("u", None)
    versions.base = "snapshot 4"
    assert versions.of("u", None) != before


@pytest.fixture(scope="module")
def warm(registry: Registry) -> Iterator[Service]:
    content = {"registry": str(registry.root), "clock": "log_end", "cache": {}}
    service = Service(ServeArgs.model_validate(content))
    yield service
    service.close()


def told(service: Service) -> dict[str, int]:
    return dict(service.metrics.read().get("raysys_cache", {}))


def ask(service: Service, **body: Any) -> list[str]:
    model = SearchRequest if "query" in body else RecommendRequest
    answer = service.answer(model(**body), Context(time.perf_counter()))
    return [item.item_id for item in answer.items]


def test_the_same_request_is_a_hit_and_any_other_is_not(warm: Service) -> None:
    first = ask(warm, user_id="u4", k=5)
    before = told(warm)
    assert ask(warm, user_id="u4", k=5) == first
    assert ask(warm, user_id="u4", k=3) == first[:3]  # the same candidates
    assert told(warm)["hit"] == before.get("hit", 0) + 2
    others: list[dict[str, Any]] = [
        {"user_id": "u5", "k": 5},
        {"user_id": "u4", "k": 5, "item_ids": ["i00001"]},
        {"user_id": "u4", "k": 5, "place": "cart", "item_ids": ["i00001"]},
        {"user_id": "u4", "k": 5, "filters": {"max_price": 5}},
        {"user_id": "u4", "query": "milk"},
        {"user_id": "u4", "query": "soap"},
    ]
    for body in others:
        ask(warm, **body)
    assert told(warm)["miss"] == before["miss"] + len(others)


def test_a_pin_shows_from_the_moment_it_counts(registry: Registry) -> None:
    starts = "2030-01-01T00:00:00Z"
    pin = {"item_id": "i00199", "position": 1, "starts": starts}
    args = {"registry": str(registry.root), "clock": "log_end", "cache": {}}
    args |= {"recommend": {"candidates": 5, "policy": {"pinned": [pin]}}}
    held = Service(ServeArgs.model_validate(args))
    moment = round(datetime.fromisoformat(starts).timestamp() * 1000)
    for at, first in ((moment - 1, False), (moment, True), (moment + 1, True)):
        context = Context(time.perf_counter(), at=at)
        answer = held.answer(RecommendRequest(user_id="u4", k=3), context)
        assert (answer.items[0].item_id == "i00199") == first
    assert told(held) == {"miss": 2, "hit": 1}
    held.close()


def test_a_short_list_does_not_shorten_a_longer_one(registry: Registry) -> None:
    def service(**more: Any) -> Service:
        args = {"registry": str(registry.root), "clock": "log_end", "k_max": 100, **more}
        return Service(ServeArgs.model_validate({**args, "recommend": {"candidates": 60}}))

    cached, plain = service(cache={}), service()
    codes, labels = cached.catalogue.codes("brand")
    there = np.bincount(codes[codes >= 0])
    brand = labels[int(there.argmax())]
    filters = {"brand": [brand]}
    assert len(ask(cached, user_id="u4", k=2, filters=filters)) == 2
    for k in (20, 40, 20):
        expected = ask(plain, user_id="u4", k=k, filters=filters)
        assert ask(cached, user_id="u4", k=k, filters=filters) == expected
        assert len(expected) == min(k, there.max())
    for each in (cached, plain):
        each.close()


def test_an_event_that_comes_while_a_list_is_made_makes_the_next_one_anew(
    warm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = warm.permissions.allowed

    def meanwhile(*told: Any) -> Any:
        found = allowed(*told)
        warm.bump("u8")
        return found

    monkeypatch.setattr(warm.permissions, "allowed", meanwhile)
    ask(warm, user_id="u8", k=5)
    monkeypatch.undo()
    before = told(warm)["miss"]
    ask(warm, user_id="u8", k=5)
    assert told(warm)["miss"] == before + 1


def test_a_new_event_shows_in_the_next_answer(warm: Service) -> None:
    features = warm.bundle.features
    first = ask(warm, user_id="u6", k=10)
    assert ask(warm, user_id="u6", k=10) == first
    features.apply(bought(features.user_number("u6"), 150, features.as_of + 1000))
    assert ask(warm, user_id="u6", k=10) == first  # nobody said so
    warm.bump("u6")
    now = ask(warm, user_id="u6", k=10)
    assert now != first
    assert ask(warm, user_id="u6", k=10) == now
    assert warm.versions.of("u7", None)[2] == 0


def bought(user: int, item: int, time: int) -> EventColumns:
    return EventColumns(
        user=np.full(1, user, np.int32),
        item=np.full(1, item, np.int32),
        kind=np.full(1, EVENT_TYPES.index("purchase"), np.int8),
        time=np.full(1, time, np.int64),
        quantity=np.ones(1),
        price=np.ones(1),
        store=np.full(1, -1, np.int32),
        order=np.full(1, 9999, np.int64),
        session=np.full(1, 9999, np.int32),
        query=np.full(1, -1, np.int32),
    )


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if which("redis-server") is None:
        pytest.skip("no redis-server")
    pytest.importorskip("redis")
    import redis

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    server = subprocess.Popen(
        [*command, "--dir", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    client = redis.Redis(port=port)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            client.ping()
            break
        except redis.ConnectionError:
            threading.Event().wait(0.02)
    yield f"redis://127.0.0.1:{port}/0"
    server.terminate()
    server.wait(10)


def test_replicas_share_what_one_of_them_made(redis_url: str) -> None:
    one, _ = cache(redis=redis_url, redis_timeout_ms=1000)
    two, _ = cache(redis=redis_url, redis_timeout_ms=1000)
    relevance = np.array([1, 0.5, 0.2], np.float32)
    assert one.get("a", lambda: ranking(4, relevance=relevance))[1] == "miss"
    settled(one)
    found, said = two.get("a", ranking)
    assert said == "remote" and two.get("a", ranking)[1] == "hit"
    assert found.pool.items.tolist() == [4, 5, 6] and found.pool.sources_of(0) == ["words"]
    assert (found.timestamp, found.fallback) == (17, "full")
    assert found.relevance is not None and found.relevance.tolist() == relevance.tolist()
    import redis

    redis.Redis.from_url(redis_url).set("raysys:b", b"no ranking")
    assert two.get("b", ranking)[1] == "miss"


def test_replicas_of_other_settings_share_nothing(redis_url: str, registry: Registry) -> None:
    """In a rolling update old and new ones answer side by side."""
    shared = {"redis": redis_url, "redis_timeout_ms": 1000}
    args = {"registry": str(registry.root), "clock": "log_end", "cache": shared}
    old = Service(ServeArgs.model_validate(args))
    first = ask(old, user_id="u4", k=5)
    assert old._cache is not None
    settled(old._cache)
    recalled = {"policy": {"exclude_items": first[:1]}}
    new = Service(ServeArgs.model_validate({**args, "recommend": recalled}))
    assert first[0] not in ask(new, user_id="u4", k=5)
    same = Service(ServeArgs.model_validate(args))
    assert ask(same, user_id="u4", k=5) == first and told(same) == {"remote": 1}
    for each in (old, new, same):
        each.close()


def test_without_redis_each_goes_on_alone() -> None:
    pytest.importorskip("redis")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        held, metrics = cache(redis=f"redis://127.0.0.1:{probe.getsockname()[1]}/0")
        assert held.get("a", ranking)[1] == "miss"
        settled(held)
        assert held.get("a", ranking)[1] == "hit" and held.get("b", ranking)[1] == "miss"
    assert metrics.read()["raysys_cache_faults"] == {"": 1}  # after one it is left alone


def test_redis_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from raysys.errors import UserError

    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(UserError, match=r"raysys\[redis\]"):
        cache(redis="redis://127.0.0.1:1/0")
