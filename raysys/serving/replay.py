"""Answering a recorded request again, and whether the same comes of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.registry import Registry
from raysys.serving.api import RankRequest, RecommendRequest, SearchRequest, SimilarRequest
from raysys.serving.args import ServeArgs
from raysys.serving.asking import Ask, Context, Ranking
from raysys.serving.intake import ListRequest
from raysys.serving.service import Service
from raysys.serving.shown_lists import batch_of, find_shown, ranking_of, settings_of

_REQUESTS: dict[str, type[ListRequest]] = {
    "recommend": RecommendRequest,
    "search": SearchRequest,
    "similar": SimilarRequest,
    "rank": RankRequest,
}


@dataclass(frozen=True)
class Replayed:
    """What came of it.

    Attributes:
        record: of the shown list.
        item_ids: shown now, from the top.
        propensities: of these.
        scored_from: what the scores were computed from: `inputs`, the recorded features; `state`,
            the bundle's own, which had not changed; `nothing`: the state has moved on, and the
            features were not among the recorded share.
        differences: what is not as it was, in words; none: all is the same, to the last bit.
    """

    record: dict[str, Any]
    item_ids: list[str]
    propensities: list[float]
    scored_from: str
    differences: list[str] = field(default_factory=list)


def replay(folder: Path, request_id: str, registry: Path | None = None) -> Replayed:
    """Answer a recorded request again.

    Args:
        folder: of the shown lists.
        request_id: of the answer.
        registry: where the bundle lies; None: where it lay.

    Raises:
        UserError: no such record, or its bundle or settings are gone.
    """
    record = find_shown(folder, request_id)
    service = open_service(record, folder, registry)
    try:
        return _again(record, service)
    finally:
        service.close()


def open_service(
    record: dict[str, Any], folder: Path, registry: Path | None, bundle: str | None = None
) -> Service:
    """The deployment that gave a recorded answer.

    Args:
        record: of the shown list.
        folder: of the shown lists.
        registry: where the bundle lies; None: where it lay.
        bundle: another one in its place, by name or id.

    Raises:
        UserError: bundle or settings are gone.
    """
    content = dict(settings_of(folder, record["settings"]))
    content |= {"shown_lists": None, "cache": None, "threads": 1}
    content["monitor"] = None  # what is answered again is not served
    content |= {"stock": None, "text": {}, "pinned_text": {}}  # the pool says what there was
    content["transformer"] = None  # nor is anything encoded that was
    content.pop("events", None)  # of now, not of then
    if registry is not None:
        content["registry"] = str(registry.resolve())
    pinned = record["bundle"]
    if bundle is not None:
        pinned = Registry(Path(content["registry"])).resolve(bundle)
    content["pinned"] = pinned
    args = parse_settings(ServeArgs, content, where=str(folder))
    try:
        Registry(args.registry_path).resolve(pinned)
    except UserError:
        raise UserError(
            f"the bundle {pinned!r} that answered is gone",
            where=str(args.registry_path),
            mend="name the folder that holds it with --registry, or put it back; no other bundle "
            "scores as it did",
        ) from None
    return Service(args)


def ask_again(record: dict[str, Any], service: Service) -> Ask:
    """The recorded request, as a service understands it.

    Raises:
        Problem: it names only what the service does not know.
    """
    asked = _REQUESTS[record["surface"]].model_validate_json(record["request"])
    at = _ms(record["timestamp"])
    context = Context(float("inf"), request_id=record["request_id"], at=at)
    return service.asking(asked, context)[0]


def _again(record: dict[str, Any], service: Service) -> Replayed:
    ask = ask_again(record, service)
    recorded = ranking_of(record["pool"], _ms(record["features_at"]))
    arranged = service.ranker.arrange(recorded, ask)
    shown = recorded.pool.items[arranged.shown]
    differences: list[str] = []
    item_ids = service.catalogue.ids[shown].tolist()
    _compare("item", record["item_ids"], item_ids, differences)
    propensities = arranged.propensities.tolist()
    _compare("propensity", record["propensities"], propensities, differences)
    scores = arranged.scores[arranged.shown].astype(np.float32).tolist()
    _compare("score", record["scores"], scores, differences)
    scored_from, again = _scored(record, recorded, ask, service)
    if again is not None:
        off = np.flatnonzero(again.scores != recorded.scores)
        if len(off):
            gap = float(np.abs(again.scores - recorded.scores).max())
            differences.append(
                f"{len(off)} of {len(again.scores)} candidates score otherwise, by up to {gap:.3g}"
            )
        if again.fallback != record["fallback"]:
            differences.append(f"fallback {record['fallback']!r} is now {again.fallback!r}")
    return Replayed(record, item_ids, propensities, scored_from, differences)


def _scored(
    record: dict[str, Any], recorded: Ranking, ask: Ask, service: Service
) -> tuple[str, Ranking | None]:
    """From what the candidates can be scored again, and with which outcome."""
    names = service.bundle.features.names
    again = Ranking(
        recorded.pool,
        recorded.timestamp,
        relevance=recorded.relevance,
        encoded=recorded.encoded,
        reranked=recorded.reranked,
        reasons=dict.fromkeys(record["left_out"], "as recorded"),
    )
    if record["inputs"] is not None:
        again.batch = batch_of(record["inputs"], names)
        return "inputs", service.ranker.scores(again, ask)
    if record["state"]:
        return "nothing", None
    return "state", service.ranker.scores(again, ask)


def _compare(what: str, then: list[Any], now: list[Any], differences: list[str]) -> None:
    for place, (old, new) in enumerate(zip(then, now, strict=False), start=1):
        if old != new:
            differences.append(f"{what} {place} was {old}, is {new}")
    if len(then) != len(now):
        differences.append(f"{len(then)} items were shown, now {len(now)}")


def _ms(value: Any) -> int:
    """A timestamp of the record in UTC ms."""
    return round(value.timestamp() * 1000)


def as_json(replayed: Replayed) -> str:
    """For machines."""
    record = replayed.record
    content = {
        "request_id": record["request_id"],
        "http_request_id": record.get("http_request_id"),  # records of earlier versions have none
        "surface": record["surface"],
        "bundle": record["bundle"],
        "same": not replayed.differences,
        "scored_from": replayed.scored_from,
        "differences": replayed.differences,
        "item_ids": replayed.item_ids,
        "propensities": replayed.propensities,
    }
    return json.dumps(content, indent=1)
