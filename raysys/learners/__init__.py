"""Learners by name. A learner is imported when it is asked for: trees need no transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raysys.catalogue import Catalogue
from raysys.config import parse_settings
from raysys.learners.lookup import find_class
from raysys.learners.protocol import Learner, Model

LEARNERS = {
    "xgboost_ranker": "raysys.learners.xgboost_ranker:XGBoostRanker",
    "lightgbm_ranker": "raysys.learners.lightgbm_ranker:LightGBMRanker",
    "two_tower": "raysys.learners.two_tower:TwoTower",
    "cross_encoder_ranker": "raysys.learners.cross_encoder_ranker:CrossEncoderRanker",
    "next_item": "raysys.learners.next_item:NextItem",
    "popular": "raysys.learners.baselines:Popular",
    "repeat_purchase": "raysys.learners.baselines:RepeatPurchase",
    "co_occurrence": "raysys.learners.baselines:CoOccurrence",
}


def learner_class(name: str) -> type[Learner[Any]]:
    """The class of a learner.

    Raises:
        UserError: there is no such learner; names those that there are.
    """
    found: type[Learner[Any]] = find_class(LEARNERS, name, "learner")
    return found


def make_learner(name: str, settings: dict[str, Any], *, where: str = "") -> Learner[Any]:
    """A learner with typed settings from a YAML mapping.

    Raises:
        UserError: unknown learner or bad settings.
    """
    found = learner_class(name)
    return found(parse_settings(found.settings_model, settings, where=where or name))


def load_model(name: str, folder: Path, catalogue: Catalogue) -> Model:
    """A fitted learner from its folder in a bundle."""
    found = learner_class(name)
    return found.model_class.load(folder, catalogue)
