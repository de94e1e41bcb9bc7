"""The baseline that classifiers must beat: a linear model over TF-IDF of words and letters.

Logistic regression or a linear support vector machine; with `weighting: nb` over terms weighed by
how much oftener a label has them (Wang and Manning, "Baselines and bigrams", ACL 2012). Ratings
by ridge regression on the same columns. The cost of errors is chosen by folds of the training
texts. Only the linear map is kept: a fitted model is three arrays and a list of terms.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from raysys.config import Settings
from raysys.learners.label_model import Labelling, LabelModel, Scores
from raysys.learners.text_calibration import ThresholdSettings, fit_temperature, softmax
from raysys.learners.text_labels import Codes, LabelledTexts, LabelTask, read_training
from raysys.learners.text_protocol import Task, TextContext, TextLearner
from raysys.learners.text_terms import (
    VIEWS,
    Kind,
    Language,
    View,
    fit_views,
    language_of,
    matrix,
    plain,
)  # fmt: skip

log = logging.getLogger("raysys")

Float32 = npt.NDArray[np.float32]

Folds = list[tuple[Codes, Codes]]
"""Rows to fit on, and rows to judge by."""

MOST_WEIGHTS = 50_000_000
"""Labels times terms at most: 200 MB of float32."""


class TfidfSettings(Settings):
    """What is counted and how it is fitted.

    Attributes:
        task: classify or sentiment.
        language: whether words stand between spaces; `auto`: as most training texts.
        terms: kind, shortest and longest run of each; null: as fits the language.
        least: training texts that a term must stand in.
        most: terms of each kind, the most frequent.
        weighting: of terms: `tfidf`, or `nb`, which multiplies by log-count ratios.
        smoothing: of these ratios.
        classifier: logistic regression or a linear support vector machine.
        costs: of errors, to choose from by folds; one: no folds.
        folds: of the choice.
        search_texts: texts drawn for the choice; 0: all.
        search_by: what the choice makes best: log loss (at the best temperature) or macro F1.
        class_weight: `balanced`: each label weighs the same in all.
        thresholds: see `ThresholdSettings`.
    """

    task: LabelTask = "classify"
    language: Literal["auto", "spaced", "solid"] = "auto"
    terms: tuple[tuple[Kind, int, int], ...] | None = None
    least: int = Field(2, ge=1)
    most: int = Field(300_000, ge=1)
    weighting: Literal["tfidf", "nb"] = "tfidf"
    smoothing: float = Field(1.0, gt=0)
    classifier: Literal["logistic", "svm"] = "logistic"
    costs: tuple[float, ...] = Field((0.3, 1.0, 3.0, 10.0, 30.0), min_length=1)
    folds: int = Field(3, ge=2)
    search_texts: int = Field(10_000, ge=0)
    search_by: Literal["log_loss", "macro_f1"] = "log_loss"
    class_weight: Literal["none", "balanced"] = "none"
    thresholds: ThresholdSettings = ThresholdSettings()


@dataclass(frozen=True)
class Linear:
    """Columns to numbers.

    Attributes:
        weight: float32[k, f].
        bias: float32[k].
    """

    weight: Float32
    bias: Float32

    def __call__(self, rows: Any) -> Float32:
        """float32[n, k] of sparse float32[n, f]."""
        return np.asarray(rows @ self.weight.T + self.bias, dtype=np.float32)


class TfidfModel(LabelModel):
    """A fitted baseline: views of a text, a linear map to logits, perhaps one to a rating."""

    def __init__(
        self,
        labelling: Labelling,
        views: tuple[View, ...],
        linear: Linear,
        rating: Linear | None,
    ) -> None:
        super().__init__(labelling)
        self.views = views
        self.linear = linear
        self.rating = rating

    def scores(self, texts: Sequence[str]) -> Scores:
        """See `LabelModel.scores`."""
        return self._scores(matrix(self.views, texts))

    def _scores(self, rows: Any) -> Scores:
        rating = None if self.rating is None else self.rating(rows)[:, 0]
        return Scores(logits_of(self.linear(rows)), rating)

    def save(self, folder: Path) -> None:
        """Write labelling and terms as JSON, weights as safetensors."""
        from safetensors.numpy import save_file

        super().save(folder)
        terms = [
            {"kind": view.kind, "low": view.low, "high": view.high, "terms": view.terms}
            for view in self.views
        ]
        (folder / "terms.json").write_text(json.dumps(terms, ensure_ascii=False), encoding="utf-8")
        arrays = {"weight": self.linear.weight, "bias": self.linear.bias}
        if self.rating is not None:
            arrays |= {"rating.weight": self.rating.weight, "rating.bias": self.rating.bias}
        arrays |= {f"idf.{at}": view.idf for at, view in enumerate(self.views)}
        save_file(arrays, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> TfidfModel:
        """See `TextModel.load`."""
        from safetensors.numpy import load_file

        arrays = load_file(folder / "model.safetensors")
        terms = json.loads((folder / "terms.json").read_text(encoding="utf-8"))
        views = tuple(
            View(each["kind"], each["low"], each["high"], tuple(each["terms"]), arrays[f"idf.{at}"])
            for at, each in enumerate(terms)
        )
        rating = None
        if "rating.weight" in arrays:
            rating = Linear(arrays["rating.weight"], arrays["rating.bias"])
        linear = Linear(arrays["weight"], arrays["bias"])
        return cls(Labelling.load(folder), views, linear, rating)


class TfidfClassifier(TextLearner[TfidfSettings]):
    """A linear model over TF-IDF of words and letters."""

    name: ClassVar[str] = "tfidf_classifier"
    tasks: ClassVar[tuple[Task, ...]] = ("classify", "sentiment")
    family: ClassVar[str] = "baseline"
    settings_model: ClassVar[type[Settings]] = TfidfSettings
    model_class: ClassVar[type[TfidfModel]] = TfidfModel

    def fit(self, train: pa.Table, validation: pa.Table, context: TextContext) -> TfidfModel:
        """See `TextLearner.fit`."""
        settings = self.settings
        labels, texts, held = read_training(train, validation, settings.task)
        lines = [plain(text) for text in texts.texts]
        language: Language = (
            language_of(lines) if settings.language == "auto" else settings.language
        )
        wanted = settings.terms or VIEWS[language]
        most = min(settings.most, max(1, MOST_WEIGHTS // len(labels) // len(wanted)))
        views, rows = fit_views(lines, wanted, least=settings.least, most=most)
        known = np.flatnonzero(texts.codes >= 0)
        labelled = rows[known] if len(known) < len(texts) else rows
        codes, weight = texts.codes[known], _uneven(texts.weight[known])
        cost = self._cost(labelled, codes, weight, texts.origin[known], context.seed)
        linear = self._linear(labelled, codes, weight, len(labels), cost)
        rating = None
        if texts.rated:
            rating = _ridge(rows, texts, settings, context.seed)
        model = TfidfModel(Labelling.of(settings.task, labels, texts), views, linear, rating)
        if len(held):
            logits = model.scores(held.texts).logits
            model.labelling = model.labelling.calibrated(logits, held, settings.thresholds)
        log.info(
            "tfidf_classifier: %d terms, cost %g, calibration error %.4f, at temperature %.2f %.4f",
            rows.shape[1], cost, model.labelling.calibration.error_before,
            model.labelling.calibration.temperature, model.labelling.calibration.error_after,
        )  # fmt: skip
        return model

    def _cost(
        self, rows: Any, codes: Codes, weight: Float32 | None, origin: Codes, seed: int
    ) -> float:
        """Which of the costs is best on left-out folds of the training texts."""

        def value(cost: float, folds: Folds) -> float:
            logits, truth = [], []
            for rest, fold in folds:
                present, again = np.unique(codes[rest], return_inverse=True)
                judged = fold[np.isin(codes[fold], present)]
                if len(present) < 2 or not len(judged):
                    continue
                heavy = None if weight is None else weight[rest]
                linear = self._linear(rows[rest], again, heavy, len(present), cost)
                # a label that the fold's training lacks: as unlikely as can be told
                full = np.full((len(judged), int(codes.max()) + 1), -30.0)
                full[:, present] = logits_of(linear(rows[judged]))
                logits.append(full)
                truth.append(codes[judged])
            if not logits:
                return 0.0
            return _judged(np.concatenate(logits), np.concatenate(truth), self.settings.search_by)

        return _best_by_folds(self.settings.costs, value, origin, self.settings, seed)

    def _linear(
        self, rows: Any, codes: Codes, weight: Float32 | None, k: int, cost: float
    ) -> Linear:
        """Fit to codes 0 … k-1, each of which occurs. Two labels have one row of weights."""
        settings = self.settings
        if settings.weighting == "tfidf" and settings.classifier == "logistic" and k > 2:
            return _fitted(rows, codes, weight, cost, settings)
        binary = [codes == 1] if k == 2 else [codes == at for at in range(k)]
        found = []
        for positive in binary:
            ratio = None
            if settings.weighting == "nb":
                ratio = _log_count_ratio(rows, positive, weight, settings.smoothing)
            target = positive.astype(np.int64)
            found.append(_fitted(rows, target, weight, cost, settings, ratio))
        return Linear(
            np.concatenate([each.weight for each in found]),
            np.concatenate([each.bias for each in found]),
        )


def logits_of(values: Float32) -> Float32:
    """One column a label: of two labels a linear model has the second's advantage alone."""
    if values.shape[1] > 1:
        return values
    return np.concatenate([-values / 2, values / 2], axis=1)


def _uneven(weight: Float32) -> Float32 | None:
    """Weights, or None where all are 1: scikit-learn goes other ways with weights."""
    return weight if (weight != 1).any() else None


def _fitted(
    rows: Any,
    codes: Codes,
    heavy: Float32 | None,
    cost: float,
    settings: TfidfSettings,
    ratio: Float32 | None = None,
) -> Linear:
    """One model of scikit-learn as a linear map."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    weight = None if settings.class_weight == "none" else settings.class_weight
    if settings.classifier == "svm":
        model = LinearSVC(C=cost, class_weight=weight, random_state=0)
    elif codes.max() > 1:
        model = LogisticRegression(C=cost, class_weight=weight, max_iter=300, tol=1e-3)
    else:
        model = LogisticRegression(
            C=cost, class_weight=weight, solver="liblinear", random_state=0, tol=1e-3
        )
    if ratio is not None:
        rows = rows.copy()
        rows.data = rows.data * ratio[rows.indices]
    model.fit(rows, codes, sample_weight=heavy)
    coefficients = model.coef_ if ratio is None else model.coef_ * ratio
    bias = np.broadcast_to(model.intercept_, len(coefficients))
    # C order: safetensors writes an array as it lies, whatever its strides say
    weights = np.ascontiguousarray(coefficients, dtype=np.float32)
    return Linear(weights, bias.astype(np.float32))


def _log_count_ratio(
    rows: Any, positive: npt.NDArray[np.bool_], heavy: Float32 | None, smoothing: float
) -> Float32:
    """How much oftener texts of a label have each term than others: float32[f]."""
    share = []
    for which in (positive, ~positive):
        some = rows[np.flatnonzero(which)]
        weights = None if heavy is None else np.repeat(heavy[which], np.diff(some.indptr))
        seen = np.bincount(some.indices, weights=weights, minlength=rows.shape[1])
        share.append((seen + smoothing) / (seen + smoothing).sum())
    return np.log(share[0] / share[1]).astype(np.float32)


def _ridge(rows: Any, texts: LabelledTexts, settings: TfidfSettings, seed: int) -> Linear:
    """Ridge regression of what ratings are known, its penalty chosen by folds."""
    from sklearn.linear_model import Ridge

    known = np.flatnonzero(np.isfinite(texts.rating))
    rows, target = rows[known], texts.rating[known].astype(np.float64)
    weight = _uneven(texts.weight[known])

    def fitted(cost: float, which: Codes) -> Any:
        model = Ridge(alpha=1 / cost, solver="sparse_cg", tol=1e-4)
        heavy = None if weight is None else weight[which]
        return model.fit(rows[which], target[which], sample_weight=heavy)

    def value(cost: float, folds: Folds) -> float:
        errors = [fitted(cost, rest).predict(rows[fold]) - target[fold] for rest, fold in folds]
        return -float((np.concatenate(errors) ** 2).mean())

    cost = _best_by_folds((0.03, 0.1, 0.3, 1.0, 3.0), value, texts.origin[known], settings, seed)
    model = fitted(cost, np.arange(len(known)))
    return Linear(
        model.coef_.astype(np.float32)[None, :], np.array([model.intercept_], dtype=np.float32)
    )


def _best_by_folds(
    costs: Sequence[float],
    value: Callable[[float, Folds], float],
    origin: Codes,
    settings: TfidfSettings,
    seed: int,
) -> float:
    """The cost of the largest value; of one cost, or texts too few for folds, the middle one.

    A copy is in the fold of its original, and only originals are judged.
    """
    first, unit = np.unique(origin, return_index=True, return_inverse=True)[1:]
    n = len(first)
    if len(costs) == 1 or n < 2 * settings.folds:
        return costs[len(costs) // 2]
    sample = np.random.default_rng(seed).permutation(n)[: settings.search_texts or n]
    parts = [sample[at :: settings.folds] for at in range(settings.folds)]
    folds = [
        (np.flatnonzero(np.isin(unit, np.setdiff1d(sample, part))), first[part]) for part in parts
    ]
    values = [value(cost, folds) for cost in costs]
    return costs[int(np.argmax(values))]


def _judged(logits: npt.NDArray[np.float64], codes: Codes, by: str) -> float:
    """Of what was left out, the larger the better."""
    from sklearn.metrics import f1_score, log_loss

    if by == "macro_f1":
        return float(f1_score(codes, logits.argmax(axis=1), average="macro"))
    probabilities = softmax(logits / fit_temperature(logits, codes))
    return -float(log_loss(codes, probabilities, labels=np.arange(logits.shape[1])))
