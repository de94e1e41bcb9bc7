"""`relevance_trees`: boosted trees over cheap features of query and item text; no transformer is
trained, and a pair costs a tenth of a millisecond."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from raysys.cluster import device_here
from raysys.config import Settings
from raysys.learners.cross_encoder import has_lists, judged, require_lists
from raysys.learners.relevance_model import RelevanceModel, Relevant
from raysys.learners.text_protocol import (
    Task,
    TextContext,
    TextLearner,
    TextModel,
)
from raysys.learners.validation import require_short_lists
from raysys.text.cross_encoder import fitted_line, write_json
from raysys.text.pairs import Float32, Pairs, Scale, trainable
from raysys.text.relevance_features import Encode, PairFeatures

META = "relevance_trees.json"
TREES = "trees.txt"
VECTORS = "encoder"


class RelevanceTreesSettings(Settings):
    """Features and trees.

    Attributes:
        objective: `regression` guesses the grade; `lambdarank` orders the items of a query.
        vectors: an encoder, not trained further, whose cosines are features: the packaged
            all-MiniLM-L6-v2, a folder, or the id of a Hugging Face model. null: none.
        max_tokens: that it reads of a text.
        language: of the stems, as Snowball names it.
        factors: of TF-IDF (LSA); 0: none.
        n_estimators: trees at most; fewer where validation stops improving.
        learning_rate: weight of each tree.
        num_leaves: of each tree.
        min_child_samples: pairs a leaf at least.
        colsample: share of the features that each tree sees.
        subsample: share of the pairs that each tree sees.
        lambda_l2: L2 regularisation of leaf values.
        early_stopping_rounds: trees without a better figure on validation before it stops.
    """

    objective: Literal["regression", "lambdarank"] = "regression"
    vectors: str | None = "all-MiniLM-L6-v2"
    max_tokens: int = Field(32, ge=4, le=512)
    language: str = "english"
    factors: int = Field(64, ge=0)
    n_estimators: int = Field(600, ge=1, le=20_000)
    learning_rate: float = Field(0.03, gt=0, le=1)
    num_leaves: int = Field(31, ge=2, le=4096)
    min_child_samples: int = Field(40, ge=1)
    colsample: float = Field(0.5, gt=0, le=1)
    subsample: float = Field(0.8, gt=0, le=1)
    lambda_l2: float = Field(5.0, ge=0)
    early_stopping_rounds: int = Field(50, ge=1)

    @field_validator("language")
    @classmethod
    def _has_a_stemmer(cls, language: str) -> str:
        import Stemmer

        if language not in Stemmer.algorithms():
            raise ValueError(f"no stemmer for it; there are {', '.join(Stemmer.algorithms())}")
        return language


class RelevanceTreesModel(RelevanceModel):
    """Fitted trees and what they need to read a text.

    Args:
        features: of pairs.
        text: the trees in LightGBM's own format.
        settings: as fitted.
        scale: of the grades.
        line: slope and offset from trees to grades.
        extra: names of columns that stand behind the features.
    """

    def __init__(
        self,
        features: PairFeatures,
        text: str,
        settings: RelevanceTreesSettings,
        scale: Scale,
        line: tuple[float, float],
        extra: tuple[str, ...] = (),
    ) -> None:
        import lightgbm

        self.features, self.text, self.settings = features, text, settings
        self.scale, self.line, self.extra = scale, line, extra
        self.booster: Any = lightgbm.Booster(model_str=text)

    @property
    def lowest(self) -> float:
        """See `RelevanceModel`."""
        return self.scale.low

    def judge(self, pairs: Pairs) -> tuple[Float32, Float32]:
        """See `RelevanceModel.judge`; not for trees with extra columns."""
        scores = self.scores(self.features.of(pairs))
        return scores, self.on_scale(scores)

    def grades(self, columns: Float32) -> Float32:
        """Grades float32[n] of features, then the extra columns: float32[n, p]."""
        return self.on_scale(self.scores(columns))

    def on_scale(self, scores: Float32) -> Float32:
        """Grades float32[n] of what `scores` gave: those beyond the scale end at its ends."""
        return scores.clip(self.scale.low, self.scale.high)

    def scores(self, columns: Float32) -> Float32:
        """See `grades`, but not held to the scale."""
        if columns.shape[1] != len(self.features.names) + len(self.extra):
            raise ValueError(f"{columns.shape[1]} columns, fitted with other ones")
        raw = np.asarray(self.booster.predict(columns, raw_score=True, num_threads=1))
        found = self.line[0] * raw + self.line[1]
        return np.asarray(found, dtype=np.float32)

    def importance(self) -> dict[str, float]:
        """Total gain of each feature, in the units of the loss."""
        names = (*self.features.names, *self.extra)
        gain = self.booster.feature_importance("gain")
        return {name: float(value) for name, value in zip(names, gain, strict=True)}

    def save(self, folder: Path) -> None:
        """See `TextModel.save`."""
        super().save(folder)
        self.features.save(folder)
        (folder / TREES).write_text(self.text, encoding="utf-8")
        encode = self.features.encode
        if isinstance(encode, Remembered) and encode.folder is not None:
            encode.save(folder / VECTORS)
        content = {
            "settings": self.settings.model_dump(mode="json"),
            "levels": self.scale.levels,
            "line": self.line,
            "extra": self.extra,
        }
        write_json(folder / META, content)

    @classmethod
    def load(cls, folder: Path) -> RelevanceTreesModel:
        """See `TextModel.load`."""
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        settings = RelevanceTreesSettings(**meta["settings"])
        place = str(folder / VECTORS) if (folder / VECTORS).is_dir() else settings.vectors
        encode = None if place is None else Remembered(place, settings.max_tokens)
        features = PairFeatures.load(folder, encode)
        text = (folder / TREES).read_text(encoding="utf-8")
        scale = Scale(tuple(meta["levels"]))
        line, extra = tuple(meta["line"]), tuple(meta["extra"])
        model = cls(features, text, settings, scale, line, extra)
        model.relevant = Relevant.load(folder)
        return model


class Remembered:
    """Vectors of texts by an encoder that stays as it is; while `keeping`, each text is read once.

    Args:
        model: the packaged one, a folder, or a hub id.
        max_tokens: read of a text.
    """

    def __init__(self, model: str, max_tokens: int) -> None:
        from raysys.text.encoder import Encoder
        from raysys.text.models import PACKAGED

        self.encoder = Encoder.open(model, max_tokens, None, where="relevance_trees.vectors")
        self.encoder.place(device_here())
        self.folder = None if model == PACKAGED else model
        self._kept: dict[str, Float32] | None = None

    def keeping(self, keep: bool) -> None:
        """Begin to remember, or forget all."""
        self._kept = {} if keep else None

    def __call__(self, texts: Sequence[str]) -> Float32:
        """Unit vectors float32[n, d]."""
        if self._kept is None:
            return self.encoder.encode(texts)
        new = list(dict.fromkeys(text for text in texts if text not in self._kept))
        if new:
            self._kept |= dict(zip(new, self.encoder.encode(new), strict=True))
        return np.stack([self._kept[text] for text in texts])

    def save(self, folder: Path) -> None:
        """Write the encoder into a new folder."""
        self.encoder.save(folder)


class RelevanceTreesLearner(TextLearner[RelevanceTreesSettings]):
    """LightGBM over `PairFeatures`."""

    name: ClassVar[str] = "relevance_trees"
    tasks: ClassVar[tuple[Task, ...]] = ("relevance",)
    family: ClassVar[str] = "tree"
    settings_model = RelevanceTreesSettings
    model_class: ClassVar[type[TextModel]] = RelevanceTreesModel

    def length(self) -> tuple[str, float]:
        """See `TextLearner.length`."""
        return "n_estimators", self.settings.n_estimators

    def fit(
        self, train: pa.Table, validation: pa.Table, context: TextContext
    ) -> RelevanceTreesModel:
        """See `TextLearner.fit`.

        Raises:
            UserError: no pairs, one grade only, or for `lambdarank` no query with two grades.
        """
        pairs = trainable(train, where=self.name)
        held_out = judged(validation)
        encode = self.encoder()
        if isinstance(encode, Remembered):
            encode.keeping(True)
        try:
            features = self.learn(pairs, encode, context.seed)
            columns = features.of(pairs)
            held_columns = None if held_out is None else features.of(held_out)
        finally:
            if isinstance(encode, Remembered):
                encode.keeping(False)
        return self.fit_columns(features, pairs, columns, held_out, held_columns, context.seed)

    def encoder(self) -> Remembered | None:
        """What makes vectors of texts; None: nothing does."""
        settings = self.settings
        if settings.vectors is None:
            return None
        return Remembered(settings.vectors, settings.max_tokens)

    def learn(
        self, pairs: Pairs, encode: Encode | None, seed: int, catalogue: Sequence[str] = ()
    ) -> PairFeatures:
        """Features as the settings want them; no grade is read."""
        settings = self.settings
        return PairFeatures.learn(
            pairs,
            catalogue,
            language=settings.language,
            factors=settings.factors,
            encode=encode,
            seed=seed,
        )

    def fit_columns(
        self,
        features: PairFeatures,
        pairs: Pairs,
        columns: Float32,
        held_out: Pairs | None,
        held_columns: Float32 | None,
        seed: int,
        extra: tuple[str, ...] = (),
    ) -> RelevanceTreesModel:
        """Fit on features that are there already, and perhaps further columns behind them.

        Args:
            features: that made the first columns.
            pairs: with grades.
            columns: float32[n, p], features of `pairs`, then the extra ones.
            held_out: to stop by; None: all trees are grown.
            held_columns: theirs.
            seed: of the draws.
            extra: names of the further columns.
        """
        import lightgbm

        settings = self.settings
        scale = Scale.of(pairs.grade, where=self.name)
        ranks = settings.objective == "lambdarank"
        if ranks:
            require_lists(pairs, settings.objective, self.name)
            require_short_lists(max(map(len, pairs.lists())), self.name)
            if held_out is not None and not has_lists(held_out):
                held_out = None  # all orders are alike to it: the first tree would do
        params = self._params(scale, seed)
        data = _dataset(pairs, columns, scale, ranks, params)
        watched: dict[str, Any] = {}
        if held_out is not None and held_columns is not None:
            held = _dataset(held_out, held_columns, scale, ranks, params, data)
            stop = lightgbm.early_stopping(settings.early_stopping_rounds, verbose=False)
            watched = {"valid_sets": [held], "callbacks": [stop]}
        booster = lightgbm.train(params, data, settings.n_estimators, **watched)
        best = booster.best_iteration if watched else settings.n_estimators
        text = booster.model_to_string(num_iteration=best)
        model = RelevanceTreesModel(features, text, settings, scale, (1.0, 0.0), extra)
        if ranks:  # in no units yet
            known, given = (
                (held_out, held_columns)
                if held_out is not None and held_columns is not None
                else (pairs, columns)
            )
            raw = np.asarray(model.booster.predict(given, raw_score=True), dtype=np.float32)
            model.line = fitted_line(raw, known.grade, known.weight)
        return model

    def _params(self, scale: Scale, seed: int) -> dict[str, Any]:
        settings = self.settings
        params: dict[str, Any] = {
            "objective": settings.objective,
            "metric": "rmse",
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,  # else it times both ways, and the sums differ by chance
            "num_threads": _threads(),
            "learning_rate": settings.learning_rate,
            "num_leaves": settings.num_leaves,
            "min_data_in_leaf": settings.min_child_samples,
            "feature_fraction": settings.colsample,
            "bagging_fraction": settings.subsample,
            "bagging_freq": 1 if settings.subsample < 1 else 0,
            "lambda_l2": settings.lambda_l2,
            "verbosity": -1,
        }
        if settings.objective == "lambdarank":
            share = scale.share(np.array(scale.levels, dtype=np.float32))
            params |= {
                "metric": "ndcg",
                "eval_at": [10],
                "label_gain": [float(each) for each in share],
            }
        return params


def _threads() -> int:
    """Cores that this process may use; fewer where it was told so, as Ray's workers are."""
    cores = len(os.sched_getaffinity(0))
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(told)) if told.isdigit() and int(told) else cores


def _dataset(
    pairs: Pairs,
    columns: Float32,
    scale: Scale,
    ranks: bool,
    params: dict[str, Any],
    reference: Any = None,
) -> Any:
    """Rows for LightGBM; for a ranking those of a query side by side."""
    import lightgbm

    order = np.argsort(pairs.query, kind="stable") if ranks else np.arange(len(pairs))
    return lightgbm.Dataset(
        columns[order],
        label=scale.level(pairs.grade)[order] if ranks else pairs.grade,
        weight=pairs.weight[order],
        group=[len(rows) for rows in pairs.lists()] if ranks else None,
        reference=reference,
        params=params,
    )
