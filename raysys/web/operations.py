"""What the console asks of the system: bundles, who may look at them, and how answers go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


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


class Operations(Protocol):
    """The system behind the console; serving has the one over registry and replica."""

    def enter(self, key: str) -> str | None:
        """A token for a key with the role admin; None if it has not, or is none."""

    def admits(self, token: str | None) -> bool:
        """Whether a token lets in; without keys everybody whom the deployment answers is."""

    def bundles(self) -> list[BundleFacts]:
        """Every bundle, newest first."""

    def promote(self, bundle: str, *, force: bool) -> None:
        """Point `champion` at a bundle.

        Raises:
            Refused: no such bundle, or one that is worse than the champion.
        """

    def roll_back(self) -> None:
        """Point `champion` at the bundle before.

        Raises:
            Refused: there is none.
        """

    def traffic(self) -> list[CallFacts]:
        """Of this replica, busiest call first."""

    def counts(self) -> dict[str, dict[str, int]]:
        """What this replica counted since it started: by name, then by the values of its tags."""

    def deployments(self) -> list[DeploymentFacts]:
        """Those of the application; empty where it runs without Ray Serve."""
