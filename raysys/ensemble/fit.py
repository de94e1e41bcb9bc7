"""Fit an ensemble on out-of-fold base scores: methods compete on blocks held out.

Everything is fitted on the last fold, whose scores come from the very models that will be served;
models of earlier folds saw less, and stand in other proportions to each other. Each method is
fitted without one block and judged on it, for every block; the winner is fitted again on all of
them. No score here comes from a model that saw its row, and what trees read of first-level
combinations comes from weights that did not see it either.
"""

from __future__ import annotations

from collections.abc import Mapping

from raysys.ensemble.bench import Bench, Beside
from raysys.ensemble.combination import FALLBACKS, Combination, Ensemble
from raysys.ensemble.folds import BaseScores
from raysys.ensemble.methods import WITH_TREES, EnsembleSettings

__all__ = ["bench_of", "fit_ensemble", "fit_on"]


def fit_ensemble(
    scores: BaseScores,
    families: Mapping[str, str],
    settings: EnsembleSettings | None = None,
    beside: Beside | None = None,
) -> Ensemble:
    """An ensemble with every fallback that has members, and every member alone.

    Args:
        scores: out-of-fold base scores of all members.
        families: family of every member, by which fallbacks choose theirs.
        settings: see `EnsembleSettings`.
        beside: of the last fold's requests, for raw features, purging and blocks by user.

    Raises:
        ValueError: no members, or no relevant candidate to learn from.
    """
    return fit_on(bench_of(scores, families, settings, beside), families)


def bench_of(
    scores: BaseScores,
    families: Mapping[str, str],
    settings: EnsembleSettings | None = None,
    beside: Beside | None = None,
) -> Bench:
    """What `fit_on` fits on; see `fit_ensemble`."""
    if not families:
        raise ValueError("an ensemble needs at least one member")
    return Bench(scores, tuple(families), settings or EnsembleSettings(), beside)


def fit_on(bench: Bench, families: Mapping[str, str]) -> Ensemble:
    """An ensemble of the members in `families`, all of which are on the bench."""
    fallbacks: dict[str, Combination] = {}
    made: dict[tuple[str, ...], Combination] = {}
    chosen = members_of_fallbacks(families)
    light = tuple(each for each in bench.settings.methods if each not in WITH_TREES)
    for members in sorted(filter(None, set(chosen.values())), key=len):
        methods = None if members == chosen["full"] else light
        made[members] = bench.combine(members, tuple(made.values()), methods)
    for fallback, members in chosen.items():
        if members:
            fallbacks[fallback] = made[members]
    alone = {name: bench.combine((name,)) for name in families}
    return Ensemble(families, fallbacks, alone, bench.scores.folds)


def members_of_fallbacks(families: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The members of every fallback; empty where it has none."""
    return {
        fallback: tuple(name for name, family in families.items() if family in wanted)
        for fallback, wanted in FALLBACKS.items()
    }
