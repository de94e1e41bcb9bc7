"""When what is watched has moved too far, and how much watching may cost."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysys.config import Settings

Share = Annotated[float, Field(ge=0, le=1)]


class Thresholds(Settings):
    """From where on a difference counts as drift.

    Attributes:
        psi: population stability index of a feature or score; what chance explains never counts.
        missing: rise of the share of missing values of a feature, in parts of 1.
        share: of all features, that may lie over `psi` before the features as a whole have
            drifted. A score over `psi`, or a feature over `missing`, counts by itself.
        outcome: relative change of a rate such as clicks of what was seen.
        least_requests: answers that were looked at, under which nothing is said.
    """

    psi: Annotated[float, Field(gt=0)] = 0.25
    missing: Annotated[float, Field(gt=0, le=1)] = 0.1
    share: Share = 0.1
    outcome: Annotated[float, Field(gt=0)] = 0.2
    least_requests: Annotated[int, Field(ge=1)] = 200


class MonitorArgs(Settings):
    """How a deployment watches itself: `monitor` in the args of a serve config.

    Attributes:
        folder: of the windows, which all replicas must see; a relative one lies under
            RAYSYS_HOME, as the registry; null: `monitor` beside the registry.
        share: of the answers whose features and scores are counted.
        rows: candidates that are drawn of each of them.
        window_hours: figures are those of so long a time until now.
        bucket_minutes: counts are kept by stretches of this length; windows move by them.
        refresh_s: so often a replica writes its counts and reads those of the others.
        feedback_s: so old what came of the lists may be; 0: it is not computed in the
            deployment. One replica does it for all.
        feedback_lists: lists that are joined with their events at most; of more a share is drawn.
        least_people: queries are named that so many people typed; others are counted only.
        keep_days: windows are forgotten after so long.
        named: features and scores with a gauge of their own, those that moved furthest first.
        max_waiting: answers that wait to be counted; beyond that they are left out.
        thresholds: when it has moved too far.
        beside: the bundle stands beside the champion, which tells of both. Filled in by replicas.
    """

    folder: str | None = None
    share: Share = 0.05
    window_hours: Annotated[float, Field(gt=0, le=24 * 90)] = 24
    bucket_minutes: Annotated[float, Field(ge=1, le=24 * 60)] = 30
    refresh_s: Annotated[float, Field(ge=0.05, le=3600)] = 60
    feedback_s: Annotated[float, Field(ge=0, le=24 * 3600)] = 300
    feedback_lists: Annotated[int, Field(ge=100, le=10_000_000)] = 20_000
    least_people: Annotated[int, Field(ge=1)] = 1
    keep_days: Annotated[float, Field(gt=0)] = 30
    rows: Annotated[int, Field(ge=1, le=5000)] = 64
    named: Annotated[int, Field(ge=0, le=100)] = 20
    max_waiting: Annotated[int, Field(ge=1)] = 256
    thresholds: Thresholds = Thresholds()
    beside: bool = False
