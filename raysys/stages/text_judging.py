"""Which of the fitted models is published: judged on the rows that nothing was fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from raysys.datasets.splits import components
from raysys.evaluation.text_judge import CRITERION, Cut, TextJudge, TextVerdict
from raysys.learners.text_protocol import Task, TextModel
from raysys.stages.text_settings import TextSettings

SIMPLE = ("baseline", "tree")
"""Families that a transformer has to beat: they cost a hundredth of it."""


_ENDS_APART = 3.92  # standard errors between the ends of a 95% interval


@dataclass(frozen=True)
class Fit:
    """A fitted learner.

    Attributes:
        model: pure, thread-safe.
        family: that of the learner, or `blend`.
        seconds: that fitting took.
        history: of its evaluations while it was trained; empty where there were none.
    """

    model: TextModel
    family: str
    seconds: float
    history: list[dict[str, float]]


@dataclass(frozen=True)
class Outcome:
    """What judging came to.

    Attributes:
        criterion: by which learners were compared.
        chosen: the learner whose model is published.
        baseline: the best baseline on validation; None where there is none.
        validation, test: verdicts by learner.
        gain: of the criterion on the test, the chosen one over the best baseline (or, where the
            baseline was chosen, over the best other).
        against: what `gain` compares with.
        said: predictions for validation and test by learner, with what was true.
        judge: of the test.
    """

    criterion: str
    chosen: str
    baseline: str | None
    validation: Mapping[str, TextVerdict]
    test: Mapping[str, TextVerdict]
    gain: dict[str, float | None] | None
    against: str | None
    said: Mapping[str, pa.Table]

    def figures(self) -> dict[str, Any]:
        """For manifests."""

        def told(verdicts: Mapping[str, TextVerdict]) -> dict[str, Any]:
            return {
                name: {key: figure.to_dict() for key, figure in verdict.figures.items()}
                for name, verdict in verdicts.items()
            }

        return {
            "criterion": self.criterion,
            "chosen": self.chosen,
            "baseline": self.baseline,
            "gain": self.gain,
            "against": self.against,
            "validation": told(self.validation),
            "test": told(self.test),
        }


def judge(
    settings: TextSettings,
    rows: pl.DataFrame,
    tables: Mapping[str, pa.Table],
    fits: Mapping[str, Fit],
    advance: Any = lambda: None,
    cut: Cut | None = None,
) -> Outcome:
    """Choose on validation, judge on test; `cut`: from which grade a text is relevant."""
    judges = {
        name: judge_of(
            *(settings.task, rows, tables, name, cut),
            resamples=settings.resamples,
            seed=settings.seed,
        )
        for name in ("validation", "test")
    }
    asked = ["query", "text"] if settings.task == "relevance" else ["text"]
    verdicts: dict[str, dict[str, TextVerdict]] = {"validation": {}, "test": {}}
    said: dict[str, pa.Table] = {}
    for name, fit in fits.items():
        parts = []
        for split, judging in judges.items():
            predicted = fit.model.predict(tables[split].select(asked))
            verdicts[split][name] = judging.verdict(predicted)
            parts.append(_beside(tables[split], predicted))
        said[name] = pa.concat_tables(parts)
        advance()
    criterion = CRITERION[settings.task]
    value = {name: v.figures[criterion].value for name, v in verdicts["validation"].items()}
    simple = [name for name, fit in fits.items() if fit.family in SIMPLE]
    baseline = max(simple, key=value.__getitem__) if simple else None
    chosen = simplest(value, fits, verdicts["validation"], judges["validation"])
    others = [name for name in value if name != chosen]
    against = baseline if chosen != baseline else max(others, key=value.__getitem__, default=None)
    gain = None
    if against is not None:
        test = verdicts["test"]
        gain = judges["test"].gain(test[chosen], test[against]).to_dict()
    return Outcome(
        criterion, chosen, baseline, verdicts["validation"], verdicts["test"], gain, against, said
    )


def judge_of(
    task: Task,
    rows: pl.DataFrame,
    tables: Mapping[str, pa.Table],
    split: str,
    cut: Cut | None,
    *,
    resamples: int,
    seed: int = 0,
) -> TextJudge:
    """Who judges a split: texts of one group, or pairs of one query, are drawn together.

    Args:
        task: of the texts.
        rows: divided.
        tables: by split; train's tells the lowest grade.
        split: of `tables`.
        cut: from which grade a text is relevant.
        resamples: draws of the intervals.
        seed: of the draws.
    """
    least = float(np.min(tables["train"]["grade"].to_numpy())) if task == "relevance" else 0.0
    return TextJudge(
        *(task, tables[split], _of(components(rows, task), rows, split)),
        least_grade=least,
        cut=cut,
        resamples=resamples,
        seed=seed,
    )


def simplest(
    value: Mapping[str, float],
    fits: Mapping[str, Fit],
    verdicts: Mapping[str, TextVerdict],
    judging: TextJudge,
) -> str:
    """The best of the cheapest kind that comes within a standard error of the best learner.

    The rule of one standard error (Breiman et al., CART, 1984), of the paired difference.
    """
    best = max(value, key=value.__getitem__)
    for families in (SIMPLE, ("transformer",)):
        level = []
        for name in (name for name, fit in fits.items() if fit.family in families):
            behind = judging.gain(verdicts[best], verdicts[name])
            if behind.value <= (behind.high - behind.low) / _ENDS_APART:
                level.append(name)
        if level:
            return max(level, key=value.__getitem__)
    return best


def _of(unit: npt.NDArray[np.int64], rows: pl.DataFrame, split: str) -> npt.NDArray[np.int64]:
    return unit[(rows["split"] == split).to_numpy()]


def _beside(truth: pa.Table, predicted: pa.Table) -> pa.Table:
    """What was true and, as `predicted_…`, what was said."""
    for name in predicted.column_names:
        truth = truth.append_column(f"predicted_{name}", predicted[name])
    return truth
