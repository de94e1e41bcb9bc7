"""Tree stacking: LambdaMART over normalised base scores, first-level combinations, raw features.

Trees can do what weights cannot: trust one member for newcomers and another for regulars (Sill et
al., "Feature-weighted linear stacking", 2009, do so by products). With a first level they start
from the mean of its combinations and add to it, so that trees that learn nothing change nothing
(two-level stacking: Wolpert, "Stacked generalization", 1992). Trees of LightGBM are kept in its
own text format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from raysys.config import Settings
from raysys.ensemble.normalise import FORMS, Form
from raysys.ensemble.ranking import Judgements, ndcg
from raysys.learners.forest import Forest, forest_of, of_lightgbm

if TYPE_CHECKING:
    import lightgbm

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Forms = Mapping[tuple[str, Form], Float32]
"""Normalised scores float32[n] by member and form."""


class TreeStackSettings(Settings):
    """Trees over base scores; they are small, since they learn from one fold only.

    Attributes:
        features: raw features that trees may split on beside the base scores: names or patterns
            such as `user_*`; none unless given. One that the plan lacks is an error.
        n_estimators: trees at most; fewer when the last part of the fitted time stops improving.
        learning_rate: weight of each tree.
        num_leaves: of each tree.
        min_child_samples: rows a leaf at least.
        lambda_l2: L2 regularisation of leaf values.
        candidates: irrelevant candidates kept of each request, drawn at random; 0: all.
        early_stopping_rounds: trees without a better NDCG before growing stops.
        last_fraction: of the fitted requests by time, by which growing is stopped.
    """

    features: tuple[str, ...] = ()
    n_estimators: int = Field(200, ge=1)
    learning_rate: float = Field(0.05, gt=0, le=1)
    num_leaves: int = Field(8, ge=2, le=1024)
    min_child_samples: int = Field(200, ge=1)
    lambda_l2: float = Field(10.0, ge=0)
    candidates: int = Field(60, ge=0)
    early_stopping_rounds: int = Field(20, ge=1)
    last_fraction: float = Field(0.2, gt=0, lt=0.9)


@dataclass(frozen=True)
class TreeStack:
    """Fitted trees, and how their inputs are made.

    Attributes:
        members: names of learners; each gives two columns, one a form.
        features: raw features behind them, by name.
        first_level: float64[l, 2, m], weights of first-level combinations, summing to 1 each;
            with l > 0 the trees add to the mean of what these say.
        text: LightGBM's own format.
        share: how much each member counts, in parts of 1, by the gain of the splits on it.
    """

    members: tuple[str, ...]
    features: tuple[str, ...]
    first_level: Float64
    text: str
    share: dict[str, float] = field(default_factory=dict)

    @cached_property
    def booster(self) -> lightgbm.Booster:
        """The trees, ready to score."""
        import lightgbm

        return lightgbm.Booster(model_str=self.text)

    @cached_property
    def forest(self) -> Forest | None:
        """The trees as arrays: the library's bits in a fraction of its time; None: not these."""
        make = partial(of_lightgbm, self.text)
        return forest_of(make, self._by_library)

    def _by_library(self, inputs: Float32) -> Float64:
        return np.asarray(self.booster.predict(inputs, raw_score=True, num_threads=1))

    def score(self, forms: Forms, raw: Float32) -> Float32:
        """Combined scores, float32[n]; safe in many threads at once.

        Args:
            forms: of every member, float32[n] each.
            raw: float32[n, len(features)].
        """
        inputs, start = tree_inputs(forms, self.members, self.first_level, raw)
        if not len(inputs):
            return np.zeros(0, dtype=np.float32)
        found = self._by_library(inputs) if self.forest is None else self.forest.score(inputs)
        return (found + start).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can say it."""
        return {
            "members": list(self.members),
            "features": list(self.features),
            "first_level": self.first_level.tolist(),
            "share": self.share,
            "trees": self.text,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> TreeStack:
        """Read what `to_dict` gave.

        Raises:
            ValueError: no trees, or of other columns than those that are named.
        """
        import lightgbm

        members = tuple(content["members"])
        first = np.asarray(content["first_level"], dtype=np.float64)
        stack = cls(
            members=members,
            features=tuple(content["features"]),
            first_level=first.reshape(-1, len(FORMS), len(members)),
            text=content["trees"],
            share=content["share"],
        )
        try:  # now, not in the first request
            columns = stack.booster.num_feature()
        except lightgbm.basic.LightGBMError as error:
            raise ValueError(f"no trees: {error}") from None
        wanted = len(FORMS) * len(members) + len(stack.first_level) + len(stack.features)
        if columns != wanted:
            raise ValueError(f"trees of {columns} columns for {wanted}")
        return stack


def tree_inputs(
    forms: Forms, members: Sequence[str], first_level: Float64, raw: Float32
) -> tuple[Float32, Float32]:
    """Columns float32[n, 2 m + l + p] for trees, and the scores float32[n] that they add to."""
    by_form = np.stack([forms[name, form] for form in FORMS for name in members])
    combined = (first_level.reshape(len(first_level), len(by_form)) @ by_form).astype(np.float32)
    start = np.zeros(by_form.shape[1], np.float32)
    if len(combined):
        start = combined.mean(axis=0)
    return np.ascontiguousarray(np.concatenate([by_form, combined, raw.T]).T), start


def grow(
    inputs: Float32,
    start: Float32,
    judgements: Judgements,
    settings: TreeStackSettings,
    *,
    k: int = 10,
    seed: int = 0,
) -> lightgbm.Booster:
    """Trees fitted on all but the last requests, as many as order those best.

    Args:
        inputs: float32[n, p], from `tree_inputs`; its first-level columns out of fold.
        start: float32[n], what the trees add to, out of fold.
        judgements: of the same n rows, requests in time order.
        settings: see `TreeStackSettings`.
        k: of the NDCG by which growing is stopped.
        seed: of the draw of candidates.

    Raises:
        ValueError: no relevant candidate to learn from.
    """
    import lightgbm

    cut = judgements.n_requests - max(1, round(judgements.n_requests * settings.last_fraction))
    rows = int(judgements.offsets[cut])
    kept = _thinned(judgements, rows, settings.candidates, seed)
    if not judgements.label[kept].any():
        raise ValueError("no relevant candidate to learn from")
    owner = np.searchsorted(judgements.offsets, kept, side="right") - 1
    gains, grade = np.unique(np.append(judgements.label, 0.0), return_inverse=True)
    params = {
        "objective": "lambdarank",
        "lambdarank_truncation_level": 2 * k,
        "label_gain": gains.tolist(),
        "metric": "none",
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,  # else it times both ways, and the sums differ by chance
        "learning_rate": settings.learning_rate,
        "num_leaves": settings.num_leaves,
        "min_data_in_leaf": settings.min_child_samples,
        "lambda_l2": settings.lambda_l2,
        "max_bin": 127,
        "feature_pre_filter": False,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(
        inputs[kept],
        label=grade[kept],
        group=np.unique(owner, return_counts=True)[1],
        init_score=start[kept],
        params=params,
    )
    tail = judgements.take(np.arange(cut, judgements.n_requests))
    held = lightgbm.Dataset(
        inputs[rows:],
        label=np.zeros(len(inputs) - rows),
        group=np.diff(tail.offsets),
        init_score=start[rows:],
        reference=data,
        params=params,
    )

    def judge(scores: npt.NDArray[np.float64], _: Any) -> tuple[str, float, bool]:
        values = ndcg(tail, tail.ranks(scores.astype(np.float32)), k)
        return "ndcg", float(np.nanmean(values)) if tail.judged.any() else 0.0, True

    booster = lightgbm.train(
        params,
        data,
        settings.n_estimators,
        valid_sets=[held],
        feval=judge,
        callbacks=[lightgbm.early_stopping(settings.early_stopping_rounds, verbose=False)],
    )
    best = booster.model_to_string(num_iteration=booster.best_iteration)
    return lightgbm.Booster(model_str=best)


def gain_by_member(
    booster: lightgbm.Booster, members: Sequence[str], first_level: Float64
) -> dict[str, float]:
    """How much each member counts, in parts of 1; raw features count for nobody.

    What splits on a first-level combination gain is its members', by their weights; and where
    trees start from such combinations, half of all is what these say.
    """
    gain = booster.feature_importance("gain").astype(np.float64)
    m, levels = len(members), len(first_level)
    own = gain[: 2 * m].reshape(len(FORMS), m).sum(axis=0)
    parts = first_level.sum(axis=1)
    own += gain[2 * m : 2 * m + levels] @ parts if levels else 0.0
    if own.sum() > 0:
        own /= own.sum()
    if levels:
        own = (own + parts.mean(axis=0)) / (2 if own.sum() > 0 else 1)
    return {name: float(share) for name, share in zip(members, own, strict=True)}


def _thinned(
    judgements: Judgements, rows: int, candidates: int, seed: int
) -> npt.NDArray[np.int64]:
    """Of the first `rows` rows all that are relevant, and so many others of each request."""
    label, offsets = judgements.label[:rows], judgements.offsets[judgements.offsets <= rows]
    if not candidates:
        return np.arange(rows)
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    draw = np.random.default_rng(seed).random(rows)
    draw[label > 0] = -1.0
    order = np.lexsort((draw, owner))
    place = np.arange(rows) - offsets[:-1][owner]
    n_relevant = np.bincount(owner, weights=label > 0, minlength=len(offsets) - 1)
    kept = order[place < candidates + n_relevant[owner]]
    return np.sort(kept)
