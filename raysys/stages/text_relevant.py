"""Whether a text is relevant: the grade from which it is, its probability, and from when to say so.

The probability is a logistic curve of the score (Platt, "Probabilistic outputs for support vector
machines", 1999), fitted on the validation pairs: two numbers, so that few pairs will do, and the
order of texts stays that of the scores.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.ensemble.calibrate import fit_platt
from raysys.errors import UserError
from raysys.evaluation.text_judge import Cut, reliability_of
from raysys.learners.relevance_model import RelevanceModel, Relevant
from raysys.learners.text_protocol import TextModel
from raysys.stages.text_settings import TextSettings
from raysys.text.pairs import Pairs

log = logging.getLogger("raysys")

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def cut_of(settings: TextSettings, tables: Mapping[str, pa.Table]) -> Cut | None:
    """From which grade a text is relevant, and the ends of the scale; None: it is no such task.

    Raises:
        UserError: by the grade that the settings name every training pair is relevant, or none.
    """
    if settings.task != "relevance" or not len(tables["train"]):
        return None
    grades = tables["train"]["grade"].to_numpy()
    low, high = float(grades.min()), float(grades.max())
    cut = (low + high) / 2 if settings.relevant_from is None else settings.relevant_from
    if settings.relevant_from is not None and not low < cut <= high:
        raise UserError(
            f"by {cut:g} {'every pair' if cut <= low else 'no pair'} of train is relevant",
            where="relevant_from",
            mend=f"name a grade above {low:g}, at most {high:g}",
        )
    return Cut(cut, low, high)


def calibrate(name: str, model: RelevanceModel, validation: pa.Table, cut: Cut) -> None:
    """Give a fitted model its probability and threshold, from what it says of validation pairs.

    Where these are all relevant, or none is, it gives grades alone, and a warning says so.

    Args:
        name: of the learner, for the warning.
        model: changed in place.
        validation: `LABELLED_PAIRS`; pairs without texts or weight are left out.
        cut: from which grade a text is relevant.
    """
    pairs = Pairs.of(validation)
    pairs = pairs.take(np.flatnonzero(pairs.readable & (pairs.weight > 0)))
    true = pairs.grade >= cut.grade
    if not true.any() or true.all():
        log.warning(
            "text: %s gives no probability of being relevant: %s of the %d validation pairs has a "
            "grade of %g or more; name another as relevant_from, or judge more",
            name, "every one" if len(true) and true.all() else "none", len(true), cut.grade,
        )  # fmt: skip
        return
    scores, grades = model.judge(pairs)
    if not np.isfinite(scores).all() or scores.min() == scores.max():
        log.warning(
            "text: %s gives no probability of being relevant: its scores of the validation pairs "
            "are %s",
            name, "all the same" if np.isfinite(scores).all() else "no numbers",
        )  # fmt: skip
        return
    curve = fit_platt(scores, true.astype(np.float32))
    before = cut.place(grades.astype(np.float64))
    found = Relevant(cut.grade, curve.slope, curve.offset, 0.0, 0.0, 0.0, 0.0, 0.0)
    after = found.probability(scores)
    model.relevant = Relevant(
        cut.grade,
        curve.slope,
        curve.offset,
        threshold=best_threshold(after, true),
        brier_before=_brier(before, true),
        brier_after=_brier(after, true),
        error_before=reliability_of(before, true).error,
        error_after=reliability_of(after, true).error,
    )


def told(cut: Cut, models: Mapping[str, TextModel]) -> dict[str, Any]:
    """For manifest and report: the cut, and by learner what was calibrated."""
    found = {
        name: {key: value for key, value in asdict(model.relevant).items() if key != "cut"}
        for name, model in models.items()
        if isinstance(model, RelevanceModel) and model.relevant is not None
    }
    return {"from": cut.grade, **found}


def best_threshold(probability: Float64, true: Bools) -> float:
    """The probability from which saying "relevant" has the largest F1; 0 where always is best.

    It lies midway between two that occur, so that the last bit of a sum decides nothing; of equals
    the highest is taken.

    Args:
        probability: float64[n], n ≥ 1.
        true: bool[n], whether each is.
    """
    order = np.argsort(-probability, kind="stable")
    falling = probability[order]
    said = np.arange(1, len(order) + 1)
    f1 = 2 * np.cumsum(true[order]) / (said + true.sum())
    ends = np.append(falling[1:] < falling[:-1], True)  # a threshold cannot divide equals
    top = int(np.where(ends, f1, -1.0).argmax())
    return float((falling[top] + falling[top + 1]) / 2) if top + 1 < len(order) else 0.0


def _brier(probability: Float64, true: Bools) -> float:
    return float(np.mean((probability - true) ** 2))
