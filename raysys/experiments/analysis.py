"""What an experiment did: every metric of every arm against the control, and a verdict.

Multiplicity: the primary metric's intervals hold over all arms together (Bonferroni) and its
p-values are Holm's; secondary metrics and segments get Benjamini and Hochberg's. Guardrails are
not corrected: each has to hold, and asking all of them is conservative already.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from raysys.errors import UserError
from raysys.experiments.definition import Experiment, ExperimentsSettings
from raysys.experiments.parts import Metric
from raysys.experiments.statistics import (
    SRM_ALPHA,
    Cuped,
    Effect,
    Float64,
    Sample,
    adjustment,
    corrected,
    difference,
    heterogeneity,
    influence,
    sample,
    sample_ratio,
    winsorised,
)
from raysys.experiments.users import UserTable

Mask = npt.NDArray[np.bool_]
Role = Literal["primary", "secondary", "guardrail"]
State = Literal["better", "worse", "open", "safe", "harmed"]

_SEGMENT_USERS = 50  # in every arm: below, normal intervals promise too much
_SEGMENTS = 12  # values of an attribute that are told apart, by users
_MOMENTS = 60  # of the curve over time


@dataclass(frozen=True)
class Comparison:
    """A metric of one arm against the control.

    Attributes:
        metric: its name.
        role: in the experiment.
        arm: the treatment.
        control, treatment: the samples.
        absolute: the difference; relative: divided by the control's mean.
        p_adjusted: corrected over arms (primary) or over metrics and arms (secondary).
        cuped: what the covariate explained; None: there is none.
        state: `better` or `worse` where the effect is clear, `open`; of a guardrail `harmed`,
            `safe` (the interval leaves out losses beyond the tolerance) or `open`.
    """

    metric: str
    role: Role
    arm: str
    control: Sample
    treatment: Sample
    absolute: Effect
    relative: Effect
    p_adjusted: float
    cuped: Cuped | None
    state: State


@dataclass(frozen=True)
class Segment:
    """The primary metric within one value of an attribute.

    Attributes:
        attribute: such as `country`; value: of it.
        arm: the treatment.
        users: in control and treatment.
        relative: the lift within.
        p_adjusted: over all segments.
    """

    attribute: str
    value: str
    arm: str
    users: int
    relative: Effect
    p_adjusted: float


@dataclass(frozen=True)
class Moment:
    """The primary metric among the users that had come until a moment."""

    arm: str
    until: dt.datetime
    users: int
    relative: Effect


@dataclass(frozen=True)
class ExperimentAnalysis:
    """Everything the report shows.

    Attributes:
        experiment: as defined.
        users: by arm.
        srm_p: of the sample-ratio check.
        comparisons: primary first.
        segments: of the primary metric.
        heterogeneity: attribute → arm → p-value that the lift is the same in all its segments
            (Cochran's Q, Holm over all of them).
        moments: the curve over time.
        as_of: the newest moment of the data.
        crossed, forced, unfinished: users that were left out, see `UserTable`.
        notes: what a reader should know.
        sign: 1 where more of the primary metric is better, else -1.
    """

    experiment: Experiment
    users: dict[str, int]
    srm_p: float
    comparisons: list[Comparison]
    segments: list[Segment]
    heterogeneity: dict[str, dict[str, float]]
    moments: list[Moment]
    as_of: dt.datetime | None
    crossed: int
    forced: int
    unfinished: int
    notes: list[str] = field(default_factory=list)
    sign: int = 1

    @property
    def trusted(self) -> bool:
        """Whether arms are filled as their shares say."""
        return self.srm_p >= SRM_ALPHA

    @property
    def early(self) -> bool:
        """Whether a fixed analysis is looked at before its end."""
        end = self.experiment.end
        fixed = self.experiment.analysis == "fixed"
        return (
            fixed and end is not None and self.as_of is not None and self.as_of < _day_before(end)
        )

    def of(self, role: Role, arm: str | None = None) -> list[Comparison]:
        """Comparisons of one role, and of one arm."""
        return [c for c in self.comparisons if c.role == role and arm in (None, c.arm)]

    def to_dict(self) -> dict[str, Any]:
        """All figures, as JSON can say them."""
        parts = {
            "experiment": self.experiment.model_dump(mode="json", by_alias=True),
            "users": self.users,
            "srm_p": self.srm_p,
            "trusted": self.trusted,
            "early": self.early,
            "as_of": None if self.as_of is None else self.as_of.isoformat(),
            "left_out": {
                "crossed": self.crossed, "forced": self.forced, "unfinished": self.unfinished,
            },
            "comparisons": [asdict(each) for each in self.comparisons],
            "segments": [asdict(each) for each in self.segments],
            "heterogeneity": self.heterogeneity,
            "moments": [
                asdict(each) | {"until": each.until.isoformat()} for each in self.moments
            ],
            "notes": self.notes,
        }  # fmt: skip
        plain: dict[str, Any] = without_nan(parts)
        return plain


def analyse(
    experiment: Experiment, settings: ExperimentsSettings, table: UserTable
) -> ExperimentAnalysis:
    """Compare every arm with the control.

    Raises:
        UserError: an arm has fewer than two users.
    """
    arms = [arm.name for arm in experiment.arms]
    rows = {arm: table.rows.filter(pl.col("arm") == arm) for arm in arms}
    counts = {arm: len(frame) for arm, frame in rows.items()}
    empty = [arm for arm, count in counts.items() if count < 2]
    if empty:
        raise UserError(
            f"fewer than two users in {', '.join(empty)}",
            where=experiment.name,
            mend="wait, or look why nobody gets the arm",
        )
    srm = sample_ratio(list(counts.values()), [float(arm.share) for arm in experiment.arms])
    metrics = [settings.metric(name) for name in experiment.metrics]
    limits = {metric.name: limited(metric, table.rows) for metric in metrics}
    notes = list(table.notes)
    comparisons: list[Comparison] = []
    for metric in metrics:
        told = _comparisons(experiment, metric, limits[metric.name], table.rows)
        if told[0].cuped is None and experiment.covariate_days:
            notes.append(
                f"{metric.name}: nothing known of before the exposures to adjust by (CUPED)."
            )
        comparisons += told
    comparisons = _corrected(experiment, settings, comparisons)
    primary = metrics[0]
    segments, same = _segments(experiment, primary, limits[primary.name], table.rows)
    return ExperimentAnalysis(
        experiment=experiment,
        users=counts,
        srm_p=srm,
        comparisons=comparisons,
        segments=segments,
        heterogeneity=same,
        moments=_moments(experiment, primary, limits[primary.name], table.rows),
        as_of=table.as_of,
        crossed=table.crossed,
        forced=table.forced,
        unfinished=table.unfinished,
        notes=notes,
        sign=1 if primary.better == "higher" else -1,
    )


def limited(metric: Metric, rows: pl.DataFrame) -> pl.DataFrame:
    """The metric's columns, winsorised over all arms: what is compared must see one limit."""
    names = [n for n in rows.columns if n.partition(".")[0] == metric.name]
    frame = rows.select(names)
    if metric.winsorise is None:
        return frame
    sums = [n for n in names if n in (metric.name, f"{metric.name}.before")]
    return frame.with_columns(
        pl.Series(name, winsorised(frame[name].to_numpy(), metric.winsorise)) for name in sums
    )


def samples_of(
    metric: Metric, frame: pl.DataFrame, arms: Sequence[Mask]
) -> tuple[list[Sample], Cuped | None]:
    """Summaries of arms, given as masks of rows, adjusted together."""
    values = [influence(*_columns(frame, metric, arm, ("", ".per"))) for arm in arms]
    if f"{metric.name}.before" not in frame.columns:
        return [sample(v) for v in values], None
    everybody = np.logical_or.reduce(arms)
    whole = influence(*_columns(frame, metric, everybody, (".before", ".per_before")))
    if np.isnan(whole).any() or not whole.var() > 0:
        return [sample(v) for v in values], None
    before = np.full(len(frame), np.nan)
    before[everybody] = whole
    covariates = [before[arm] for arm in arms]
    cuped = adjustment(values, covariates)
    centre = float(whole.mean())
    adjusted = [
        sample(v, z, theta=cuped.theta, centre=centre)
        for v, z in zip(values, covariates, strict=True)
    ]
    return adjusted, cuped


def _columns(
    frame: pl.DataFrame, metric: Metric, rows: Mask, tails: tuple[str, str]
) -> tuple[Float64, Float64 | None]:
    first, second = (f"{metric.name}{tail}" for tail in tails)
    numerator = frame[first].to_numpy()[rows]
    if metric.per is None:
        return numerator, None
    if second not in frame.columns:
        return np.full(len(numerator), np.nan), None
    return numerator, frame[second].to_numpy()[rows]


def _effects(
    experiment: Experiment, control: Sample, treatment: Sample, alpha: float
) -> tuple[Effect, Effect]:
    pair = 2 / len(experiment.arms)  # of the users in all arms, roughly
    absolute, relative = (
        difference(
            control,
            treatment,
            relative=how,
            alpha=alpha,
            analysis=experiment.analysis,
            tuned_for=int(experiment.expected_users * pair),
        )
        for how in (False, True)
    )
    return absolute, relative


def _comparisons(
    experiment: Experiment, metric: Metric, frame: pl.DataFrame, rows: pl.DataFrame
) -> list[Comparison]:
    role: Role = "secondary"
    if metric.name == experiment.primary:
        role = "primary"
    elif metric.name in (rail.metric for rail in experiment.guardrails):
        role = "guardrail"
    arm_of = rows["arm"].to_numpy()
    masks = [arm_of == arm.name for arm in experiment.arms]
    samples, cuped = samples_of(metric, frame, masks)
    treatments = len(samples) - 1
    alpha = experiment.alpha / treatments if role == "primary" else experiment.alpha
    found = []
    for arm, treatment in zip(experiment.arms[1:], samples[1:], strict=True):
        absolute, relative = _effects(experiment, samples[0], treatment, alpha)
        found.append(
            Comparison(
                metric.name, role, arm.name, samples[0], treatment,
                absolute, relative, absolute.p_value, cuped, "open",
            )
        )  # fmt: skip
    return found


def _corrected(
    experiment: Experiment, settings: ExperimentsSettings, found: list[Comparison]
) -> list[Comparison]:
    """Adjusted p-values, and what follows."""
    adjusted: list[Comparison] = []
    for role in ("primary", "secondary", "guardrail"):
        mine = [c for c in found if c.role == role]
        p_values = [c.absolute.p_value for c in mine]
        if role != "guardrail":
            p_values = corrected(p_values, "holm" if role == "primary" else "fdr_bh")
        for each, p_value in zip(mine, p_values, strict=True):
            judged = replace(each, p_adjusted=p_value)
            sign = 1 if settings.metric(each.metric).better == "higher" else -1
            state = _state(experiment, judged, sign)
            adjusted.append(replace(judged, state=state))
    return adjusted


def _state(experiment: Experiment, found: Comparison, sign: int) -> State:
    clear = found.p_adjusted <= experiment.alpha
    good = found.absolute.value * sign > 0
    if found.role != "guardrail":
        return "open" if not clear else "better" if good else "worse"
    if clear and not good:
        return "harmed"
    tolerance = next(r.tolerance for r in experiment.guardrails if r.metric == found.metric)
    worst = found.relative.low if sign > 0 else -found.relative.high
    return "safe" if worst > -tolerance else "open"


def _segments(
    experiment: Experiment, metric: Metric, frame: pl.DataFrame, rows: pl.DataFrame
) -> tuple[list[Segment], dict[str, dict[str, float]]]:
    """Lifts by value of each attribute; those with few users in an arm are left out."""
    arm_of = rows["arm"].to_numpy()
    found: list[Segment] = []
    tests: list[tuple[str, str, float]] = []
    for attribute in experiment.segments:
        column = f"segment.{attribute}"
        if column not in rows.columns:
            continue
        common = rows[column].drop_nulls().value_counts(sort=True)[column].to_list()[:_SEGMENTS]
        value_of = rows[column].to_numpy()
        by_arm: dict[str, list[Effect]] = {}
        for value in sorted(map(str, common)):
            masks = [(arm_of == arm.name) & (value_of == value) for arm in experiment.arms]
            if min(int(mask.sum()) for mask in masks) < _SEGMENT_USERS:
                continue
            samples, _ = samples_of(metric, frame, masks)
            for arm, treatment in zip(experiment.arms[1:], samples[1:], strict=True):
                absolute, relative = _effects(experiment, samples[0], treatment, experiment.alpha)
                users = samples[0].n + treatment.n
                found.append(Segment(attribute, value, arm.name, users, relative, absolute.p_value))
                by_arm.setdefault(arm.name, []).append(relative)
        tests += [(attribute, arm, heterogeneity(effects)) for arm, effects in by_arm.items()]
    p_values = corrected([s.p_adjusted for s in found], "fdr_bh")
    found = [replace(s, p_adjusted=p) for s, p in zip(found, p_values, strict=True)]
    same: dict[str, dict[str, float]] = {}
    unlike = corrected([p_value for _, _, p_value in tests], "holm")
    for (attribute, treated, _), p_value in zip(tests, unlike, strict=True):
        same.setdefault(attribute, {})[treated] = p_value
    return found, same


def _moments(
    experiment: Experiment, metric: Metric, frame: pl.DataFrame, rows: pl.DataFrame
) -> list[Moment]:
    """The lift among users in the order in which they came, at most `_MOMENTS` times."""
    if "arrived" not in rows.columns or rows["arrived"].null_count():
        return []
    arm_of = rows["arm"].to_numpy()
    arrived = rows["arrived"].dt.epoch("ms").to_numpy()
    day = 86_400_000
    first, last = arrived.min() // day * day, arrived.max() // day * day + day
    step = max(1, int(np.ceil((last - first) / day / _MOMENTS))) * day
    alpha = experiment.alpha / (len(experiment.arms) - 1)
    found = []
    for until in range(int(first) + step, int(last) + step, step):
        there = arrived < until
        masks = [(arm_of == arm.name) & there for arm in experiment.arms]
        if min(int(mask.sum()) for mask in masks) < _SEGMENT_USERS:
            continue
        samples, _ = samples_of(metric, frame, masks)
        moment = dt.datetime.fromtimestamp(until / 1000, dt.UTC)
        for arm, treatment in zip(experiment.arms[1:], samples[1:], strict=True):
            _, relative = _effects(experiment, samples[0], treatment, alpha)
            found.append(Moment(arm.name, moment, samples[0].n + treatment.n, relative))
    return found


def _day_before(moment: dt.datetime) -> dt.datetime:
    """Data of the last day need not reach its last millisecond."""
    return moment - dt.timedelta(days=1)


def without_nan(value: Any) -> Any:
    """The same with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    return value
