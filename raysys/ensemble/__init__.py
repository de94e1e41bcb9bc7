"""Folds, stacking, averaging, calibration and fallbacks over base scores."""

from raysys.ensemble.bench import Beside
from raysys.ensemble.combination import FALLBACKS, Combination, Ensemble, EnsembleScores
from raysys.ensemble.fit import fit_ensemble
from raysys.ensemble.folds import BaseScores
from raysys.ensemble.methods import EnsembleSettings
from raysys.ensemble.ranking import Judgements, ndcg

__all__ = [
    "FALLBACKS",
    "BaseScores",
    "Beside",
    "Combination",
    "Ensemble",
    "EnsembleScores",
    "EnsembleSettings",
    "Judgements",
    "fit_ensemble",
    "ndcg",
]
