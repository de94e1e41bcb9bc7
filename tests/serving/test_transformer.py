"""Queries, histories and pairs: read here or elsewhere, the same comes of it, and in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysys.errors import UserError
from raysys.registry import Registry, load_transformers
from raysys.serving.api import RecommendRequest, SearchRequest
from raysys.serving.args import ServeArgs
from raysys.serving.asking import Context
from raysys.serving.encoding import Rest, There, UnavailableError
from raysys.serving.metrics import Metrics
from raysys.serving.replay import replay
from raysys.serving.service import Service
from raysys.serving.transformer import Host, Hosted, NotLoadedError, TransformerArgs
from tests.serving import shop

ARGS = TransformerArgs(max_batch=4, wait_ms=1, rest_s=3600, start_s=20, timeout_ms=5000)


class Response:
    """What a handle of Ray Serve gives: an outcome to wait for."""

    def __init__(self, future: Future[Any]) -> None:
        self.future, self.cancelled = future, False

    def result(self, timeout_s: float | None = None) -> Any:
        return self.future.result(timeout_s)

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A `DeploymentHandle` that calls the deployment's class in threads of this process."""

    def __init__(self, args: ServeArgs) -> None:
        from raysys.serving.replica import Transformer

        self.replica = Transformer.func_or_class(args.model_dump(mode="json"))
        self.calls: list[str] = []
        self.waits: list[float] = []
        self.fault: Exception | None = None
        self.silent = False

    def __getattr__(self, name: str) -> Any:
        import asyncio

        def remote(*given: Any) -> Response:
            self.calls.append(name)
            if name != "prepare":
                self.waits.append(given[-1])
            future: Future[Any] = Future()

            def work() -> None:
                if self.fault is not None:
                    future.set_exception(self.fault)
                elif not self.silent:
                    future.set_result(asyncio.run(getattr(self.replica, name)(*given)))

            threading.Thread(target=work).start()
            return Response(future)

        return type("Method", (), {"remote": staticmethod(remote)})


@pytest.fixture(scope="module")
def sequences(
    tmp_path_factory: pytest.TempPathFactory, _hashed_words: None
) -> tuple[Registry, str]:
    """A bundle with a learner of sequences and a cross-encoder."""
    return shop.publish_shop(tmp_path_factory.mktemp("sequences"), with_sequences=True)


@pytest.fixture(scope="module")
def args(sequences: tuple[Registry, str], tmp_path_factory: pytest.TempPathFactory) -> ServeArgs:
    registry, bundle = sequences
    return ServeArgs(
        registry=str(registry.root),
        pinned=bundle,
        clock="log_end",
        transformer=ARGS,
        shown_lists={"folder": str(tmp_path_factory.mktemp("shown")), "inputs_share": 1.0},
    )


@pytest.fixture(scope="module")
def handle(args: ServeArgs) -> Iterator[Handle]:
    made = Handle(args)
    yield made
    made.replica.host.close()


@pytest.fixture
def there(args: ServeArgs, handle: Handle) -> Iterator[Service]:
    handle.fault, handle.silent = None, False
    service = Service(args, transformer=handle)  # type: ignore[arg-type]
    service.warm_up()
    handle.calls.clear()
    handle.waits.clear()
    yield service
    service.close()


@pytest.fixture(scope="module")
def here(args: ServeArgs) -> Iterator[Service]:
    service = Service(args.model_copy(update={"transformer": None, "shown_lists": None}))
    service.warm_up()
    yield service
    service.close()


RECOMMEND = RecommendRequest(user_id="u1", k=20, explain=True)
SEARCH = SearchRequest(query="rye bread", user_id="u1", k=20, explain=True)


def context(deadline_ms: float | None = None) -> Context:
    return Context(time.perf_counter(), deadline_ms, request_id="same", at=shop.START)


@pytest.mark.long
@pytest.mark.parametrize("asked", [RECOMMEND, SEARCH])
def test_elsewhere_the_same_comes_of_it_in_one_hop(
    here: Service, there: Service, handle: Handle, asked: Any
) -> None:
    one, other = here.content(asked, context()), there.content(asked, context())
    assert not other["degraded"], other["reasons"]
    assert [each["item_id"] for each in other["items"]] == [e["item_id"] for e in one["items"]]
    scores = [[each["score"] for each in answer["items"]] for answer in (one, other)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4)
    assert handle.calls == (["encode"] if asked is RECOMMEND else ["encode", "pairs"])
    assert "encode" in other["explanation"].milliseconds


def test_what_comes_next_is_a_source_and_knows_the_events_of_this_session(
    here: Service,
) -> None:
    answer = here.content(RECOMMEND, context())
    assert answer["explanation"].by_source["next_item"] > 0
    assert any("next_item" in item["why"].sources for item in answer["items"])
    features = here.bundle.features
    user = features.user_number("u1")
    before = here.ranker.pools.of(_ask(here, user), []).pool
    name, model = here.bundle.session_encoder or ("", None)
    assert name == "next_item" and model is not None
    expected = model.propose(features.history(user, 30), 40)[0]
    assert set(_of(before)) == set(expected.tolist())
    fresh = int(np.setdiff1d(np.arange(200), features.history(user, 200))[0])
    features.apply(shop.purchase(user, fresh, features.as_of + 1))
    after = here.ranker.pools.of(_ask(here, user), []).pool
    changed = model.propose(features.history(user, 30), 40)[0]
    assert features.history(user, 30)[0] == fresh
    assert set(_of(after)) == set(changed.tolist()) != set(expected.tolist())


def test_what_comes_next_lies_within_the_filters(here: Service) -> None:
    asked = RecommendRequest(
        user_id="u2", k=20, explain=True, filters={"category": ["milk", "cheese"]}
    )
    answer = here.content(asked, context())
    rows = [here.catalogue.row(here.catalogue.number(e["item_id"])) for e in answer["items"]]
    assert {row["category"] for row in rows} == {"milk", "cheese"} and len(rows) == 20
    assert answer["explanation"].by_source["next_item"] > 20  # it looks on for as many


def test_a_cart_is_what_comes_next_continues(here: Service) -> None:
    cart = RecommendRequest(
        session_id="nobody", place="cart", item_ids=["i00003", "i00013"], k=10, explain=True
    )
    answer = here.content(cart, context())
    assert answer["cold_start"] and answer["explanation"].by_source["next_item"] > 0
    assert not {"i00003", "i00013"} & {item["item_id"] for item in answer["items"]}


@pytest.mark.parametrize(("fault", "word"), [(RuntimeError("dead"), "failed"), (None, "deadline")])
def test_down_or_silent_the_answer_comes_in_time_and_says_so(
    there: Service, handle: Handle, fault: Exception | None, word: str
) -> None:
    handle.fault, handle.silent = fault, True
    for asked, left_out in (
        (SEARCH, {"meaning", "next_item", "cross_encoder_ranker"}),
        (RECOMMEND, {"next_item"}),
    ):
        answer = there.content(asked, context(400))
        assert answer["degraded"] and set(answer["left_out"]) >= left_out
        assert len(answer["items"]) == 20
        if fault is not None:  # who waited in vain may be woken too late on a busy machine
            assert "popular" in answer["items"][0]["why"].base_scores  # a fallback answered
        costs = there.ranker.costs
        afterwards = costs.expected("features", 200) + costs.expected("retrieval", 1)
        assert 0 < handle.waits[0] < 0.4 - afterwards  # of the first call, `encode`
    assert answer["reasons"]["next_item"] in (word, "down")
    calls = len(handle.calls)
    for _ in range(4):
        answer = there.content(RECOMMEND, context(400))
    assert answer["reasons"]["next_item"] == "down"
    assert len(handle.calls) - calls < 3  # it is left alone
    assert answer["explanation"].milliseconds["encode"] < 100


def test_with_no_time_it_is_not_even_asked(there: Service, handle: Handle) -> None:
    answer = there.content(SEARCH, Context(time.perf_counter() - 1, 10.0))
    assert not handle.calls and len(answer["items"]) == 20
    assert answer["reasons"]["meaning"] == answer["reasons"]["cross_encoder_ranker"] == "deadline"


def test_what_was_encoded_elsewhere_is_replayed_to_the_last_bit(
    there: Service, args: ServeArgs
) -> None:
    ids = []
    for asked in (RecommendRequest(user_id="u3", k=9), SearchRequest(query="milk", k=9)):
        ids.append(there.content(asked, Context(time.perf_counter()))["request_id"])
    there.close()
    assert args.shown_lists is not None
    for request_id in ids:
        again = replay(Path(args.shown_lists.folder), request_id)
        assert again.scored_from == "inputs" and not again.differences, again.differences


def test_a_bundle_that_is_not_there_is_loaded_meanwhile(
    sequences: tuple[Registry, str], args: ServeArgs
) -> None:
    registry, bundle = sequences
    host = Host(registry.root, ARGS.model_copy(update={"keep": 1}), Metrics())
    with pytest.raises(NotLoadedError, match="loading"):
        host.get(bundle)
    host.prepare(bundle)  # waits for the one that loads it
    queries, sessions = host.get(bundle).encode(["milk"], [np.array([1, 2], np.int32)], 1e18)
    assert queries is not None and sessions is not None
    alone = load_transformers(registry.path(bundle))
    assert alone.texts is not None and alone.sessions is not None
    np.testing.assert_array_equal(queries.result(20), alone.texts.encode(["milk"]))
    expected = alone.sessions.encode_sessions([np.array([1, 2], np.int32)])
    np.testing.assert_allclose(sessions.result(20), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(NotLoadedError, match="loading"):
        host.get("no-such-bundle")
    for _ in range(1000):
        try:
            host.get("no-such-bundle")
        except NotLoadedError as why:
            if str(why) == "failed":
                break
        threading.Event().wait(0.01)
    else:
        raise AssertionError("it was never said that there is no such bundle")
    host.close()


def test_models_that_cannot_be_warmed_are_closed_and_left_alone_for_a_while(
    sequences: tuple[Registry, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, bundle = sequences
    made: list[Hosted] = []

    def broken(hosted: Hosted) -> None:
        made.append(hosted)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Hosted, "warm_up", broken)
    host = Host(registry.root, ARGS, Metrics())
    with pytest.raises(RuntimeError, match="out of memory"):
        host.prepare(bundle)
    for batcher in made[0]._batchers.values():
        batcher._thread.join(20)
        assert not batcher._thread.is_alive()
    for _ in range(3):
        with pytest.raises(UserError, match="cannot be loaded: out of memory"):
            host.prepare(bundle)
        with pytest.raises(NotLoadedError, match="failed"):
            host.get(bundle)
    assert len(made) == 1
    monkeypatch.undo()
    host._resting[bundle] = replace(host._resting[bundle], until=0.0)
    host.prepare(bundle)
    assert host.get(bundle) and not host._resting
    host.close()


def test_after_faults_in_a_row_it_rests_and_one_try_ends_that() -> None:
    rest = Rest(0.0)
    for _ in range(3):
        assert rest.admits()
        rest.failed()
    assert rest.admits()  # the rest is over at once
    rest.ended()
    rest = Rest(3600)
    for _ in range(3):
        rest.failed()
    assert not rest.admits()
    rest.ended()
    assert rest.admits()


def test_who_gives_up_early_switches_it_off_for_nobody_who_can_wait(
    args: ServeArgs, handle: Handle
) -> None:
    handle.fault, handle.silent = None, True
    one = There(handle, args.pinned or "", ARGS)  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(UnavailableError, match="deadline"):
            one.encode(["milk"], [], 0.02)
    with pytest.raises(UnavailableError, match="down"):
        one.encode(["milk"], [], 0.02)
    handle.silent = False
    assert one.encode(["milk"], [], float("inf")).queries is not None
    handle.silent = True
    with pytest.raises(UnavailableError, match="deadline"):  # it answers, so it is tried again
        one.encode(["milk"], [], 0.02)
    short = ARGS.model_copy(update={"timeout_ms": 10})
    one = There(handle, args.pinned or "", short)  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(UnavailableError, match="deadline"):
            one.encode(["milk"], [], float("inf"))
    with pytest.raises(UnavailableError, match="down"):  # nobody waits longer than that
        one.encode(["milk"], [], float("inf"))
    handle.silent = False


def test_a_replica_starts_without_it_when_it_does_not_come(args: ServeArgs, handle: Handle) -> None:
    handle.fault = RuntimeError("no GPU")
    service = Service(args, transformer=handle)  # type: ignore[arg-type]
    service.warm_up()
    assert service.readiness().bundle == args.pinned
    with pytest.raises(UnavailableError):
        There(handle, "x", ARGS).encode(["milk"], [], 1.0)  # type: ignore[arg-type]
    handle.fault = None
    service.close()


def _ask(service: Service, user: int) -> Any:
    ask, _ = service.asking(RecommendRequest(user_id=f"u{user}", k=20), context())
    return ask


def _of(pool: Any) -> list[int]:
    bit = 1 << pool.names.index("next_item")
    return [int(item) for item in pool.items[pool.sources & bit > 0]]
