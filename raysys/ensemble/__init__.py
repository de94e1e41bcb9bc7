"""Folds, stacking, averaging, calibration and fallbacks over base scores."""

from raysys.ensemble.combination import FALLBACKS, Combination, Ensemble, EnsembleScores
from raysys.ensemble.fit import EnsembleSettings, fit_ensemble
from raysys.ensemble.folds import BaseScores
from raysys.ensemble.ranking import Judgements, ndcg

__all__ = [
    "FALLBACKS",
    "BaseScores",
    "Combination",
    "Ensemble",
    "EnsembleScores",
    "EnsembleSettings",
    "Judgements",
    "fit_ensemble",
    "ndcg",
]
