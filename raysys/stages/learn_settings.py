"""What `raysys learn` may be told: when a round is due, what it warms up, what the gate asks."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from raysys.config import Settings, StageSettings
from raysys.ensemble import EnsembleSettings
from raysys.monitoring.settings import Thresholds
from raysys.serving.rollout import CanaryArgs

Side = Literal["live", "frozen"]
"""The champion as a deployment with an event log serves it, or as its bundle was published."""

Days = Annotated[float, Field(gt=0)]


class WindowSettings(Settings):
    """The recent past and its parts, one after the other: tune, blend, gate.

    Attributes:
        gate_days: the last so many days, of which nothing is learned before the gate has judged.
        fit_days: so many days before that are learned from, as far as they are newer than the
            champion's state.
        blend_share: of those, the later part, on which the ensemble's weights are fitted, with the
            scores of learners that saw the earlier part alone. Where no learner is tuned: all.
        tune_requests: of that part at most so many, drawn by a hash of what they are, so that a
            longer log keeps them.
        blend_requests: of that part.
        gate_requests: of that part.
        min_requests: a part with fewer teaches nothing; a gate with fewer judges nothing.
        gap_minutes: what a user does within this of the last event may belong to the same request:
            requests that were not settled so long before their part ended are left out.
    """

    gate_days: Days = 7
    fit_days: Days = 28
    blend_share: float = Field(0.4, gt=0, lt=1)
    tune_requests: int = Field(3000, ge=1)
    blend_requests: int = Field(2000, ge=1)
    gate_requests: int = Field(3000, ge=1)
    min_requests: int = Field(200, ge=2)
    gap_minutes: float = Field(30, ge=0)


class TuneSettings(Settings):
    """How a learner goes on from its weights.

    Attributes:
        steps: at most so many: trees to add, or steps of an optimizer.
        rate: times the learning rate it was fitted with.
    """

    steps: int = Field(ge=1, le=100_000)
    rate: float = Field(0.5, gt=0, le=1)


class BlendSettings(Settings):
    """How the ensemble's weights are fitted anew.

    Attributes:
        settings: as in `raysys train`; null: those of the champion's training.
        keep_unless_better: the champion's weights stay unless the new ones, fitted on other blocks,
            beat them by more than a standard error.
    """

    settings: EnsembleSettings | None = None
    keep_unless_better: bool = True


class StepSettings(Settings):
    """What is warmed up; each step may be left out.

    Attributes:
        items: items that the shop has got since get numbers, words and vectors: from then on they
            are found and counted.
        state: item and user state go on with the new events; else the state of the champion's
            bundle is published again.
        covisitation: items bought together go on with the new orders.
        learners: those that go on from their weights: trees, and transformers of sequences.
        ensemble: weights are fitted anew on the blend part; null: they stay.
    """

    items: bool = True
    state: bool = True
    covisitation: bool = True
    learners: dict[str, TuneSettings] = Field(default_factory=dict)
    ensemble: BlendSettings | None = BlendSettings()


class GateSettings(Settings):
    """Who may become the challenger.

    Attributes:
        metric: by which the two are compared.
        need: `not_worse`: its interval of the difference reaches zero; `better`: lies above it.
        against: the champion with the state that follows the event log (`live`), or as it was
            published (`frozen`), for deployments without `events`.
        resamples: draws of the bootstrap.
        draw: what it draws, as in `raysys evaluate`.
        seed: of the draws.
    """

    metric: Literal["ndcg@10", "mrr", "map@10", "recall@10", "hit_rate@10"] = "ndcg@10"
    need: Literal["not_worse", "better"] = "not_worse"
    against: Side = "live"
    resamples: int = Field(1000, ge=100, le=100_000)
    draw: Literal["user", "request"] = "user"
    seed: int = Field(0, ge=0)


class LearnedCanary(CanaryArgs):
    """As an admin may ask for it; the bundle is filled in.

    Attributes:
        bundle: left as it is.
        share: of the users, who get the challenger's answers.
    """

    bundle: str = "challenger"
    share: Annotated[float, Field(ge=0, le=1)] = 0.05

    @model_validator(mode="after")
    def _guarded(self) -> LearnedCanary:
        if self.silent is not None:
            setting, why = self.silent
            raise ValueError(f"{setting}: {why}")
        return self


class PublishSettings(Settings):
    """What becomes of a bundle that passed.

    Attributes:
        name: the pointer that it gets; never the champion's.
        promote: `never`; `canary`: a share of the users gets its answers, unless another canary
            runs; `when_better`: it becomes the champion if its interval lies above zero.
        canary: its share and guard.
    """

    name: str = "challenger"
    promote: Literal["never", "canary", "when_better"] = "never"
    canary: LearnedCanary = LearnedCanary()


class ServedDrift(Settings):
    """Drift as replicas counted it in what they served, against the champion's reference.

    Attributes:
        windows: the folder that `monitor.folder` of the serve config means; null: `monitor` beside
            the registry.
        hours: of the newest counts.
        thresholds: beyond which it is drift, as in `monitor`.
    """

    kind: Literal["served"] = "served"

    windows: str | None = None
    hours: float = Field(24, gt=0)
    thresholds: Thresholds = Thresholds()


class DriftFile(Settings):
    """Drift that somebody else measures, and writes down.

    Attributes:
        file: JSON, with a number under `figure`.
        figure: its key; a path of keys with dots between.
        above: it is drift beyond this.
    """

    kind: Literal["file"] = "file"

    file: str
    figure: str = "drift"
    above: float = Field(gt=0)


class FollowSettings(Settings):
    """When `--follow` begins a round; the first reason that holds. One at least must be given.

    Attributes:
        every_minutes: since the last one began; null: not by the clock.
        new_events: that the event log has beyond those of the last one; null: not by their number.
        drift: when the shop is no longer what the champion was trained on; null: not for drift.
        rest_minutes: not for drift so soon after a round: a round changes no past.
        poll_seconds: between two looks.
    """

    every_minutes: float | None = Field(60, gt=0)
    new_events: int | None = Field(None, ge=1)
    drift: Annotated[ServedDrift | DriftFile, Field(discriminator="kind")] | None = None
    rest_minutes: float = Field(60, ge=0)
    poll_seconds: float = Field(5, gt=0)

    @model_validator(mode="after")
    def _some_reason(self) -> FollowSettings:
        if self.every_minutes is None and self.new_events is None and self.drift is None:
            raise ValueError("give every_minutes, new_events or drift: else no round ever begins")
        return self


class LearnSettings(StageSettings):
    """The YAML of `raysys learn`.

    Attributes:
        champion: the pointer of the bundle that is warmed up.
        ingest: configuration of `raysys ingest`, run first, so that what is new comes in; it names
            the event log. null: what lies in the workspace is taken.
        deployment: serve config whose event log is rolled before, so that its newest events come in
            too; null: that of `ingest`, if it is kept by this node.
        window: the recent past, and what its parts are for.
        steps: what is warmed up.
        gate: who may become the challenger.
        publish: what becomes of it.
        follow: when the next round begins.
        seed: of everything random.
    """

    kind_name: ClassVar[str] = "learn"

    champion: str = "champion"
    ingest: str | None = None
    deployment: str | None = None
    window: WindowSettings = WindowSettings()
    steps: StepSettings = StepSettings()
    gate: GateSettings = GateSettings()
    publish: PublishSettings = PublishSettings()
    follow: FollowSettings = FollowSettings()
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _two_names(self) -> LearnSettings:
        if self.publish.name == self.champion:
            raise ValueError("publish.name: the champion's own name would replace it unjudged")
        if self.gate.against == "frozen" and not self.steps.state:
            raise ValueError(
                "gate.against: a frozen champion against a frozen challenger tells "
                "nothing of serving; take steps.state, or against: live"
            )
        return self
