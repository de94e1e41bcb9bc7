"""LambdaMART by XGBoost (histograms), through Ray Train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from raysys.catalogue import Catalogue
from raysys.errors import UserError, missing_extra
from raysys.features.batch import Batch
from raysys.learners.forest import Forest, forest_of, of_xgboost
from raysys.learners.pieces import Pieces
from raysys.learners.protocol import Float32, Model, Report
from raysys.learners.sampling import with_some_positive
from raysys.learners.shown import in_shown_order, one_list_a_click
from raysys.learners.trees import (
    Machine,
    TreeModel,
    TreeRanker,
    TreeSettings,
    read_meta,
    write_meta,
)
from raysys.learners.validation import NDCG, require_columns
from raysys.storage import CheckpointFolder

if TYPE_CHECKING:
    import xgboost

FILE = "trees.ubj"


class XGBoostSettings(TreeSettings):
    """See `TreeSettings`; trees grow level by level to `max_depth`.

    Attributes:
        objective: whose gradient is followed: `ndcg`; `map`, for labels that say no more than
            wanted or not; or `pairwise`.
        max_depth: of each tree.
        min_child_weight: least sum of hessians in a leaf.
        gamma: least gain of a split.
        unbiased: the labels are clicks on lists as shown; estimate by which factor each position
            loses clicks while fitting, and undo it (Hu et al., WWW 2019). Follows the first
            `truncation_level` positions, so let it cover the list; needs `candidates: 0`, and
            `early_stopping_rounds: 0` is better: clicks of the tail are as biased.
        bias_norm: regularises those factors: they are taken to the power 1 / (1 + bias_norm).
        propensities: of positions 1, 2, …, as `features.position_bias` estimates them: weigh each
            click by the inverse of its position's, the last standing for all beyond. Instead of
            `unbiased`.
        clip: the largest such weight.
        position: the column of the examples with the position at which a candidate was shown,
            from 1, NaN if it was not; read by these options, never by the trees then.
    """

    objective: Literal["ndcg", "map", "pairwise"] = "ndcg"
    max_depth: int = Field(6, ge=1, le=16)
    min_child_weight: float = Field(0.1, ge=0)  # sum of hessians; lambdas are small numbers
    gamma: float = Field(0.0, ge=0)
    unbiased: bool = False
    bias_norm: float = Field(1.0, ge=0)
    propensities: tuple[Annotated[float, Field(gt=0)], ...] = ()
    clip: float = Field(10.0, ge=1)
    position: str = "position"

    @model_validator(mode="after")
    def _whole_lists(self) -> XGBoostSettings:
        if self.unbiased and self.propensities:
            raise ValueError("unbiased and propensities undo the same bias: give one of them")
        if self.unbiased and self.candidates:
            raise ValueError("unbiased needs every row of a list as shown: set candidates to 0")
        return self

    def select(self, names: Sequence[str], *, where: str) -> tuple[str, ...]:
        """See `TreeSettings.select`; a position that a bias is learned from is not scored by."""
        chosen = super().select(names, where=where)
        if self.unbiased or self.propensities:
            chosen = tuple(name for name in chosen if name != self.position)
        return chosen


class XGBoostModel(TreeModel):
    """Trees of XGBoost; `requires` are their columns in order."""

    def __init__(self, booster: xgboost.Booster, requires: tuple[str, ...]) -> None:
        # one thread a call: candidates of one request are too few to share out, and many
        # requests are scored side by side
        booster.set_param({"nthread": 1, "device": "cpu"})
        self.booster = booster
        self.requires = requires

    def predict(self, rows: Float32) -> npt.NDArray[np.floating]:
        """See `TreeModel.predict`."""
        return self._by_library(rows) if self.forest is None else self.forest.score(rows)

    @cached_property
    def forest(self) -> Forest | None:
        """The trees as arrays: the library's bits in a fraction of its time; None: not these."""

        def make() -> Forest | None:
            return of_xgboost(bytes(self.booster.save_raw("json")))

        return forest_of(make, self._by_library)

    def _by_library(self, rows: Float32) -> npt.NDArray[np.floating]:
        # skips the copy into a DMatrix
        return self.booster.inplace_predict(rows, predict_type="margin", validate_features=False)

    def shap(self, rows: Float32) -> npt.NDArray[np.floating]:
        """See `TreeModel.shap`."""
        data = _xgboost().DMatrix(rows, nthread=1)
        return self.booster.predict(data, pred_contribs=True, validate_features=False)

    def importance(self) -> dict[str, float]:
        """See `TreeModel.importance`."""
        gain = self.booster.get_score(importance_type="total_gain")
        return {name: float(gain.get(f"f{at}", 0.0)) for at, name in enumerate(self.requires)}

    def save(self, folder: Path) -> None:
        """See `Model.save`: trees as UBJ, names of the features as JSON."""
        self.booster.save_model(folder / FILE)
        write_meta(folder, self.requires)

    @classmethod
    def load(cls, folder: Path, catalogue: Catalogue) -> XGBoostModel:
        """See `Model.load`."""
        return cls(_xgboost().Booster(model_file=folder / FILE), read_meta(folder))


class XGBoostRanker(TreeRanker[XGBoostSettings]):
    """LambdaMART by XGBoost."""

    name = "xgboost_ranker"
    settings_model = XGBoostSettings
    model_class: ClassVar[type[Model]] = XGBoostModel
    changeable = frozenset(
        {
            *("learning_rate", "subsample", "colsample", "lambda_l2"),
            *("max_depth", "min_child_weight", "gamma", "truncation_level"),
        }
    )

    @staticmethod
    def train_booster(
        settings: XGBoostSettings,
        head: Batch,
        tail: Batch | None,
        *,
        seed: int,
        machine: Machine,
        report: Report | None = None,
        checkpoint: CheckpointFolder | None = None,
        onto: TreeModel | None = None,
    ) -> XGBoostModel:
        """See `TreeRanker.train_booster`."""
        xgb = _xgboost()
        names = settings.select(head.names, where=XGBoostRanker.name)
        if settings.unbiased or settings.propensities:
            head = _without_bias(settings, head)
        if onto is not None:
            names = onto.requires
        params = {
            "objective": f"rank:{settings.objective}",
            "lambdarank_pair_method": "topk",
            "lambdarank_num_pair_per_sample": settings.truncation_level,
            "tree_method": "hist",
            "device": "cuda" if machine.gpu else "cpu",
            "nthread": machine.threads,
            "seed": seed,
            "learning_rate": settings.learning_rate,
            "max_depth": settings.max_depth,
            "min_child_weight": settings.min_child_weight,
            "gamma": settings.gamma,
            "subsample": settings.subsample,
            "colsample_bytree": settings.colsample,
            "reg_lambda": settings.lambda_l2,
            "max_bin": settings.max_bin,
            "disable_default_eval_metric": True,
            "verbosity": 0,
        }
        if settings.unbiased:
            params |= {"lambdarank_unbiased": True, "lambdarank_bias_norm": settings.bias_norm}
        if settings.objective == "ndcg":
            params["ndcg_exp_gain"] = False  # labels are gains already
        elif settings.objective == "map":
            _check_binary(head)
        data = xgb.QuantileDMatrix(
            head.columns(names),
            label=head.label,
            group=head.sizes,
            weight=_request_weights(head),
            max_bin=settings.max_bin,
            nthread=machine.threads,
        )
        pieces = Pieces(
            *(settings.n_estimators, settings.early_stopping_rounds if tail else 0),
            *(report, checkpoint),
        )
        before = 0
        if onto is not None:
            assert isinstance(onto, XGBoostModel)
            pieces.model = bytes(onto.booster.save_raw("ubj"))
            before = onto.booster.num_boosted_rounds()
        watched: dict[str, Any] = {}
        if tail is not None:
            judge = NDCG(tail)
            watched = {
                "evals": [
                    (xgb.DMatrix(tail.columns(names), label=tail.label, group=tail.sizes), "tail")
                ],
                "custom_metric": lambda scores, _: ("ndcg@10", judge(scores)),
                "callbacks": [_telling(pieces)],
            }
        for start, stop in pieces:
            booster = xgb.train(
                {**params, "seed": seed + start},
                data,
                stop - start,
                xgb_model=pieces.model and bytearray(pieces.model),
                verbose_eval=False,
                **watched,
            )
            pieces.keep(stop, bytes(booster.save_raw("ubj")))
        assert pieces.model is not None
        whole = xgb.Booster(model_file=bytearray(pieces.model))[: before + pieces.best]
        # as a bundle would hold it, so that scores now and after loading are the same bits
        return XGBoostModel(xgb.Booster(model_file=whole.save_raw("ubj")), names)

    @staticmethod
    def trainer() -> tuple[Callable[..., Any], Callable[[], Mapping[str, Any]]]:
        """See `TreeRanker.trainer`.

        Ray's trainer starts the tracker and wraps the loop in its communicator when there are
        several workers, so `xgboost.train` needs to be told nothing.
        """
        from ray.train.xgboost import XGBoostTrainer

        return XGBoostTrainer, dict


def _without_bias(settings: XGBoostSettings, head: Batch) -> Batch:
    """Rows as position debiasing wants them: in shown order, or a weighted list for each click."""
    if settings.unbiased:
        where = f"{XGBoostRanker.name}.unbiased"
        return with_some_positive(in_shown_order(head, settings.position, where=where))
    where = f"{XGBoostRanker.name}.propensities"
    require_columns([settings.position], head.names, where=where)
    position = head.column(settings.position)
    known = np.array(settings.propensities, dtype=np.float64)
    # what was wanted without having been shown was not missed for its position
    place = np.clip(np.nan_to_num(position, nan=1.0), 1, len(known)).astype(np.int64) - 1
    weight = np.where(np.isnan(position), 1.0, np.minimum(1.0 / known[place], settings.clip))
    return one_list_a_click(head, weight.astype(np.float32))


def _check_binary(batch: Batch) -> None:
    """Average precision knows relevant and not.

    Raises:
        UserError: a label between or beyond.
    """
    assert batch.label is not None
    graded = batch.label[(batch.label != 0) & (batch.label != 1)]
    if len(graded):
        raise UserError(
            f"objective 'map' needs labels of 0 and 1, and there is {graded[0]:g}",
            where=f"{XGBoostRanker.name}.objective",
            mend="take 'ndcg', or give every label in `raysys features` the gain 1",
        )


def _request_weights(batch: Batch) -> Float32 | None:
    """XGBoost weighs requests, not rows: the mean of each request's rows; None if all are one."""
    if batch.weight is None or (batch.weight == 1).all():
        return None
    return (np.add.reduceat(batch.weight, batch.offsets[:-1]) / batch.sizes).astype(np.float32)


def _telling(pieces: Pieces) -> Any:
    """A callback that tells NDCG@10 of the tail after each tree, and ends the fit in time."""

    class Telling(_xgboost().callback.TrainingCallback):  # type: ignore[misc]
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            return pieces.tell(evals_log["tail"]["ndcg@10"][-1])

    return Telling()


def _xgboost() -> Any:
    """The module, or an error that names the extra that brings it."""
    try:
        import xgboost
    except ImportError:
        raise missing_extra("xgboost", "cpu") from None
    return xgboost
