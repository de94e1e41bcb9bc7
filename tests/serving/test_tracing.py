"""Traces of answers: the stages of each as spans, in the caller's trace, with nothing personal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.registry import Registry
from raysys.serving.app import http_app, settle
from raysys.serving.args import ServeArgs
from raysys.serving.service import Service
from raysys.serving.tracing import Trace, Tracing, TracingArgs, check_tracing

CALLER = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SEARCH = {"query": "rye bread", "user_id": "u1", "k": 5}


@pytest.fixture(scope="module")
def service(registry: Registry) -> Iterator[Service]:
    """One of its own: servers of other tests have closed the one that they share."""
    made = Service(ServeArgs(registry=str(registry.root), clock="log_end"))
    made.warm_up()
    yield made
    made.close()


class Seen:
    """A client of an application that is traced, and the spans of what it asked."""

    def __init__(self, service: Service, share: float = 1.0) -> None:
        self.exporter = InMemorySpanExporter()
        args = TracingArgs(otlp="http://127.0.0.1:1/v1/traces", share=share)
        self.tracing = Tracing(args, self.exporter)
        app = http_app(service, tracing=self.tracing)
        self.client = TestClient(app, raise_server_exceptions=False)

    def spans(self) -> Sequence[ReadableSpan]:
        self.tracing.flush()
        found = self.exporter.get_finished_spans()
        self.exporter.clear()
        return found


@pytest.fixture
def seen(service: Service) -> Iterator[Seen]:
    made = Seen(service)
    yield made
    made.tracing.close()


def tree(spans: Sequence[ReadableSpan]) -> tuple[ReadableSpan, dict[str, ReadableSpan]]:
    """The whole, and its stages by name."""
    (whole,) = (span for span in spans if span.kind is SpanKind.SERVER)
    return whole, {span.name: span for span in spans if span is not whole}


def test_an_answer_is_a_span_with_one_for_each_stage(seen: Seen) -> None:
    answer = seen.client.post("/v1/search", json=SEARCH).json()
    whole, stages = tree(seen.spans())
    assert whole.name == "POST /v1/search" and whole.parent is None
    assert {"waiting", "candidates", "encode", "features", "popular", "ensemble"} <= set(stages)
    assert "policy" in stages
    by_id = {span.context.span_id: span for span in (whole, *stages.values())}
    for name, span in stages.items():
        parent = by_id[span.parent.span_id]
        assert parent is (stages["candidates"] if name == "encode" else whole)
        assert parent.start_time <= span.start_time <= span.end_time <= parent.end_time
        assert span.context.trace_id == whole.context.trace_id
    assert stages["waiting"].start_time == whole.start_time
    order = ["waiting", "candidates", "features", "ensemble", "policy"]
    starts = [stages[name].start_time for name in order]
    ends = [stages[name].end_time for name in order]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    told = dict(whole.attributes or {})
    assert told == {
        "http.request.method": "POST",
        "http.route": "/v1/search",
        "raysys.request_id": answer["request_id"],
        "raysys.surface": "search",
        "raysys.bundle": answer["bundle"],
        "raysys.cache": "off",
        "raysys.candidates": told["raysys.candidates"],
        "raysys.degraded": False,
        "raysys.left_out": (),
    }
    assert told["raysys.candidates"] >= len(answer["items"])
    assert whole.resource.attributes["service.name"] == "raysys"


def test_the_stages_are_those_of_an_explanation(seen: Seen) -> None:
    answer = seen.client.post("/v1/search", json={**SEARCH, "explain": True}).json()
    stages = tree(seen.spans())[1]
    explained = answer["explanation"]["milliseconds"]
    assert set(stages) == {"waiting", *explained}
    for name, milliseconds in explained.items():
        took = (stages[name].end_time - stages[name].start_time) / 1e6
        assert took == pytest.approx(milliseconds, abs=0.1)


def test_nothing_personal_is_in_it(seen: Seen) -> None:
    asked = {"user_id": "u1", "session_id": "of-a-person", "place": "cart", "k": 3}
    seen.client.post("/v1/search", json={**SEARCH, "query": "lime soda", "user_id": "u2"})
    body = {**asked, "item_ids": ["i00003"]}
    answer = seen.client.post("/v1/recommend", json=body).json()
    told = "".join(span.to_json() for span in seen.spans())
    for word in ("lime", "soda", "u1", "u2", "of-a-person", "i00003"):
        assert f'"{word}' not in told
    assert not [item for item in answer["items"] if item["item_id"] in told]


def test_a_trace_of_the_caller_s_goes_on(seen: Seen) -> None:
    sent = {"traceparent": f"00-{CALLER}-{PARENT}-01", "tracestate": "shop=1"}
    assert seen.client.post("/v1/recommend", json={"user_id": "u1"}, headers=sent).is_success
    whole, stages = tree(seen.spans())
    assert f"{whole.context.trace_id:032x}" == CALLER and whole.parent is not None
    assert f"{whole.parent.span_id:016x}" == PARENT
    assert whole.context.trace_state.get("shop") == "1"
    assert {span.context.trace_id for span in stages.values()} == {whole.context.trace_id}


def test_what_the_caller_does_not_trace_is_not_traced(seen: Seen) -> None:
    sent = {"traceparent": f"00-{CALLER}-{PARENT}-00"}
    assert seen.client.post("/v1/recommend", json={"user_id": "u1"}, headers=sent).is_success
    assert not seen.spans()
    broken = {"traceparent": "00-nonsense"}
    assert seen.client.post("/v1/recommend", json={"user_id": "u1"}, headers=broken).is_success
    assert tree(seen.spans())[0].parent is None


def test_a_share_is_drawn_by_the_trace(service: Service) -> None:
    seen = Seen(service, share=1e-9)
    try:
        seen.client.post("/v1/recommend", json={"user_id": "u1"})
        assert not seen.spans()
        sent = {"traceparent": f"00-{CALLER}-{PARENT}-01"}
        seen.client.post("/v1/recommend", json={"user_id": "u1"}, headers=sent)
        assert seen.spans()
    finally:
        seen.tracing.close()


def test_what_is_left_out_is_told(seen: Seen) -> None:
    answer = seen.client.post("/v1/search", json=SEARCH, headers={"X-Deadline-Ms": "0.001"}).json()
    told = tree(seen.spans())[0].attributes or {}
    assert told["raysys.degraded"] is True
    assert list(told["raysys.left_out"]) == answer["left_out"] != []


def test_a_refused_request_is_no_answer(seen: Seen) -> None:
    assert seen.client.post("/v1/search", json={"k": 3}).status_code == 422
    assert not seen.spans()


def test_without_tracing_nothing_is_noted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Trace] = []
    monkeypatch.setattr("raysys.serving.list_routes.Trace", lambda *a: made.append(a))
    client = TestClient(http_app(service), raise_server_exceptions=False)
    assert client.post("/v1/search", json=SEARCH).is_success and made == []


@pytest.mark.long
def test_out_of_the_cache_there_are_no_stages_of_before(registry: Registry) -> None:
    args = {"registry": str(registry.root), "clock": "log_end", "cache": {}}
    service = Service(ServeArgs.model_validate(args))
    seen = Seen(service)
    try:
        for told, wanted in (("miss", "candidates"), ("hit", "cache")):
            seen.client.post("/v1/search", json=SEARCH)
            whole, stages = tree(seen.spans())
            assert (whole.attributes or {})["raysys.cache"] == told and wanted in stages
        assert set(stages) == {"waiting", "cache", "policy"}
    finally:
        seen.tracing.close()
        service.close()


def test_the_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, registry: Registry, service: Service
) -> None:
    place = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    monkeypatch.setitem(sys.modules, place, None)
    args = ServeArgs.model_validate(
        {"registry": str(registry.root), "tracing": {"otlp": "http://127.0.0.1:4318/v1/traces"}}
    )
    for refused in (lambda: check_tracing(args.tracing), lambda: settle(args)):
        with pytest.raises(UserError, match="not installed") as told:
            refused()
        assert "raysys[tracing]" in told.value.mend


@pytest.mark.parametrize(
    "given", [{"otlp": "collector:4318"}, {"otlp": "http://c", "share": 0}, {"share": 0.5}, {}]
)
def test_arguments_that_say_nothing_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"tracing\.(otlp|share)"):
        parse_settings(ServeArgs, {"tracing": given}, where="args")


def test_a_collector_gets_them_by_otlp(service: Service) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    posts: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posts.append((f"{self.headers['Content-Type']} {self.path}", body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tracing = Tracing(TracingArgs(otlp=f"http://127.0.0.1:{server.server_port}/v1/traces"))
    try:
        client = TestClient(http_app(service, tracing=tracing))
        request_id = client.post("/v1/search", json=SEARCH).json()["request_id"]
        tracing.flush()
    finally:
        tracing.close()
        server.shutdown()
        server.server_close()
    assert {told for told, _ in posts} == {"application/x-protobuf /v1/traces"}
    spans = [
        span
        for _, body in posts
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    (whole,) = (span for span in spans if not span.parent_span_id)
    told = {each.key: each.value for each in whole.attributes}
    assert told["raysys.request_id"].string_value == request_id
    assert {"candidates", "policy"} <= {span.name for span in spans}
