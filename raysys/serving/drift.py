"""A replica's part in watching drift: counts a share of its answers, and has the figures of all.

An answer that is drawn leaves a reference to its features and scores in a bounded queue, and a
thread counts them into the bins of the bundle's reference. Every so often it writes its counts,
adds up those of all replicas, and so every replica tells the same figures.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from raysys.monitoring.drift import BRIEF, HOUR_MS, DriftFigures, compare
from raysys.monitoring.reference import ENSEMBLE, KINDS, Kind, Reference
from raysys.monitoring.settings import MonitorArgs
from raysys.monitoring.tally import Int64, Tally
from raysys.monitoring.windows import Stretch, Window, Windows, now_ms
from raysys.serving.asking import ABOUT_ITEMS, Ask, Ranking
from raysys.serving.metrics import Metrics
from raysys.storage import write_atomic

log = logging.getLogger("raysys")

_PART: Final = float(1 << 32)
_NOBODY_WAITS_S: Final = 30  # for a disk, when a replica ends
_NAMES_MOST: Final = 200  # series of one process, whatever comes and goes


@dataclass(frozen=True)
class _Answer:
    """What is counted of one."""

    ranking: Ranking
    who: str
    seed: int


class DriftWatch:
    """Counts answers; safe to use from several threads.

    Args:
        args: how much, how often.
        folder: absolute, of the windows.
        bundle: id of the bundle that answers.
        reference: of it.
        metrics: gets the gauges.
        arm: name that the bundle was chosen by, on every gauge.

    Attributes:
        figures: of the window as it was last looked at; None: nothing was counted yet.
        looked_at: UTC ms of that; 0: never.
    """

    def __init__(
        self,
        args: MonitorArgs,
        folder: Path,
        bundle: str,
        reference: Reference,
        metrics: Metrics,
        arm: str = "",
    ) -> None:
        self._args, self._bundle, self._reference = args, bundle, reference
        self._metrics, self._arm = metrics, arm
        self._folder, self._windows = folder, Windows(folder, bundle, reference)
        self._replica = uuid.uuid4().hex[:8]
        self._queue: queue.Queue[_Answer | None] = queue.Queue(args.max_waiting)
        self._began = self._bucket(now_ms())
        self._tally = Tally.empty(reference.grid.size)
        self._dirty = False
        self._named: dict[tuple[Kind, str], float | None] = {}
        self._looking = threading.Lock()
        self.figures: DriftFigures | None = None
        self.looked_at = 0
        self._gauges()
        self._thread = threading.Thread(target=self._run, name="drift", daemon=True)
        self._thread.start()

    def note(self, ask: Ask, ranking: Ranking, who: str | None) -> None:
        """Have an answer counted, if it is drawn and comparable; never waits.

        Comparable are lists whose candidates come about as those of the training did: of the
        bundle's surface, not beside an item or cart, and not out of a cache, which counted them
        when they were scored.

        Args:
            ask, ranking: of the answer.
            who: names who asked; None: a stranger.
        """
        if ranking.batch is None or ask.surface != self._reference.surface:
            return
        if ask.place in ABOUT_ITEMS:
            return
        seed = ask.seed
        if (seed & 0xFFFFFFFF) / _PART >= self._args.share:
            return
        try:
            self._queue.put_nowait(_Answer(ranking, who or ask.request_id, seed))
        except queue.Full:
            self._metrics.count("raysys_drift_answers", outcome="dropped")

    def stand_beside(self, arm: str | None = None) -> None:
        """Another bundle is the champion from now on, and tells what `raysys learn` reads.

        Args:
            arm: name on every gauge from now on; None: it stays, as this one ends soon.
        """
        with self._looking:
            self._args = self._args.model_copy(update={"beside": True})
            if arm is not None and arm != self._arm:
                self._arm, self._named = arm, {}
                self._gauges()

    def close(self) -> None:
        """Write what was counted, and end; not where the disk hangs for long."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_NOBODY_WAITS_S)
            self._thread.join(timeout=_NOBODY_WAITS_S)

    def _run(self) -> None:
        due = time.monotonic() + self._args.refresh_s
        while True:
            try:
                answer = self._queue.get(timeout=max(0.0, due - time.monotonic()))
                if answer is None:
                    break
                self._count(answer)
            except queue.Empty:
                pass
            except Exception:  # an answer is worth more than its count
                log.exception("an answer could not be counted for drift")
                self._metrics.count("raysys_drift_answers", outcome="failed")
            if time.monotonic() >= due:
                self._look()
                due = time.monotonic() + self._args.refresh_s
        self._look()

    def _count(self, answer: _Answer) -> None:
        now = self._bucket(now_ms())
        if now > self._began:
            self._write()
            self._began, self._tally = now, Tally.empty(self._reference.grid.size)
        rng = np.random.default_rng(answer.seed)
        counts, rows = counted(answer.ranking, self._reference, rng, self._args.rows)
        if rows:
            self._tally = self._tally.add(counts, rows, answer.who)
            self._dirty = True
            self._metrics.count("raysys_drift_answers", outcome="counted")

    def _bucket(self, now: int) -> int:
        length = round(self._args.bucket_minutes * 60_000)
        return now - now % length

    def _write(self) -> None:
        if not self._dirty:
            return
        ended = min(now_ms(), self._began + round(self._args.bucket_minutes * 60_000) - 1)
        stretch = Stretch(self._began, ended, self._replica, self._tally)
        try:
            self._windows.write(stretch)
            self._dirty = False
        except OSError as error:
            log.warning("counts for drift are not written: %s", error)

    def _look(self) -> None:
        with self._looking:
            self._look_alone()

    def _look_alone(self) -> None:
        """Write, add up what all replicas have, and tell."""
        try:
            self._write()
            now = now_ms()
            since = now - round(self._args.window_hours * HOUR_MS)
            window = self._windows.window(since)
            if window is None and self._tally.requests:  # nothing can be written
                window = Window(self._began, now, 1, self._tally)
            if window is not None:
                bundle, thresholds = self._bundle, self._args.thresholds
                self.figures = compare(bundle, self._reference, window, thresholds)
                self._name(self.figures)
                self._tell(self.figures)
            else:
                self.figures = None
                self._named = dict.fromkeys(self._named)
            self.looked_at = now
            self._windows.forget(now - round(self._args.keep_days * 24 * HOUR_MS))
        except Exception:  # the thread must not end
            log.exception("drift could not be looked at")

    def _tell(self, figures: DriftFigures) -> None:
        """Leave the figures where `raysys learn` and others find them; of the champion alone."""
        if not self._args.beside:
            try:
                write_atomic(self._folder / BRIEF, json.dumps(figures.brief()) + "\n")
            except OSError as error:
                log.warning("drift is not written down: %s", error)

    def _name(self, figures: DriftFigures) -> None:
        """Give those that moved furthest gauges; who once had one keeps it, so none goes stale."""
        for each in figures.moved[: self._args.named]:
            key = (each.kind, each.name)
            if key not in self._named and len(self._named) < _NAMES_MOST:
                self._named[key] = None
                self._gauge(
                    "raysys_drift_psi", partial(self._psi, key), kind=each.kind, variable=each.name
                )
        known = {(each.kind, each.name): each.psi for each in figures.moved}
        self._named = {key: known.get(key) for key in self._named}

    def _psi(self, key: tuple[Kind, str]) -> float | None:
        return self._named.get(key) if self._enough() else None

    def _enough(self) -> DriftFigures | None:
        figures = self.figures
        return figures if figures is not None and figures.enough else None

    def _gauges(self) -> None:
        def largest(kind: Kind) -> float | None:
            figures = self._enough()
            return None if figures is None else figures.psi_of(kind)

        def rise() -> float | None:
            figures = self._enough()
            return None if figures is None else figures.missing_rise

        def missing(feature: str) -> float | None:
            figures = self._enough()
            return None if figures is None else figures.missing_of(feature)

        def over() -> float | None:
            figures = self._enough()
            return None if figures is None else figures.share_over

        def drifted() -> float | None:
            figures = self._enough()
            return None if figures is None else float(figures.drifted)

        def requests() -> float:
            return 0.0 if self.figures is None else float(self.figures.window.tally.requests)

        for kind in KINDS:
            self._gauge("raysys_drift_psi_max", partial(largest, kind), kind=kind)
        self._gauge("raysys_drift_missing_rise_max", rise)
        features = [each.name for each in self._reference.variables if each.kind == "feature"]
        for name in features[:_NAMES_MOST]:
            self._gauge("raysys_drift_missing", partial(missing, name), variable=name)
        self._gauge("raysys_drift_features_over", over)
        self._gauge("raysys_drift", drifted)
        self._gauge("raysys_drift_window_answers", requests)

    def _gauge(self, name: str, read: Callable[[], float | None], **tags: str) -> None:
        arm = self._arm
        # those by a name that it has lost say nothing: another bundle has it
        self._metrics.gauge(name, lambda: read() if self._arm == arm else None, arm=arm, **tags)


def counted(
    ranking: Ranking, reference: Reference, rng: np.random.Generator, most: int
) -> tuple[Int64, int]:
    """Rows by bin of one answer's features and scores, int64[size]; and how many rows.

    Args:
        ranking: with its batch and what was scored.
        reference: whose bins.
        rng: draws the candidates.
        most: of them.
    """
    batch = ranking.batch
    assert batch is not None
    n = len(batch)
    grid = reference.grid
    if not n:
        return np.zeros(grid.size, np.int64), 0
    rows = np.arange(n) if n <= most else np.sort(rng.choice(n, most, replace=False))
    features = reference.which("feature", batch.names)
    place = {name: at for at, name in enumerate(batch.names)}
    scores = dict(ranking.base)
    if ranking.ensemble is not None:
        scores[ENSEMBLE] = ranking.ensemble.score
    said = reference.which("score", list(scores))
    columns = [batch.features[rows, place[name]] for name in features]
    columns += [np.asarray(scores[name], np.float32)[rows] for name in said]
    values = np.stack(columns, axis=1) if columns else np.empty((len(rows), 0), np.float32)
    infinite = ~np.isfinite(values[:, len(features) :])
    values[:, len(features) :][infinite] = np.nan
    return grid.count(values, [*features.values(), *said.values()]), len(rows)
