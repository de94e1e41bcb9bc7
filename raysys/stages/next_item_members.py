"""Members of a next-item benchmark: what is tried for each, and what was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raysys.learners.sequence_protocol import SequenceLearner, SequenceModel
from raysys.learners.sequences import make_sequence_learner

MENUS: dict[str, dict[str, tuple[Any, ...]]] = {
    "recent_popularity": {
        "seen": (0.0,),
        "half_life": (0.01, 0.3, 0.0),
    },
    "session_knn": {
        "seen": (0.0,),
        "half_life": (0.06, 0.5, 0.0),
        "again": (1.0, 0.0, 2.0),
        "prefix_decay": (0.8, 3.0),
        "backward": (0.3, 1.0),
        "distance_decay": (1.0, 6.0),
        "length_power": (0.0, 0.5),
        "idf": (0.0, 1.0),
        "neighbours": (150, 1500),
    },
    "item_knn": {
        "seen": (0.0,),
        "half_life": (0.06, 0.5, 0.0),
        "popularity_power": (0.2, 0.6),
        "prefix_decay": (0.5, 0.85),
        "source_power": (0.2, 0.8),
        "backward": (0.25, 1.0),
        "distance_decay": (0.5, 1.5),
    },
}
"""What is tried for popularity and neighbours, one setting after another, weightier ones first."""

TRANSFORMERS: tuple[dict[str, Any], ...] = (
    {"dropout": 0.3, "item_dropout": 0.4},
    {"dropout": 0.1, "item_dropout": 0.2},
    {"dropout": 0.5, "item_dropout": 0.5},
)
"""What is tried for the transformer, each for a short while; the first if there is no time to."""


@dataclass
class Member:
    """A learner with chosen settings, its model, and how it did on validation."""

    learner: str
    settings: dict[str, Any]
    model: SequenceModel
    value: float
    seconds: float

    def make(self) -> SequenceLearner[Any]:
        """The learner."""
        return make_sequence_learner(self.learner, self.settings)
