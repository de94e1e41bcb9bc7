"""Drift of what is served against what the bundle was trained on, out of counts alone.

PSI and what chance explains of it are those of `features.drift`; observations are people, who come
back with much the same features, or requests where these are fewer: an empty bin counts as half a
person. Rows with a missing value are a bin
of their own, and told apart besides: a feed that breaks shows there first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from raysys.errors import UserError
from raysys.features.drift import MODERATE, Histogram, by_chance, population_stability_index
from raysys.monitoring.reference import Kind, Reference, Variable
from raysys.monitoring.settings import Thresholds
from raysys.monitoring.windows import Window, Windows, now_ms

HOUR_MS: Final = 3_600_000

BRIEF: Final = "drift.json"
"""File beside the windows: what replicas found when they last looked, see `DriftFigures.brief`."""


@dataclass(frozen=True)
class Moved:
    """How far one feature or score moved.

    Attributes:
        kind, name: see `Variable`.
        psi: population stability index; chance: the 95% point of it when nothing drifts.
        level: `stable`, `moderate` or `large`, by the thresholds; stable if chance explains it.
        missing: share of missing values, of the reference and now.
        missing_over: whether the share rose by more than the threshold, and not by chance.
        histogram: shares by bin.
        rows: that were counted now.
    """

    kind: Kind
    name: str
    psi: float
    chance: float
    level: str
    missing: tuple[float, float]
    missing_over: bool
    histogram: Histogram
    rows: int

    @property
    def over(self) -> bool:
        """Whether it lies over a threshold."""
        return self.level == "large" or self.missing_over


@dataclass(frozen=True)
class DriftFigures:
    """Drift of all features and scores of a bundle in one window.

    Attributes:
        bundle: its id.
        surface: whose lists were counted.
        reference: first and last request of the reference, UTC ms.
        window: of what was served.
        people: about how many asked.
        moved: largest PSI first.
        thresholds: by which it is judged.
    """

    bundle: str
    surface: str
    reference: tuple[int, int]
    window: Window
    people: float
    moved: tuple[Moved, ...]
    thresholds: Thresholds

    def of(self, kind: Kind) -> tuple[Moved, ...]:
        """Of the features, or of the scores."""
        return tuple(each for each in self.moved if each.kind == kind)

    @property
    def enough(self) -> bool:
        """Whether so many answers were counted that something can be said."""
        return self.window.tally.requests >= self.thresholds.least_requests

    @property
    def max_psi(self) -> float:
        """The largest of all features and scores; 0 if there is none."""
        return max((each.psi for each in self.moved), default=0.0)

    @property
    def share_over(self) -> float:
        """Share of the features whose drift is large."""
        features = self.of("feature")
        return sum(each.level == "large" for each in features) / max(1, len(features))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why this counts as drift, each in words; none: it does not."""
        if not self.enough:
            return ()
        said = [
            f"the scores of {each.name} moved (PSI {each.psi:.2f})"
            for each in self.of("score")
            if each.level == "large"
        ]
        features = self.of("feature")
        large = [each.name for each in features if each.level == "large"]
        if large and self.share_over > self.thresholds.share:
            said.append(f"{len(large)} of {len(features)} features moved: {_several(large)}")
        said += [
            f"{each.name} is missing in {each.missing[1]:.0%} of the rows, was in "
            f"{each.missing[0]:.0%}"
            for each in features
            if each.missing_over
        ]
        return tuple(said)

    @property
    def drifted(self) -> bool:
        """Whether what is served has left what was trained on."""
        return bool(self.reasons)

    @property
    def sentence(self) -> str:
        """All of it in a plain sentence."""
        requests = self.window.tally.requests
        if not self.enough:
            return (
                f"Too few answers to tell: {requests:,} were looked at, and "
                f"{self.thresholds.least_requests:,} are needed."
            )
        if self.drifted:
            many = _several(list(self.reasons), "; ")
            return f"What is served has drifted from what was trained on: {many}."
        first = self.moved[0] if self.moved else None
        furthest = f"; {first.name} moved furthest, by a PSI of {first.psi:.2f}" if first else ""
        alone = [each.name for each in self.of("feature") if each.level == "large"]
        also = f" {len(alone)} features over {self.thresholds.psi:g} are no more than may be." * (
            len(alone) > 0
        )
        return f"No drift in {requests:,} answers{furthest}.{also}"

    @property
    def missing_rise(self) -> float:
        """The largest rise of a feature's share of missing values; 0 if none rose."""
        return max((e.missing[1] - e.missing[0] for e in self.of("feature")), default=0.0)

    def missing_of(self, feature: str) -> float | None:
        """A feature's share of missing values in the window; None: none was counted."""
        return next((e.missing[1] for e in self.of("feature") if e.name == feature), None)

    def psi_of(self, kind: Kind) -> float:
        """The largest PSI of the features, or of the scores; 0 if there is none."""
        return max((each.psi for each in self.of(kind)), default=0.0)

    def brief(self) -> dict[str, Any]:
        """The figures that others act on, by names; None for all while there are too few answers.

        `drift` is 1 or 0, the verdict.
        """
        known = self.enough
        return {
            "bundle": self.bundle,
            "until": self.window.until,
            "requests": self.window.tally.requests,
            "drift": float(self.drifted) if known else None,
            "scores": {"psi": self.psi_of("score") if known else None},
            "features": {
                "psi": self.psi_of("feature") if known else None,
                "over": self.share_over if known else None,
            },
            "missing": {"rise": self.missing_rise if known else None},
            "sentence": self.sentence,
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON can say it."""
        return {
            "bundle": self.bundle,
            "surface": self.surface,
            "reference": list(self.reference),
            "since": self.window.since,
            "until": self.window.until,
            "replicas": self.window.replicas,
            "requests": self.window.tally.requests,
            "rows": self.window.tally.rows,
            "people": round(self.people),
            "enough": self.enough,
            "drifted": self.drifted,
            "sentence": self.sentence,
            "reasons": list(self.reasons),
            "max_psi": self.max_psi,
            "share_over": self.share_over,
            "thresholds": self.thresholds.model_dump(mode="json"),
            "variables": [asdict(each) for each in self.moved],
        }


def compare(
    bundle: str, reference: Reference, window: Window, thresholds: Thresholds
) -> DriftFigures:
    """Drift of every feature and score that was counted."""
    people = window.tally.n_people
    then = float(min(reference.people, reference.requests))
    starts = reference.grid.starts
    moved = []
    for at, variable in enumerate(reference.variables):
        counts = window.tally.counts[starts[at] : starts[at + 1]]
        if counts.sum() and sum(variable.counts):
            moved.append(_moved(variable, counts, (then, people), thresholds))
    return DriftFigures(
        bundle=bundle,
        surface=reference.surface,
        reference=(reference.since, reference.until),
        window=window,
        people=people,
        moved=tuple(sorted(moved, key=lambda each: (-each.psi, each.kind, each.name))),
        thresholds=thresholds,
    )


def served_drift(
    bundle: Path,
    windows: Path,
    *,
    hours: float = 24,
    thresholds: Thresholds | None = None,
    until: int | None = None,
) -> DriftFigures | None:
    """Drift of what replicas have served lately; for schedulers and retraining.

    `.drifted` is the verdict, `.max_psi` the largest PSI, `.sentence` both in words.

    Args:
        bundle: folder of the bundle that was served.
        windows: folder that the deployment's `monitor.folder` names.
        hours: length of the window.
        thresholds: None: those by default.
        until: UTC ms of its end; None: now.

    Returns:
        None: nothing was counted in that time.

    Raises:
        UserError: the bundle is older than references are, or its reference is damaged.
    """
    reference = Reference.load(bundle)
    if reference is None:
        raise UserError(
            "the bundle does not say how its training data were distributed",
            where=str(bundle),
            mend="train again (`raysys train`): since this version every bundle says it",
        )
    end = now_ms() if until is None else until
    counted = Windows(windows, bundle.name, reference)
    window = counted.window(end - round(hours * HOUR_MS), end)
    if window is None:
        return None
    return compare(bundle.name, reference, window, thresholds or Thresholds())


def drift_over_time(
    bundle: str,
    reference: Reference,
    windows: Windows,
    thresholds: Thresholds,
    span: tuple[int, int],
    parts: int = 24,
) -> list[DriftFigures]:
    """Drift by the stretches of a time, several of them together where there are many.

    Args:
        bundle, reference: of the counts.
        windows: that were counted.
        thresholds: by which each part is judged.
        span: UTC ms, from and to.
        parts: at most.
    """
    found = windows.parts(*span, parts)
    return [compare(bundle, reference, each, thresholds) for each in found]


def _moved(
    variable: Variable,
    counts: npt.NDArray[np.int64],
    people: tuple[float, float],
    thresholds: Thresholds,
) -> Moved:
    old, new = np.array(variable.counts, np.float64), counts.astype(np.float64)
    p, q = old / old.sum(), new / new.sum()
    n, m = (max(1.0, each) for each in people)
    psi = population_stability_index(p, q, 0.5 / min(n, m, old.sum(), new.sum()))
    chance = by_chance(int(((p > 0) | (q > 0)).sum()), n, m)
    level = "stable"
    if psi >= min(MODERATE, thresholds.psi) and psi > chance:
        level = "large" if psi >= thresholds.psi else "moderate"
    missing = float(p[-1]), float(q[-1])
    pooled = (n * missing[0] + m * missing[1]) / (n + m)
    error = (pooled * (1 - pooled) * (1 / n + 1 / m)) ** 0.5
    rise = missing[1] - missing[0]
    return Moved(
        kind=variable.kind,
        name=variable.name,
        psi=psi,
        chance=chance,
        level=level,
        missing=missing,
        missing_over=variable.kind == "feature" and rise > max(thresholds.missing, 1.96 * error),
        histogram=Histogram(variable.cut.labels, tuple(map(float, p)), tuple(map(float, q))),
        rows=int(counts.sum()),
    )


def _several(names: list[str], between: str = ", ") -> str:
    head = between.join(names[:4])
    return head if len(names) <= 4 else f"{head}{between}and {len(names) - 4} more"
