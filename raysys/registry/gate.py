"""Whether a bundle may take a champion's place: its figures against the champion's.

Paired beats unpaired: where both can score the same requests, the interval of their difference
decides, which is far narrower than two intervals of their own. Else the figures in the manifests
decide. A loss that lies within the noise is no reason to refuse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raysys.errors import UserError
from raysys.evaluation.intervals import Interval
from raysys.registry.manifest import BundleManifest

How = Literal["paired", "intervals", "points", "none"]


@dataclass(frozen=True)
class Judgement:
    """What the gate says.

    Attributes:
        passes: whether the challenger may be promoted.
        metric: what was compared; higher is better.
        how: `paired` by request, `intervals` or `points` of the manifests, or `none`.
        reason: in words.
        challenger: its figure; None: unknown.
        champion: its figure; None: unknown, or there is no champion.
    """

    passes: bool
    metric: str
    how: How
    reason: str
    challenger: float | None = None
    champion: float | None = None


def judge_paired(
    metric: str,
    challenger: float,
    champion: float,
    difference: Interval,
    *,
    better: bool = False,
) -> Judgement:
    """By the difference, challenger minus champion, on the same requests.

    Refused when all of its interval lies below zero; with `better`, unless all lies above; and
    where nothing could be compared, as without a request that has something relevant. Without an
    interval, as of a single user, a value below zero is refused, and none is better.
    """
    if math.isnan(difference.value):
        reason = f"{metric}: nothing could be compared on the same requests"
        return Judgement(False, metric, "paired", reason, challenger, champion)
    if difference.known:
        told = f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
        worse = difference.high < 0
    else:
        told, worse = f"{difference.value:+.4f}, no interval", difference.value < 0
    if better:
        passes = difference.low > 0
        how = "is better" if passes else "is worse" if worse else "is not surely better"
        reason = f"{metric} {how} on the same requests: {told}"
        return Judgement(passes, metric, "paired", reason, challenger, champion)
    reason = f"{metric} {'is worse' if worse else 'is no worse'} on the same requests: {told}"
    return Judgement(not worse, metric, "paired", reason, challenger, champion)


def judge_figures(challenger: BundleManifest, champion: BundleManifest) -> Judgement:
    """By what the two manifests say.

    With an interval of the champion's, refused below its lower end; with points alone, at any loss,
    since nothing tells how much is noise; without a figure that both have, always.
    """
    mine, theirs = main_figures(challenger), main_figures(champion)
    metric = next((name for name in mine if name in theirs), None)
    if challenger.surface != champion.surface:
        reason = f"it is of the surface {challenger.surface!r}, not {champion.surface!r}"
        return Judgement(False, "", "none", reason)
    if metric is None:
        said = f"{', '.join(mine) or 'none'} here, {', '.join(theirs) or 'none'} there"
        return Judgement(False, "", "none", f"the two have no figure in common ({said})")
    ours, other = mine[metric], theirs[metric]
    if _has_ends(other):
        passes = ours.value >= other.low
        end = "lower end" if passes else "even the lower end"
        reason = (
            f"{metric} {ours.value:.4f} is {'not ' if passes else ''}below {end} of the "
            f"champion's {other.value:.4f} [{other.low:.4f}, {other.high:.4f}]"
        )
        return Judgement(passes, metric, "intervals", reason, ours.value, other.value)
    passes = ours.value >= other.value
    reason = (
        f"{metric} {ours.value:.4f} against the champion's {other.value:.4f}, no interval known"
    )
    return Judgement(passes, metric, "points", reason, ours.value, other.value)


def judge_unread(error: UserError) -> Judgement:
    """By nothing: the champion cannot be read, and is replaced only by who insists."""
    return Judgement(False, "", "none", f"the champion cannot be read: {error.what}")


def judge_learned(challenger: BundleManifest, champion: BundleManifest) -> Judgement | None:
    """By what `raysys learn` measured when it made the one out of the other; None: it did not."""
    told = challenger.figures.get("gate")
    if not isinstance(told, Mapping) or told.get("against") != champion.id:
        return None
    difference = interval_of(told.get("difference"))
    if difference is None or not _has_ends(difference):
        return None
    values = float(told["challenger"]), float(told["champion"])
    return judge_paired(str(told["metric"]), *values, difference)


def main_figures(manifest: BundleManifest) -> dict[str, Interval]:
    """What a bundle is judged by, the most telling first; higher is better.

    Of a ranking bundle the full ensemble's NDCG@10; of a text task the criterion that its learner
    was chosen by, on the test rows.
    """
    found: dict[str, Interval] = {}
    ndcg = manifest.figures.get("ndcg10")
    if isinstance(ndcg, Mapping) and (value := interval_of(ndcg.get("full"))):
        found["ndcg@10"] = value
    metric, test = manifest.figures.get("criterion"), manifest.figures.get("test")
    if isinstance(metric, str) and isinstance(test, Mapping):
        judged = test.get(manifest.figures.get("chosen"), {})
        if value := interval_of(judged.get(metric)):
            found[metric] = value
    return found


def interval_of(content: Any) -> Interval | None:
    """A figure as manifests have it: a number, or value, low and high (NaN: not known).

    None: it is neither.
    """
    nothing = float("nan")
    if isinstance(content, int | float) and not isinstance(content, bool):
        return Interval(float(content), nothing, nothing)
    if isinstance(content, Mapping) and isinstance(content.get("value"), int | float):
        low, high = content.get("low"), content.get("high")
        ends = [nothing if end is None else float(end) for end in (low, high)]
        return Interval(float(content["value"]), *ends)
    return None


def _has_ends(interval: Interval) -> bool:
    return interval.low <= interval.high  # False for NaN
