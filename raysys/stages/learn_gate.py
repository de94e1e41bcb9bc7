"""Champion and challenger on the last part of the window, which nobody has learned from.

Both answer the same requests as they would have at those moments, each with candidates of its own.
Between them stand the steps that lead from one to the other: what each changed is told too, in the
order in which they were taken. Users are drawn with all their requests, and all differences are
paired.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.ensemble import BaseScores, Ensemble, Judgements
from raysys.ensemble.folds import base_score
from raysys.evaluation.intervals import Bootstrap, Interval
from raysys.evaluation.metrics import ranking_metrics
from raysys.features.batch import Batch
from raysys.learners.protocol import Model
from raysys.progress import task
from raysys.registry.gate import Judgement, judge_paired
from raysys.stages.learn_events import GATE
from raysys.stages.learn_replay import AFTER, BEFORE, FROZEN
from raysys.stages.learn_round import SCORES, Round

Values = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Stand:
    """How things stood after one of the steps.

    Attributes:
        step: that led to it; the first is where they begin: `published` if the state goes on, else
            `state`.
        values: by metric, float64[r] of each request.
    """

    step: str
    values: Values


def judge_round(made: Round, out: Path) -> dict[str, Any]:
    """What the gate measured, as JSON can say it.

    Args:
        made: the steps up to here.
        out: gets the base scores of the challenger's learners.
    """
    told = made.settings.gate
    stands, alone = [], dict[str, Any]()
    sides = 2 + made.settings.steps.state + made.settings.steps.covisitation
    with task("learn: gate", sides + len(made.settings.steps.learners)) as judging:
        for stand in _stands(made, alone, out):
            stands.append(stand)
            judging.advance()
    requests = made.examples(AFTER, GATE).requests()
    users = requests["user"].to_numpy()
    drawn = users if told.draw == "user" else np.arange(len(users))
    bootstrap = Bootstrap(drawn, resamples=told.resamples, seed=told.seed)
    by_step = {stand.step: stand.values for stand in stands}
    champion = by_step["published" if told.against == "frozen" else "state"]
    challenger = stands[-1].values
    moments = requests["timestamp"].to_numpy()
    effects = [
        {
            "step": after.step,
            "before": _mean(before.values[told.metric]),
            "after": _mean(after.values[told.metric]),
            "difference": _between(bootstrap, after.values, before.values, told.metric),
        }
        for before, after in pairwise(stands)
    ]
    return {
        "metric": told.metric,
        "requests": len(users),
        "users": len(np.unique(users)),
        "first": str(moments.min())[:16],
        "last": str(moments.max())[:16],
        "champion": {n: bootstrap.mean(v).to_dict() for n, v in champion.items()},
        "challenger": {n: bootstrap.mean(v).to_dict() for n, v in challenger.items()},
        "difference": {n: _between(bootstrap, challenger, champion, n) for n in champion},
        "effects": effects,
        "alone": {
            name: {
                "before": _mean(before),
                "after": _mean(after),
                "difference": bootstrap.difference(after, before).to_dict(),
            }
            for name, (before, after) in alone.items()
        },
    }


def verdict(figures: dict[str, Any], *, better: bool) -> Judgement:
    """Whether the challenger passes, by the difference that was measured."""
    metric = figures["metric"]
    told = figures["difference"][metric]
    difference = Interval(
        *(float("nan") if told[name] is None else told[name] for name in ("value", "low", "high"))
    )
    values = figures["challenger"][metric]["value"], figures["champion"][metric]["value"]
    return judge_paired(metric, *values, difference, better=better)


def _stands(made: Round, alone: dict[str, Any], out: Path) -> Iterator[Stand]:
    """One after the other, from the published champion to the challenger."""
    bundle, steps = made.champion, made.settings.steps
    if steps.state:
        batch = made.examples(FROZEN, GATE).batch()
        base = _base(bundle.learners, batch)
        yield Stand("published", _values(bundle.ensemble, base, batch))
    batch = made.examples(BEFORE, GATE).batch()
    base = _base(bundle.learners, batch)
    yield Stand("state", _values(bundle.ensemble, base, batch))
    if steps.covisitation:
        batch = made.examples(AFTER, GATE).batch()
        base = _base(bundle.learners, batch)
        yield Stand("covisitation", _values(bundle.ensemble, base, batch))
    judged = Judgements.of(batch)
    for name in steps.learners:
        tuned = made.tuned(name)
        if tuned is not None:
            before = _own(judged, base[name], made.settings.gate.metric)
            base[name] = base_score(name, tuned, batch, finite=False)
            alone[name] = before, _own(judged, base[name], made.settings.gate.metric)
            yield Stand(name, _values(bundle.ensemble, base, batch))
    if steps.ensemble is not None and made.told["blend"]["changed"]:
        yield Stand("ensemble", _values(made.ensemble(), base, batch))
    BaseScores.of(batch, GATE, base).write(out / SCORES)


def _base(models: dict[str, Model], batch: Batch) -> dict[str, npt.NDArray[np.float32]]:
    return {name: base_score(name, model, batch, finite=False) for name, model in models.items()}


def _values(ensemble: Ensemble, base: dict[str, npt.NDArray[np.float32]], batch: Batch) -> Values:
    judged = Judgements.of(batch)
    score = ensemble.score(base, batch.offsets, batch).score
    return ranking_metrics(judged, judged.ranks(score), recall_at=(10,))


def _own(
    judged: Judgements, score: npt.NDArray[np.float32], metric: str
) -> npt.NDArray[np.float64]:
    """What a learner alone reaches; nothing where its scores are not finite."""
    if not np.isfinite(score).all():
        return np.full(judged.n_requests, np.nan)
    return ranking_metrics(judged, judged.ranks(score), recall_at=(10,))[metric]


def _between(bootstrap: Bootstrap, a: Values, b: Values, metric: str) -> dict[str, float | None]:
    return bootstrap.difference(a[metric], b[metric]).to_dict()


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None
