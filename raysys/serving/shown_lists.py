"""Shown lists: what was shown to whom, with which probability, and enough to show it again.

One row an answer, in segments of Parquet (`segment_writer`). The settings of a deployment lie
beside them, once, as `settings-HASH.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from safetensors.numpy import load, save

from raysys.config import Settings
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.retrieval.merge import Candidates
from raysys.segments import segments
from raysys.serving.asking import Ask, Ranking, moment_of
from raysys.serving.metrics import Metrics
from raysys.serving.segment_writer import SegmentArgs, SegmentWriter
from raysys.storage import digest, write_atomic

SHOWN_LISTS: Final = pa.schema(
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
        pa.field("http_request_id", pa.string()),  # as log lines name the call; None: by no HTTP
        pa.field("request", pa.string(), nullable=False),  # JSON, as asked
        pa.field("pool", pa.binary(), nullable=False),  # safetensors: candidates, final scores
        pa.field("inputs", pa.binary()),  # safetensors: what the learners read, of a share
    ]
)
"""One row a list that was answered."""

_NEAR_MS: Final = 1000  # between the moment of a request and that in its id, at most


class ShownArgs(SegmentArgs):
    """Where shown lists are recorded.

    Attributes:
        folder: of the segments; a relative one lies under RAYSYS_HOME, as the registry. None:
            `shown_lists` beside the registry.
        inputs_share: of the answers whose features are recorded too (some 20 KB each), so that
            their scores can be computed again whatever has become of the state since.
    """

    folder: str | None = None
    inputs_share: Annotated[float, Field(ge=0, le=1)] = 0.01


class ShownLog(SegmentWriter):
    """Takes records of shown lists and writes them; safe to use from several threads.

    Args:
        args: where and how often.
        folder: absolute.
        serving: the deployment's arguments, which replaying needs.
        metrics: counts what is written and what is lost.
    """

    args: ShownArgs

    def __init__(self, args: ShownArgs, folder: Path, serving: Settings, metrics: Metrics) -> None:
        super().__init__(
            args,
            folder,
            SHOWN_LISTS,
            lambda n, outcome: metrics.count("raysys_shown_lists", n, outcome=outcome),
            "shown lists",
        )
        self.settings = self.keep(serving)

    def keep(self, serving: Settings) -> str:
        """Have arguments lie beside the segments, once; the hash by which records name them."""
        content = serving.model_dump(mode="json")
        name = digest(content)
        place = self._folder / f"settings-{name}.json"
        if not place.exists():
            write_atomic(place, json.dumps(content, indent=1) + "\n")
        return name

    def wants_inputs(self, ask: Ask) -> bool:
        """Whether this answer's features are to be recorded; a matter of its request id."""
        return (ask.seed >> 11) / 2**53 < self.args.inputs_share


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
    for name in ("encoded", "reranked"):  # of another process, perhaps: not to be made again
        values = getattr(ranking, name)
        if values is not None:
            arrays[name] = np.ascontiguousarray(values, dtype=np.float32)
    return save(arrays)


def inputs_bytes(batch: Batch) -> bytes:
    """What learners read of one request; zstd."""
    arrays = {
        "features": np.ascontiguousarray(batch.features.T),  # as they lie in memory
        "item": np.ascontiguousarray(batch.item),
        "history": np.ascontiguousarray(batch.history[0]),
        "user": np.ascontiguousarray(batch.user),
    }
    if batch.encoded is not None:
        arrays["encoded"] = np.ascontiguousarray(batch.encoded)
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
        encoded=arrays.get("encoded"),
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
        encoded=arrays.get("encoded"),
        reranked=arrays.get("reranked"),
    )


def find_shown(folder: Path, request_id: str) -> dict[str, Any]:
    """The record of an answer.

    Raises:
        UserError: it is not there.
    """
    moment = moment_of(request_id)
    near = (None, None) if moment is None else (moment - _NEAR_MS, moment + _NEAR_MS)
    for each in segments(folder, *near):
        try:
            table = pq.read_table(
                each.path, filters=[("request_id", "=", request_id)], partitioning=None
            )
        except FileNotFoundError:  # too old by now
            continue
        if len(table):
            row: dict[str, Any] = table.slice(0, 1).to_pylist()[0]
            return row
    raise UserError(
        f"no shown list {request_id!r}",
        where=str(folder),
        mend="is the id whole, and the folder the deployment's? What came within the last "
        "segment_s may not be written yet, what is older than keep_days is removed, and what "
        "`max_waiting` was too small for was never written",
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
