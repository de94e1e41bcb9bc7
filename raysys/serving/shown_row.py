"""One answer as a row of `SHOWN_LISTS`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.features.batch import Batch
from raysys.serving.api import RankRequest, RecommendRequest, SearchRequest, SimilarRequest
from raysys.serving.asking import Ask, Ranking
from raysys.serving.policy import Arrangement
from raysys.serving.shown_lists import inputs_bytes, pool_bytes


@dataclass(frozen=True)
class Facts:
    """Columns of the row that the service knows; see `SHOWN_LISTS`."""

    bundle: str
    arm: str
    settings: str
    state: str
    cache: str
    took_ms: float
    cold_start: bool
    http_request_id: str | None


def row_of(
    facts: Facts,
    ask: Ask,
    asked: RecommendRequest | SearchRequest | SimilarRequest | RankRequest,
    ranking: Ranking,
    arranged: Arrangement,
    left_out: Sequence[str],
    ids: npt.NDArray[np.object_],
    inputs: Batch | None,
) -> dict[str, Any]:
    """The row; costs some hundred microseconds, so it is made where nobody waits.

    Args:
        facts: of the service.
        ask, asked: the request, in numbers and as it came.
        ranking: the candidates; lean will do.
        arranged: what the policy made of them.
        left_out: members that had no say.
        ids: of the catalogue, by number.
        inputs: features to record with it; None: none.
    """
    filters = getattr(asked, "filters", None)
    return {
        **asdict(facts),
        "request_id": ask.request_id,
        "timestamp": ask.at,
        "surface": ask.surface,
        "place": ask.place,
        "user_id": asked.user_id,
        "session_id": asked.session_id,
        "query": ask.text,
        "filters": None if filters is None else filters.model_dump_json(exclude_defaults=True),
        "features_at": ranking.timestamp,
        "item_ids": ids[ranking.pool.items[arranged.shown]].tolist(),
        "scores": arranged.scores[arranged.shown],
        "propensities": arranged.propensities,
        "fallback": ranking.fallback,
        "left_out": list(left_out),
        "request": asked.model_dump_json(exclude_none=True),
        "pool": pool_bytes(ranking),
        "inputs": None if inputs is None else inputs_bytes(inputs),
    }
