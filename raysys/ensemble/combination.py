"""The ensemble that is served: base scores in, one score and a probability out.

It knows how to lose a member. For each declared fallback it keeps weights and a calibration of
their own, all fitted on the same out-of-fold scores; which one answers follows from the members
that are present. Where trees over the base scores did better than weights they answer, and the
weights stand by for when something is missing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.ensemble.calibrate import Calibration, read_calibration
from raysys.ensemble.normalise import FORMS, every_form, normalise
from raysys.ensemble.tree_stack import TreeStack
from raysys.errors import UserError
from raysys.features.batch import Batch

Float32 = npt.NDArray[np.float32]

FALLBACKS: dict[str, frozenset[str]] = {
    "full": frozenset({"tree", "transformer", "baseline"}),
    "no_transformer": frozenset({"tree", "baseline"}),
    "trees_only": frozenset({"tree"}),
    "popularity": frozenset({"baseline"}),
}
"""Families of learners that each fallback combines, from the best to the last resort."""


HARDLY = 0.05
"""Share of the weight without which a combination is still as good as itself, and better than one
of fewer members."""


def combine(
    members: Sequence[str],
    weights: npt.NDArray[np.float64],
    base: Mapping[str, Float32],
    offsets: npt.NDArray[np.int64],
) -> Float32:
    """Weighted sum of the normalised base scores in `base`: float32[n]; absent members left out.

    What is left is scaled up to the whole weight, so that a calibration still fits roughly.

    Args:
        members: names of learners.
        weights: float64[2, m], of the `standard` and of the `rank` form.
        base: float32[n] by learner.
        offsets: int64[r + 1].
    """
    total = np.zeros(int(offsets[-1]))
    present = 0.0
    for name, pair in zip(members, weights.T.tolist(), strict=True):
        if name not in base:
            continue
        present += sum(pair)
        for form, weight in zip(FORMS, pair, strict=True):
            if weight:
                total += weight * normalise(base[name], offsets, form)
    whole = float(weights.sum())
    if 0.0 < present < whole:
        total *= whole / present
    return total.astype(np.float32)


@dataclass(frozen=True)
class Stacked:
    """Trees that answer instead of weights when nothing is missing.

    Attributes:
        trees: over base scores and raw features.
        calibration: from their scores to probabilities.
    """

    trees: TreeStack
    calibration: Calibration

    def can(self, base: Mapping[str, Float32], batch: Batch | None) -> bool:
        """Whether all is there that the trees read."""
        columns = frozenset() if batch is None else frozenset(batch.names)
        return base.keys() >= set(self.trees.members) and columns >= set(self.trees.features)

    def score(
        self, base: Mapping[str, Float32], offsets: npt.NDArray[np.int64], batch: Batch | None
    ) -> Float32:
        """Scores of the trees, float32[n]."""
        forms = every_form({name: base[name] for name in self.trees.members}, offsets)
        raw = np.empty((int(offsets[-1]), 0), dtype=np.float32)
        if self.trees.features:
            assert batch is not None  # see `can`
            raw = batch.columns(self.trees.features)
        return self.trees.score(forms, raw)


@dataclass(frozen=True)
class Combination:
    """Weights of some members, and what their combined score is worth as a probability.

    Attributes:
        members: names of learners.
        weights: float64[2, m], not negative: of the `standard` and the `rank` form of each member.
        calibration: from combined score to probability.
        method: how the weights, or the trees, were found.
        figures: what was measured out of fold when it was chosen.
        stacked: trees that answer while all they read is there; without them the weights do.
    """

    members: tuple[str, ...]
    weights: npt.NDArray[np.float64]
    calibration: Calibration
    method: str
    figures: dict[str, float] = field(default_factory=dict)
    stacked: Stacked | None = None

    @property
    def share(self) -> dict[str, float]:
        """How much each member counts, in parts of 1."""
        if self.stacked is not None:
            return {name: self.stacked.trees.share.get(name, 0.0) for name in self.members}
        return self.share_of_weights

    @property
    def share_of_weights(self) -> dict[str, float]:
        """The same where the weights answer, whatever trees there are."""
        size = self.weights.sum(axis=0)
        return dict(zip(self.members, (size / max(size.sum(), 1e-30)).tolist(), strict=True))

    @property
    def served_calibration(self) -> Calibration:
        """What answers while nothing is missing."""
        return self.calibration if self.stacked is None else self.stacked.calibration

    @property
    def needed(self) -> frozenset[str]:
        """Members whose weight is not zero: without them the score would be another."""
        return frozenset(name for name, share in self.share.items() if share > 0)

    def lacks(self, present: Collection[str]) -> float:
        """What the absent members count where the weights answer, in parts of 1."""
        return sum(share for name, share in self.share_of_weights.items() if name not in present)

    def answer(
        self,
        base: Mapping[str, Float32],
        offsets: npt.NDArray[np.int64],
        batch: Batch | None = None,
    ) -> tuple[Float32, Float32]:
        """Combined scores and probabilities, float32[n] each; see `combine`.

        Args:
            base: base scores by member.
            offsets: int64[r + 1].
            batch: the candidates' raw features, for trees that read some; without them, or
                without one of the members, the weights answer.
        """
        if self.stacked is not None and self.stacked.can(base, batch):
            score = self.stacked.score(base, offsets, batch)
            return score, self.stacked.calibration(score)
        score = combine(self.members, self.weights, base, offsets)
        return score, self.calibration(score)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can say it."""
        content: dict[str, Any] = {
            "members": list(self.members),
            "weights": {form: row.tolist() for form, row in zip(FORMS, self.weights, strict=True)},
            "calibration": self.calibration.to_dict(),
            "method": self.method,
            "figures": self.figures,
        }
        if self.stacked is not None:
            content["stacked"] = {
                "trees": self.stacked.trees.to_dict(),
                "calibration": self.stacked.calibration.to_dict(),
            }
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Combination:
        """Read what `to_dict` gave."""
        stacked = None
        if (found := content.get("stacked")) is not None:
            stacked = Stacked(
                TreeStack.from_dict(found["trees"]), read_calibration(found["calibration"])
            )
        return cls(
            members=tuple(content["members"]),
            weights=np.asarray([content["weights"][form] for form in FORMS], dtype=np.float64),
            calibration=read_calibration(content["calibration"]),
            method=content["method"],
            figures=content["figures"],
            stacked=stacked,
        )


@dataclass(frozen=True)
class EnsembleScores:
    """What the ensemble says of n candidates.

    Attributes:
        score: float32[n], higher is better, comparable within a request.
        probability: float32[n], of being relevant; never falls as the score rises.
        fallback: which combination answered: `full`, or another when members were missing.
        missing: members that this combination wants and did not get.
    """

    score: Float32
    probability: Float32
    fallback: str
    missing: tuple[str, ...] = ()


class Ensemble:
    """Combinations by fallback, and of every member alone.

    Args:
        families: family of every member (`tree`, `transformer`, `baseline`).
        fallbacks: combinations from the best to the last resort, see `FALLBACKS`.
        alone: a combination of one for every member: its calibration, for reports.
        folds: the folds whose out-of-fold scores it was fitted on.
    """

    def __init__(
        self,
        families: Mapping[str, str],
        fallbacks: Mapping[str, Combination],
        alone: Mapping[str, Combination],
        folds: Sequence[int] = (),
    ) -> None:
        self.families = dict(families)
        self.fallbacks = dict(fallbacks)
        self.alone = dict(alone)
        self.folds = tuple(folds)

    @property
    def members(self) -> tuple[str, ...]:
        """Every learner that has a say in some fallback."""
        return tuple(self.families)

    def score(
        self,
        base: Mapping[str, Float32],
        offsets: npt.NDArray[np.int64],
        batch: Batch | None = None,
    ) -> EnsembleScores:
        """Combine what is present: the best fallback whose members all are.

        Args:
            base: base scores by member, float32[n] each; a member that is missing or whose
                scores are not finite is left out.
            offsets: int64[r + 1].
            batch: what the base scores are of; trees may read raw features in it.

        Raises:
            ValueError: no member at all.
        """
        usable = {
            name: scores
            for name, scores in base.items()
            if name in self.families and np.isfinite(scores).all()
        }
        fallback, combination = self.choose(frozenset(usable))
        score, probability = combination.answer(usable, offsets, batch)
        missing = tuple(sorted(combination.needed - usable.keys()))
        return EnsembleScores(score, probability, fallback, missing)

    def choose(self, present: frozenset[str]) -> tuple[str, Combination]:
        """Name and combination of the fallback for the members that are present.

        The first fallback whose members all are, but for some that hardly count where weights
        answer instead of trees. When that would throw away every tree and transformer although
        one is present, or when there is none: the one that keeps most of its weight, without the
        absent members.

        Raises:
            ValueError: no member at all.
        """
        if not present:
            raise ValueError(f"no base scores of any member: {', '.join(self.members)}")
        strong = {name for name in present if self.families[name] != "baseline"}
        for name, combination in self.fallbacks.items():
            whole = combination.needed <= present or combination.lacks(present) <= HARDLY
            if whole and (combination.needed & strong or not strong):
                return name, combination
        useful = strong or present
        kept = {
            name: sum(combination.share_of_weights.get(member, 0.0) for member in useful)
            for name, combination in self.fallbacks.items()
        }
        best = max(kept, key=lambda name: kept[name])
        if kept[best] > 0:
            return best, self.fallbacks[best]
        # Only members without any weight are left: one's own order is better than none.
        member = next(name for name in self.members if name in useful)
        return next(n for n, c in self.fallbacks.items() if member in c.members), self.alone[member]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        content = {
            "families": self.families,
            "folds": list(self.folds),
            "fallbacks": {name: c.to_dict() for name, c in self.fallbacks.items()},
            "alone": {name: c.to_dict() for name, c in self.alone.items()},
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Ensemble:
        """Read what `save` wrote; scores are the same to the last bit.

        Raises:
            UserError: the file is damaged.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                content["families"],
                {n: Combination.from_dict(c) for n, c in content["fallbacks"].items()},
                {n: Combination.from_dict(c) for n, c in content["alone"].items()},
                content["folds"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"not an ensemble: {error}", where=str(path), mend="train again"
            ) from None
