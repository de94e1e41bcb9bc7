"""What the experiments of a deployment did so far: worked out behind the answers, and kept.

Figures come from the exposures of all replicas and the event log, so every replica says the same.
They are made when somebody looks and the last ones are too old; whoever looks gets the last ones.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from raysys.errors import UserError
from raysys.eventlog.entries import LogUnavailable
from raysys.experiments import Experiment
from raysys.experiments.drafting import BOTH
from raysys.experiments.event_sources import ANSWERING, COLUMNS, Columns, logged_events
from raysys.experiments.users import read_exposures, user_table
from raysys.serving.events import EventService
from raysys.serving.experiments import places_of
from raysys.serving.treatments import Served
from raysys.web import ArmFacts, ExperimentFacts, LiftFacts

if TYPE_CHECKING:
    from raysys.experiments.analysis import ExperimentAnalysis

log = logging.getLogger("raysys")

_FIRST_S = 3.0  # that somebody waits for figures of which there are none yet
_PAST = dt.timedelta(days=30)  # an experiment that ended longer ago is history


@dataclass(frozen=True)
class _Judged:
    """One experiment.

    Attributes:
        exposures: by arm.
        found: the analysis; None: there is none yet,
        why: for this reason.
        verdict: of the analysis, in sentences.
    """

    exposures: dict[str, int]
    found: ExperimentAnalysis | None = None
    why: str = ""
    verdict: tuple[str, ...] = ()


class ExperimentReports:
    """Analyses of the experiments that are served; safe to use from several threads.

    Args:
        served: gives those of this replica; None: there are none.
        exposures: folder of all replicas' exposures.
        events: gives what took the events in; None: the deployment takes none.
        now: gives UTC ms, by the deployment's clock.
        age_s: figures older than this are made anew.
    """

    def __init__(
        self,
        served: Callable[[], Served | None],
        exposures: Path,
        events: Callable[[], EventService | None],
        now: Callable[[], int],
        age_s: float,
    ) -> None:
        self._served, self._exposures, self._events = served, exposures, events
        self._now, self._age_s = now, age_s
        self._judged: dict[str, _Judged] = {}
        self._made: float | None = None  # time.monotonic()
        self._told = ""
        self._thread: threading.Thread | None = None
        self._lock, self._drawing = threading.Lock(), threading.Lock()

    def facts(self) -> list[ExperimentFacts]:
        """Those that run, are planned, or ended lately; waits for figures only the first time."""
        thread = self._refresh_if_due()
        if thread is not None and self._made is None:
            thread.join(_FIRST_S)
        now = self._moment()
        return [self._facts(each, now) for each in self._ours(now)]

    def report(self, name: str) -> str | None:
        """The whole report of an experiment as a page; None: there is nothing to report."""
        judged = self._judged.get(name)
        if judged is None or judged.found is None:
            return None
        try:
            from raysys.experiments.report import experiment_report  # it draws: a second to import
        except ModuleNotFoundError as error:
            log.warning("no report, %s is not installed here", error.name)
            return None
        with self._drawing:
            return experiment_report(judged.found).html()

    def refresh(self) -> None:
        """Work all figures out now."""
        judged = {}
        for each in self._ours(self._moment()):
            try:
                judged[each.name] = self._judge(each)
            except (UserError, LogUnavailable) as error:
                why = error.what if isinstance(error, UserError) else str(error)
                judged[each.name] = _Judged({}, why=why)
            except Exception as error:  # of one experiment; the others are told all the same
                log.exception("the experiment %s could not be analysed", each.name)
                judged[each.name] = _Judged({}, why=f"a fault: {error}")
        self._judged, self._made = judged, time.monotonic()
        self._told = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())

    def _refresh_if_due(self) -> threading.Thread | None:
        """The thread that works; None: what there is is new enough."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return self._thread
            if self._made is not None and time.monotonic() - self._made < self._age_s:
                return None
            self._thread = threading.Thread(target=self.refresh, name="experiments", daemon=True)
            self._thread.start()
            return self._thread

    def _ours(self, now: dt.datetime) -> list[Experiment]:
        served = self._served()
        if served is None:
            return []
        return [
            each
            for each in served.settings.experiments
            if places_of(each) and (each.end is None or now < each.end + _PAST)
        ]

    def _judge(self, experiment: Experiment) -> _Judged:
        served = self._served()
        if served is None or self._moment() < experiment.start:
            return _Judged({}, why="it has not begun")
        if not any(self._exposures.glob("date=*/[0-9]*.parquet")):
            return _Judged({}, why="nobody was shown an arm yet")
        exposures = read_exposures(self._exposures)
        counted = (
            exposures.filter(pl.col("experiment") == experiment.name)
            .group_by("arm")
            .agg(pl.len().alias("n"))
            .collect()
        )
        by_arm = {str(arm): int(n) for arm, n in counted.iter_rows()}
        if experiment.by_lists:
            return self._judge_lists(experiment, served, exposures, by_arm)
        frame = self._logged(COLUMNS)
        metrics = [served.settings.metric(name) for name in experiment.metrics]
        try:  # an image that only serves leaves out what only analyses need
            from raysys.experiments.analysis import analyse
            from raysys.experiments.verdict import verdict
        except ModuleNotFoundError as error:
            return _Judged(by_arm, why=_not_here(error))
        try:
            table = user_table(experiment, metrics, exposures, frame)
            found = analyse(experiment, served.settings, table)
        except UserError as error:
            return _Judged(by_arm, why=f"{error.what}: {error.mend}" if error.mend else error.what)
        return _Judged(by_arm, found, verdict=tuple(verdict(found)))

    def _logged(self, columns: Columns) -> pl.LazyFrame:
        events = self._events()
        if events is None:
            return pl.LazyFrame(schema=columns)
        return logged_events(events.rolled, events.log, columns)

    def _judge_lists(
        self,
        experiment: Experiment,
        served: Served,
        exposures: pl.LazyFrame,
        by_arm: dict[str, int],
    ) -> _Judged:
        """One that mixes arms within a user: what came of its lists."""
        metric = served.settings.metric(experiment.primary)
        answers = self._logged(ANSWERING)
        try:
            from raysys.experiments.arm_values import found_so_far, value_arms
            from raysys.experiments.interleaving import judge_interleaved
        except ModuleNotFoundError as error:
            return _Judged(by_arm, why=_not_here(error))
        try:
            if experiment.interleave:
                drafted = by_arm.get(BOTH, 0)
                by_arm = {arm.name: drafted for arm in experiment.arms}
                said = judge_interleaved(experiment, metric, exposures, answers).sentence
            else:
                said = found_so_far(value_arms(experiment, metric, exposures, answers))
        except UserError as error:
            return _Judged(by_arm, why=error.what)
        return _Judged(by_arm, verdict=(said,))

    def _facts(self, experiment: Experiment, now: dt.datetime) -> ExperimentFacts:
        judged = self._judged.get(experiment.name, _Judged({}, why="figures are being made"))
        served = self._served()
        bundles = {} if served is None else served.bundles.get(experiment.name, {})
        found = judged.found
        allocated = None if served is None else served.allocations.get(experiment.name)
        shares = [float(arm.share) for arm in experiment.arms]
        if allocated is not None:  # what the bandit gives now, of all eligible users
            shares = [float(experiment.total) * weight for weight in allocated.otherwise]
        ready = served is not None and experiment.name in served.ready
        state = (
            "planned" if now < experiment.start else "runs" if experiment.runs_at(now) else "over"
        )
        facts = ExperimentFacts(
            name=experiment.name,
            question=experiment.question,
            state=state if state != "runs" or ready else "waits",
            surfaces=", ".join(experiment.surfaces) or "all",
            metric=experiment.primary,
            arms=tuple(
                ArmFacts(
                    name=arm.name,
                    share=share,
                    bundle=bundles.get(arm.name, ""),
                    exposures=judged.exposures.get(arm.name, 0),
                    users=None if found is None else found.users.get(arm.name, 0),
                )
                for arm, share in zip(experiment.arms, shares, strict=True)
            ),
            verdict=judged.verdict or (f"Nothing to say yet: {judged.why}.",),
            made=self._told,
        )
        if found is None:
            return facts
        return replace(
            facts,
            verdict=judged.verdict,
            srm_p=found.srm_p,
            trusted=found.trusted,
            lifts=_lifts(found),
            has_report=True,
        )

    def _moment(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._now() / 1000, dt.UTC)


def _not_here(error: ModuleNotFoundError) -> str:
    return f"{error.name} is not installed here, use `raysys experiment analyse` elsewhere"


def _lifts(found: ExperimentAnalysis) -> tuple[LiftFacts, ...]:
    """The primary metric of each arm against the control; none where data are not to be trusted."""
    if not found.trusted:
        return ()
    told: Sequence[LiftFacts] = [
        LiftFacts(
            arm=each.arm,
            control=each.control.plain_mean,
            treatment=each.treatment.plain_mean,
            lift=each.relative.value,
            low=each.relative.low,
            high=each.relative.high,
            state=each.state,
        )
        for each in found.of("primary")
        if np.isfinite(each.relative.value)
    ]
    return tuple(told)
