"""The deployment's own class, without Ray: what Serve calls of it."""

from __future__ import annotations

import asyncio

import pytest
from fastapi.testclient import TestClient

from raysys.errors import UserError
from raysys.registry import Registry
from raysys.serving.app import settle
from raysys.serving.args import ServeArgs
from raysys.serving.replica import Replica
from raysys.serving.rollout import Rollout


def test_a_replica_is_warm_before_it_has_routes(registry: Registry) -> None:
    ours = Replica.func_or_class.__mro__[1]  # type: ignore[attr-defined]
    assert ours.__module__ == "raysys.serving.replica"  # the first one is Serve's wrapper
    args = settle(ServeArgs.model_validate({"registry": str(registry.root), "clock": "log_end"}))
    replica = ours(args.model_dump(mode="json"))
    assert replica.service.ready and replica.service.ranker.costs.expected("features", 100) > 0
    replica.check_health()
    rollout = Rollout(registry.root).path
    rollout.parent.mkdir(exist_ok=True)
    rollout.write_text("{")  # running replicas live with it
    try:
        asyncio.run(replica.reconfigure({"canary": None}))
    finally:
        rollout.unlink()
    with pytest.raises(UserError, match="no bundle 'nothing'"):
        asyncio.run(replica.reconfigure({"canary": {"bundle": "nothing", "share": 0.1}}))
    with TestClient(replica.__serve_build_asgi_app__()) as client:
        assert client.get("/readyz").json()["bundle"] == args.pinned
        answer = client.post("/v1/similar", json={"item_id": "i00001", "k": 3}).json()
        assert len(answer["items"]) == 3 and not answer["degraded"]
    assert replica.service.metrics.read()["raysys_answers"] == {"false,similar": 1}
