"""How a search proceeds, as its YAML says it: who proposes, who is stopped, when it ends."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from raysys.config import Settings, StageSettings
from raysys.tuning.metrics import NDCG_10
from raysys.tuning.space import Space


def _named(value: Any) -> Any:
    """`tpe` for `{kind: tpe}`."""
    return {"kind": value} if isinstance(value, str) else value


class Tpe(Settings):
    """Tree-structured Parzen estimator: what good trials have and others lack (Bergstra 2011).

    Attributes:
        startup: trials drawn at random before it begins to learn.
    """

    kind: Literal["tpe"] = "tpe"
    startup: int = Field(8, ge=1)


class Random(Settings):
    """Every trial drawn anew: no model; hard to beat, and what to compare with."""

    kind: Literal["random"] = "random"


class Grid(Settings):
    """Every combination once, in random order.

    Attributes:
        points: of a range without a `step`, from end to end.
    """

    kind: Literal["grid"] = "grid"
    points: int = Field(3, ge=2)


class Bohb(Settings):
    """TPE over rungs (Falkner et al. 2018): learns from the highest that enough trials reached.

    Attributes:
        startup: trials on one rung before it is learned from; null: settings searched plus two.
        random_share: of the trials drawn at random all the same, so that a rung that misleads
            cannot rule anything out.
    """

    kind: Literal["bohb"] = "bohb"
    startup: int | None = Field(None, ge=1)
    random_share: float = Field(0.2, ge=0, le=1)


Searcher = Annotated[
    Annotated[Tpe | Random | Grid | Bohb, Field(discriminator="kind")], BeforeValidator(_named)
]


class Asha(Settings):
    """Asynchronous successive halving (Li et al. 2020): trials that lag behind are stopped.

    Attributes:
        grace: steps (trees, batches, epochs) that every trial gets, and between which it tells its
            score.
        reduction: one trial in so many goes on past each rung (grace, grace × reduction, …).
    """

    kind: Literal["asha"] = "asha"
    grace: int = Field(20, ge=1)
    reduction: int = Field(3, ge=2)


class Hyperband(Asha):
    """Asynchronous HyperBand (Li et al. 2018): ASHA with several graces, for slow starters.

    Attributes:
        brackets: a trial is drawn into one of so many; the grace of each is `reduction` times that
            of the one before, and its chance e times smaller.
    """

    kind: Literal["hyperband"] = "hyperband"  # type: ignore[assignment]
    brackets: int = Field(3, ge=2, le=8)


class Pbt(Settings):
    """Population-based training (Jaderberg et al. 2017): the weak go on from the strong.

    Every member is fitted `interval` steps at a time, each time a trial of its own that goes on
    from a checkpoint (Li et al. 2019, "A generalized framework for population based training").
    A member of the weakest quarter takes over trees and settings of one of the strongest, and
    changes the settings a little. Takes the place of the searcher.

    Attributes:
        population: members.
        interval: steps between two changes.
        quantile: share of the members that counts as weak, and as strong.
        resample: chance that a setting is drawn anew instead of moved.
        factor: by which a setting is multiplied or divided.
    """

    kind: Literal["pbt"] = "pbt"
    population: int = Field(6, ge=2)
    interval: int = Field(40, ge=1)
    quantile: float = Field(0.25, gt=0, le=0.5)
    resample: float = Field(0.25, ge=0, le=1)
    factor: float = Field(1.25, gt=1)


class NoScheduler(Settings):
    """Every trial is fitted to its end."""

    kind: Literal["none"] = "none"


Scheduler = Annotated[
    Annotated[Asha | Hyperband | Pbt | NoScheduler, Field(discriminator="kind")],
    BeforeValidator(_named),
]


class TrialResources(Settings):
    """What each trial may use; GPUs count only where there are any, and trials may share one."""

    cpus: float = Field(1.0, gt=0)
    gpus: float = Field(0.0, ge=0)


class Goal(Settings):
    """What makes a trial good.

    Attributes:
        metric: one that a trial reports, see `docs/tune.md`; of a text learner, if nothing is said,
            the one by which `raysys text fit` chooses.
        direction: `max`, or `min` for costs and errors.
    """

    metric: str = NDCG_10
    direction: Literal["max", "min"] = "max"

    @property
    def sign(self) -> float:
        """Times a score, larger is better."""
        return 1.0 if self.direction == "max" else -1.0


class Plateau(Settings):
    """Ends a search that no longer finds anything.

    Attributes:
        trials: so many in a row without a better score.
        epsilon: what counts as better, in units of the metric.
    """

    trials: int = Field(ge=1)
    epsilon: float = Field(0.0, ge=0)


class Proxy(Settings):
    """A cheap stand-in on which settings are searched.

    Attributes:
        requests: fit on about so many, of a text task texts or pairs; null: all.
        validation_requests: judge on about so many; null: all.
        steps: share of the learner's steps (trees, batches, epochs).
    """

    requests: int | None = Field(None, ge=10)
    validation_requests: int | None = Field(None, ge=10)
    steps: float = Field(1.0, gt=0, le=1)


class Full(Settings):
    """Refits the best of the proxy on everything; the choice goes by these figures.

    Attributes:
        best: so many, and the learner's own settings beside them.
        minutes: wall clock at most.
    """

    best: int = Field(3, ge=1)
    minutes: float = Field(120, gt=0)


class WarmStart(Settings):
    """What to try first: the best settings of earlier searches. Their scores are not taken over.

    Attributes:
        files: `best.yaml`, or `trials.log`, of earlier searches; or their folders.
        best: of each journal, so many.
    """

    files: tuple[str, ...] = Field(min_length=1)
    best: int = Field(3, ge=1)


class DataSettings(Settings):
    """What of the training rows a fit reads: `data.…` of a space, and `data` of `best.yaml`.

    Attributes:
        negatives: at most so many candidates of a request that were not wanted; 0: all.
        window_days: requests of the last so many days alone; null: all.
    """

    negatives: int = Field(0, ge=0)
    window_days: float | None = Field(None, gt=0)


class TuneSettings(StageSettings):
    """The YAML of `raysys tune`.

    Attributes:
        name: of the search, and of its folder; the learner's name when empty.
        learner: whose settings are searched; `ensemble`: those by which base scores are combined.
        text: for a text learner: the outcome of `raysys text fit`, by its name in the workspace, on
            whose texts it is fitted and judged; null: for all others.
        settings: what is set but not searched.
        space: what is searched: ranges and choices by setting. `data.…` are settings of the rows
            that are fitted on, `features.…` those of `raysys features`.
        trials: how many in all; raise it to go on with a finished search.
        minutes: wall clock at most; running trials are cut off then.
        core_hours: of CPUs that trials held, at most; null: as much as it takes.
        gpu_hours: the same of GPUs.
        concurrent: trials side by side; null: as many as there is room for.
        resources: of each trial.
        searcher: who proposes: `tpe`, `random`, `grid` or `bohb`.
        scheduler: who is stopped early: `asha`, `hyperband`, `pbt` or `none`.
        objective: what makes a trial good.
        constraints: costs that the best must keep to: most of `latency_ms`, `size_mb`, `seconds`.
        plateau: ends a search that no longer finds anything.
        proxy: the cheap stand-in on which settings are searched; null: everything.
        full: refits the best of the proxy on everything; null: the proxy's figures decide.
        warm_start: settings to try first.
        compare_random: search at random too, with the same cost, for the report.
        checkpoint_steps: steps between two checkpoints of a trial; null: the scheduler's grace,
            or 50.
        retries: of a trial whose worker died, from its last checkpoint.
        logging: through Ray's callbacks: `tensorboard`, `mlflow`.
        mlflow_uri: where MLflow keeps runs; empty: in the search's folder.
        seed: of proposals and fits.
    """

    kind_name: ClassVar[str] = "tune"

    name: str = Field("", pattern=r"^[A-Za-z0-9_.-]*$")
    learner: str
    text: str | None = None
    settings: dict[str, Any] = {}
    space: Space = Field(min_length=1)
    trials: int = Field(24, ge=1, le=100_000)
    minutes: float = Field(60, gt=0)
    core_hours: float | None = Field(None, gt=0)
    gpu_hours: float | None = Field(None, gt=0)
    concurrent: int | None = Field(None, ge=1)
    resources: TrialResources = TrialResources()
    searcher: Searcher = Tpe()
    scheduler: Scheduler = Asha()
    objective: Goal = Goal()
    constraints: dict[str, float] = {}
    plateau: Plateau | None = None
    proxy: Proxy | None = None
    full: Full | None = None
    warm_start: WarmStart | None = None
    compare_random: bool = False
    checkpoint_steps: int | None = Field(None, ge=1)
    retries: int = Field(3, ge=0)
    logging: tuple[Literal["tensorboard", "mlflow"], ...] = ()
    mlflow_uri: str = ""
    seed: int = Field(17, ge=0)

    @property
    def folder_name(self) -> str:
        """Of this search below `workspace.tune`."""
        return self.name or self.learner

    @property
    def grace(self) -> int:
        """Steps after which, and between which, a trial tells its score; 0: never."""
        if isinstance(self.scheduler, Asha):
            return self.scheduler.grace
        return self.scheduler.interval if isinstance(self.scheduler, Pbt) else 0

    @property
    def every(self) -> int:
        """Steps between two checkpoints."""
        return self.checkpoint_steps or self.grace or 50

    @model_validator(mode="after")
    def _possible(self) -> TuneSettings:
        scheduler = self.scheduler
        if isinstance(scheduler, Pbt):
            if self.searcher != Tpe():
                raise ValueError("scheduler pbt proposes by itself: leave the searcher out")
            if self.trials % scheduler.population:
                raise ValueError(
                    f"trials: pbt needs a multiple of its population of {scheduler.population}"
                )
            if self.checkpoint_steps and scheduler.interval % self.checkpoint_steps:
                raise ValueError("checkpoint_steps: pbt's interval must be a multiple of it")
        if self.warm_start is not None and (
            isinstance(self.searcher, Grid) or isinstance(scheduler, Pbt)
        ):
            raise ValueError(
                "warm_start: a grid and a population begin by themselves; choose another searcher, "
                "or leave it out"
            )
        if isinstance(self.searcher, Bohb) and not isinstance(scheduler, Asha):
            raise ValueError("searcher bohb learns from rungs: choose scheduler hyperband or asha")
        if self.objective.direction == "min" and self.grace:
            raise ValueError(
                f"scheduler {scheduler.kind} stops trials by how good they are, which says nothing "
                f"of {self.objective.metric}: choose none"
            )
        return self
