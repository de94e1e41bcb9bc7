"""Which out-of-fold scores `raysys train` makes, and on which of them its ensemble is fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from raysys.ensemble import BaseScores, Ensemble
from raysys.ensemble.bench import HOUR_MS
from raysys.ensemble.folds import forward_folds, score_forward
from raysys.ensemble.out_of_fold import GROUPS, GroupFolds, purged
from raysys.ensemble.ranking import ndcg
from raysys.errors import UserError
from raysys.features.examples import Examples
from raysys.learners.protocol import Model
from raysys.stages.stacking import groups_by
from raysys.stages.train_settings import TrainSettings

T = TypeVar("T", int, str)


@dataclass(frozen=True)
class Held:
    """What is fitted and scored out-of-fold.

    Attributes:
        fits: what each model is fitted on, by the fold of time or the share of groups it scores;
            the validation fold's model is the one that is served.
        lessons: a view of the folds that the ensemble is fitted on.
        groups: the shares; None: by time alone.
    """

    fits: dict[int | str, Examples]
    lessons: Examples
    groups: GroupFolds | None = None


def held_out(
    settings: TrainSettings, examples: Examples, validation: int, window_ms: int, work: Path
) -> Held:
    """Views to fit on, and what they are to score.

    Args:
        settings: of the stage.
        examples: any view of the features folder.
        validation: the fold that is never fitted on.
        window_ms: how long after a request its labels may still change.
        work: what outlives a kill, for tables of what is left out.

    Raises:
        UserError: no fold or no group to fit on, or requests that do not tell of the groups.
    """
    told = settings.out_of_fold
    if told.by == "time":
        hours = told.purge_hours
        window = window_ms if hours is None else round(hours * HOUR_MS)
        forward = purged(forward_folds(examples, validation, told.folds), window, work)
        by_time: dict[int | str, Examples] = dict(forward.items())
        return Held(by_time, lessons_of(settings, examples, validation))
    train = lessons_of(settings, examples, validation)
    group = groups_by(train, told.by, where="out_of_fold.by")
    groups = GroupFolds.write(work / GROUPS, told.by, train, group, told.folds, settings.seed)
    fits: dict[int | str, Examples] = dict(groups.fits(train).items())
    return Held(fits | {validation: train}, train, groups)


def base_scores(
    held: Held,
    models: Mapping[str, Mapping[int | str, Model]],
    examples: Examples,
    scored: Callable[[], object] = lambda: None,
) -> BaseScores:
    """Out-of-fold base scores of all learners, in time order.

    Args:
        held: from `held_out`.
        models: learner -> what it scores -> model.
        examples: any view of the features folder.
        scored: called after every model that has scored its fold or share.
    """
    by_time = {name: _of(int, each) for name, each in models.items()}
    scores = score_forward(by_time, examples, scored)
    if held.groups is None:
        return scores
    by_group = {name: _of(str, each) for name, each in models.items()}
    return BaseScores.concatenate([held.groups.score(by_group, held.lessons, scored), scores])


def lessons_of(settings: TrainSettings, examples: Examples, validation: int) -> Examples:
    """A view of the folds whose base scores the ensemble is fitted on.

    Raises:
        UserError: requests that do not tell of the groups that are to be held out.
    """
    by = settings.out_of_fold.by
    if by == "time":
        return examples.with_folds(validation)
    train = examples.with_folds(*range(validation))
    groups_by(train, by, where="out_of_fold.by")
    return train


def require_scores(settings: TrainSettings, folder: Path) -> None:
    """See that the base scores of the run before are by what the settings say.

    Raises:
        UserError: scores by group are wanted, and those that are there are by something else.
    """
    by, groups = settings.out_of_fold.by, GroupFolds.read(folder / GROUPS)
    there = "time" if groups is None else groups.by
    if by not in ("time", there):
        raise UserError(
            f"no base scores by {by}: those that are there are by {there}",
            where=str(folder),
            mend="run `raysys train` without --ensemble-only, or give out_of_fold as it was",
        )


def on_validation(ensemble: Ensemble, scores: BaseScores, last: Examples) -> dict[str, float]:
    """NDCG@10 of an ensemble and its members on a fold that it was not fitted on.

    Args:
        ensemble: fitted on other folds.
        scores: of that fold among others.
        last: a view of it.
    """
    here = scores.together(last.folds)
    said = {name: here.base[name] for name in ensemble.members}
    full = ensemble.score(said, here.offsets, last.batch()).score
    judgements = here.judgements
    found = {"full": full, **said}
    return {
        name: float(np.nanmean(ndcg(judgements, judgements.ranks(each))))
        for name, each in found.items()
    }


def _of(kind: type[T], models: Mapping[int | str, Model]) -> dict[T, Model]:
    return {key: model for key, model in models.items() if isinstance(key, kind)}
