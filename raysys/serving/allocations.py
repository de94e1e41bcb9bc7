"""Weights of bandits' arms: one replica works them out, all draw by them.

    registry/serving/bandits/EXPERIMENT.json

They follow from the exposures of all replicas and the event log (`experiments.allocation`), so that
a file that is lost or damaged is made anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from raysys.errors import UserError
from raysys.eventlog.entries import LogUnavailable
from raysys.experiments import Experiment
from raysys.experiments.allocation import Allocation, allocate, even
from raysys.experiments.event_sources import ANSWERING, logged_events
from raysys.experiments.parts import Metric
from raysys.experiments.users import read_exposures
from raysys.storage import write_atomic

if TYPE_CHECKING:
    from raysys.serving.events import EventService

log = logging.getLogger("raysys")

FOLDER: Final = "serving/bandits"
Bandits = Sequence[tuple[Experiment, Metric]]


class Allocations:
    """The weights that a replica draws by; not safe to use from several threads.

    Args:
        registry: its root.
        exposures: folder of all replicas' exposures.
    """

    def __init__(self, registry: Path, exposures: Path) -> None:
        self._folder, self._exposures = registry / FOLDER, exposures
        self._known: dict[str, tuple[object, Allocation]] = {}
        self._worker: threading.Thread | None = None
        self._trouble: dict[str, str] = {}

    def look(
        self, bandits: Bandits, events: EventService | None, now: int
    ) -> dict[str, Allocation]:
        """The weights of some experiments; has them made anew behind it where it is time.

        Args:
            bandits: experiments and their primary metrics.
            events: gives what came of the lists; None: nobody knows it, and nothing is weighed.
            now: UTC ms by the deployment's clock, by which exposures are stamped.
        """
        found = {each.name: self._read(each) for each, _ in bandits}
        due = [one for one in bandits if _is_due(one[0], found[one[0].name])]
        working = self._worker is not None and self._worker.is_alive()
        if due and events is not None and not working:
            self._worker = threading.Thread(
                target=self._weigh_all, args=(due, events, now), name="bandits", daemon=True
            )
            self._worker.start()
        return found

    def close(self) -> None:
        """Wait for what is being worked out."""
        if self._worker is not None:
            self._worker.join()

    def weigh(self, experiment: Experiment, metric: Metric, events: EventService, now: int) -> bool:
        """Work the weights of one experiment out, unless somebody does; whether they are new.

        Raises:
            LogUnavailable: the log cannot be read.
            UserError: exposures cannot.
        """
        with self._alone(experiment.name) as mine:
            if not mine or not any(self._exposures.glob("date=*/[0-9]*.parquet")):
                return False
            before = self._read(experiment)
            if not _is_due(experiment, before):
                return False
            answers = logged_events(events.rolled, events.log, ANSWERING)
            exposures = read_exposures(self._exposures)
            found = allocate(experiment, metric, exposures, answers, now, before.step + 1)
            content = asdict(found) | {
                "made": time.time_ns() // 1_000_000,  # what is due goes by the wall's clock
                "by_context": [[list(k), list(p)] for k, p in found.by_context.items()],
            }
            write_atomic(self._place(experiment.name), json.dumps(content) + "\n")
        return True

    def _weigh_all(self, due: Bandits, events: EventService, now: int) -> None:
        for experiment, metric in due:
            name = experiment.name
            try:
                self.weigh(experiment, metric, events, now)
                self._trouble.pop(name, None)
            except (UserError, LogUnavailable, OSError) as error:
                if self._trouble.get(name) != str(error):  # said once
                    log.warning("the arms of %s cannot be weighed now: %s", name, error)
                self._trouble[name] = str(error)
            except Exception:  # the weights of before go on
                log.exception("the arms of %s could not be weighed", name)

    def _read(self, experiment: Experiment) -> Allocation:
        """As the file says; what holds at the beginning where there is none, or a damaged one."""
        place = self._place(experiment.name)
        try:
            state = place.stat()
            stamp: object = (state.st_mtime_ns, state.st_size, state.st_ino)
            known = self._known.get(experiment.name)
            if known is not None and known[0] == stamp:
                return known[1]
            content = json.loads(place.read_text(encoding="utf-8"))
            found = Allocation(
                step=int(content["step"]),
                made=int(content["made"]),
                context=tuple(content["context"]),
                otherwise=tuple(content["otherwise"]),
                by_context={tuple(key): tuple(p) for key, p in content["by_context"]},
                lists=tuple(content["lists"]),
                rewards=tuple(content["rewards"]),
            )
            if len(found.otherwise) != len(experiment.arms):
                raise ValueError("weights of other arms")
        except FileNotFoundError:
            return even(experiment)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be used, and is made anew: %s", place, error)
            return even(experiment)
        self._known[experiment.name] = stamp, found
        return found

    def _place(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[bool]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f".{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


def _is_due(experiment: Experiment, known: Allocation) -> bool:
    assert experiment.bandit is not None
    return time.time() - known.made / 1000 >= experiment.bandit.update_minutes * 60
