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
import math
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
_PAUSE_S: Final = 60.0  # after a try, whatever came of it
_CLOSE_S: Final = 2.0
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
        self._step: dict[str, int] = {}  # the highest known: a new one is a new draw
        self._unread: set[Path] = set()  # files whose storage does not answer
        self._worker: threading.Thread | None = None
        self._trouble: dict[str, str] = {}
        self._tried: dict[str, float] = {}  # time.monotonic(), of the last try

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
        due = [one for one in bandits if self._is_time(one[0], found[one[0].name])]
        working = self._worker is not None and self._worker.is_alive()
        if due and events is not None and not working:
            self._worker = threading.Thread(
                target=self._weigh_all, args=(due, events, now), name="bandits", daemon=True
            )
            self._worker.start()
        return found

    def close(self) -> None:
        """Wait for what is being worked out, but not for long: whoever comes makes it again."""
        if self._worker is not None:
            self._worker.join(timeout=_CLOSE_S)

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
            if not _is_due(experiment, before) or self._place(experiment.name) in self._unread:
                return False
            answers = logged_events(events.rolled, events.log, ANSWERING)
            exposures = read_exposures(self._exposures)
            step = max(before.step, self._step.get(experiment.name, 0)) + 1
            found = allocate(experiment, metric, exposures, answers, now, step)
            content = asdict(found) | {
                "made": time.time_ns() // 1_000_000,  # what is due goes by the wall's clock
                "by_context": [[list(k), list(p)] for k, p in found.by_context.items()],
            }
            write_atomic(self._place(experiment.name), json.dumps(content) + "\n")
        return True

    def _weigh_all(self, due: Bandits, events: EventService, now: int) -> None:
        for experiment, metric in due:
            name = experiment.name
            self._tried[name] = time.monotonic()
            try:
                self.weigh(experiment, metric, events, now)
                self._trouble.pop(name, None)
            except (UserError, LogUnavailable, OSError) as error:
                self._say(name, f"the arms of {name} cannot be weighed now: {error}")
            except Exception:  # the weights of before go on
                log.exception("the arms of %s could not be weighed", name)

    def _say(self, of: str, what: str) -> None:
        """Warn, once."""
        if self._trouble.get(of) != what:
            log.warning("%s", what)
        self._trouble[of] = what

    def _is_time(self, experiment: Experiment, known: Allocation) -> bool:
        """Whether weights are too old, and the last try not too young: each reads all exposures."""
        assert experiment.bandit is not None
        pause = min(experiment.bandit.update_minutes * 60, _PAUSE_S)
        young = time.monotonic() - self._tried.get(experiment.name, -math.inf) < pause
        return not young and _is_due(experiment, known)

    def _read(self, experiment: Experiment) -> Allocation:
        """As the file says; what holds at the beginning where there is none, or a damaged one."""
        place = self._place(experiment.name)
        last = self._known.get(experiment.name)
        self._unread.discard(place)
        try:
            state = place.stat()
            stamp: object = (state.st_mtime_ns, state.st_size, state.st_ino)
            if last is not None and last[0] == stamp:
                return last[1]
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
        except OSError:  # storage does not answer: what it said goes on
            self._unread.add(place)
            return even(experiment) if last is None else last[1]
        except (ValueError, KeyError, TypeError) as error:
            self._say(place.name, f"{place} cannot be used, and is made anew: {error}")
            return even(experiment)
        self._known[experiment.name] = stamp, found
        self._step[experiment.name] = max(found.step, self._step.get(experiment.name, 0))
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
