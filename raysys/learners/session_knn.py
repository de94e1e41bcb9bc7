"""Sessions like this one: what came next to what is here, in sessions that share items with it.

V-SkNN (Ludewig and Jannach, UMUAI 2018) with the three decays of STAN (Garg et al., "Sequence and
time aware neighborhood for session-based recommendations", SIGIR 2019): by place in the prefix, by
age of the neighbour, by distance from the shared item in the neighbour. Exact: every session that
shares an item is looked at, none is sampled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
from numba import njit
from pydantic import Field
from safetensors.numpy import load_file, save_file

from raysys.config import Settings
from raysys.learners.sequence_popularity import ageing, popularity
from raysys.learners.sequence_protocol import (
    Float32,
    SequenceContext,
    SequenceLearner,
    SequenceModel,
    Sequences,
    damp_seen,
)
from raysys.retrieval.sorting import largest

META = "session_knn.json"
FILE = "session_knn.safetensors"
TIE = 1e-7
REACH = 18.0
"""Of `distance_decay`: what is further from the shared item counts below float32's precision."""


class SessionKNNSettings(Settings):
    """The three decays, and how many neighbours speak.

    Attributes:
        neighbours: sessions that speak, the most alike.
        prefix_decay: an item of the prefix a steps from its end counts exp(-a / prefix_decay).
        half_life: of sessions, see `ageing`; 0: none ages.
        distance_decay: an item d places from the shared one counts exp(-d / distance_decay).
        backward: what an item counts that came before the shared one.
        again: what the shared item itself counts: shoppers come back to what they saw.
        idf: shared items count by the logarithm of their rarity to this power.
        length_power: likeness is divided by the neighbour's length to this power.
        last: so many items of the prefix ask.
        seen: share of its score that an item keeps which the prefix already holds: 0 where nobody
            takes a thing twice.
    """

    neighbours: int = Field(500, ge=1)
    prefix_decay: float = Field(1.5, gt=0)
    half_life: float = Field(0.25, ge=0)
    distance_decay: float = Field(2.0, gt=0)
    backward: float = Field(0.6, ge=0, le=1)
    again: float = Field(0.7, ge=0)
    idf: float = Field(0.5, ge=0)
    length_power: float = Field(0.25, ge=0, le=1)
    last: int = Field(20, ge=1)
    seen: float = Field(1.0, ge=0, le=1)


class SessionKNNModel(SequenceModel):
    """All sessions, and for every item those that hold it.

    Args:
        sequences: the neighbours there are.
        weight: float32[s], what each counts for its age.
        popular: float32[n_items], the last resort.
        settings: as fitted.
    """

    def __init__(
        self,
        sequences: Sequences,
        weight: Float32,
        popular: Float32,
        settings: SessionKNNSettings,
    ) -> None:
        self.sequences = sequences
        self.weight = weight
        self.popular = popular
        self.settings = settings
        self.n_items = len(popular)
        pairs = np.unique(sequences.items.astype(np.int64) * len(sequences) + sequences.owner)
        self._holder = (pairs % max(len(sequences), 1)).astype(np.int32)
        count = np.bincount(pairs // max(len(sequences), 1), minlength=self.n_items)
        self._holders = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        rarity = np.log((len(sequences) + 1) / (count + 1.0))
        self._rarity = (np.maximum(rarity, 1e-3) ** settings.idf).astype(np.float32)
        size = np.maximum(sequences.sizes, 1)
        self._scale = (weight * size.astype(np.float64) ** -settings.length_power).astype(
            np.float32
        )

    def score(self, prefixes: Sequences) -> Float32:
        """See `SequenceModel.score`."""
        scores = np.zeros((len(prefixes), self.n_items), dtype=np.float32)
        told = self.settings
        _score(
            scores, prefixes.items, prefixes.offsets, self.sequences.items, self.sequences.offsets,
            self._holder, self._holders, self._rarity, self._scale, told.neighbours, told.last,
            told.prefix_decay, told.distance_decay, told.backward, told.again,
            1 + int(REACH * told.distance_decay),
        )  # fmt: skip
        scores += TIE * self.popular
        damp_seen(scores, prefixes, told.seen)
        return scores

    def save(self, folder: Path) -> None:
        """See `SequenceModel.save`."""
        parts = {
            "items": self.sequences.items,
            "offsets": self.sequences.offsets,
            "weight": self.weight,
            "popular": self.popular,
        }
        save_file(parts, folder / FILE)
        (folder / META).write_text(self.settings.model_dump_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> SessionKNNModel:
        """See `SequenceModel.load`."""
        parts = load_file(folder / FILE)
        settings = SessionKNNSettings(**json.loads((folder / META).read_text(encoding="utf-8")))
        sequences = Sequences(parts["items"], parts["offsets"])
        return cls(sequences, parts["weight"], parts["popular"], settings)


class SessionKNN(SequenceLearner[SessionKNNSettings]):
    """Keeps the sessions; nothing is fitted but their ages."""

    name: ClassVar[str] = "session_knn"
    family = "baseline"
    settings_model = SessionKNNSettings
    model_class = SessionKNNModel

    def fit(self, train: Sequences, context: SequenceContext) -> SessionKNNModel:
        """See `SequenceLearner.fit`."""
        weight = ageing(train, self.settings.half_life).astype(np.float32)
        kept = Sequences(train.items, train.offsets)
        return SessionKNNModel(kept, weight, popularity(train, context.n_items), self.settings)


@njit(cache=True, nogil=True)
def _score(  # type: ignore[no-untyped-def]
    scores, prefix, prefix_offsets, items, offsets, holder, holders, rarity, scale, k, last,
    prefix_decay, distance_decay, backward, again, reach,
):  # fmt: skip
    """Adds what the neighbours of each prefix say; touched sessions are cleared as it goes."""
    alike = np.zeros(len(offsets) - 1, dtype=np.float32)
    shared = np.zeros(len(offsets) - 1, dtype=np.int32)  # their latest common item in the prefix
    for row in range(len(prefix_offsets) - 1):
        start, stop = prefix_offsets[row], prefix_offsets[row + 1]
        first = max(start, stop - last)
        room = 0
        for at in range(first, stop):
            room += holders[prefix[at] + 1] - holders[prefix[at]]
        touched = np.empty(room, dtype=np.int32)
        n = 0
        for at in range(stop - 1, first - 1, -1):  # latest first
            item = prefix[at]
            seen = False
            for later in range(at + 1, stop):
                seen = seen or prefix[later] == item
            if seen:
                continue
            value = np.float32(np.exp((at - stop + 1) / prefix_decay)) * rarity[item]
            for place in range(holders[item], holders[item + 1]):
                session = holder[place]
                if alike[session] == 0:
                    touched[n] = session
                    shared[session] = item
                    n += 1
                alike[session] += value
        if n == 0:
            continue
        value_of = np.empty(n, dtype=np.float32)
        for i in range(n):
            value_of[i] = alike[touched[i]] * scale[touched[i]]
            alike[touched[i]] = 0
        least = np.float32(0)
        if n > k:
            least = largest(value_of, k)
        for i in range(n):
            if value_of[i] < least:
                continue
            a, b = offsets[touched[i]], offsets[touched[i] + 1]
            pivot = b - 1
            while items[pivot] != shared[touched[i]]:
                pivot -= 1
            scores[row, items[pivot]] += value_of[i] * np.float32(again)
            for place in range(max(a, pivot - reach), min(b, pivot + reach + 1)):
                if place != pivot:
                    apart = abs(place - pivot) - 1
                    near = np.float32(np.exp(-apart / distance_decay))
                    if place < pivot:
                        near *= np.float32(backward)
                    scores[row, items[place]] += value_of[i] * near
