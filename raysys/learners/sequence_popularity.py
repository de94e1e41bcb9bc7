"""What everybody takes lately: the floor, and what an empty or unknown prefix gets."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field
from safetensors.numpy import load_file, save_file

from raysys.config import Settings
from raysys.learners.sequence_protocol import (
    Float32,
    Float64,
    SequenceContext,
    SequenceLearner,
    SequenceModel,
    Sequences,
    damp_seen,
)

FILE = "popularity.safetensors"


class PopularitySettings(Settings):
    """Attributes:
    half_life: share of the sequences, in time order, after which one counts half; 0: none ages.
    seen: share of its score that an item keeps which the prefix already holds.
    """

    half_life: float = Field(0.05, ge=0)
    seen: float = Field(1.0, ge=0, le=1)


def ageing(sequences: Sequences, half_life: float) -> Float64:
    """What each sequence counts, 1 for the latest: float64[s].

    Args:
        sequences: without moments all count 1.
        half_life: in parts of the sequences, so that one number fits a week and a year; 0: never.
    """
    n = len(sequences)
    if sequences.moment is None or not half_life or n < 2:
        return np.ones(n)
    place = np.empty(n)
    place[np.argsort(sequences.moment, kind="stable")] = np.arange(n)
    return np.exp2(-(n - 1 - place) / (half_life * n))


def popularity(sequences: Sequences, n_items: int, half_life: float = 0.05) -> Float32:
    """Logarithm of how often an item was taken, ageing, plus one: float32[n_items]."""
    weight = np.repeat(ageing(sequences, half_life), sequences.sizes)
    return np.log1p(np.bincount(sequences.items, weight, n_items)).astype(np.float32)


class PopularityModel(SequenceModel):
    """The same scores after every prefix, but for what it already holds.

    Args:
        scores: float32[n_items].
        seen: share of its score that an item keeps which the prefix already holds.
    """

    def __init__(self, scores: Float32, seen: float = 1.0) -> None:
        self.scores = scores
        self.seen = seen
        self.n_items = len(scores)

    def score(self, prefixes: Sequences) -> Float32:
        """See `SequenceModel.score`."""
        scores = np.tile(self.scores, (len(prefixes), 1))
        damp_seen(scores, prefixes, self.seen)
        return scores

    def save(self, folder: Path) -> None:
        """See `SequenceModel.save`."""
        save_file({"scores": self.scores, "seen": np.array([self.seen])}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> PopularityModel:
        """See `SequenceModel.load`."""
        parts = load_file(folder / FILE)
        seen = parts.get("seen")  # folders of before have none
        return cls(parts["scores"], 1.0 if seen is None else float(seen[0]))


class RecentPopularity(SequenceLearner[PopularitySettings]):
    """What was taken most, of late."""

    name: ClassVar[str] = "recent_popularity"
    family = "baseline"
    settings_model = PopularitySettings
    model_class = PopularityModel

    def fit(self, train: Sequences, context: SequenceContext) -> PopularityModel:
        """See `SequenceLearner.fit`."""
        told = self.settings
        return PopularityModel(popularity(train, context.n_items, told.half_life), told.seen)
