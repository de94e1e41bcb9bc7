"""LambdaMART by LightGBM (`lambdarank`), through Ray Train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from raysys.catalogue import Catalogue
from raysys.features.batch import Batch
from raysys.learners.forest import Forest, forest_of, of_lightgbm
from raysys.learners.pieces import Pieces
from raysys.learners.protocol import Float32, Model, Report
from raysys.learners.trees import (
    Machine,
    TreeModel,
    TreeRanker,
    TreeSettings,
    read_meta,
    write_meta,
)
from raysys.learners.validation import NDCG, require_short_lists
from raysys.storage import CheckpointFolder

if TYPE_CHECKING:
    import lightgbm

FILE = "trees.txt"


class LightGBMSettings(TreeSettings):
    """See `TreeSettings`; trees grow leaf by leaf to `num_leaves`."""

    num_leaves: int = Field(31, ge=2, le=4096)
    min_child_samples: int = Field(50, ge=1)
    min_child_weight: float = Field(1e-3, ge=0)


class LightGBMModel(TreeModel):
    """Trees of LightGBM; `requires` are their columns in order.

    Args:
        text: the trees in LightGBM's own text format.
        requires: names of the features, in column order.
    """

    def __init__(self, text: str, requires: tuple[str, ...]) -> None:
        import lightgbm

        self.text = text
        self.booster: lightgbm.Booster = lightgbm.Booster(model_str=text)
        self.requires = requires

    def predict(self, rows: Float32) -> npt.NDArray[np.floating]:
        """See `TreeModel.predict`."""
        return self._by_library(rows) if self.forest is None else self.forest.score(rows)

    @cached_property
    def forest(self) -> Forest | None:
        """The trees as arrays: the library's bits in a fraction of its time; None: not these."""
        make = partial(of_lightgbm, self.text)
        return forest_of(make, self._by_library)

    def _by_library(self, rows: Float32) -> npt.NDArray[np.floating]:
        scores = self.booster.predict(rows, raw_score=True, num_threads=1)
        return np.asarray(scores, dtype=np.float64)

    def shap(self, rows: Float32) -> npt.NDArray[np.floating]:
        """See `TreeModel.shap`."""
        parts = self.booster.predict(rows, raw_score=True, pred_contrib=True, num_threads=1)
        return np.asarray(parts, dtype=np.float64)

    def importance(self) -> dict[str, float]:
        """See `TreeModel.importance`."""
        gain = self.booster.feature_importance("gain")
        return {name: float(value) for name, value in zip(self.requires, gain, strict=True)}

    def save(self, folder: Path) -> None:
        """See `Model.save`: trees as text, names of the features as JSON."""
        (folder / FILE).write_text(self.text, encoding="utf-8")
        write_meta(folder, self.requires)

    @classmethod
    def load(cls, folder: Path, catalogue: Catalogue) -> LightGBMModel:
        """See `Model.load`."""
        return cls((folder / FILE).read_text(encoding="utf-8"), read_meta(folder))


class LightGBMRanker(TreeRanker[LightGBMSettings]):
    """LambdaMART by LightGBM."""

    name = "lightgbm_ranker"
    one_network_a_run = True  # the ports that Ray chose stay bound for a while after a training
    settings_model = LightGBMSettings
    model_class: ClassVar[type[Model]] = LightGBMModel
    changeable = frozenset(
        {
            *("learning_rate", "subsample", "colsample", "lambda_l2"),
            *("num_leaves", "min_child_samples", "min_child_weight", "truncation_level"),
        }
    )

    @staticmethod
    def train_booster(
        settings: LightGBMSettings,
        head: Batch,
        tail: Batch | None,
        *,
        seed: int,
        machine: Machine,
        report: Report | None = None,
        checkpoint: CheckpointFolder | None = None,
        onto: TreeModel | None = None,
    ) -> LightGBMModel:
        """See `TreeRanker.train_booster`."""
        import lightgbm

        names = settings.select(head.names, where=LightGBMRanker.name)
        if onto is not None:
            names = onto.requires
        once = checkpoint is None and onto is None
        gains, judged = _gains(head)
        params = {
            "objective": "lambdarank",
            "lambdarank_truncation_level": settings.truncation_level,
            "label_gain": gains,
            "metric": "none",
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,  # else it times both ways, and the sums differ by chance
            "num_threads": machine.threads,
            "learning_rate": settings.learning_rate,
            "num_leaves": settings.num_leaves,
            "min_data_in_leaf": settings.min_child_samples,
            "min_sum_hessian_in_leaf": settings.min_child_weight,
            "bagging_fraction": settings.subsample,
            "bagging_freq": 1 if settings.subsample < 1 else 0,
            "feature_fraction": settings.colsample,
            "lambda_l2": settings.lambda_l2,
            "max_bin": settings.max_bin,
            "feature_pre_filter": False,
            "verbosity": -1,
        }
        if machine.network:
            params |= {"tree_learner": "data", "pre_partition": True, **machine.network}
        require_short_lists(int(head.sizes.max()), LightGBMRanker.name)
        data = lightgbm.Dataset(
            head.columns(names),
            label=judged,
            group=head.sizes,
            weight=head.weight,
            feature_name=[f"f{at}" for at in range(len(names))],  # ours may hold any character
            params=params,
            free_raw_data=once,  # the next piece begins with what the last one says
        )
        pieces = Pieces(
            *(settings.n_estimators, settings.early_stopping_rounds if tail else 0),
            *(report, checkpoint),
        )
        watched: dict[str, Any] = {}
        if tail is not None:
            judge = NDCG(tail)
            rows = tail.columns(names)
            watched = {
                "valid_sets": [
                    lightgbm.Dataset(
                        rows,
                        label=np.zeros(len(tail)),
                        group=tail.sizes,
                        reference=data,
                        params=params,
                        free_raw_data=once,
                    )
                ],
                "valid_names": ["tail"],
                "feval": lambda scores, _: ("ndcg@10", judge(scores), True),
                "callbacks": [_telling(pieces)],
            }
        grown = 0
        if onto is not None:
            assert isinstance(onto, LightGBMModel)
            pieces.model, grown = onto.text.encode(), onto.booster.current_iteration()
        for start, stop in pieces:
            before = pieces.model and lightgbm.Booster(model_str=pieces.model.decode())
            booster = lightgbm.train(
                params | _seeds(seed, start), data, stop - start, init_model=before, **watched
            )
            pieces.keep(stop, booster.model_to_string().encode())
        assert pieces.model is not None
        whole = lightgbm.Booster(model_str=pieces.model.decode())
        return LightGBMModel(whole.model_to_string(num_iteration=grown + pieces.best), names)

    @staticmethod
    def trainer() -> tuple[Callable[..., Any], Callable[[], Mapping[str, Any]]]:
        """See `TreeRanker.trainer`; Ray's trainer chooses ports and lists the machines."""
        from ray.train.lightgbm import LightGBMTrainer, get_network_params

        return LightGBMTrainer, get_network_params


def _gains(batch: Batch) -> tuple[list[float], npt.NDArray[np.float32]]:
    """What a grade is worth, and the grade of each row; our labels are gains already.

    Whole labels are their own grades. Others (0.25 for a view, say) are numbered in their order,
    as LightGBM wants whole numbers; with several workers each of them must hold every label then.
    """
    label = batch.label
    assert label is not None
    if (label == np.round(label)).all() and label.max(initial=0) < 256:
        return [float(each) for each in range(int(label.max(initial=1)) + 1)], label
    gains, grade = np.unique(np.append(label, 0.0), return_inverse=True)
    return gains.tolist(), grade[:-1].astype(np.float32)


def _seeds(seed: int, start: int) -> dict[str, int]:
    """Seeds of a piece; `seed` itself stays, since it also says how the bins were drawn."""
    if start == 0:
        return {}
    return {f"{name}_seed": seed + start for name in ("bagging", "feature_fraction", "extra")}


def _telling(pieces: Pieces) -> Callable[[Any], None]:
    """A callback that tells NDCG@10 of the tail after each tree, and ends the fit in time."""

    def after_iteration(env: Any) -> None:
        from lightgbm.callback import EarlyStopException

        if pieces.tell(env.evaluation_result_list[0][2]):
            raise EarlyStopException(env.iteration, env.evaluation_result_list)

    return after_iteration
