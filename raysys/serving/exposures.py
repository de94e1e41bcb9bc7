"""The record of what was shown to whom, with which probability, and enough to show it again.

Answers never wait for it: they put a record into a bounded queue, and a thread writes Parquet
segments, `date=2026-11-26/FIRST-LAST-REPLICA-N.parquet` (first and last moment in UTC ms), each
written beside its place and renamed into it. The settings of a deployment lie beside them, once, as
`settings-HASH.json`. What is queued when a process is killed is lost: at most `segment_s` of it.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field
from safetensors.numpy import load, save

from raysys.config import Settings
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.retrieval.merge import Candidates
from raysys.serving.asking import Ask, Ranking, moment_of
from raysys.serving.metrics import Metrics
from raysys.storage import digest, write_atomic

log = logging.getLogger("raysys")

EXPOSURES: Final = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("timestamp", pa.timestamp("ms", tz="UTC"), nullable=False),  # of the request
        pa.field("surface", pa.string(), nullable=False),
        pa.field("place", pa.string(), nullable=False),
        pa.field("user_id", pa.string()),
        pa.field("session_id", pa.string()),
        pa.field("query", pa.string()),
        pa.field("filters", pa.string()),  # JSON
        pa.field("bundle", pa.string(), nullable=False),
        pa.field("arm", pa.string(), nullable=False),
        pa.field("settings", pa.string(), nullable=False),  # hash of the deployment's arguments
        pa.field("features_at", pa.timestamp("ms", tz="UTC"), nullable=False),
        pa.field("state", pa.string(), nullable=False),  # of the features; "": as in the bundle
        pa.field("item_ids", pa.list_(pa.string()), nullable=False),  # as shown, from the top
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("propensities", pa.list_(pa.float64()), nullable=False),  # each given those above
        pa.field("fallback", pa.string(), nullable=False),
        pa.field("left_out", pa.list_(pa.string()), nullable=False),
        pa.field("cache", pa.string(), nullable=False),
        pa.field("cold_start", pa.bool_(), nullable=False),
        pa.field("took_ms", pa.float32(), nullable=False),
        pa.field("request", pa.string(), nullable=False),  # JSON, as asked
        pa.field("pool", pa.binary(), nullable=False),  # safetensors: candidates, final scores
        pa.field("inputs", pa.binary()),  # safetensors: what the learners read, of a share
    ]
)
"""One row a list that was answered."""


class ExposureArgs(Settings):
    """Where exposures go.

    Attributes:
        folder: of the segments; a relative one lies under RAYSYS_HOME, as the registry.
        inputs_share: of the answers whose features are recorded too (some 20 KB each), so that
            their scores can be computed again whatever has become of the state since.
        segment_s: a segment is written so often,
        segment_rows: or when so many answers are waiting.
        max_waiting: beyond this many unwritten ones, exposures are dropped and counted.
    """

    folder: str
    inputs_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    segment_s: Annotated[float, Field(gt=0)] = 10
    segment_rows: Annotated[int, Field(ge=1)] = 5000
    max_waiting: Annotated[int, Field(ge=1)] = 20_000


class ExposureLog:
    """Takes exposures and writes them; safe to use from several threads.

    Args:
        args: where and how often.
        folder: absolute.
        serving: the deployment's arguments, which replaying needs.
        metrics: counts what is written and what is lost.
    """

    def __init__(
        self, args: ExposureArgs, folder: Path, serving: Settings, metrics: Metrics
    ) -> None:
        self.args, self._folder, self._metrics = args, folder, metrics
        content = serving.model_dump(mode="json")
        self.settings = digest(content)
        self._folder.mkdir(parents=True, exist_ok=True)
        place = self._folder / f"settings-{self.settings}.json"
        if not place.exists():
            write_atomic(place, json.dumps(content, indent=1) + "\n")
        self._replica = uuid.uuid4().hex[:8]
        self._queue: queue.Queue[Callable[[], dict[str, Any]] | None] = queue.Queue(
            args.max_waiting
        )
        self._written = 0
        self._thread = threading.Thread(target=self._run, name="exposures", daemon=True)
        self._thread.start()

    def wants_inputs(self, ask: Ask) -> bool:
        """Whether this answer's features are to be recorded; a matter of its request id."""
        return (ask.seed >> 11) / 2**53 < self.args.inputs_share

    def note(self, record: Callable[[], dict[str, Any]]) -> None:
        """Have a record written; never waits.

        Args:
            record: gives a row of `EXPOSURES`; called in the writing thread.
        """
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._metrics.count("raysys_exposures", outcome="dropped")

    def close(self) -> None:
        """Write what is there, and end."""
        self._queue.put(None)
        self._thread.join(timeout=30)

    def _run(self) -> None:
        rows: list[dict[str, Any]] = []
        due = time.monotonic() + self.args.segment_s
        while True:
            try:
                record = self._queue.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                record = _NOTHING
            if record is not None and record is not _NOTHING:
                try:
                    rows.append(record())
                except Exception:
                    log.exception("an exposure could not be recorded")
                    self._metrics.count("raysys_exposures", outcome="failed")
            ended = record is None
            if ended or len(rows) >= self.args.segment_rows or time.monotonic() >= due:
                if rows:
                    self._write(rows)
                rows, due = [], time.monotonic() + self.args.segment_s
            if ended:
                return

    def _write(self, rows: list[dict[str, Any]]) -> None:
        try:
            table = pa.Table.from_pylist(rows, schema=EXPOSURES)
            first, last = (int(f(table["timestamp"]).cast(pa.int64()).as_py()) for f in _ENDS)
            day = datetime.fromtimestamp(first / 1000, UTC).date().isoformat()
            folder = self._folder / f"date={day}"
            folder.mkdir(exist_ok=True)
            self._written += 1
            name = f"{first}-{last}-{self._replica}-{self._written}.parquet"
            pq.write_table(table, folder / f".{name}", compression="zstd")
            (folder / f".{name}").replace(folder / name)
            self._metrics.count("raysys_exposures", len(rows), outcome="written")
        except Exception:  # a full disk must not end the log
            log.exception("%d exposures could not be written", len(rows))
            self._metrics.count("raysys_exposures", len(rows), outcome="failed")


def _nothing() -> dict[str, Any]:
    return {}


_NOTHING = _nothing
_ENDS = (pc.min, pc.max)


def pool_bytes(ranking: Ranking) -> bytes:
    """Candidates and their final scores."""
    arrays = {
        "items": np.ascontiguousarray(ranking.pool.items),
        "scores": np.ascontiguousarray(ranking.scores, dtype=np.float32),
        "sources": np.ascontiguousarray(ranking.pool.sources),
        "names": np.frombuffer(json.dumps(ranking.pool.names).encode(), np.uint8),
    }
    if ranking.relevance is not None:
        arrays["relevance"] = np.ascontiguousarray(ranking.relevance, dtype=np.float32)
    return save(arrays)


def inputs_bytes(batch: Batch) -> bytes:
    """What learners read of one request; zstd."""
    arrays = {
        "features": np.ascontiguousarray(batch.features.T),  # as they lie in memory
        "item": np.ascontiguousarray(batch.item),
        "history": np.ascontiguousarray(batch.history[0]),
        "user": np.ascontiguousarray(batch.user),
    }
    return pa.Codec("zstd").compress(save(arrays), asbytes=True)


def batch_of(inputs: bytes, names: tuple[str, ...]) -> Batch:
    """What `inputs_bytes` gave."""
    content = pa.input_stream(pa.BufferReader(inputs), compression="zstd").read()
    arrays = load(content)
    return Batch(
        names=names,
        features=arrays["features"].T,
        item=arrays["item"],
        offsets=np.array([0, len(arrays["item"])], dtype=np.int64),
        history=[arrays["history"]],
        user=arrays["user"],
    )


def ranking_of(pool: bytes, timestamp: int) -> Ranking:
    """What `pool_bytes` gave: candidates, their relevance and final scores."""
    arrays = load(pool)
    names = tuple(json.loads(arrays["names"].tobytes()))
    return Ranking(
        Candidates(arrays["items"], arrays["sources"], names),
        timestamp,
        scores=arrays["scores"],
        relevance=arrays.get("relevance"),
    )


def find_exposure(folder: Path, request_id: str) -> dict[str, Any]:
    """The record of an answer.

    Raises:
        UserError: it is not there.
    """
    moment = moment_of(request_id)
    for path in _segments(folder, moment):
        table = pq.read_table(path, filters=[("request_id", "=", request_id)], partitioning=None)
        if len(table):
            row: dict[str, Any] = table.slice(0, 1).to_pylist()[0]
            return row
    raise UserError(
        f"no exposure {request_id!r}",
        where=str(folder),
        mend="is the id whole, and the folder the deployment's? What came within the last "
        "segment_s may not be written yet, and what `max_waiting` was too small for never is",
    )


def settings_of(folder: Path, name: str) -> Mapping[str, Any]:
    """The deployment's arguments that answered.

    Raises:
        UserError: they are gone or damaged.
    """
    path = folder / f"settings-{name}.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        mend = "they belong to the segments: copy both"
        raise UserError(f"no settings: {error}", where=str(path), mend=mend) from None
    return content


def _segments(folder: Path, moment: int | None) -> Iterator[Path]:
    """Segments that may hold a moment (UTC ms), None: all of them, the newest first."""
    for path in sorted(folder.glob("date=*/[0-9]*.parquet"), reverse=True):
        first, last = (int(part) for part in path.name.split("-")[:2])
        if moment is None or first - 1000 <= moment <= last + 1000:
            yield path
