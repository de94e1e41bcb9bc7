"""A list that is drafted from those of both arms of an experiment (`experiments.interleaving`)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from raysys.experiments.drafting import BOTH, team_draft
from raysys.serving.asking import Context, new_request_id
from raysys.serving.exposures import Drafted
from raysys.serving.tracing import Stage
from raysys.serving.treatments import Treatment


def draft(
    answer: Callable[[Treatment, Context], dict[str, Any]],
    treatment: Treatment,
    k: int,
    context: Context,
    at: int,
    late: float,
) -> tuple[dict[str, Any], Drafted | None]:
    """One list of both arms' lists, by the fields of `ListAnswer`, and who brought what.

    Both are ranked in full, each in half of the time that is left: with what the first one left,
    the second would lose its dear learners more often. Each item keeps the score of the arm that
    brought it; all else that an answer says of its ranking is the first arm's, and what is said of
    degraded answers is of both. Nobody is said to have brought a degraded list: that one compares
    what was left of the arms.

    Args:
        answer: gives an arm's list.
        treatment: with `teams`.
        k: length of the list.
        context: how the call came in.
        at: UTC ms, of a new request id.
        late: `time.perf_counter()` at which the caller waits no more; infinite: never.
    """
    assert treatment.teams is not None
    request_id = context.request_id or new_request_id(at)
    # what neither of them was shown is in no shown list, which would be judged by propensities
    part = replace(context, request_id=request_id, shown=False)
    if math.isfinite(late):
        half = max(late - time.perf_counter(), 0.002) / 2
        part = replace(part, deadline_ms=half * 1000)
    one, other = treatment.teams
    first = answer(one, replace(part, arrived=time.perf_counter()))
    between = time.perf_counter()
    second = answer(other, replace(part, arrived=between, counted=False))
    if context.trace is not None:
        context.trace.stages.append(Stage("second ranking", between, time.perf_counter()))
    known = [{item["item_id"]: item for item in each["items"]} for each in (first, second)]
    salt = next(each.experiment for each in treatment.assignments if each.arm.name == BOTH)
    ids, teams = team_draft(
        list(known[0]), list(known[1]), k, salt=salt, request_id=request_id
    )  # fmt: skip
    items = [
        {**known[team][item], "position": place}
        for place, (item, team) in enumerate(zip(ids, teams.tolist(), strict=True), start=1)
    ]
    reasons = {**first["reasons"], **second["reasons"]}
    told = {
        **first,
        "items": items,
        "degraded": first["degraded"] or second["degraded"],
        "left_out": list(reasons),
        "reasons": reasons,
        "took_ms": round((time.perf_counter() - context.arrived) * 1000, 2),
    }
    if context.trace is not None:
        context.trace.attributes |= {
            "raysys.degraded": told["degraded"],
            "raysys.left_out": told["left_out"],
        }
    return told, None if told["degraded"] else Drafted(ids, teams.tolist())
