"""From out-of-fold base scores to an ensemble: who has a say, who pays for its time, how they join.

What `raysys train` does after its learners are fitted, and all that `--ensemble-only` does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.ensemble import BaseScores, Beside, Ensemble, EnsembleSettings
from raysys.ensemble.bench import HOUR_MS
from raysys.ensemble.cost import Subset, latencies, paying, subsets
from raysys.ensemble.fit import bench_of, fit_on
from raysys.ensemble.folds import unsound
from raysys.ensemble.out_of_fold import moments_of
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.features.labels import LabelSettings
from raysys.learners.protocol import Model
from raysys.learners.validation import require_columns
from raysys.storage import Manifest

log = logging.getLogger("raysys")


@dataclass(frozen=True)
class Stacking:
    """An ensemble and how it came about.

    Attributes:
        ensemble: of the members that were kept.
        dropped: members without a say, and why.
        milliseconds: of each sound member, for a request of 100 candidates on one thread.
        subsets: of the sound members, with quality and cost; see `cost.subsets`.
    """

    ensemble: Ensemble
    dropped: dict[str, str] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)
    subsets: list[Subset] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """For manifests: quality on the last out-of-fold fold, weights, methods, cost."""
        ensemble = self.ensemble
        parts = {**ensemble.alone, **ensemble.fallbacks}
        return {
            "ndcg10": {name: c.figures["held_out_ndcg"] for name, c in parts.items()},
            "weights": {name: c.share for name, c in ensemble.fallbacks.items()},
            "methods": {name: c.method for name, c in ensemble.fallbacks.items()},
        }

    def costs(self) -> dict[str, Any]:
        """What was measured by the clock, for the manifest of the stage: no two runs agree."""
        return {
            "dropped": self.dropped,
            "latency_ms": self.milliseconds,
            "subsets": [each.to_dict() for each in self.subsets],
        }


def stack(
    scores: BaseScores,
    families: Mapping[str, str],
    models: Mapping[str, Model],
    examples: Examples,
    settings: EnsembleSettings,
    window_ms: int,
    milliseconds: Mapping[str, float] | None = None,
) -> Stacking:
    """Fit the ensemble of all members that can have a say and pay for their time.

    Args:
        scores: out-of-fold base scores.
        families: of the members that are wanted, in their order.
        models: that are served, by member.
        examples: a view of the folds it is fitted on: the last alone, unless scores are by group.
        settings: see `EnsembleSettings`.
        window_ms: how long after a request its labels may still change.
        milliseconds: of members, where that is known; else it is measured.

    Raises:
        UserError: no member is left, or nothing can be learned from these requests.
    """
    dropped = unsound(scores.only(families))
    for name, reason in dropped.items():
        log.warning("train: %s has no say in the ensemble: %s", name, reason)
    sound = {name: family for name, family in families.items() if name not in dropped}
    if not sound:
        told = "; ".join(f"{name}: {reason}" for name, reason in dropped.items())
        raise UserError(
            f"no learner gave scores that an ensemble can be made of: {told}",
            where="learners",
            mend="look at their features and settings, or add another learner",
        )
    scores = scores.together(examples.folds)
    batch = examples.batch()
    measured = {**(milliseconds or {})}
    if fresh := {name: models[name] for name in sound if name not in measured}:
        measured |= latencies(fresh, batch)
    measured = {name: measured[name] for name in sound}
    try:
        bench = bench_of(scores, sound, settings, beside_of(examples, batch, settings, window_ms))
        found = subsets(bench, measured)
        kept = dict(sound)
        if settings.keep is not None:
            limit = settings.keep.ndcg_per_ms

            def tell(name: str, gain: float) -> None:
                dropped[name] = (
                    f"adds {gain:+.5f} NDCG to the others in {measured[name]:.3f} ms: less than "
                    f"{limit:g} a millisecond"
                )
                log.warning("train: %s has no say in the ensemble: it %s", name, dropped[name])

            left = paying(bench, sound, measured, limit, tell)
            kept = {name: sound[name] for name in left}
        ensemble = fit_on(bench, kept)
        ensemble.folds = examples.folds
    except ValueError as error:
        raise UserError(
            f"the ensemble cannot be fitted: {error}",
            where=str(examples.root),
            mend="take more events, more requests a fold, or more candidates in `raysys features`",
        ) from None
    return Stacking(ensemble, dropped, measured, found)


def beside_of(
    examples: Examples, batch: Batch, settings: EnsembleSettings, window_ms: int
) -> Beside:
    """Moments, groups and the raw features that trees want.

    Raises:
        UserError: a feature that the plan does not have, or groups that the requests do not.
    """
    wanted = settings.trees.features
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in batch.names):
            require_columns([pattern], batch.names, where="ensemble.trees.features")
    names = tuple(n for n in batch.names if any(fnmatchcase(n, each) for each in wanted))
    group = groups_of(examples, settings)
    return Beside(moments_of(examples), group, names, batch.columns(names), window_ms)


def groups_of(
    examples: Examples, settings: EnsembleSettings
) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
    """By what blocks of requests are cut, int64[r]: -1 where it is unknown; None: by time.

    Raises:
        UserError: no request has a query, or a session; or an earlier version wrote them.
    """
    by = settings.block_by
    return None if by == "time" else groups_by(examples, by, where="ensemble.block_by")


def groups_by(
    examples: Examples, by: str, *, where: str
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The user, query or session of each request, int64[r]: -1 where it is unknown.

    Args:
        examples: any view.
        by: `user`, `query` or `session`.
        where: the setting that asks for it, for messages.

    Raises:
        UserError: no request has a query, or a session; or an earlier version wrote them.
    """
    requests = examples.requests()
    if by == "user":
        return requests["user"].to_numpy().astype(np.int64)
    if by not in requests.column_names:
        raise UserError(
            f"requests of an earlier version: they do not tell of a {by}",
            where=str(examples.root),
            mend="run `raysys features --force`",
        )
    codes = requests[by].combine_chunks().dictionary_encode().indices
    group = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    if not (group >= 0).any():
        raise UserError(
            f"no request of fold {', '.join(map(str, examples.folds))} has a {by}",
            where=where,
            mend=f"take {where.rpartition('.')[2]}: time, or user",
        )
    return group


def label_window_ms(features: Manifest) -> int:
    """How long after a request its labels may still change, by the settings of its features.

    Orders and sessions out of retrieval are settled when they happen; logged examples wait for
    what is credited to them. A label never knows more than its fold in either case: features end
    it there.
    """
    examples = features.settings.get("examples") or {}
    if examples.get("from_", examples.get("from")) != "log":
        return 0
    labels = LabelSettings.model_validate(features.settings.get("labels") or {})
    return max(labels.longest_ms, round(float(examples.get("within_minutes", 0)) * HOUR_MS / 60))


def require_lessons(examples: Examples, mend: str | None = None) -> None:
    """Look for relevant rows that weigh something, before anything is fitted.

    Args:
        examples: of one fold or several.
        mend: what to do about it; None: look at `raysys features`.

    Raises:
        UserError: no retrieved row is relevant, or none of those weighs anything.
    """
    relevant = False
    for path in examples.files("examples"):
        table = pq.read_table(path, columns=["label", "retrieved", "weight"], partitioning=None)
        good = table.filter(pc.and_(pc.greater(table["label"], 0), table["retrieved"]))
        relevant = relevant or good.num_rows > 0
        if pc.any(pc.greater(good["weight"], 0)).as_py():
            return
    folds = ", ".join(str(fold) for fold in examples.folds)
    what = (
        f"every relevant candidate of fold {folds} weighs 0"
        if relevant
        else f"no retrieved candidate of fold {folds} is relevant"
    )
    raise UserError(
        f"{what}: nothing can be learned from it",
        where=str(examples.root),
        mend=mend
        or (
            "look at how `raysys features` weighs examples"
            if relevant
            else "take more events, fewer folds, or more candidates in `raysys features`"
        ),
    )
