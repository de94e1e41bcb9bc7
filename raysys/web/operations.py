"""What the console asks of the system: bundles, who may look at them, and how answers go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from raysys.monitoring.drift import DriftFigures
from raysys.monitoring.feedback import Feedback


@dataclass(frozen=True)
class BundleFacts:
    """One bundle of the registry.

    Attributes:
        id: of the bundle.
        created: ISO 8601, UTC.
        surface: which lists it is for.
        learners: name → family.
        pointers: names that point at it, such as `champion`.
        quality: NDCG@10 out of fold, by learner and by combination of the ensemble.
        weights: share of each learner in the full combination.
        megabytes: of all its files.
        settings: that it was trained with.
        versions: of what it was trained with.
    """

    id: str
    created: str
    surface: str
    learners: dict[str, str]
    pointers: tuple[str, ...] = ()
    quality: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    megabytes: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def best_member(self) -> tuple[str, float] | None:
        """The learner of the highest quality, and that; None if nothing is known of any."""
        known = {name: self.quality[name] for name in self.learners if name in self.quality}
        return max(known.items(), key=lambda pair: pair[1], default=None)


@dataclass(frozen=True)
class NameFacts:
    """What a name means now.

    Attributes:
        name: that was given, such as `champion`.
        live: whether replicas that run load it by themselves.
    """

    name: str
    live: bool


@dataclass(frozen=True)
class CallFacts:
    """How one call goes, over the last minute.

    Attributes:
        call: its route.
        per_second: answers.
        p50_ms: median of the time to answer.
        p99_ms: 99th percentile.
        degraded: share of answers that left something out.
        failed: share of answers with a status of 500 or above.
    """

    call: str
    per_second: float
    p50_ms: float
    p99_ms: float
    degraded: float
    failed: float


@dataclass(frozen=True)
class TrafficFacts:
    """How the calls of a deployment go.

    Attributes:
        replicas: that told of themselves.
        calls: of all of them, busiest first.
        counts: since they started: name → values of the tags → sum.
    """

    replicas: int
    calls: list[CallFacts]
    counts: dict[str, dict[str, int]]


@dataclass(frozen=True)
class DeploymentFacts:
    """One deployment of the application.

    Attributes:
        name: of the deployment.
        status: as Ray Serve says it.
        replicas: state → how many.
    """

    name: str
    status: str
    replicas: dict[str, int]


@dataclass(frozen=True)
class ArmFacts:
    """One arm of an experiment.

    Attributes:
        name: of the arm.
        share: of the eligible users.
        bundle: id of the one that answers; empty: the surface's own.
        exposures: lists that were shown in it.
        users: that count; None: not known yet.
    """

    name: str
    share: float
    bundle: str
    exposures: int
    users: int | None


@dataclass(frozen=True)
class LiftFacts:
    """The deciding metric of an arm against the control.

    Attributes:
        arm: the treatment.
        control, treatment: means of the metric.
        lift: relative; low, high: its interval.
        state: better, worse or open.
    """

    arm: str
    control: float
    treatment: float
    lift: float
    low: float
    high: float
    state: str


@dataclass(frozen=True)
class ExperimentFacts:
    """One experiment.

    Attributes:
        name: of the experiment.
        question: what is to be learnt.
        state: planned, runs, waits (its bundles are not loaded here) or over.
        surfaces: where it runs.
        metric: that decides.
        arms: the control first.
        verdict: sentences.
        made: when the figures were made; empty: they are being made.
        srm_p: of the sample-ratio check; None: no figures yet.
        trusted: whether arms are filled as their shares say.
        lifts: one a treatment.
        has_report: whether there is a whole report.
    """

    name: str
    question: str
    state: str
    surfaces: str
    metric: str
    arms: tuple[ArmFacts, ...]
    verdict: tuple[str, ...]
    made: str = ""
    srm_p: float | None = None
    trusted: bool = True
    lifts: tuple[LiftFacts, ...] = ()
    has_report: bool = False


@dataclass(frozen=True)
class WatchFacts:
    """What is watched.

    Attributes:
        drift: of all replicas, None: none is known; no_drift: why.
        looked_at: UTC ms, when that was.
        feedback: what came of the lists, None: nothing is known; no_feedback: why.
    """

    drift: DriftFigures | None = None
    no_drift: str = ""
    looked_at: int = 0
    feedback: Feedback | None = None
    no_feedback: str = ""


class Operations(Protocol):
    """The system behind the console; serving has the one over registry and replica."""

    def enter(self, key: str) -> str | None:
        """A token for a key with the role admin; None if it has not, or is none."""

    def admits(self, token: str | None) -> bool:
        """Whether a token lets in; without keys everybody whom the deployment answers is."""

    def bundles(self) -> list[BundleFacts]:
        """Every bundle, newest first."""

    def promote(self, bundle: str, *, force: bool, token: str | None) -> NameFacts:
        """Point `champion`, or a text task's name, at a bundle.

        Args:
            bundle: its id.
            force: even if its figures are worse.
            token: that let in whoever asks: the registry's journal says who it was.

        Raises:
            Refused: no such bundle, or one that is worse than the champion.
        """

    def earlier_champion(self) -> str | None:
        """Id of the bundle that `roll_back` leads to; None: there is none."""

    def roll_back(self, *, token: str | None) -> NameFacts:
        """Point `champion` at the bundle before.

        Args:
            token: as for `promote`.

        Raises:
            Refused: there is none.
        """

    def traffic(self) -> TrafficFacts:
        """Of all replicas."""

    def experiments(self) -> list[ExperimentFacts]:
        """Those that are served, planned or ended lately."""

    def experiments_trouble(self) -> dict[str, str]:
        """What keeps experiments, or a change of them, from being served → why."""

    def experiment_report(self, name: str) -> str | None:
        """The whole report of an experiment as a page; None: there is none."""

    def watched(self) -> WatchFacts:
        """Drift, and what came of the lists, as they were last looked at."""

    def deployments(self) -> list[DeploymentFacts]:
        """Those of the application; empty where it runs without Ray Serve."""
