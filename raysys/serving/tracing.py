"""Answers as traces: a span for each, with one for every stage.

On an answer's way only moments are noted; spans are made of them in a thread of their own.
They hold no user, no query and no item, so that whoever sees traces sees nothing of persons.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field

from raysys import __version__
from raysys.config import Settings
from raysys.errors import UserError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger("raysys")

_WAITING: Final = 4096  # traces whose spans are still to be made
_CLOSE_S: Final = 2.0
_WITHIN: Final = ("encode", "propose")  # parts of `candidates`
_MADE: Final = ("off", "miss")  # what the cache says where the ranking was made for this answer


class TracingArgs(Settings):
    """Where traces of answers go, and how many.

    Attributes:
        otlp: URL that takes traces by OTLP over HTTP, such as
            `http://collector:4318/v1/traces`.
        share: of the answers that no trace of the caller's goes on in. With a `traceparent` it is
            the caller who has decided.
    """

    otlp: Annotated[str, Field(pattern=r"^https?://[^\s]+$")]
    share: Annotated[float, Field(gt=0, le=1)] = 1.0


@dataclass(frozen=True)
class Stage:
    """A stretch of the way of an answer.

    Attributes:
        name: as `explain` calls it.
        began, ended: `time.perf_counter()`.
        within: the stage that it is a part of; None: the answer itself.
    """

    name: str
    began: float
    ended: float
    within: str | None = None


@dataclass
class Trace:
    """What is noted of one answer.

    Attributes:
        route: as it is declared.
        arrived: `time.perf_counter()` when the request did.
        carrier: the headers `traceparent` and `tracestate`, as far as they came.
        ended: when the answer was written.
        stages: in order.
        attributes: of the answer.
    """

    route: str
    arrived: float
    carrier: Mapping[str, str] = field(default_factory=dict)
    ended: float = 0.0
    stages: list[Stage] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)

    def ranked(
        self,
        began: float,
        ended: float,
        told: str,
        laps: Mapping[str, float],
        later: Mapping[str, float],
    ) -> None:
        """The list has been made.

        Args:
            began, ended: between which there was a ranking, made or out of the cache.
            told: how the cache knew it.
            laps: milliseconds of the stages that made it.
            later: those of the stages since.
        """
        self.stages = [Stage("waiting", self.arrived, began)]
        if told in _MADE:
            self.stages += _one_by_one(laps, began, ended)
        else:
            self.stages.append(Stage("cache", began, ended))
        self.stages += _one_by_one(later, ended, time.perf_counter())


def _one_by_one(laps: Mapping[str, float], began: float, ended: float) -> list[Stage]:
    """Stages between two moments, from how long each took; none goes beyond the end."""
    found: list[Stage] = []
    at, inside, whole = began, began, ended
    for name, milliseconds in laps.items():
        seconds = milliseconds / 1000
        if name in _WITHIN and found:
            until = min(inside + seconds, whole)
            found.append(Stage(name, inside, until, "candidates"))
            inside = until
            continue
        until = min(at + seconds, ended)
        found.append(Stage(name, at, until))
        if name == "candidates":
            inside, whole = at, until
        at = until
    return found


class Tracing:
    """Makes spans and sends them; safe to use from several threads.

    Args:
        args: where to, and how many.
        exporter: takes the spans; None: OTLP over HTTP.

    Raises:
        UserError: what speaks OTLP is not installed.
    """

    def __init__(self, args: TracingArgs, exporter: SpanExporter | None = None) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        told = {"service.name": "raysys", "service.version": __version__}
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(args.share)),
            resource=Resource.create(told),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter or _otlp(args.otlp)))
        self._tracer = self._provider.get_tracer("raysys", __version__)
        self._queue: queue.Queue[Trace | None] = queue.Queue(_WAITING)
        self._full = False
        self._thread = threading.Thread(target=self._keep_recording, name="traces", daemon=True)
        self._thread.start()

    def offer(self, trace: Trace) -> None:
        """Have the spans of an answer made; never waits, and drops it where too many do."""
        try:
            self._queue.put_nowait(trace)
            self._full = False
        except queue.Full:
            if not self._full:
                log.warning("more traces than can be sent: some are dropped")
            self._full = True

    def _keep_recording(self) -> None:
        while (trace := self._queue.get()) is not None:
            try:
                self.record(trace)
            except Exception:
                log.exception("a trace could not be made")
            finally:
                self._queue.task_done()
        self._queue.task_done()

    def record(self, trace: Trace) -> None:
        """Make the spans of an answer that was sent."""
        from opentelemetry.trace import Span, SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        epoch = time.time_ns() - time.perf_counter_ns()

        def at(moment: float) -> int:
            return epoch + round(moment * 1e9)

        whole = self._tracer.start_span(
            f"POST {trace.route}",
            context=TraceContextTextMapPropagator().extract(trace.carrier),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": "POST", "http.route": trace.route}
            | trace.attributes,
            start_time=at(trace.arrived),
        )
        if whole.is_recording():
            made: dict[str | None, Span] = {None: whole}
            for stage in trace.stages:
                context = set_span_in_context(made[stage.within])
                span = self._tracer.start_span(
                    stage.name, context=context, start_time=at(stage.began)
                )
                made[stage.name] = span
                span.end(at(stage.ended))
        whole.end(at(trace.ended))

    def flush(self) -> None:
        """Send what waits to be sent."""
        self._queue.join()
        self._provider.force_flush()

    def close(self) -> None:
        """Send what waits, and end the threads."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_CLOSE_S)
            self._thread.join(timeout=_CLOSE_S)
        self._provider.shutdown()


def open_tracing(args: TracingArgs | None) -> Tracing | None:
    """Tracing as the deployment's arguments say; None: there is none.

    Raises:
        UserError: see `Tracing`.
    """
    return None if args is None else Tracing(args)


def check_tracing(args: TracingArgs | None) -> None:
    """Whether traces could be sent.

    Raises:
        UserError: what speaks OTLP is not installed.
    """
    if args is not None:
        _otlp(args.otlp).shutdown()


def _otlp(url: str) -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise UserError(
            "traces need opentelemetry-exporter-otlp-proto-http, which is not installed",
            where="args.tracing",
            mend="pip install 'raysys[tracing]', or leave `tracing` out",
        ) from None
    exporter: SpanExporter = OTLPSpanExporter(endpoint=url)
    return exporter
