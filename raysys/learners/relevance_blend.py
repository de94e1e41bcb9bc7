"""`relevance_blend`: several relevance learners, put together by what each said of unseen queries.

Every member is fitted once a fold, without the queries of that fold, and what it says of them is
what the combination learns from (stacking: Wolpert 1992; folds by query, since queries to come are
unseen too). A query to come gets the mean of the fold's models: no member is fitted again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from raysys.config import Settings, parse_settings
from raysys.errors import UserError
from raysys.learners.cross_encoder import judged
from raysys.learners.kept_models import KeptModels
from raysys.learners.relevance_model import RelevanceModel, Relevant
from raysys.learners.relevance_trees import (
    RelevanceTreesLearner,
    RelevanceTreesModel,
    RelevanceTreesSettings,
    Remembered,
)
from raysys.learners.text_protocol import (
    Task,
    TextContext,
    TextLearner,
    TextModel,
)
from raysys.text.cross_encoder import write_json
from raysys.text.pairs import Float32, Pairs, Scale, trainable

META = "relevance_blend.json"
MEMBERS = {
    "cross_encoder": "raysys.learners.cross_encoder:CrossEncoderLearner",
    "bi_encoder": "raysys.learners.bi_encoder:BiEncoderLearner",
    "relevance_trees": "raysys.learners.relevance_trees:RelevanceTreesLearner",
}
Float64 = npt.NDArray[np.float64]


class RelevanceMemberSettings(Settings):
    """One member.

    Attributes:
        learner: one of cross_encoder, bi_encoder, relevance_trees.
        settings: its own.
    """

    learner: Literal["cross_encoder", "bi_encoder", "relevance_trees"]
    settings: dict[str, Any] = {}


class RelevanceBlendSettings(Settings):
    """Members and how they are put together.

    Attributes:
        members: in the order in which reports name them.
        folds: parts of the queries; each member is fitted as often.
        combine: `non_negative` weights, or `ridge` (weights of any sign) of the members' grades;
            `trees`: `relevance_trees` on the features and the members' grades together.
        ridge: half the penalty on the squared weights, a pair.
        trees: of the combination `trees`.
    """

    members: tuple[RelevanceMemberSettings, ...] = (
        RelevanceMemberSettings(learner="relevance_trees"),
        RelevanceMemberSettings(learner="bi_encoder"),
        RelevanceMemberSettings(learner="cross_encoder"),
    )
    folds: int = Field(3, ge=2, le=20)
    combine: Literal["non_negative", "ridge", "trees"] = "non_negative"
    ridge: float = Field(1e-3, ge=0)
    trees: RelevanceTreesSettings = RelevanceTreesSettings()

    @model_validator(mode="after")
    def _some(self) -> RelevanceBlendSettings:
        if not self.members:
            raise ValueError("a blend needs members")
        return self


class RelevanceBlendModel(RelevanceModel):
    """Fitted members of every fold, and what joins them.

    Args:
        members: for each member the models of all folds.
        settings: as fitted.
        scale: of the grades.
        weights: float64[members + 1], the last one a constant; None where trees join them.
        trees: that join them; None where weights do.
        out_of_fold: float32[members, n] of the training pairs that could be learned from; None
            after `load`.
    """

    def __init__(
        self,
        members: Sequence[Sequence[TextModel]],
        settings: RelevanceBlendSettings,
        scale: Scale,
        weights: Float64 | None,
        trees: RelevanceTreesModel | None,
        out_of_fold: Float32 | None = None,
    ) -> None:
        self.members, self.settings, self.scale = members, settings, scale
        self.weights, self.trees, self.out_of_fold = weights, trees, out_of_fold

    @property
    def lowest(self) -> float:
        """See `RelevanceModel`."""
        return self.scale.low

    def judge(self, pairs: Pairs) -> tuple[Float32, Float32]:
        """See `RelevanceModel.judge`."""
        scores = self.joined(pairs, self.of_members(table_of(pairs)))
        return scores, scores.clip(self.scale.low, self.scale.high)

    def of_members(self, table: pa.Table) -> Float32:
        """What each member says, the mean of its folds: float32[members, n]."""
        return np.stack([_mean_of(models, table) for models in self.members])

    def joined(self, pairs: Pairs, of_members: Float32) -> Float32:
        """Scores float32[n] of what the members say, float32[members, n].

        They are in the units of the grades, and not held to their scale.
        """
        if self.trees is not None:
            columns = np.concatenate([self.trees.features.of(pairs), of_members.T], axis=1)
            return self.trees.scores(columns)
        assert self.weights is not None
        found = of_members.T @ self.weights[:-1] + self.weights[-1]
        return np.asarray(found, dtype=np.float32)

    def save(self, folder: Path) -> None:
        """See `TextModel.save`: a folder for each member and fold."""
        super().save(folder)
        for number, models in enumerate(self.members):
            for fold, model in enumerate(models):
                place = folder / f"member={number}" / f"fold={fold}"
                place.mkdir(parents=True)
                model.save(place)
        if self.trees is not None:
            (folder / "trees").mkdir()
            self.trees.save(folder / "trees")
        content = {
            "settings": self.settings.model_dump(mode="json"),
            "levels": self.scale.levels,
            "weights": None if self.weights is None else self.weights.tolist(),
        }
        write_json(folder / META, content)

    @classmethod
    def load(cls, folder: Path) -> RelevanceBlendModel:
        """See `TextModel.load`."""
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        settings = RelevanceBlendSettings(**meta["settings"])
        members = [
            [
                member_class(each.learner).model_class.load(
                    folder / f"member={number}" / f"fold={fold}"
                )
                for fold in range(settings.folds)
            ]
            for number, each in enumerate(settings.members)
        ]
        weights = None if meta["weights"] is None else np.array(meta["weights"])
        trees = RelevanceTreesModel.load(folder / "trees") if weights is None else None
        model = cls(members, settings, Scale(tuple(meta["levels"])), weights, trees)
        model.relevant = Relevant.load(folder)
        return model


class RelevanceBlendLearner(TextLearner[RelevanceBlendSettings]):
    """Stacking of relevance learners."""

    name: ClassVar[str] = "relevance_blend"
    tasks: ClassVar[tuple[Task, ...]] = ("relevance",)
    family: ClassVar[str] = "transformer"
    takes_copies: ClassVar[bool] = False  # folds go by query, and a changed query is another
    settings_model = RelevanceBlendSettings
    model_class: ClassVar[type[TextModel]] = RelevanceBlendModel

    def fit(
        self, train: pa.Table, validation: pa.Table, context: TextContext
    ) -> RelevanceBlendModel:
        """See `TextLearner.fit`; members see `validation` for early stopping only.

        Called again after a kill it does not fit those again that had ended.

        Raises:
            UserError: fewer queries than folds, and what members refuse.
        """
        settings = self.settings
        learners = [
            member_class(each.learner)(
                parse_settings(
                    member_class(each.learner).settings_model,
                    each.settings,
                    where=f"{self.name}.members.{at}.settings",
                )
            )
            for at, each in enumerate(settings.members)
        ]
        known = Pairs.of(train)
        rows = np.flatnonzero(known.readable & (known.weight > 0))
        train, pairs = train.take(rows), trainable(train, where=self.name)
        fold = folds_by_query(pairs, settings.folds, context.seed)
        members: list[list[TextModel]] = []
        out_of_fold = np.empty((len(learners), len(pairs)), dtype=np.float32)
        with KeptModels(self.name, settings, context, train, validation) as kept:
            for at, learner in enumerate(learners):
                models = []
                for number in range(settings.folds):
                    inside = train.take(np.flatnonzero(fold != number))
                    # a scratch of its own: a member that was cut off goes on where it was
                    place = f"member={at}", f"fold={number}"
                    here = replace(context, scratch=context.scratch.joinpath(*place))
                    fit = partial(learner.fit, inside, validation, here)
                    model = kept.model(" ".join(place), learner.name, fit)
                    outside = np.flatnonzero(fold == number)
                    said = model.predict(train.take(outside))["grade"].to_numpy()
                    out_of_fold[at, outside] = said
                    models.append(model)
                members.append(models)
            return self.join(pairs, out_of_fold, members, validation, context)

    def join(
        self,
        pairs: Pairs,
        out_of_fold: Float32,
        members: Sequence[Sequence[TextModel]],
        validation: pa.Table,
        context: TextContext,
    ) -> RelevanceBlendModel:
        """Fit the combination on what members said out of fold, float32[members, n]."""
        settings = self.settings
        scale = Scale.of(pairs.grade, where=self.name)
        if settings.combine != "trees":
            weights = fit_weights(
                out_of_fold,
                pairs.grade,
                pairs.weight,
                ridge=settings.ridge,
                non_negative=settings.combine == "non_negative",
            )
            return RelevanceBlendModel(members, settings, scale, weights, None, out_of_fold)
        learner = RelevanceTreesLearner(settings.trees)
        encode, held_out = learner.encoder(), judged(validation)
        if isinstance(encode, Remembered):
            encode.keeping(True)
        try:
            features = learner.learn(pairs, encode, context.seed)
            columns = np.concatenate([features.of(pairs), out_of_fold.T], axis=1)
            held_columns = None
            if held_out is not None:
                said = np.stack([_mean_of(models, table_of(held_out)) for models in members])
                held_columns = np.concatenate([features.of(held_out), said.T], axis=1)
        finally:
            if isinstance(encode, Remembered):
                encode.keeping(False)
        names = tuple(f"member_{at}" for at in range(len(members)))
        trees = learner.fit_columns(
            features, pairs, columns, held_out, held_columns, context.seed, names
        )
        return RelevanceBlendModel(members, settings, scale, None, trees, out_of_fold)


def member_class(name: str) -> type[TextLearner[Any]]:
    """The class of a member."""
    module, _, attribute = MEMBERS[name].partition(":")
    found: type[TextLearner[Any]] = getattr(import_module(module), attribute)
    return found


def folds_by_query(pairs: Pairs, folds: int, seed: int) -> npt.NDArray[np.int64]:
    """The fold 0 … folds-1 of each pair, int64[n]: all pairs of a query in one, sizes alike.

    Raises:
        UserError: fewer queries than folds.
    """
    present = np.unique(pairs.query)
    if len(present) < folds:
        raise UserError(
            f"{len(present)} queries cannot be cut into {folds} folds",
            where="relevance_blend.folds",
            mend="give fewer folds, or judge more queries",
        )
    of_query = np.zeros(len(pairs.queries), dtype=np.int64)
    order = np.random.default_rng(seed).permutation(present)
    of_query[order] = np.arange(len(order)) % folds
    return of_query[pairs.query]


def fit_weights(
    said: Float32, grade: Float32, weight: Float32, *, ridge: float, non_negative: bool
) -> Float64:
    """Weights of the members, then a constant: float64[m + 1], by weighted ridge regression.

    Args:
        said: float32[m, n], by each member, out of fold.
        grade: float32[n].
        weight: float32[n].
        ridge: half the penalty on the squared weights (not on the constant), a pair.
        non_negative: no weight is below 0, so that more by a member never means less.
    """
    from scipy.optimize import lsq_linear

    share = weight.astype(np.float64) / weight.sum()
    x, y = said.astype(np.float64), grade.astype(np.float64)
    centre, middle = x @ share, float(y @ share)
    root = np.sqrt(share)
    rows = ((x - centre[:, None]) * root).T
    rows = np.concatenate([rows, np.sqrt(ridge) * np.eye(len(x))])
    wanted = np.concatenate([(y - middle) * root, np.zeros(len(x))])
    low = 0.0 if non_negative else -np.inf
    found = np.asarray(lsq_linear(rows, wanted, bounds=(low, np.inf)).x, dtype=np.float64)
    return np.append(found, middle - centre @ found)


def table_of(pairs: Pairs) -> pa.Table:
    """The texts of pairs as a table."""
    columns: Mapping[str, list[str]] = {
        "query": [pairs.queries[at] for at in pairs.query],
        "text": [pairs.items[at] for at in pairs.item],
    }
    return pa.table(columns)


def _mean_of(models: Sequence[TextModel], table: pa.Table) -> Float32:
    said = np.stack([model.predict(table)["grade"].to_numpy() for model in models])
    return np.asarray(said.mean(axis=0, dtype=np.float64), dtype=np.float32)
